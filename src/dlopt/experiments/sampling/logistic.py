"""Logistic regression in the setting of Mishchenko, Khaled and Richtarik (2020): SGD, IG, SO and RR.

Their official notebook: batch 512, 250 passes, x_0 = 0, no tuning. l2 = L/sqrt(n) with L the smoothness of the mean
loss, the step min(1/L_batch, 1/(l2 + c (t - T/40)_+)) with c = l2/3, and l2/2 for SGD, where
L_batch = n(B-1)/(B(n-1)) L + (n-B)/(B(n-1)) max_i L_i; a batch that is not full is divided by n over the number of
batches. Two differences: their SGD draws windows of neighbouring rows (to spare the cache), ours draws rows
independently; and their shuffle-once wraps around the end of the data, ours ends the epoch with a shorter batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from dlopt import catalog
from dlopt.experiments.sampling._common import DETERMINISTIC, check_sampler, chosen_epochs, make, rounded, skew
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Diverged, Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.sampling import FiniteSum
from dlopt.tasks import data
from dlopt.tasks.data.files import locate

SETS = {"w8a": "libsvm:w8a", "mushrooms": "libsvm:mushrooms", "breast-cancer": "breast-cancer"}
METHODS = ("with-replacement", "fixed-order", "shuffle-once", "random-reshuffling")
EPOCHS, BATCH, SEEDS = 250, 512, tuple(range(20))
GAP = 1e-12


@dataclass(frozen=True)
class Config:
    """method: a sampler without weights. data: one of `SETS`. epochs: passes. batch: rows a step. decay: c over l2 in
    the step's rule. seed: of the order."""

    method: str = "random-reshuffling"
    params: dict[str, Any] = field(default_factory=dict)
    data: str = "w8a"
    epochs: int = EPOCHS
    batch: int = BATCH
    decay: float = 1 / 3
    seed: int = 0


@dataclass(frozen=True)
class Reference:
    """A problem with its optimum, F there, the duality gap, and L_batch for a batch of B rows by `batch_smoothness`."""

    problem: FiniteSum
    x: np.ndarray
    value: float
    gap: float
    full: float  # L of the mean loss, without l2
    largest: float  # max L_i, without l2

    def batch_smoothness(self, size: int) -> float:
        """Of the mean over `size` rows drawn without replacement, in expectation; with l2."""
        n = self.problem.n
        return n * (size - 1) / (size * (n - 1)) * self.full + (n - size) / (size * (n - 1)) * self.largest + (
            self.problem.l2
        )  # fmt: skip


@cache
def reference(name: str) -> Reference:
    """The optimum by Newton's method; a RuntimeError if its duality gap is above `GAP`."""
    table: data.Table = data.get(SETS[name])
    table = table.standardised() if isinstance(table.x, np.ndarray) else table
    labels = np.where(table.y == 1, 1.0, -1.0)
    plain = FiniteSum(table.x, labels, loss="logistic")
    full, largest = plain.full_smoothness(), float(plain.smoothness().max())
    problem = FiniteSum(table.x, labels, loss="logistic", l2=full / math.sqrt(plain.n))
    x = np.zeros(problem.d)
    for _ in range(50):
        if problem.gap(x) <= GAP / 10:
            break
        s = 0.5 + 0.5 * np.tanh(0.5 * (problem.A @ x))
        weighted = problem.A.multiply((s * (1 - s))[:, None]) if problem.sparse else problem.A * (s * (1 - s))[:, None]
        hessian = problem.A.T @ weighted / problem.n
        hessian = (hessian.toarray() if problem.sparse else hessian) + problem.l2 * np.eye(problem.d)
        x = x - np.linalg.solve(hessian, problem.gradient(x))
    gap = float(problem.gap(x))
    if not gap <= GAP:
        raise RuntimeError(f"the optimum of {name} is not certified: its duality gap is {gap:.2g}, above {GAP:g}")
    return Reference(problem, x, float(problem.value(x)), gap, full, largest)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.data not in SETS:
        raise ValueError(f"data takes {', '.join(SETS)}, not {cfg.data!r}{catalog.suggest(cfg.data, SETS)}")
    check_sampler(cfg.method, "", cfg.params)
    if catalog.find(cfg.method).name in ("grab", "class-balanced", "class-blocks"):
        raise ValueError(f"{cfg.method} is not part of this setting; it has {', '.join(METHODS)}")
    if cfg.epochs < 1 or cfg.batch < 1 or not cfg.decay >= 0:
        raise ValueError(f"epochs and batch must be at least 1 and decay at least 0, got {cfg.epochs}, {cfg.batch} "
                         f"and {cfg.decay}")  # fmt: skip
    _ready(cfg.data)


def _ready(name: str) -> None:
    spec = data.find(SETS[name])
    locate(spec.name, spec.files, spec.help)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Minibatch SGD with one order of the data; F(x) - F* and |x - x*|^2 along the passes."""
    ref = reference(cfg.data)
    problem = ref.problem
    size = min(cfg.batch, problem.n)
    sampler = make(cfg.method, "", cfg.params, problem.n, cfg.seed)
    kept = chosen_epochs(cfg.epochs, 40)
    steps = -(-len(sampler) // size)
    start, c, largest = steps * cfg.epochs // 40, cfg.decay * problem.l2, 1 / ref.batch_smoothness(size)
    x, t = np.zeros(problem.d), 0

    def measure(epoch: int) -> dict[str, Any]:
        found = {
            "suboptimality": float(problem.value(x) - ref.value),
            "distance": float(((x - ref.x) ** 2).sum()),
        }
        if not all(math.isfinite(v) for v in found.values()):
            raise Diverged(f"the distance to the optimum is {found['distance']:.3g} after {epoch} passes")
        if epoch in kept:
            log.row(t, epoch=epoch, **rounded(found))
        log.progress(epoch, cfg.epochs)
        return found

    found = [measure(0)]
    for epoch in range(cfg.epochs):
        sampler.set_epoch(epoch)
        stream = iter(sampler)
        while rows := list(islice(stream, size)):
            A, b = problem.A[rows], problem.b[rows]
            share = len(rows) * steps / len(sampler)
            gradient = (A.T @ problem.slopes(A @ x, b)) / len(rows) + problem.l2 * x
            x = x - min(largest, 1 / (problem.l2 + c * max(0, t - start))) * share * gradient
            t += 1
        found.append(measure(epoch + 1))
    late = found[-max(1, cfg.epochs // 25) :]
    return {
        "log_suboptimality": float(np.mean([math.log10(max(f["suboptimality"], 1e-17)) for f in late])),
        "log_distance": float(np.mean([math.log10(max(f["distance"], 1e-30)) for f in late])),
        "skew": skew(problem),
        "gap": ref.gap,
        "n": problem.n,
        "d": problem.d,
        "l2": problem.l2,
        "condition": (ref.full + problem.l2) / problem.l2,
        "steps_per_epoch": steps,
    }


def report(datasets: Sequence[str], epochs: int, batch: int, seeds: Sequence[int]) -> Any:
    """Every order on every set; the fixed order has no seed."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        return [
            Config(method=m, data=d, epochs=epochs, batch=batch, seed=seed,
                   decay=1 / 2 if m == "with-replacement" else 1 / 3)
            for d in datasets
            for m in METHODS
            for seed in seeds[: 1 if m in DETERMINISTIC else None]
        ]  # fmt: skip

    return configs


SECONDS_PER_EPOCH = {"w8a": 0.04, "mushrooms": 0.008, "breast-cancer": 0.002}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    return 0.01 + cfg.epochs * SECONDS_PER_EPOCH[cfg.data] / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.sampling._report_logistic import present as made

    return made(results)


experiment = Experiment(
    name="sampling/logistic",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("report", report(("breast-cancer",), 20, 64, (0, 1)), minutes, "20 passes, 2 seeds"),),
        "cpu": (
            Stage(
                "report",
                report(("w8a", "mushrooms"), EPOCHS, BATCH, SEEDS),
                minutes,
                f"{EPOCHS} passes, {len(SEEDS)} seeds",
            ),
        ),
    },
    identity=lambda cfg: data.identity(SETS[cfg.data]) if cfg.data in SETS else {},
    check=check,
    present=present,
    primary="log_suboptimality",
)
