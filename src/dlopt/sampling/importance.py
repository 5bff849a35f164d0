"""Importance sampling: draw what matters more often, and weigh it down, so that the mean gradient stays the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from dlopt.catalog import method
from dlopt.sampling.alias import AliasTable
from dlopt.sampling.base import Resumable, fraction, generator, nonnegative, numbers, whole
from dlopt.sampling.sumtree import SumTree


@method(
    "importance",
    topic="sampling",
    kind="sampler",
    cite="zhao2015importance",
    summary="draws with given or running probabilities and yields the weights 1/(n p)",
    search={"mix": (0.1, 0.95, "linear")},
)
class Importance(Resumable, Sampler[tuple[int, float]]):
    """i_t drawn with p_i = (1 - a)/n + a s_i / sum_j s_j, yielded as the pair (i, w_i), w_i = 1/(n p_i).

    Then E w_i grad f_i = grad F: `Weighted(dataset)` unpacks the pairs, `weighted_mean(losses, w)` uses them.

    data_source: anything with a length n. weights: s, (n,) numbers >= 0, not all 0, in any unit. Good ones are
    smoothness constants L_i (for linear models the squared row norms, `FiniteSum.smoothness()`), which turn max L
    into mean L in the bounds, or gradient norms |grad f_i|, which minimise the variance. (At the optimum of least
    squares whose residuals are mere noise, p ~ L_i has no less variance than uniform draws; p ~ |grad f_i| has.)
    mix: a in [0, 1]. With a < 1 no weight w exceeds 1/(1 - a), so a wrong s cannot do much harm; with a = 1
    examples with s_i = 0 are never drawn, which is unbiased only if their gradients are 0 as well.
    num_samples: draws in one epoch over all ranks (default n).

    online=True: s are running gradient norms. After each step call `update(indices, norms)`; norms are exact from
    `per_example_norms(model, loss_fn, x, y)`, or anything cheaper such as the loss. s_i becomes
    (1 - rate) s_i + rate norm. weights may then be left out: until its first norm comes, an example counts as the
    mean of the first update. mix < 1 is required, so that every example is seen again. Draws are made `refresh` at
    a time, and an update reaches only later ones; weights always belong to the probabilities that were drawn from, so
    the mean gradient is unbiased however late updates come, also under workers that fetch ahead. Where all s are
    0 the draws are uniform. Each rank has its own draws and its own s.

    Fixed weights: a draw is O(1) (alias table; n beyond 2^24 is fine), memory 20 n bytes. Online: O(log n) in a sum
    tree of at most 32 n bytes, and 16 bytes for each draw of the epoch, kept because a state taken after
    `consumed` samples must hold what was drawn ahead. Resuming an online sampler is exact if the loader fetches
    as far ahead as before.

    >>> sampler = Importance(range(3), [1.0, 1.0, 2.0], mix=1.0, seed=0)
    >>> sampler.probabilities()
    array([0.25, 0.25, 0.5 ])
    >>> next(iter(sampler))
    (2, 0.6666666666666666)

    Reference: Zhao, Zhang, "Stochastic optimization with importance sampling for regularized loss minimization",
    2015; the mixture with the uniform distribution keeps weights bounded (Needell, Srebro, Ward 2014, a = 1/2).
    """

    weighted = True
    renewed = "random numbers"

    def __init__(
        self,
        data_source: Sized,
        weights: Any = None,
        *,
        mix: float = 0.5,
        online: bool = False,
        rate: float = 1.0,
        refresh: int = 256,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: str = "keep",
    ) -> None:
        self._place(data_source, seed, rank, world_size, tail, num_samples)
        self.mix, self.rate = fraction("mix", mix), fraction("rate", rate)
        self.refresh = whole("refresh", refresh, 1)
        self.online = online
        if weights is None and not online:
            raise ValueError("Importance needs weights (or online=True, which learns them from update)")
        s = np.ones(self.n) if weights is None else nonnegative("weights", weights, self.n)
        if not s.any():
            raise ValueError(f"weights must not all be 0, but all {self.n} are: nothing could be drawn")
        if online:
            if self.mix == 1:
                raise ValueError("online=True needs mix below 1, not 1.0: an example of norm 0 would never come again")
            self._tree = SumTree(s)
            self._known = weights is not None
            self._forget(0)
        else:
            self._q = s / s.max()  # so that no sum overflows
            self._q *= self.mix / self._q.mean()
            self._q += 1 - self.mix
            self._table = AliasTable(self._q)

    def probabilities(self) -> np.ndarray:
        """(n,): p, as the next draw has it."""
        if not self.online:
            return self._q / self.n
        return self._ratio(self._tree.weights) / self.n

    def update(self, indices: Any, norms: Any) -> None:
        """Tell the gradient norms of some examples (tensors or arrays (B,)). An index that comes twice: their mean."""
        if not self.online:
            raise ValueError("update needs Importance(..., online=True); this one has fixed weights")
        indices = torch.as_tensor(indices).detach().cpu().numpy().reshape(-1)
        if not len(indices):
            return
        if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= self.n:
            raise ValueError(f"indices must be integers from 0 to {self.n - 1}, not {indices!r}")
        norms = nonnegative("norms", norms, len(indices))
        if not self._known and norms.any():
            self._tree.fill(norms.mean())
            self._known = True
        distinct, place, count = np.unique(indices, return_inverse=True, return_counts=True)
        new = np.bincount(place, weights=norms) / count
        self._tree.set(distinct, (1 - self.rate) * self._tree.weights[distinct] + self.rate * new)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """As for all samplers; online also s and the pairs that were drawn ahead of `consumed`."""
        state = super().state_dict(consumed)
        if not self.online:
            return state
        indices, weights = (np.concatenate(part) for part in zip(*self._drawn))
        if not self._first <= state["consumed"] <= self._first + len(indices):
            raise ValueError(
                f"consumed must be from {self._first} (where this sampler began) "
                f"to {self._first + len(indices)} (what it has drawn), not {consumed}"
            )
        ahead = state["consumed"] - self._first
        return state | {
            "rank": self.rank,
            "s": torch.tensor(self._tree.weights),
            "known": self._known,
            "refills": self._refills,
            "indices": torch.tensor(indices[ahead:]),
            "weights": torch.tensor(weights[ahead:]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.online != ("s" in state):
            raise ValueError("a state of online importance sampling loads only into online=True, and the other way")
        if self.online and (state["rank"], state["world_size"]) != (self.rank, self.world_size):
            raise ValueError(
                "online, each rank has probabilities of its own: the state of rank {rank} of {world_size} ".format(
                    **state
                )
                + f"cannot be loaded into rank {self.rank} of {self.world_size}"
            )
        super().load_state_dict(state)
        if self.online:
            self._tree.fill(state["s"].numpy())
            self._known = state["known"]
            self._forget(self.consumed)
            self._refills = state["refills"]
            self._drawn.append((state["indices"].numpy(), state["weights"].numpy()))

    def _restart(self) -> None:
        if self.online:
            self._forget(0)

    def _forget(self, first: int) -> None:
        self._first, self._refills = first, 0  # own position of the first remembered draw; refills in this epoch
        self._drawn: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0))]

    def _pieces(self, start: int) -> Iterator[Iterable[tuple[int, float]]]:
        if self.online:
            yield from self._refilled(start)
            return
        for chunk, size, own in self._draws(start):
            columns = generator(self.seed, self.epoch, chunk, 0).integers(0, self.n, size)[own]
            fractions = generator(self.seed, self.epoch, chunk, 1).random(size)[own]
            indices = self._table.draw(columns, fractions)
            yield zip(numbers(indices), numbers(1 / self._q[indices]))

    def _refilled(self, start: int) -> Iterator[Iterable[tuple[int, float]]]:
        drawn = self._drawn  # of this iteration, also when another one begins
        ahead = sum(len(indices) for indices, _ in drawn)
        for indices, weights in list(drawn):
            yield zip(numbers(indices), numbers(weights))
        left = len(self) - start - ahead
        while left > 0:
            size = min(self.refresh, left)
            random = generator(self.seed, self.epoch, self.rank, self._refills)
            uniform = random.integers(0, self.n, size)
            by_mix, by_tree = random.random(size), random.random(size)
            indices = uniform
            if self._tree.total:
                indices = np.where(by_mix < self.mix, self._tree.draw(by_tree), uniform)
            weights = 1 / self._ratio(self._tree.weights[indices])
            self._refills += 1
            drawn.append((indices, weights))
            yield zip(numbers(indices), numbers(weights))
            left -= size

    def _ratio(self, s: np.ndarray) -> np.ndarray:
        """n p for some values of s, under the tree as it is."""
        if not self._tree.total:
            return np.ones_like(s)
        return (1 - self.mix) + self.mix * (s / (self._tree.total / self.n))
