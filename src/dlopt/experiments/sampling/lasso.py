"""LASSO on LIBSVM sets and on a design with more columns than rows: all samplers, SAGA and coordinate descent.

Proximal SGD takes single examples and a constant step, a multiple of 1/max L_i that is tuned for each sampler and set
by the same number of trials. The optimum is scikit-learn's, certified by the duality gap. Classes of the class-wise
samplers are the fifths of the target. Suboptimality is F(x) - F* over F(0) - F*.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from dlopt import catalog
from dlopt.experiments.sampling._common import (
    DETERMINISTIC,
    VARIANTS,
    best,
    check_sampler,
    chosen_epochs,
    make,
    quantile_labels,
    rounded,
    series_of,
    skew,
    variant,
)
from dlopt.lab.experiment import Earlier, Experiment, Pending, Stage
from dlopt.lab.log import Diverged, Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.sampling import FiniteSum, prox_sgd, saga
from dlopt.tasks.lasso import TASKS

DATA, SMOKE_DATA = ("abalone", "cpusmall", "housing", "mg", "wide"), ("diabetes", "wide-small")
SERIES = (*VARIANTS, "saga")
# in units of 1/max L_i: importance sampling can take steps up to max L / mean L times larger
BOX = {"step": (3e-4, 10.0, "log")}
EPOCHS, TRIALS, TUNING_SEED, SEEDS = 40, 8, 1000, tuple(range(10))
GAP = 1e-10  # of the certified optimum, absolute; F(0) is 1/2
SOLVERS = ("stochastic", "coordinate-descent")
LATE = 0.2  # part of the passes over which the final figures are averaged


@dataclass(frozen=True)
class Config:
    """method, params, by: the sampler, or saga. solver: "stochastic" (over rows) or "coordinate-descent" (over
    columns, cyclic). data: of `tasks.lasso`. step: in units of 1/max L_i. epochs: passes over the data."""

    method: str = "random-reshuffling"
    params: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    solver: str = "stochastic"
    data: str = "abalone"
    step: float = 0.1
    epochs: int = EPOCHS
    seed: int = 0


@dataclass(frozen=True)
class Reference:
    """A problem with its certified optimum: x, F(x) and the duality gap there."""

    problem: FiniteSum
    x: np.ndarray
    value: float
    gap: float


@cache
def reference(name: str) -> Reference:
    """The optimum by scikit-learn's coordinate descent; a RuntimeError if its duality gap is above `GAP`."""
    design = TASKS[name].build()
    problem = FiniteSum(design.A, design.b)
    problem = FiniteSum(design.A, design.b, lam=design.ratio * problem.lam_max())
    x = _fit(_coordinate_descent(problem, 100_000, 1e-15), problem)
    gap = float(problem.gap(x))
    if not gap <= GAP:
        raise RuntimeError(f"the optimum of {name} is not certified: its duality gap is {gap:.2g}, above {GAP:g}")
    return Reference(problem, x, float(problem.value(x)), gap)


def _coordinate_descent(problem: FiniteSum, iterations: int, tol: float, **more: Any) -> Any:
    from sklearn.linear_model import Lasso

    return Lasso(alpha=problem.lam, fit_intercept=False, max_iter=iterations, tol=tol, **more)


def _fit(model: Any, problem: FiniteSum) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the duality gap is checked here instead
        return np.asarray(model.fit(problem.A, problem.b).coef_)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.data not in TASKS:
        raise ValueError(f"no LASSO task is called {cfg.data!r}{catalog.suggest(cfg.data, TASKS)}; "
                         f"there are {', '.join(TASKS)}")  # fmt: skip
    if cfg.solver not in SOLVERS:
        raise ValueError(f"solver takes {' or '.join(SOLVERS)}, not {cfg.solver!r}")
    if cfg.epochs < 1 or not 0 < cfg.step < math.inf:
        raise ValueError(f"epochs must be at least 1 and step above 0, got {cfg.epochs} and {cfg.step}")
    if cfg.method != "saga":
        check_sampler(cfg.method, cfg.by, cfg.params)
    TASKS[cfg.data].ready()


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One solver with one sampler on one set: suboptimality, distance and support after each pass."""
    ref = reference(cfg.data)
    problem = ref.problem
    rows = _columns(cfg, log, ref) if cfg.solver == "coordinate-descent" else _stochastic(cfg, log, ref)
    kept = chosen_epochs(cfg.epochs)
    for epoch, row in enumerate(rows):
        if epoch in kept:
            log.row(epoch * problem.n, epoch=epoch, **rounded(row))
    late = rows[-max(1, round(LATE * cfg.epochs)) :]
    final = [row["suboptimality"] for row in late]
    if not all(math.isfinite(v) for v in final) or max(final) > 100:
        raise Diverged(f"the suboptimality is {final[-1]:.3g} times that of 0 after {cfg.epochs} passes")
    logs = [math.log10(max(row["suboptimality"], 1e-16)) for row in late]
    distances = [math.log10(max(row["distance"], 1e-16)) for row in late]
    return {
        "log_suboptimality": float(np.mean(logs)),
        "log_distance": float(np.mean(distances)),
        "support_share": float(np.mean([row["support_share"] for row in late])),
        "solver_seconds": rows[-1]["solver_seconds"],
        "skew": skew(problem),
        "gap": ref.gap,
        "n": problem.n,
        "d": problem.d,
        "optimal_support": int(np.count_nonzero(ref.x)),
        "lam": problem.lam,
    }


def _measure(ref: Reference, x: np.ndarray) -> dict[str, Any]:
    """Suboptimality, distance to the optimum over its norm, and Jaccard similarity of the supports."""
    scale = 0.5 * float(ref.problem.b @ ref.problem.b) / ref.problem.n - ref.value
    mine, best_ = x != 0, ref.x != 0
    union = int((mine | best_).sum())
    return {
        "suboptimality": float((ref.problem.value(x) - ref.value) / scale),
        "distance": float(np.linalg.norm(x - ref.x) / np.linalg.norm(ref.x)),
        "support_share": float((mine & best_).sum() / union) if union else 1.0,
        "support": int(mine.sum()),
    }


def _stochastic(cfg: Config, log: Log, ref: Reference) -> list[dict[str, Any]]:
    problem = ref.problem
    smoothness = problem.smoothness()
    step = cfg.step / float(smoothness.max())
    done = iter(range(cfg.epochs + 1))

    def watch(x: np.ndarray) -> dict[str, Any]:
        log.progress(next(done), cfg.epochs)
        with np.errstate(over="ignore", invalid="ignore"):
            return _measure(ref, x)

    if cfg.method == "saga":
        sampler = make("with-replacement", "", {}, problem.n, cfg.seed)
        history = saga(problem, sampler, epochs=cfg.epochs, step=step, watch=watch, **cfg.params).history
    else:
        labels = quantile_labels(problem.b)
        sampler = make(cfg.method, cfg.by, cfg.params, problem.n, cfg.seed, labels=labels, smoothness=smoothness)
        try:
            history = prox_sgd(problem, sampler, epochs=cfg.epochs, step=step, average_from=None, watch=watch).history
        except ValueError as error:
            # samplers that learn refuse gradients and norms that are not finite
            if "finite" not in str(error):
                raise
            raise Diverged(f"the gradients are not finite: {error}") from error
    return [{**row, "solver_seconds": row["seconds"]} for row in map(_tidy, history)]


def _tidy(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("seconds", "suboptimality", "distance", "support_share", "support")}


def _columns(cfg: Config, log: Log, ref: Reference) -> list[dict[str, Any]]:
    """Cyclic coordinate descent, one warm-started pass of scikit-learn at a time."""
    model = _coordinate_descent(ref.problem, 1, 0.0, warm_start=True)
    x, spent = np.zeros(ref.problem.d), 0.0
    rows = [_measure(ref, x) | {"solver_seconds": 0.0}]
    for epoch in range(cfg.epochs):
        since = time.perf_counter()
        x = _fit(model, ref.problem)
        spent += time.perf_counter() - since
        rows.append(_measure(ref, x) | {"solver_seconds": spent})
        log.progress(epoch + 1, cfg.epochs)
    return rows


def _settings(series: str) -> dict[str, Any]:
    return {"method": "saga"} if series == "saga" else variant(series)


def _trials(series: str, data: str, epochs: int, count: int) -> list[Config]:
    points = sobol(BOX, count, seed=5)
    return [
        Config(**_settings(series), data=data, step=float(p["step"]), epochs=epochs, seed=TUNING_SEED) for p in points
    ]


def tune(datasets: Sequence[str], epochs: int, trials: int, names: Sequence[str] = SERIES) -> Any:
    """The same Sobol points of the step for every sampler on every set."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        return [trial for d in datasets for s in names for trial in _trials(s, d, epochs, trials)]

    return configs


def report(
    datasets: Sequence[str], epochs: int, trials: int, seeds: Sequence[int], names: Sequence[str] = SERIES
) -> Any:
    """The best step of each sampler on fresh seeds, and coordinate descent, which has no step and no seed."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        found = []
        for d in datasets:
            for s in names:
                step = best(earlier, "tune", _trials(s, d, epochs, trials), "step", "log_suboptimality")
                values = _settings(s) | {"data": d, "epochs": epochs}
                values |= {"params": step} if isinstance(step, Pending) else {"step": step}
                found += [Config(**values, seed=seed) for seed in seeds[: 1 if s in DETERMINISTIC else None]]
            found.append(Config(method="fixed-order", solver="coordinate-descent", data=d, epochs=epochs))
        return found

    return configs


MICROSECONDS = {"importance:online": 115.0, "grab": 105.0, "saga": 10.0}  # a step; others take 14
ROWS = {"abalone": 4177, "cpusmall": 8192, "housing": 506, "mg": 1385, "wide": 200, "diabetes": 442, "wide-small": 40}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    steps = cfg.epochs * (ROWS[cfg.data] if cfg.solver == "stochastic" else 0)
    return 0.005 + steps * MICROSECONDS.get(series_of(vars(cfg)), 14.0) / 6e7


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.sampling._report_lasso import present as made

    return made(results)


def _stages(datasets: Sequence[str], epochs: int, trials: int, seeds: Sequence[int]) -> tuple[Stage, ...]:
    about = f"{trials} Sobol trials of the step, {epochs} passes"
    return (
        Stage("tune", tune(datasets, epochs, trials), minutes, about),
        Stage("report", report(datasets, epochs, trials, seeds), minutes, f"best step on {len(seeds)} fresh seeds"),
    )


experiment = Experiment(
    name="sampling/lasso",
    config=Config,
    run=run,
    version=1,
    stages={"smoke": _stages(SMOKE_DATA, 5, 2, (0,)), "cpu": _stages(DATA, EPOCHS, TRIALS, SEEDS)},
    identity=lambda cfg: TASKS[cfg.data].identity() if cfg.data in TASKS else {},
    check=check,
    present=present,
    primary="log_suboptimality",
)
