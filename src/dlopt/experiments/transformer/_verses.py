"""Whole poems of every form, and couplets of them, in batches of tokens: what the assistant's model learns from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlopt.poetry.corpus import Poem, Summary, prepare
from dlopt.poetry.layout import clean_title, encode
from dlopt.poetry.patterns import FORMS
from dlopt.poetry.sample import fingerprint, sample_poems
from dlopt.poetry.vocabulary import PUNCTUATION, Vocabulary
from dlopt.tasks import data
from dlopt.tasks.data.batches import generator
from dlopt.tasks.data.files import locate

SOURCES: dict[str, tuple[str, ...]] = {"tang": ("tang-poems",), "tang+song": ("tang-poems", "song-poems"), "sample": ()}
WHOLE = ("五绝", "七绝", "五律", "七律")
COUPLETS = 4  # one couplet is learned by itself for so many poems of eight lines
FAVOURED = (0, 1, 1, 2, 2, 3)  # the parallel couplets in the middle twice as often


@dataclass(frozen=True)
class Verses:
    """One corpus for one vocabulary. poems: {part: {form: [(title, lines)]}}, with titles as the model reads them."""

    vocabulary: Vocabulary
    summary: Summary
    poems: Mapping[str, Mapping[str, Sequence[tuple[str, tuple[str, ...]]]]]


def identity(source: str) -> dict[str, str]:
    """{file: sha256} of a source; a ValueError if there is none of that name."""
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return {k: v for name in SOURCES[source] for k, v in data.identity(name).items()} or fingerprint()


def ready(source: str) -> None:
    """Raise `DataUnavailable` if a source is not on this machine."""
    for name in SOURCES[source]:
        spec = data.find(name)
        locate(spec.name, spec.files, spec.help)


@lru_cache(maxsize=1)
def read(source: str, min_count: int) -> Verses:
    """Clean, split and index a source. Characters that the train part holds less than min_count times are unknown."""
    records: Iterable[Mapping[str, Any]] = (r for name in SOURCES[source] for r in data.get(name))
    corpus = prepare(records if SOURCES[source] else sample_poems(), WHOLE)
    train = corpus.part("train")
    vocabulary = Vocabulary.build((text for p in train for text in (p.text, clean_title(p.title))), min_count)
    parts = {"train": train, "validation": corpus.part("validation"), "test": corpus.part("test")}
    return Verses(vocabulary, corpus.summary, {part: _by_form(poems) for part, poems in parts.items()})


def _by_form(poems: Iterable[Poem]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {form: [] for form in WHOLE}
    for poem in poems:
        found[poem.form].append((clean_title(poem.title), poem.lines))
    return found


class VerseBatches:
    """Endless batches of int64 rows (b, t), poems of one form in each, of about `tokens` tokens.

    Every epoch takes each poem once, in an order of its own, and one couplet of every fourth 律诗. A poem that has a
    title is read with it in every other draw. State: how many batches were used.
    """

    def __init__(self, verses: Verses, tokens: int, seed: int) -> None:
        self.vocabulary, self.seed, self.position = verses.vocabulary, seed, 0
        self.poems = verses.poems["train"]
        self.rows = {f: max(1, tokens // (3 + FORMS[f].size + FORMS[f].lines)) for f in FORMS}
        self._plan: tuple[int, list[tuple[str, Tensor]]] = (-1, [])
        self.per_epoch = len(self._epoch(0))

    def batch(self, number: int) -> Tensor:
        """Batch `number`, counted from 0 over all epochs."""
        epoch, within = divmod(number, self.per_epoch)
        form, chosen = self._epoch(epoch)[within]
        draw = generator(self.seed, "rows", number)
        coins = torch.randint(2, (len(chosen),), generator=draw).tolist()
        places = torch.randint(len(FAVOURED), (len(chosen),), generator=draw).tolist()
        rows = []
        for index, coin, place in zip(chosen.tolist(), coins, places):
            if form in WHOLE:
                title, lines = self.poems[form][index]
                rows.append(encode(self.vocabulary, form, lines, title if coin else ""))
            else:
                _, lines = self.poems[_long(form)][index]
                at = 2 * FAVOURED[place]
                rows.append(encode(self.vocabulary, form, lines[at : at + 2]))
        return padded(rows, self.vocabulary.pad)

    def _epoch(self, epoch: int) -> list[tuple[str, Tensor]]:
        if self._plan[0] != epoch:
            draw = generator(self.seed, "order", epoch)
            found: list[tuple[str, Tensor]] = []
            for form in FORMS:
                count = len(self.poems[form if form in WHOLE else _long(form)])
                order = torch.randperm(count, generator=draw)
                order = order if form in WHOLE else order[: count // COUPLETS]
                found += [(form, part) for part in order.split(self.rows[form])]
            self._plan = epoch, [found[i] for i in torch.randperm(len(found), generator=draw).tolist()]
        return self._plan[1]

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        found = self.batch(self.position)
        self.position += 1
        return found

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where to go on, and what the batches are made of."""
        position = self.position if consumed is None else consumed
        return {"position": position, "seed": self.seed, "per_epoch": self.per_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. ValueError if it is of other batches."""
        if (state["seed"], state["per_epoch"]) != (self.seed, self.per_epoch):
            raise ValueError(f"this state is of other batches: {state}, here {self.state_dict()}")
        self.position = int(state["position"])


def _long(form: str) -> str:
    return "五律" if FORMS[form].length == 5 else "七律"


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Rows of different lengths as one tensor, padded on the right."""
    found = torch.full((len(rows), max(map(len, rows))), pad)
    for row, ids in enumerate(rows):
        found[row, : len(ids)] = torch.tensor(ids)
    return found


def targets(rows: Tensor, vocabulary: Vocabulary) -> Tensor:
    """What follows each token, (b, t - 1): pad where it is not learned, that is up to <sep> and after eos."""
    given = (rows == vocabulary.sep).cumsum(1) == 0  # True before <sep>
    return rows[:, 1:].masked_fill(given[:, :-1], vocabulary.pad)


def characters(goal: Tensor, vocabulary: Vocabulary) -> Tensor:
    """bool: targets that are characters of the poem, known or not; marks and eos are left to the layout."""
    marks = torch.tensor([vocabulary.pad, vocabulary.eos, *map(vocabulary.id, PUNCTUATION)])
    return ~torch.isin(goal, marks)
