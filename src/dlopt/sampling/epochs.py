"""Orders without replacement, each example once per epoch: fixed, shuffled once, reshuffled every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized

import numpy as np
from torch.utils.data import Sampler

from dlopt.catalog import method
from dlopt.sampling.base import Resumable, generator, numbers


@method(
    "fixed-order",
    topic="sampling",
    kind="sampler",
    cite="mishchenko2020reshuffling",
    summary="the same given order in every epoch (incremental gradient)",
)
class FixedOrder(Resumable, Sampler[int]):
    """Incremental gradient: the order of the data, or the one given, in every epoch.

    data_source: anything with a length n. order: a permutation of 0, ..., n-1 (default: as the data lie).
    seed is accepted for a common interface and changes nothing. tail: "keep" (shards differ by at most one),
    "drop" (the last n mod world_size examples are left out) or "repeat" (the first come again): DDP needs equal
    shards, so one of the last two.

    A bad order costs a factor n in the worst-case bound against a random one.

    >>> list(FixedOrder(range(5), rank=1, world_size=2))
    [1, 3]

    Reference: Mishchenko, Khaled, Richtarik, "Random reshuffling: simple analysis with vast improvements", 2020.
    """

    renewed = ""

    def __init__(
        self,
        data_source: Sized,
        order: Sequence[int] | np.ndarray | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: str = "keep",
    ) -> None:
        self._place(data_source, seed, rank, world_size, tail)
        self._order = np.arange(self.n) if order is None else np.asarray(order)
        if order is not None and not _is_permutation(self._order, self.n):
            raise ValueError(f"order must hold each of 0, ..., {self.n - 1} once, not {self._order!r}")
        self._order = self._order.astype(np.int64)

    def _pieces(self, start: int) -> Iterator[Iterable[int]]:
        yield numbers(self._own(self._order)[start:])


@method(
    "shuffle-once",
    topic="sampling",
    kind="sampler",
    cite="mishchenko2020reshuffling",
    summary="one random order, the same in every epoch",
)
class ShuffleOnce(Resumable, Sampler[int]):
    """One random permutation, drawn from the seed, used in every epoch.

    Arguments as in `FixedOrder`. What torch's `DistributedSampler` becomes where `set_epoch` is forgotten.

    Bound for strongly convex f_i and gamma <= 1/L: E|x_K - x*|^2 <= (1 - gamma mu)^{nK} |x_0 - x*|^2
    + 2 gamma sigma^2 / mu, with a shuffling variance sigma^2 of order gamma: a floor of order gamma^2.

    Reference: Mishchenko, Khaled, Richtarik, "Random reshuffling: simple analysis with vast improvements", 2020.
    """

    renewed = ""

    def __init__(
        self, data_source: Sized, *, seed: int = 0, rank: int = 0, world_size: int = 1, tail: str = "keep"
    ) -> None:
        self._place(data_source, seed, rank, world_size, tail)

    def _pieces(self, start: int) -> Iterator[Iterable[int]]:
        yield numbers(self._own(generator(self.seed).permutation(self.n))[start:])


@method(
    "random-reshuffling",
    topic="sampling",
    kind="sampler",
    cite="mishchenko2020reshuffling",
    summary="a new random order in every epoch",
)
class RandomReshuffling(Resumable, Sampler[int]):
    """A new random permutation in every epoch, drawn from (seed, epoch): what `DataLoader(shuffle=True)` does.

    Arguments as in `FixedOrder`. The same bound as `ShuffleOnce`; on quadratics better still, 1/(nK)^2 + 1/(nK^3).

    >>> sampler = RandomReshuffling(range(6), seed=0)
    >>> list(sampler), list(sampler)
    ([4, 0, 3, 5, 1, 2], [4, 5, 0, 3, 2, 1])
    >>> sampler.load_state_dict(sampler.state_dict(consumed=4))
    >>> list(sampler)
    [2, 1]

    Reference: Mishchenko, Khaled, Richtarik, "Random reshuffling: simple analysis with vast improvements", 2020.
    """

    def __init__(
        self, data_source: Sized, *, seed: int = 0, rank: int = 0, world_size: int = 1, tail: str = "keep"
    ) -> None:
        self._place(data_source, seed, rank, world_size, tail)

    def _pieces(self, start: int) -> Iterator[Iterable[int]]:
        yield numbers(self._own(generator(self.seed, self.epoch).permutation(self.n))[start:])


def _is_permutation(order: np.ndarray, n: int) -> bool:
    if order.shape != (n,) or order.dtype.kind not in "iu" or order.min() < 0 or order.max() >= n:
        return False
    return bool(np.bincount(order, minlength=n).max() == 1)
