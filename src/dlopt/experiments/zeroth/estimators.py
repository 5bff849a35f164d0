"""How good an estimate is: error, angle and bias against dimension, eps, rank, number of directions, precision.

law: error and angle of the mean of q directions; dimension: the angle of one direction; rank: the angle and length of
low-rank directions for one weight matrix; eps: the error of c against eps, in one precision. The truth is the gradient
that automatic differentiation finds, in float64, on a quadratic or for one fixed batch at the initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments.zeroth import _estimates
from dlopt.experiments.zeroth._common import DTYPES, check_params, one_of, positive
from dlopt.experiments.zeroth._estimates import EPS, LEVELS, MATRICES
from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS

PARTS = ("law", "dimension", "rank", "eps")
METHODS = ("mezo", "lozo")
RANKS = (1, 2, 4, 8)
SIZES = (16, 64, 256, 1024, 4096, 16384, 65536)
TINY = {"eps": 1e-4}  # in float64 neither truncation nor rounding matters then
FRESH = {"interval": 1}  # every estimate of LOZO has a V of its own


@dataclass(frozen=True)
class Config:
    """part: one of `PARTS`. method, params: "mezo" (any direction) or "lozo" (low rank). task: of
    `tasks.classification`, or "quadratic" with `size` variables. width: factor on the network's channels. dtype: of
    the forward pass (eps). batch: examples. draws: directions in all. seed."""

    part: str = "law"
    method: str = "mezo"
    params: dict[str, Any] = field(default_factory=dict)
    task: str = "mnist-lenet"
    size: int = 0
    width: float = 1.0
    dtype: str = "float64"
    batch: int = 32
    draws: int = 1024
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    one_of(PARTS, part=cfg.part)
    one_of(METHODS, method=cfg.method)
    one_of(tuple(DTYPES), dtype=cfg.dtype)
    positive(width=cfg.width, batch=cfg.batch, draws=cfg.draws)
    if (cfg.task == "quadratic") != (cfg.size > 0):
        raise ValueError(f"size goes with the task quadratic, got size {cfg.size} and task {cfg.task}")
    if cfg.part == "rank" and cfg.task not in MATRICES:
        raise ValueError(f"part rank looks at one matrix, known for {', '.join(MATRICES)}, not for {cfg.task}")
    if cfg.part == "law" and cfg.draws < LEVELS[-1]:
        raise ValueError(f"part law needs at least {LEVELS[-1]} draws, got {cfg.draws}")
    if cfg.part == "eps" and cfg.params:
        raise ValueError("part eps goes through its own values of eps along normal directions: it takes no params")
    if cfg.method == "lozo" and cfg.params.get("interval") != 1:
        raise ValueError("estimates by lozo are to be independent: params.interval must be 1")
    if cfg.params.get("n_directions", 1) != 1:
        raise ValueError("directions are averaged here: leave params.n_directions at 1 and set draws")
    check_params(cfg.method, cfg.params)
    if cfg.task != "quadratic":
        named(cfg.task, TASKS).ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One line of one picture."""
    if cfg.part == "eps":
        return _estimates.eps(cfg, log)
    problem = _estimates.matrix(cfg) if cfg.part == "rank" else _estimates.problem(cfg)
    return (_estimates.law if cfg.part == "law" else _estimates.angles)(cfg, log, problem)


def law(task: str, draws: Mapping[str, int]) -> Any:
    """Every kind of direction on one network."""
    return lambda earlier: [
        Config("law", params={**TINY, "direction": kind}, task=task, draws=n) for kind, n in draws.items()
    ]


def ranks(task: str, draws: int) -> Any:
    """Low-rank directions and full ones for one weight matrix."""
    return lambda earlier: [
        *(Config("rank", "lozo", {**TINY, **FRESH, "rank": r}, task=task, draws=draws) for r in RANKS),
        Config("rank", params=dict(TINY), task=task, draws=draws),
    ]


def dimensions(sizes: Sequence[int], networks: Sequence[tuple[str, float, int, int]], draws: int) -> Any:
    """Quadratics of several sizes and networks of several widths. networks: (task, width, batch, draws)."""
    return lambda earlier: [
        *(Config("dimension", params=dict(TINY), task="quadratic", size=n, draws=draws) for n in sizes),
        *(Config("dimension", params=dict(TINY), task=t, width=w, batch=b, draws=k) for t, w, b, k in networks),
    ]


def precisions(task: str, dtypes: Sequence[str], draws: int) -> Any:
    """The same directions and values of eps in several precisions."""
    return lambda earlier: [Config("eps", task=task, dtype=d, draws=draws) for d in dtypes]


# seconds of one estimate (or one pair of passes) at a batch of 32, in float64
SECONDS = {"quadratic": 0.0015, "digits": 0.001, "mnist-lenet": 0.02, "cifar10-resnet8": 0.3}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    one = SECONDS.get(cfg.task, 0.02) * (cfg.batch / 32 if cfg.task == "cifar10-resnet8" else 1)
    if cfg.part == "rank":
        one = 0.0012
    if cfg.part == "eps":
        one *= 0.5 * len(EPS) * (2 if DTYPES[cfg.dtype].itemsize == 2 else 1)
    return 0.02 + cfg.draws * one / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.zeroth._report_estimators import present as made

    return made(results)


NETWORKS = (*(("mnist-lenet", w, 32, 600) for w in (0.25, 0.5, 1.0, 2.0)), ("cifar10-resnet8", 1.0, 8, 400))
experiment = Experiment(
    name="zeroth/estimators",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("law", law("digits", {"gaussian": 512}), minutes, "an MLP on digits, 512 directions"),
            Stage("rank", ranks("digits", 400), minutes, "one matrix of it, four ranks"),
            Stage("dimension", dimensions((16, 256), (("digits", 1.0, 32, 300),), 300), minutes, "two quadratics"),
            Stage("eps", precisions("digits", ("float32", "bfloat16"), 15), minutes, "two precisions"),
        ),
        "cpu": (
            Stage(
                "law",
                law("mnist-lenet", {"gaussian": 4096, "rademacher": 1024, "sphere": 1024}),
                minutes,
                "LeNet on MNIST, 4,096 and 1,024 directions",
            ),
            Stage("rank", ranks("mnist-lenet", 20_000), minutes, "the 84 x 120 matrix of LeNet, 20,000 draws"),
            Stage("dimension", dimensions(SIZES, NETWORKS, 2000), minutes, "7 quadratics, 4 widths, ResNet-8"),
            Stage("eps", precisions("mnist-lenet", ("float32", "bfloat16"), 60), minutes, "15 values of eps"),
        ),
    },
    identity=lambda cfg: {} if cfg.task == "quadratic" else named(cfg.task, TASKS).identity(),
    check=check,
    present=present,
    primary="scaled_cosine2",
)
