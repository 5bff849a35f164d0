"""OpenBookQA for a causal language model and any cache: prompts, and the rules of lm-evaluation-harness.

A prompt ends with the stem; the four continuations are " " + choice. With log p_c the sum of log-probabilities of the
tokens of choice c after the prompt, and n_c its length in characters, without the space::

    acc       the likeliest choice,      argmax log p_c
    acc_norm  by length,                 argmax log p_c / n_c

As in the harness, tokens of a continuation are those of the whole text beyond the tokens of the prompt, and spaces at
the end of a prompt belong to the continuation. Shots are "stem answer", joined by empty lines, of the first questions
of the training part, in their order.

Prefixes are shared by all questions: "shots:24", or "book:1024", which is facts of the book in an order of their own,
then 8 shots, of as many facts as 1,024 tokens hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlopt.tasks.data.batches import generator
from dlopt.tasks.data.openbookqa import OpenBook, Question
from dlopt.tasks.packing import encode

BREAK = "\n\n"
BOOK_SHOTS = 8


@dataclass(frozen=True)
class Encoded:
    """Tokens of one question. stem. choices: tokens of each continuation. lengths: of the choices in characters.
    answer: number of the right one. covered: whether the prefix holds the fact that the question is about."""

    stem: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    answer: int
    covered: bool = False

    @property
    def gold(self) -> tuple[int, ...]:
        """The tokens of the right choice."""
        return self.choices[self.answer]


@dataclass(frozen=True)
class Prefix:
    """text: what all prompts begin with ("" or ending in an empty line). tokens: of it. facts: those in it."""

    text: str
    tokens: tuple[int, ...]
    facts: frozenset[str] = frozenset()


def parse(name: str) -> tuple[str, int]:
    """("zero", 0), ("shots", n) or ("book", tokens) of a prefix's name; a ValueError says what there is."""
    kind, _, number = name.partition(":")
    if name == "zero":
        return "zero", 0
    if kind not in ("shots", "book") or not number.isdecimal() or not int(number):
        raise ValueError(f'a prefix is "zero", "shots:NUMBER" or "book:TOKENS", not {name!r}')
    return kind, int(number)


def prefix(name: str, book: OpenBook, tokenizer: Any) -> Prefix:
    """The prefix of that name. ValueError if the training part is too short, or no fact fits."""
    kind, number = parse(name)
    if kind == "zero":
        return Prefix("", ())
    shots = number if kind == "shots" else min(BOOK_SHOTS, len(book.parts["train"]))
    if shots > len(book.parts["train"]):
        raise ValueError(f"there are {len(book.parts['train'])} questions to make {shots} shots of")
    tail = "".join(shot(question) + BREAK for question in book.parts["train"][:shots])
    if kind == "shots":
        return Prefix(tail, tuple(_tokens_before(tail, tokenizer)))
    order = torch.randperm(len(book.facts), generator=generator(0, "book", 0)).tolist()
    facts: list[str] = []
    found = None
    for row in order:
        facts.append(book.facts[row])
        text = "".join(f"{fact}.\n" for fact in facts) + "\n" + tail
        tokens = tuple(_tokens_before(text, tokenizer))
        if len(tokens) > number:
            break
        found = Prefix(text, tokens, frozenset(facts))
    if found is None:
        raise ValueError(f"{shots} shots and one fact have more than the {number} tokens of {name}")
    return found


def shot(question: Question) -> str:
    """A question with its answer."""
    return f"{question.stem} {question.choices[question.answer]}"


def encoded(question: Question, before: Prefix, tokenizer: Any) -> Encoded:
    """The tokens of a question behind a prefix.

    ValueError if the prefix's last tokens would not be those of the prefix alone: then it could not be shared.
    """
    # tokenizers do not look far back: that the stem leaves the tokens before it alone is checked on the last shot
    last = before.text.rstrip("\n").rsplit("\n", 1)[-1] + BREAK if before.text else ""
    start = _tokens_before(last, tokenizer)
    stem, parts = None, []
    for choice in question.choices:
        head, tail = pair(last + question.stem, f" {choice}", tokenizer)
        if head[: len(start)] != start:
            raise ValueError(f"the stem {question.stem!r} changes the tokens of the prefix before it")
        if stem not in (None, head):
            raise ValueError(f"the choices of {question.stem!r} change the tokens of the stem")
        stem = head
        parts.append(tuple(tail))
    return Encoded(
        stem=tuple((stem or [])[len(start) :]),
        choices=tuple(parts),
        lengths=tuple(map(len, question.choices)),
        answer=question.answer,
        covered=question.fact in before.facts,
    )


def pair(context: str, continuation: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of a context and of its continuation, as lm-evaluation-harness cuts them."""
    spaces = len(context) - len(context.rstrip(" "))
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole = encode(tokenizer, context + continuation)
    count = len(encode(tokenizer, context))
    return whole[:count], whole[count:]


def _tokens_before(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that another sentence follows: an empty line at the very end may be cut otherwise."""
    if not text:
        return []
    after = encode(tokenizer, "The")
    if after[0] == getattr(tokenizer, "bos_token_id", None):
        after = after[1:]
    whole = encode(tokenizer, text + "The")
    if whole[-len(after) :] != after:
        raise ValueError("the tokens of a prefix depend on what follows it, so it cannot be shared")
    return whole[: -len(after)]


def chosen(loglikelihoods: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """Number of the likeliest choice; by length in characters if `lengths` are given. The first of equal ones."""
    scores = [ll / n for ll, n in zip(loglikelihoods, lengths)] if lengths else list(loglikelihoods)
    return max(range(len(scores)), key=lambda c: (scores[c], -c))


def accuracies(questions: Sequence[Encoded], loglikelihoods: Sequence[Sequence[float]]) -> dict[str, Any]:
    """{accuracy, accuracy_norm, correct, correct_norm}; the last two are strings of 0 and 1, for paired tests."""
    plain = [chosen(lls) == q.answer for q, lls in zip(questions, loglikelihoods, strict=True)]
    norm = [chosen(lls, q.lengths) == q.answer for q, lls in zip(questions, loglikelihoods, strict=True)]
    found: dict[str, Any] = {}
    for name, right in (("accuracy", plain), ("accuracy_norm", norm)):
        found[name] = sum(right) / len(right)
        found[name.replace("accuracy", "correct")] = "".join("1" if r else "0" for r in right)
    return found
