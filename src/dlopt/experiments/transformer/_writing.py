"""Whole poems: written free or under rules, and judged by the checker and by the mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlopt.poetry.checker import KINDS, check
from dlopt.poetry.constrained import ProsodyConstraint
from dlopt.poetry.patterns import find_form
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import PUNCTUATION, SPECIALS, Vocabulary
from dlopt.transformer.decoding import generate

CHUNK = 200  # poems that are written side by side


@dataclass(frozen=True)
class Writer:
    """The model with what is made from its vocabulary."""

    model: Any
    vocabulary: Vocabulary
    tables: Tables


def write(made: Writer, rows: Tensor, steps: int, rules: ProsodyConstraint | None, draws: torch.Generator) -> Any:
    common = {"eos": made.vocabulary.eos, "pad": made.vocabulary.pad}
    return generate(made.model, rows, steps, processors=[rules] if rules else [], generator=draws, **common)


def chunks(count: int) -> Iterator[int]:
    for start in range(0, count, CHUNK):
        yield min(CHUNK, count - start)


def wide(rows: Tensor, width: int, value: float = 0) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def members(rules: ProsodyConstraint, tokens: Tensor) -> Tensor:
    """(b,): which whole rows (b, start + n) every mask of `rules` would have let pass."""
    alive = torch.arange(len(tokens))
    for i in range(rules.start, rules.start + rules.length):
        if not len(alive):
            break
        allowed = rules.allowed(tokens[alive, :i])
        alive = alive[allowed[torch.arange(len(alive)), tokens[alive, i]]]
    found = torch.zeros(len(tokens), dtype=torch.bool)
    found[alive] = True
    return found


def text_of(vocabulary: Vocabulary, tokens: Sequence[int]) -> str:
    """Characters and punctuation up to eos; what is neither as □."""
    found = ""
    for token in tokens:
        if token in (vocabulary.eos, vocabulary.pad):
            break
        found += vocabulary.tokens[token] if token >= len(SPECIALS) else "□"
    return found


def faults(text: str, form: str, mode: str = "lenient") -> list[str]:
    """Kinds of the faults of a poem; 字数 for whatever has not the form's lines, 未收字 for an unknown character."""
    size = find_form(form)
    lines = [line for line in text.replace(PUNCTUATION[1], PUNCTUATION[0]).split(PUNCTUATION[0]) if line]
    if len(lines) != size.lines or any(len(line) != size.length for line in lines):
        return ["字数"]
    if "□" in text:
        return ["未收字"]
    return [fault.kind for fault in check(lines, form, mode=mode, script="traditional").faults]


def judge(texts: Sequence[str], form: str, prefix_: str) -> dict[str, Any]:
    """Shares of poems that are regular, in both modes, that repeat a character, and that have each fault."""
    kinds: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for text in texts:
        found = faults(text, form)
        kinds.update(set(found))
        right["lenient"] += not found
        right["strict"] += not faults(text, form, "strict")
        chars = [c for c in text if c not in PUNCTUATION]
        right["unlike"] += len(set(chars)) == len(chars)
    n = max(1, len(texts))
    result: dict[str, Any] = {f"{prefix_}.{name}": right[name] / n for name in ("lenient", "strict", "unlike")}
    result |= {f"{prefix_}.fault.{kind}": kinds[kind] / n for kind in KINDS}
    return result | {f"{prefix_}.count": len(texts), f"{prefix_}.right": right["lenient"]}


def either(made: Writer, texts: Sequence[str]) -> float | None:
    """The share of characters that can be read level and oblique: the checker takes them either way."""
    known = [t for text in texts for t in made.vocabulary.encode(text) if t in made.tables.tones]
    return sum(len(made.tables.tones[t]) == 2 for t in known) / len(known) if known else None


def told(text: str, form: str) -> str:
    """What is wrong, in the checker's words, at most three of them."""
    kinds = faults(text, form)
    if not kinds:
        return "合律"
    if set(kinds) <= {"字数", "未收字"}:
        return "、".join(dict.fromkeys(kinds))
    lines = [line for line in text.replace(PUNCTUATION[1], PUNCTUATION[0]).split(PUNCTUATION[0]) if line]
    said = [fault.message for fault in check(lines, form, script="traditional").faults]
    return "；".join(said[:3]) + (f"；等 {len(said)} 处" if len(said) > 3 else "")
