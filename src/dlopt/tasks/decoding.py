"""Prompts by category, for decoding with a small chat model: what a model is asked, and what it could copy from.

`translation`, `summaries`, `qa`, `math`, `retrieval` and `chat` are Spec-Bench's (the last: first turns of MT-bench,
without its questions on programs); `articles` are LLMA's summaries, `rewriting` the proofreading of one paragraph with
made-up misspellings, `code` instructions of Code Alpaca that come with an input. Passages are cut to `longest`
characters at the end of a sentence, since they are read by one core.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dlopt.tasks import data, suggest

LONGEST = 1500
SPEC_BENCH = {
    "translation": ("translation",),
    "summaries": ("summarization",),
    "qa": ("qa",),
    "math": ("math_reasoning",),
    "retrieval": ("rag",),
    "chat": ("writing", "roleplay", "reasoning", "stem", "humanities"),
}
CATEGORIES = (*SPEC_BENCH, "articles", "rewriting", "code")


@dataclass(frozen=True)
class Prompt:
    """text: the user's message. references: documents that an answer may repeat (the passage, the text to rewrite)."""

    text: str
    references: tuple[str, ...] = ()


def prompts(category: str, count: int, first: int = 0, longest: int = LONGEST) -> list[Prompt]:
    """`count` prompts of a category from number `first` on, always the same. ValueError where there are not so many."""
    if category not in CATEGORIES:
        raise ValueError(f"no category is called {category!r}{suggest(category, CATEGORIES)}; "
                         f"there are {', '.join(CATEGORIES)}")  # fmt: skip
    if count < 1 or first < 0 or longest < 200:
        raise ValueError(f"count must be at least 1, first 0 and longest 200, got {count}, {first}, {longest}")
    made = _MAKERS[category](longest) if category in _MAKERS else _spec_bench(category, longest)
    if first + count > len(made):
        raise ValueError(f"category {category} has {len(made)} prompts, not {first + count}")
    return made[first : first + count]


def identity(category: str) -> dict[str, str]:
    """{part: sha256} of the file that a category is read from."""
    return data.identity("code-alpaca" if category == "code" else
                         "llma-cnndm" if category in _MAKERS else "spec-bench")  # fmt: skip


def render(tokenizer: object, text: str) -> list[int]:
    """Token ids of a chat that begins with this message, up to where the answer starts."""
    message = [{"role": "user", "content": text}]
    found = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)  # type: ignore[attr-defined]
    return list(found["input_ids"])


def _spec_bench(category: str, longest: int) -> list[Prompt]:
    found = []
    for question in data.get("spec-bench"):
        if question.category in SPEC_BENCH[category]:
            text, references = question.turns[0], ()
            if category == "summaries":
                passage = shortened(text.removeprefix("Summarize:").strip(), longest)
                text, references = f"Summarize: {passage}", (passage,)
            elif category == "retrieval":  # passages, and the question in the last line
                passages, _, asked = text.strip().rpartition("\n")
                passage = shortened(passages.strip(), longest)
                text, references = f"{passage}\n{asked}", (passage,)
            found.append(Prompt(text, references))
    return found


def _articles(longest: int) -> list[Prompt]:
    passages = [shortened(article.text, longest) for article in data.get("llma-cnndm")]
    return [Prompt(f"Summarize the following text.\n\n{passage}", (passage,)) for passage in passages]


def _rewriting(longest: int) -> list[Prompt]:
    found = []
    for number, article in enumerate(data.get("llma-cnndm")):
        wrong = misspelt(shortened(article.text, min(longest, 500)), number)
        asked = "Correct the spelling mistakes in the following text. Answer with the corrected text only."
        found.append(Prompt(f"{asked}\n\n{wrong}", (wrong,)))
    return found


def _code(longest: int) -> list[Prompt]:
    rows = [row for row in data.get("code-alpaca") if row.input and len(row.output) >= 150 and len(row.input) < longest]
    return [Prompt(f"{row.instruction}\n\n{row.input}", (row.input,)) for row in rows]


_MAKERS: Mapping[str, Callable[[int], list[Prompt]]] = {"articles": _articles, "rewriting": _rewriting, "code": _code}


def shortened(text: str, longest: int) -> str:
    """The whole sentences at the beginning of a text that fit into `longest` characters (the bare cut if none does)."""
    if len(text) <= longest:
        return text
    ends = [found.end() for found in re.finditer(r"[.!?]['\"’”)]*(?=\s)", text[:longest])]
    return text[: ends[-1] if ends else longest]


def misspelt(text: str, seed: int, every: int = 8) -> str:
    """The text with two neighbouring letters exchanged inside about one in `every` of its longer words."""
    dice = random.Random(seed)

    def word(found: re.Match[str]) -> str:
        letters = found[0]
        at = dice.randrange(1, len(letters) - 2)
        if dice.randrange(every) or letters[at] == letters[at + 1]:
            return letters
        return letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :]

    return re.sub(r"\b[a-z]{5,}\b", word, text)
