"""Uniform sampling with replacement: plain SGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

from torch.utils.data import Sampler

from dlopt.catalog import method
from dlopt.sampling.base import Resumable, generator, numbers


@method(
    "with-replacement",
    topic="sampling",
    kind="sampler",
    cite="bottou2009curiously",
    summary="every draw uniform over all examples, independent of the others",
)
class WithReplacement(Resumable, Sampler[int]):
    """i_t uniform on {0, ..., n-1}, independent: E grad f_{i_t} = grad F at every step.

    data_source: anything with a length n. num_samples: draws in one epoch over all ranks (default n).
    seed, rank, world_size: see `dlopt.sampling.base`; tail ("keep", "drop", "repeat"): what happens to the last
    draws where world_size does not divide their number.

    With step gamma on a mu-strongly convex sum the squared distance goes to a floor of order gamma, and with
    tuned steps falls as 1/(nK) in K epochs; orders without replacement reach gamma^2 and 1/(nK^2).

    >>> list(WithReplacement(range(4), num_samples=6, seed=0))
    [2, 2, 1, 0, 2, 1]

    Reference: Bottou, "Curiously fast convergence of some stochastic gradient descent algorithms", 2009.
    """

    renewed = "draws"

    def __init__(
        self,
        data_source: Sized,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: str = "keep",
    ) -> None:
        self._place(data_source, seed, rank, world_size, tail, num_samples)

    def _pieces(self, start: int) -> Iterator[Iterable[int]]:
        for chunk, size, own in self._draws(start):
            yield numbers(generator(self.seed, self.epoch, chunk).integers(0, self.n, size)[own])
