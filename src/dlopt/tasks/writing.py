"""What is asked of a model that writes: to summarise or to repeat a passage of a book; and how two texts compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dlopt.tasks.data.batches import generator
from dlopt.tasks.packing import encode
from dlopt.tasks.passages import passage

REQUESTS = {
    "summary": "Summarize the following text in a few sentences.\n\n{text}",
    "copy": "Repeat the following text exactly, word for word.\n\n{text}",
}


def request(kind: str, source: str, number: int, tokens: int, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(tokens of the prompt, tokens of the passage). Passages of `tokens` tokens stand apart in the first book.

    A tokenizer with a chat template frames the request; for another it is followed by an empty line.
    """
    if kind not in REQUESTS:
        raise ValueError(f"a request is one of {', '.join(REQUESTS)}, not {kind!r}")
    place = int(torch.randint(3, (1,), generator=generator(number, "writing", 0))) + 3 * number
    text_ids = passage(source, 0, (place + 1) * tokens, tokenizer)[-tokens:].tolist()
    text = tokenizer.decode(text_ids).strip()
    asked = REQUESTS[kind].format(text=text)
    if getattr(tokenizer, "chat_template", None):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
        )
    else:
        asked += "\n\n"
    return encode(tokenizer, asked), encode(tokenizer, text)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """ROUGE-L of two texts: twice their longest common subsequence over both lengths; 1 for two empty ones."""
    return 2 * common(a, b) / (len(a) + len(b)) if a or b else 1.0


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that stood in the text before; 0 for a text without n-grams."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
