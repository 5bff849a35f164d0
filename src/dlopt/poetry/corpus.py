"""A clean corpus of poems: editorial marks, duplicates and ragged lines out, split by poem; couplets as tensors."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dlopt.poetry.patterns import FORMS
from dlopt.poetry.script import HAN
from dlopt.poetry.vocabulary import Vocabulary

PARTS = ("train", "validation", "test")
OTHER = "其他"
_HALVES = re.compile(r"[，。？！；：]")
_QUIET = str.maketrans("", "", "、·「」『』“”‘’ 　\n")  # marks that change nothing of the text
# 囗 and 〇 are ideographs, but editions print them for a lost character
_PLAIN = re.compile(f"(?:(?![囗〇])[{HAN}]|[，。？！；：])*")


@dataclass(frozen=True)
class Poem:
    """One poem. couplets: pairs of half-lines of equal length, 5 or 7. form: a name of `FORMS`, or 其他."""

    id: str
    title: str
    author: str
    form: str
    couplets: tuple[tuple[str, str], ...]

    @cached_property
    def text(self) -> str:
        """All characters, without punctuation: what duplicates are found by, and the parts drawn by."""
        return "".join(a + b for a, b in self.couplets)

    @property
    def punctuated(self) -> str:
        """The poem as a model reads it: half-lines end in ， and 。 by turns."""
        return "".join(f"{a}，{b}。" for a, b in self.couplets)

    @property
    def lines(self) -> tuple[str, ...]:
        """All half-lines in order."""
        return tuple(line for pair in self.couplets for line in pair)


@dataclass(frozen=True)
class Summary:
    """What `prepare` did, in poems. marks to near: how many each rule left out, in this order."""

    read: int
    marks: int
    ragged: int
    unwanted: int
    duplicates: int
    near: int
    forms: Mapping[str, int]
    poems: Mapping[str, int]
    couplets: Mapping[str, int]

    @property
    def kept(self) -> int:
        """How many poems are left."""
        return sum(self.poems.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{p} {self.poems[p]:,} poems, {self.couplets[p]:,} couplets" for p in PARTS)
        forms = ", ".join(f"{name} {n:,}" for name, n in self.forms.items())
        return (
            f"{self.read:,} poems read; left out: {self.marks:,} with editorial marks, {self.ragged:,} with lines that "
            f"are not pairs of 5 or 7, {self.unwanted:,} of other forms, {self.duplicates:,} duplicates, {self.near:,} "
            f"that share a couplet with one before; {self.kept:,} kept ({forms}): {parts}"
        )


@dataclass(frozen=True)
class Corpus:
    """The poems that are left, in the order in which they came, and the summary."""

    poems: tuple[Poem, ...]
    summary: Summary

    def part(self, part: str) -> list[Poem]:
        """The poems of "train", "validation" or "test"."""
        return [poem for poem in self.poems if part_of(poem.text) == _known(part)]

    def couplets(self, part: str) -> list[tuple[str, str]]:
        """All couplets of the poems of a part. A poem is whole in one part, so none of its couplets leaks."""
        return [pair for poem in self.poems for pair in poem.couplets if part_of(poem.text) == _known(part)]


def prepare(records: Iterable[Mapping[str, Any]], forms: Iterable[str] | None = None) -> Corpus:
    """Clean records (`title`, `author`, `paragraphs`, and `id` if there is one) and split them by poem.

    1. Poems with anything but Chinese characters and plain punctuation are left out: （…）, 《…》, □, digits, letters.
    2. Every paragraph must be two half-lines of equal length, 5 or 7; poems with others are left out.
    3. `forms`, if given, keeps only these (names of `FORMS`, and 其他).
    4. Of poems with the same text without punctuation, the first stays (exact duplicates). A poem that has a whole
       couplet in common with one that stays is left out too (variants of it, and borrowed couplets): so no couplet
       of the test part is seen in training.
    5. A hash of the text without punctuation puts 90 % of the poems in train, 5 % in validation and 5 % in test. It
       depends on nothing else, so a larger corpus moves no poem.

    ValueError for an unknown form.
    """
    wanted = None if forms is None else set(forms)
    for name in wanted or ():
        if name not in FORMS and name != OTHER:
            raise ValueError(f"no form is called {name!r}; there are {', '.join(FORMS)}, {OTHER}")
    count: Counter[str] = Counter()
    kept: list[Poem] = []
    texts: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for record in records:
        count["read"] += 1
        poem, fault = _poem(record, count["read"])
        if poem is None:
            count[fault] += 1
        elif wanted is not None and poem.form not in wanted:
            count["unwanted"] += 1
        elif poem.text in texts:
            count["duplicates"] += 1
        elif not pairs.isdisjoint(poem.couplets):
            count["near"] += 1
        else:
            texts.add(poem.text)
            pairs.update(poem.couplets)
            kept.append(poem)
    return Corpus(tuple(kept), _summary(count, kept))


def part_of(text: str) -> str:
    """The part that a poem belongs to, by the blake2b hash of its text without punctuation."""
    hashed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % 100
    return "train" if hashed < 90 else "validation" if hashed < 95 else "test"


class Couplets(torch.utils.data.Dataset):
    """First halves and second halves as numbers, for a model that answers one with the other.

    source: int64 (n, longest): the first half, then pad. target: int64 (n, longest + 2): bos, the second half, eos,
    then pad. An item is (source, target). unknown: the share of characters that became unk.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], vocabulary: Vocabulary) -> None:
        found = [(vocabulary.encode(a), vocabulary.encode(b)) for a, b in pairs]
        if not found:
            raise ValueError("there are no couplets")
        longest = max(len(half) for pair in found for half in pair)
        self.source = torch.full((len(found), longest), vocabulary.pad, dtype=torch.int64)
        self.target = torch.full((len(found), longest + 2), vocabulary.pad, dtype=torch.int64)
        for row, (first, second) in enumerate(found):
            self.source[row, : len(first)] = torch.tensor(first)
            self.target[row, : len(second) + 2] = torch.tensor([vocabulary.bos, *second, vocabulary.eos])
        ids = [i for pair in found for half in pair for i in half]
        self.unknown = ids.count(vocabulary.unk) / len(ids)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.source[index], self.target[index]


def encode_poems(poems: Iterable[Poem], vocabulary: Vocabulary, length: int) -> Tensor:
    """int64 (n, length): bos, the token of the form, the punctuated poem, eos, then pad; for a decoder-only model.

    Poems of the form 其他 have no token of a form. Poems that are longer than `length` are left out.
    """
    rows = []
    for poem in poems:
        head = [vocabulary.bos] if poem.form == OTHER else [vocabulary.bos, vocabulary.id(f"<{poem.form}>")]
        ids = [*head, *vocabulary.encode(poem.punctuated), vocabulary.eos]
        if len(ids) <= length:
            rows.append(ids + [vocabulary.pad] * (length - len(ids)))
    if not rows:
        raise ValueError(f"no poem fits into {length} tokens")
    return torch.tensor(rows)


def _poem(record: Mapping[str, Any], number: int) -> tuple[Poem | None, str]:
    paragraphs = [str(p).translate(_QUIET) for p in record["paragraphs"]]
    if not all(_PLAIN.fullmatch(p) for p in paragraphs):
        return None, "marks"
    couplets = tuple(_couplets(paragraphs))
    if not couplets or any(len(p) != 2 or len(p[0]) != len(p[1]) or len(p[0]) not in (5, 7) for p in couplets):
        return None, "ragged"
    lengths = {len(half) for pair in couplets for half in pair}
    names = [f.name for f in FORMS.values() if lengths == {f.length} and f.lines == 2 * len(couplets)]
    form = names[0] if names else OTHER
    name = str(record.get("id", number))
    return Poem(name, str(record.get("title", "")), str(record.get("author", "")), form, couplets), ""  # type: ignore[arg-type]


def _couplets(paragraphs: list[str]) -> Iterator[tuple[str, ...]]:
    for paragraph in paragraphs:
        halves = tuple(half for half in _HALVES.split(paragraph) if half)
        if halves:
            yield halves


def _summary(count: Counter[str], kept: list[Poem]) -> Summary:
    poems = dict.fromkeys(PARTS, 0)
    couplets = dict.fromkeys(PARTS, 0)
    for poem in kept:
        part = part_of(poem.text)
        poems[part] += 1
        couplets[part] += len(poem.couplets)
    forms = dict(Counter(poem.form for poem in kept).most_common())
    rules = ("read", "marks", "ragged", "unwanted", "duplicates", "near")
    return Summary(**{rule: count[rule] for rule in rules}, forms=forms, poems=poems, couplets=couplets)


def _known(part: str) -> str:
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    return part
