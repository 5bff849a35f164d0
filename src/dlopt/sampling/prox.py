"""Proximal SGD with any sampler for F(x) = (1/n) sum f_i(x) + (l2/2)|x|^2 + lam |x|_1.

`FiniteSum` (in `problems`) is the objective; its docstring says how lam scales with n against other packages. `saga`
and `svrg` (in `variance_reduced`) are the references. Iterates of proximal SGD are not sparse at constant step:
look for supports in `average`, or use SAGA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from dlopt.catalog import method
from dlopt.sampling.base import fraction, whole
from dlopt.sampling.chains import History, Solution, Watch, check_samplers, start_points, step_sizes
from dlopt.sampling.problems import FiniteSum, soft_threshold
from dlopt.sampling.with_replacement import WithReplacement

SCHEDULES = ("constant", "inverse", "sqrt")


@method(
    "prox-sgd",
    topic="sampling",
    kind="solver",
    cite="yuan2016finite",
    summary="proximal SGD on a finite sum, with any sampler",
    search={"step": (1e-4, 1e1, "log")},
)
def prox_sgd(
    problem: FiniteSum,
    sampler: Any = None,
    *,
    epochs: int = 10,
    step: float | Sequence[float] | None = None,
    schedule: str = "constant",
    rate: float = 1.0,
    batch_size: int = 1,
    normalize: str = "epoch",
    average_from: float | None = 0.5,
    x0: np.ndarray | None = None,
    watch: Watch | None = None,
) -> Solution:
    """x <- prox_{g lam |.|_1}(x - g (1/B) sum_{i in batch} w_i grad f_i(x)), w_i from a weighted sampler, else 1.

    sampler: any of this package over n examples (default `WithReplacement`); `set_epoch` is called for 0, 1, ...
    An online `Importance` gets the exact gradient norms, a `GraB` the gradients, after each step.
    A list of S samplers runs S chains side by side (seeds, or samplers to compare), in little more time than one.
    step: g, or one for each chain (default 1/max_i L_i). schedule: "constant"; "inverse", g/(1 + rate p); "sqrt",
    g/sqrt(1 + rate p); p is the number of passes so far. average_from: the mean of the points after this part of
    all steps is returned (None: no mean, `average` is x).
    normalize: what the sum over a batch is divided by: "epoch", n over the number of batches, so that in an
    unfinished last batch no example counts more than others (as in Mishchenko et al.'s code), or "batch", its size.
    watch(x) -> {name: value} adds to the rows of history.
    """
    single = not isinstance(sampler, list | tuple)
    samplers = [sampler if sampler is not None else WithReplacement(range(problem.n))] if single else list(sampler)
    check_samplers(problem, samplers)
    whole("epochs", epochs, 1)
    batch_size = whole("batch_size", batch_size, 1)
    if schedule not in SCHEDULES or normalize not in ("epoch", "batch"):
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)} and normalize 'epoch' or 'batch', "
            f"not {schedule!r} and {normalize!r}"
        )
    length = len(samplers[0])
    steps = -(-length // batch_size)
    first = steps * epochs if average_from is None else int(fraction("average_from", average_from) * steps * epochs)
    feed_back = _feedback(problem, samplers)
    g0 = step_sizes(problem, step, len(samplers), 1.0)
    x = start_points(problem, x0, len(samplers))
    average, averaged, t = x.copy(), 0, 0
    history = History(problem, watch, single)
    history.add(0.0, x, None)
    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(epochs):
            history.start()
            for indices, weights in _batches(samplers, epoch, batch_size):
                size = indices.shape[1]
                share = size * steps / length if normalize == "epoch" else 1.0
                slopes, data_part = _data_gradient(problem, x, indices, weights)
                g = g0
                if schedule != "constant":
                    decay = 1 + rate * (epoch + (t - epoch * steps) / steps)
                    g = g0 / (decay if schedule == "inverse" else decay**0.5)
                for tell in feed_back:
                    tell(indices, slopes)
                x = soft_threshold(x - g * share * (data_part + problem.l2 * x), g * problem.lam)
                t += 1
                if t > first:
                    averaged += 1
                    average += (x - average) / averaged
            history.stop()
            history.add((epoch + 1) * length / problem.n, x, average if averaged else None)
    if not averaged:
        average = x.copy()
    return Solution(x[0], average[0], history.rows) if single else Solution(x, average, history.rows)


def _learns(sampler: Any) -> bool:
    return bool(getattr(sampler, "online", False)) or hasattr(sampler, "step")


def _batches(samplers: list[Any], epoch: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Indices (S, B) of all chains and, if any sampler is weighted, weights (S, B)."""
    for sampler in samplers:
        sampler.set_epoch(epoch)
    streams = [iter(sampler) for sampler in samplers]
    weighted = any(sampler.weighted for sampler in samplers)
    # samplers that learn from each step are asked batch by batch, others once for a whole epoch
    many = size if any(map(_learns, samplers)) else None
    while taken := [list(islice(stream, many)) for stream in streams]:
        if not taken[0]:
            return
        weights = None
        if weighted:
            pairs = [part if s.weighted else [(i, 1.0) for i in part] for s, part in zip(samplers, taken)]
            taken = [[i for i, _ in part] for part in pairs]
            weights = np.array([[w for _, w in part] for part in pairs])
        indices = np.array(taken)
        for at in range(0, indices.shape[1], size):
            yield indices[:, at : at + size], None if weights is None else weights[:, at : at + size]


def _data_gradient(
    problem: FiniteSum, x: np.ndarray, indices: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (S, B) and (1/B) sum_b w_b slope_b a_b (S, d)."""
    if len(x) == 1 or problem.sparse:
        parts = []
        for chain in range(len(x)):
            rows = problem.A[indices[chain]]
            slopes = problem.slopes(rows @ x[chain], problem.b[indices[chain]])
            scaled = slopes if weights is None else slopes * weights[chain]
            parts.append((slopes, (rows.T @ scaled) / len(scaled)))
        if len(x) == 1:
            return parts[0][0][None], parts[0][1][None]
        return np.stack([s for s, _ in parts]), np.stack([g for _, g in parts])
    rows = problem.A[indices]
    slopes = problem.slopes((rows @ x[:, :, None])[..., 0], problem.b[indices])
    scaled = slopes if weights is None else slopes * weights
    return slopes, (scaled[:, None, :] @ rows)[:, 0] / indices.shape[1]


def _feedback(problem: FiniteSum, samplers: list[Any]) -> list[Callable[[np.ndarray, np.ndarray], None]]:
    """What to call after each step with indices and slopes: one function for each sampler that learns."""
    calls: list[Callable[[np.ndarray, np.ndarray], None]] = []
    norms = problem.row_norms() if any(map(_learns, samplers)) else np.empty(0)
    for chain, sampler in enumerate(samplers):
        if hasattr(sampler, "step"):
            import torch

            def tell(indices: np.ndarray, slopes: np.ndarray, sampler: Any = sampler, chain: int = chain) -> None:
                rows = problem.A[indices[chain]]
                rows = rows.toarray() if problem.sparse else rows
                sampler.step(torch.from_numpy(slopes[chain][:, None] * rows))

            calls.append(tell)
        elif _learns(sampler):

            def tell(indices: np.ndarray, slopes: np.ndarray, sampler: Any = sampler, chain: int = chain) -> None:
                with np.errstate(over="ignore"):
                    sampler.update(indices[chain], np.abs(slopes[chain]) * norms[indices[chain]])

            calls.append(tell)
    return calls
