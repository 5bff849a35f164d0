"""A passkey hidden in repeated, irrelevant sentences: can a cache still look up what it read long ago?

The text is the usual one (Mohtashami and Jaggi 2023): a line that announces the task, sentences about grass and sky,
one line with five digits at the wanted depth, more of the sentences, and a question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dlopt.tasks.data.batches import generator
from dlopt.tasks.packing import encode

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about "
    "the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
LINE = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


@dataclass(frozen=True)
class Passkey:
    """body: tokens of the text. question: tokens of the question behind it. key: the digits that should follow.
    answer: their tokens, with the space before them."""

    body: tuple[int, ...]
    question: tuple[int, ...]
    key: str
    answer: tuple[int, ...]


def passkey(tokenizer: Any, length: int, depth: float, seed: int) -> Passkey:
    """A text of at most `length` tokens, question included, with the key at `depth` of its sentences (0 the first).

    The seed draws the key alone. ValueError for a depth outside 0 to 1, or a length that holds no filler.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must be between 0 and 1, got {depth}")
    key = str(int(torch.randint(10000, 100000, (1,), generator=generator(seed, "passkey", 0))))
    question = encode(tokenizer, QUESTION)
    parts = [encode(tokenizer, part) for part in (INTRODUCTION, LINE.format(key=key), FILLER)]
    introduction, line, filler = parts
    count = (length - len(introduction) - len(line) - len(question)) // len(filler)
    if count < 1:
        need = len(introduction) + len(line) + len(question) + len(filler)
        raise ValueError(f"a passkey text has at least {need} tokens here, so length must not be {length}")
    before = round(depth * count)
    body = introduction + filler * before + line + filler * (count - before)
    answer = encode(tokenizer, f"{QUESTION} {key}")[len(question) :]
    return Passkey(tuple(body), tuple(question), key, tuple(answer))


def found(text: str, key: str) -> tuple[bool, float]:
    """(whether a generated text begins with the key, share of its digits that are right up to the first wrong one)."""
    text = text.strip()
    right = 0
    for ours, theirs in zip(text, key):
        if ours != theirs:
            break
        right += 1
    return text.startswith(key), right / len(key)
