"""What all samplers share: checked arguments, keyed random numbers, shards of ranks, and the place in an epoch.

An epoch is one global sequence of `total` positions, the same on every rank. Rank r of W takes every W-th block of
`block` positions (block = 1 for all samplers but `ClassBalanced`), so W ranks with batches of B see together what
one rank sees in batches of W B. Every random number is keyed by (seed, epoch, ...): nothing has to be replayed to
resume, and a new process needs only the few integers of `state_dict`.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

CHUNK = 1 << 16  # independent draws made at a time: small enough for the cache
TAILS = ("keep", "drop", "repeat")


def whole(name: str, value: Any, low: int = 0, high: int | None = None) -> int:
    """`value` as an int in [low, high); a ValueError with the value if it is not one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be an integer, not {value!r}")
    if number < low or (high is not None and number >= high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high - 1}"
        raise ValueError(f"{name} must be {bounds}, not {number}")
    return number


def fraction(name: str, value: float) -> float:
    """`value` as a float in [0, 1]."""
    if not 0 <= value <= 1:  # False for NaN, too
        raise ValueError(f"{name} must be from 0 to 1, not {value!r}")
    return float(value)


def size_of(data_source: Any) -> int:
    """len(data_source), refused if 0."""
    n = len(data_source)
    if n == 0:
        raise ValueError("the data source is empty (n = 0): there is nothing to sample from")
    return n


def nonnegative(name: str, values: Any, count: int) -> np.ndarray:
    """`values` as float64 (count,): finite and at least 0, or a ValueError that names the first bad one."""
    if hasattr(values, "detach"):
        values = values.detach().to("cpu").double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), not {array.shape}")
    bad = np.flatnonzero(~((array >= 0) & (array < np.inf)))
    if len(bad):
        raise ValueError(f"{name} must be finite and at least 0, but {name}[{bad[0]}] is {array[bad[0]]}")
    return array


def generator(*key: int) -> np.random.Generator:
    """The random numbers that belong to a key of non-negative integers, such as (seed, epoch)."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


class Resumable:
    """The part of a sampler that knows where it is: epoch, shard, and how much of the epoch is used.

    A class that uses it calls `_place` in its constructor and implements `_pieces(start)`: iterables of samples,
    piece by piece, from the rank's own position `start` of epoch `self.epoch` on.
    """

    weighted = False  # True: yields (index, weight) pairs, to be unpacked by `Weighted`
    block = 1  # positions that stay together on one rank
    # each sampler's own: its samples from own position `start` of epoch `self.epoch` on, piece by piece
    _pieces: Callable[[int], Iterator[Iterable[Any]]]
    renewed = "order"  # what is new in each epoch; "" where nothing is keyed by the epoch

    def _place(self, data_source: Any, seed: int, rank: int, world_size: int, tail: str, total: int | None = None):
        self.n = size_of(data_source)
        self.seed = whole("seed", seed)
        self.world_size = whole("world_size", world_size, 1)
        self.rank = whole("rank", rank, 0, self.world_size)
        if tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, not {tail!r}")
        self.num_samples = self.n if total is None else whole("num_samples", total, 1)
        self.total = self.num_samples
        round_ = self.world_size * self.block
        if tail == "drop" and self.world_size > 1:
            self.total -= self.total % round_
        elif tail == "repeat" and self.world_size > 1:
            self.total += -self.total % round_
        self.epoch = 0
        self.consumed = 0  # own samples of this epoch that were used before the next iteration begins
        self._begun = False

    def __len__(self) -> int:
        """Samples of this rank in one whole epoch (also just after a resume)."""
        blocks, rest = divmod(self.total, self.block)
        own = len(range(self.rank, blocks, self.world_size)) * self.block
        return own + (rest if blocks % self.world_size == self.rank else 0)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch that the next iteration belongs to. Naming the resumed one again keeps the place in it."""
        epoch = whole("epoch", epoch)
        if epoch != self.epoch or self._begun:
            self._restart()
            self.epoch, self.consumed, self._begun = epoch, 0, False

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """The state after `consumed` samples of this rank, counted from the start of the epoch, were really used.

        The number is asked for because only the training loop knows it: workers fetch ahead.
        """
        consumed = whole("consumed", consumed, 0, len(self) + 1)
        return {
            "sampler": type(self).__name__,
            "n": self.n,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "epoch": self.epoch,
            "world_size": self.world_size,
            "consumed": consumed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken: the next iteration yields the rest of that epoch. The seed comes along.

        Under another world size the place is the same one of the global sequence, if it falls between two rounds
        of the new ranks (else a ValueError); go on counting from `self.consumed`.
        """
        theirs = (state["sampler"], state["n"], state["num_samples"])
        ours = (type(self).__name__, self.n, self.num_samples)
        if theirs != ours:
            raise ValueError(
                "this is the state of {} over {} examples, {} samples an epoch; ".format(*theirs)
                + "it cannot be loaded into {} over {}, {} an epoch".format(*ours)
            )
        consumed, old = state["consumed"], state["world_size"]
        if old != self.world_size:
            used = consumed * old
            if consumed % self.block or used % (self.world_size * self.block):
                raise ValueError(
                    f"after {consumed} samples on each of {old} ranks no place between two rounds of "
                    f"{self.world_size} ranks is reached; save where {used} divides by {self.world_size * self.block}"
                )
            consumed = used // self.world_size
        self.seed, self.epoch = state["seed"], state["epoch"]
        # one rank's state may be loaded by all, and shards differ by up to one block: the shorter one is at its end
        self.consumed, self._begun = min(consumed, len(self)), False

    def __iter__(self) -> Iterator[Any]:
        if self._begun:
            self._again()
            self._restart()
        start, self.consumed, self._begun = self.consumed, 0, True
        return chain.from_iterable(self._pieces(start))

    def _again(self) -> None:
        """A second iteration without `set_epoch`: alone, the next epoch; among ranks, the same one with a warning.

        Ranks must agree on the epoch, and one of them may have iterated once more than the others (to look at a
        batch, say); were it to move on by itself, shards of different orders would overlap.
        """
        if self.world_size == 1:
            self.epoch += 1
        elif self.renewed:
            warnings.warn(
                f"{type(self).__name__} is iterated a second time in epoch {self.epoch}: without set_epoch(epoch) "
                f"before each epoch, every rank repeats the {self.renewed} of epoch {self.epoch} for ever",
                stacklevel=3,
            )

    def _restart(self) -> None:
        """Called before an epoch begins from its start; `self._begun` says whether the last one was iterated."""

    def _own(self, order: np.ndarray) -> np.ndarray:
        """This rank's part of a global order of n examples, after the tail was dropped or repeated."""
        if len(order) != self.total:
            order = np.resize(order, self.total)
        if self.block == 1:
            return order[self.rank :: self.world_size]
        return order[np.arange(self.total) // self.block % self.world_size == self.rank]

    def _draws(self, start: int) -> Iterator[tuple[int, int, slice]]:
        """(chunk, size, own slice) of a global sequence of independent draws, from own position `start` on.

        Each chunk of `CHUNK` draws has generators of its own, each for one array of numbers, so a resume skips to its
        chunk at once, and a shorter last chunk is the beginning of a longer one.
        """
        at = start * self.world_size + self.rank
        while at < self.total:
            number, first = divmod(at, CHUNK)
            size = min(CHUNK, self.total - number * CHUNK)
            yield number, size, slice(first, size, self.world_size)
            at += math.ceil((CHUNK - first) / self.world_size) * self.world_size


def numbers(array: np.ndarray) -> Iterable[Any]:
    """A one-dimensional array as Python numbers, made one by one: faster than `tolist`, and without its memory."""
    return memoryview(array)
