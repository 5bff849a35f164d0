"""Orders by class: one class after another (the adverse case), or every class in every batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from dlopt.catalog import method
from dlopt.sampling.base import CHUNK, Resumable, generator, numbers, size_of, whole


def checked_labels(labels: Any, n: int, num_classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(labels as int64 (n,), examples per class); a ValueError with the value if a label is out of range."""
    if hasattr(labels, "detach"):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), one for each example, not {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, not {array.dtype} such as {array[0]!r}")
    classes = max(int(array.max()) + 1, 1) if num_classes is None else whole("num_classes", num_classes, 1)
    bad = np.flatnonzero((array < 0) | (array >= classes))
    if len(bad):
        raise ValueError(f"labels must be from 0 to {classes - 1}, but labels[{bad[0]}] is {array[bad[0]]}")
    return array.astype(np.int64), np.bincount(array, minlength=classes)


@method(
    "class-blocks",
    topic="sampling",
    kind="sampler",
    cite="bottou2009curiously",
    summary="all examples of one class, then all of the next; reshuffled inside each class",
)
class ClassBlocks(Resumable, Sampler[int]):
    """All examples of one class without replacement, then the next class: a permutation in every epoch.

    data_source: anything with a length n. labels: (n,) integers in [0, num_classes) (default: up to the largest);
    classes without examples are allowed. shuffle_classes: the order of the classes is drawn anew in each epoch
    (default: ascending). Inside a class the order is new in every epoch. tail: as in `FixedOrder`.

    The adverse order: successive gradients are as alike as they can be, the model forgets the class before, and
    BatchNorm's batch statistics are those of one class while its running ones mix all.

    >>> list(ClassBlocks(range(6), [1, 0, 1, 0, 1, 0]))
    [3, 5, 1, 4, 0, 2]
    """

    def __init__(
        self,
        data_source: Sized,
        labels: Any,
        *,
        num_classes: int | None = None,
        shuffle_classes: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: str = "keep",
    ) -> None:
        self._place(data_source, seed, rank, world_size, tail)
        self.labels, self.counts = checked_labels(labels, self.n, num_classes)
        self.shuffle_classes = shuffle_classes

    def _pieces(self, start: int) -> Iterator[Iterable[int]]:
        random = generator(self.seed, self.epoch)
        order = random.permutation(self.n)
        place = np.arange(len(self.counts))
        if self.shuffle_classes:
            place = random.permutation(place)
        yield numbers(self._own(order[np.argsort(place[self.labels[order]], kind="stable")])[start:])


@method(
    "class-balanced",
    topic="sampling",
    kind="sampler",
    cite="bottou2009curiously",
    summary="classes in turn, so that every batch holds every class equally often",
)
class ClassBalanced(Resumable, Sampler[Any]):
    """Classes take turns: any C consecutive samples of a rank hold each of the C classes with examples once.

    So every batch of B >= C samples holds every class, B/C times where C divides B, whatever B is. Each class is
    gone through in a random order, which starts anew when it is exhausted: an epoch of n samples repeats the
    examples of small classes and leaves out some of large ones (others in each epoch). Where all classes are
    equally large it is a permutation.

    data_source: anything with a length n. labels, num_classes: as in `ClassBlocks`. correct: without it, the mean
    loss is that of a data set in which all classes are equally large, **another objective** than the data's own;
    with it, the sampler yields pairs (index, w), w = C n_c / n for class c, which make the mean gradient the
    data's own again. batch_size: give it to have B >= C checked. tail: as in `FixedOrder`; ranks take rounds of
    C samples in turn.

    >>> list(ClassBalanced(range(6), [0, 0, 0, 0, 1, 1], correct=True))[:2]
    [(4, 0.6666666666666666), (1, 1.3333333333333333)]
    """

    def __init__(
        self,
        data_source: Sized,
        labels: Any,
        *,
        num_classes: int | None = None,
        correct: bool = False,
        batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: str = "keep",
    ) -> None:
        self.labels, self.counts = checked_labels(labels, size_of(data_source), num_classes)
        self.present = np.flatnonzero(self.counts)
        self.block = len(self.present)
        if batch_size is not None and whole("batch_size", batch_size, 1) < self.block:
            raise ValueError(f"a batch of {batch_size} cannot hold each of {self.block} classes; raise batch_size")
        self._place(data_source, seed, rank, world_size, tail)
        self.weighted = correct

    def _pieces(self, start: int) -> Iterator[Iterable[Any]]:
        own = self._own(self._sequence())
        if not self.weighted:
            yield numbers(own[start:])
            return
        weights = self.counts * (self.block / self.n)
        for at in range(start, len(own), CHUNK):
            piece = own[at : at + CHUNK]
            yield zip(numbers(piece), numbers(weights[self.labels[piece]]))

    def _sequence(self) -> np.ndarray:
        random = generator(self.seed, self.epoch)
        order = np.empty(self.total, dtype=np.int64)
        members = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(self.counts)[:-1])
        # which classes get the samples of an unfinished last round is left to chance, so that none is favoured
        for turn, label in enumerate(random.permutation(self.present)):
            wanted = len(range(turn, self.total, self.block))
            rounds = -(-wanted // self.counts[label])
            gone_through = [random.permutation(members[label]) for _ in range(rounds)]
            if rounds:
                order[turn :: self.block] = np.concatenate(gone_through)[:wanted]
        return order
