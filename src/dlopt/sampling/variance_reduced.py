"""SAGA and proximal SVRG: variance-reduced references with a linear rate, beside proximal SGD."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlopt.catalog import method
from dlopt.sampling.base import whole
from dlopt.sampling.chains import History, Solution, Watch, check_samplers, start_points, step_sizes
from dlopt.sampling.problems import FiniteSum, soft_threshold
from dlopt.sampling.with_replacement import WithReplacement


@method(
    "saga",
    topic="sampling",
    kind="solver",
    cite="defazio2014saga",
    summary="a table of last gradients removes the variance; linear rate on strongly convex sums",
    search={"step": (1e-4, 1e1, "log")},
)
def saga(
    problem: FiniteSum,
    sampler: Any = None,
    *,
    epochs: int = 100,
    step: float | None = None,
    tol: float = 0.0,
    x0: np.ndarray | None = None,
    watch: Watch | None = None,
) -> Solution:
    """v = grad f_i(x) - table_i + mean(table); table_i <- grad f_i(x); x <- prox(x - g v). One example a step.

    For linear models the table holds one number per example. sampler: an unweighted one (default `WithReplacement`,
    as in the proof). step: g (default 1/(3 max L_i)). tol: stop after a pass with a duality gap of at most tol.
    """
    sampler = sampler if sampler is not None else WithReplacement(range(problem.n))
    check_samplers(problem, [sampler], unweighted=True)
    g = float(step_sizes(problem, step, 1, 1 / 3)[0, 0])
    x = start_points(problem, x0, 1)[0]
    table = np.zeros(problem.n)
    mean = np.zeros(problem.d)
    history = History(problem, watch, True)
    history.add(0.0, x[None], None)
    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(epochs):
            history.start()
            sampler.set_epoch(epoch)
            for i in sampler:
                columns, row = _row(problem, i)
                slope = problem.slopes(row @ x[columns], problem.b[i])
                change = (slope - table[i]) * row
                v = mean + problem.l2 * x
                v[columns] += change
                mean[columns] += change / problem.n
                table[i] = slope
                x = soft_threshold(x - g * v, g * problem.lam)
            history.stop()
            history.add((epoch + 1) * len(sampler) / problem.n, x[None], None)
            if tol and problem.gap(x) <= tol:
                break
    return Solution(x, x.copy(), history.rows)


@method(
    "svrg",
    topic="sampling",
    kind="solver",
    cite="johnson2013svrg",
    summary="a full gradient now and then removes the variance (proximal SVRG), with any sampler",
    search={"step": (1e-4, 1e1, "log")},
)
def svrg(
    problem: FiniteSum,
    sampler: Any = None,
    *,
    stages: int = 50,
    inner: int = 2,
    step: float | None = None,
    snapshot: str = "average",
    tol: float = 0.0,
    x0: np.ndarray | None = None,
    watch: Watch | None = None,
) -> Solution:
    """v = w_i (grad f_i(x) - grad f_i(s)) + grad f(s), s the snapshot of the stage; x <- prox(x - g v).

    A stage is one full gradient and `inner` epochs of the sampler (default `WithReplacement`): 1 + inner passes.
    step: g (default 0.1/L_Q with L_Q = max L_i/(n p_i), as in the paper). snapshot: "average" of the stage's points
    (Xiao and Zhang 2014) or the "last" one. tol: stop at a duality gap of at most tol.
    """
    if snapshot not in ("average", "last"):
        raise ValueError(f"snapshot must be 'average' or 'last', not {snapshot!r}")
    whole("inner", inner, 1)
    sampler = sampler if sampler is not None else WithReplacement(range(problem.n))
    check_samplers(problem, [sampler])
    scale = 0.1
    if hasattr(sampler, "probabilities"):
        largest = problem.smoothness()
        scale *= largest.max() / (largest / np.maximum(problem.n * sampler.probabilities(), 1e-300)).max()
    g = float(step_sizes(problem, step, 1, scale)[0, 0])
    x = start_points(problem, x0, 1)[0]
    history = History(problem, watch, True)
    history.add(0.0, x[None], None)
    passes = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for stage in range(stages):
            history.start()
            at = x.copy()
            slopes_at = problem.slopes(problem.A @ at, problem.b)
            full = problem.gradient(at) - problem.l2 * at
            mean, count = np.zeros(problem.d), 0
            for epoch in range(stage * inner, (stage + 1) * inner):
                sampler.set_epoch(epoch)
                for key in sampler:
                    i, w = key if sampler.weighted else (key, 1.0)
                    columns, row = _row(problem, i)
                    slope = problem.slopes(row @ x[columns], problem.b[i])
                    v = full + problem.l2 * x
                    v[columns] += w * (slope - slopes_at[i]) * row
                    x = soft_threshold(x - g * v, g * problem.lam)
                    mean += x
                    count += 1
            if snapshot == "average":
                x = mean / count
            history.stop()
            passes += 1 + count / problem.n
            history.add(passes, x[None], None)
            if tol and problem.gap(x) <= tol:
                break
    return Solution(x, x.copy(), history.rows)


def _row(problem: FiniteSum, i: int) -> tuple[Any, np.ndarray]:
    """Where row i is not 0 and its numbers there."""
    if not problem.sparse:
        return slice(None), problem.A[i]
    stored = slice(problem.A.indptr[i], problem.A.indptr[i + 1])
    return problem.A.indices[stored], problem.A.data[stored]
