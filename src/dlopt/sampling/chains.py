"""What the solvers share: the solution with its history, checked samplers, steps and starting points."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlopt.sampling.problems import FiniteSum

Watch = Callable[[np.ndarray], dict[str, Any]]


@dataclass
class Solution:
    """x: the last point; average: of the later ones (both (d,), or (S, d) for S chains).

    history: rows {"passes", "seconds", "value", "support"} (and what `watch` adds) at x, before the first pass and
    after each one; with averaging also "average_value". passes count n gradients of single examples; seconds are
    those of the steps alone. A chain that diverges has infinite or NaN values, and the others go on.
    """

    x: np.ndarray
    average: np.ndarray
    history: list[dict[str, Any]] = field(default_factory=list)


class History:
    """Collects the rows, with the clock stopped while it evaluates."""

    def __init__(self, problem: FiniteSum, watch: Watch | None, single: bool) -> None:
        self.problem, self.watch, self.single = problem, watch, single
        self.rows: list[dict[str, Any]] = []
        self.seconds = self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since

    def add(self, passes: float, x: np.ndarray, average: np.ndarray | None) -> None:
        points = x[0] if self.single else x
        row = {
            "passes": passes,
            "seconds": self.seconds,
            "value": self.problem.value(points),
            "support": np.count_nonzero(points, axis=-1),
        }
        if average is not None:
            row["average_value"] = self.problem.value(average[0] if self.single else average)
        if self.single:  # plain numbers, so that a row can be written as JSON
            row = {name: np.asarray(number).item() for name, number in row.items()}
        self.rows.append(row | (self.watch(points) if self.watch else {}))


def check_samplers(problem: FiniteSum, samplers: list[Any], unweighted: bool = False) -> None:
    """Samplers must be over the problem's n examples, of one length."""
    if not samplers:
        raise ValueError("the list of samplers is empty")
    for sampler in samplers:
        if sampler.n != problem.n:
            raise ValueError(f"the sampler is over {sampler.n} examples, the problem has {problem.n}")
        if unweighted and sampler.weighted:
            raise ValueError(f"SAGA needs an unweighted sampler, not {type(sampler).__name__}, which yields weights")
    if len({len(sampler) for sampler in samplers}) > 1:
        raise ValueError(f"chains side by side need epochs of one length, not {[len(s) for s in samplers]}")
    if len({id(sampler) for sampler in samplers}) < len(samplers):
        raise ValueError("one sampler object cannot serve two chains; make one for each")


def step_sizes(problem: FiniteSum, step: float | Sequence[float] | None, chains: int, scale: float) -> np.ndarray:
    """(S, 1): the given steps, or scale / max L_i."""
    if step is None:
        largest = problem.smoothness().max()
        step = scale / largest if largest > 0 else 1.0
    steps = np.asarray(step, dtype=np.float64)
    if steps.shape not in ((), (1,), (chains,)):
        raise ValueError(f"step must be one number or {chains}, one for each chain, not of shape {steps.shape}")
    if not ((steps > 0) & (steps < np.inf)).all():
        raise ValueError(f"step must be finite and above 0, not {step!r}")
    return np.broadcast_to(steps, (chains,)).reshape(-1, 1).copy()


def start_points(problem: FiniteSum, x0: np.ndarray | None, chains: int) -> np.ndarray:
    """(S, d): copies of x0 (d,), x0 itself if it is (S, d), or zeros."""
    if x0 is None:
        return np.zeros((chains, problem.d))
    x0 = np.asarray(x0, dtype=np.float64)
    if x0.shape not in ((problem.d,), (chains, problem.d)):
        raise ValueError(f"x0 must have shape ({problem.d},), not {x0.shape}")
    return np.broadcast_to(x0, (chains, problem.d)).copy()
