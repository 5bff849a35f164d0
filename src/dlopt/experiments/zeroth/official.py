"""The official rules beside ours, each fault measured alone. One run is one line of one picture.

drift: how far weights wander at lr = 0; change: the angle between LOZO's update and its perturbation, step by step;
interval: what LOZO reaches if V changes every `params.interval` steps; anchor: the size of MeZO-SVRG's correction
against the distance from its anchor, in units of the variance of one estimate from one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments.zeroth import _faults
from dlopt.experiments.zeroth._common import DTYPES, SVRG, check_params, one_of, positive
from dlopt.experiments.zeroth._faults import DISTANCES, MATRIX
from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS

PARTS, RULES = ("drift", "change", "interval", "anchor"), ("ours", "apart", "official")
SPREADS = (1.0, 1 / 24)  # their standard deviation: of N(0, 1), and of a layer of width 576
RATES, INTERVALS, SEEDS = (0.001, 0.002, 0.004), (1, 2, 5, 10, 50), (0, 1, 2)
# an anchor that is set once and moves nothing, so that a step shows the correction alone
ANCHORED = {"eps": 1e-4, "interval": 10**9, "anchor_lr": 0.0}


@dataclass(frozen=True)
class Config:
    """part: one of `PARTS`. rule: "ours", "official", or (anchor) "apart": ours with two directions. method, params:
    what stands for "ours", and the settings of both. dtype, spread: of the weights that wander. task: of
    `tasks.classification`. lr: of LOZO. steps. batch: examples. draws: estimates at each distance. seed."""

    part: str = "drift"
    rule: str = "ours"
    method: str = "mezo"
    params: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    spread: float = 1.0
    task: str = "digits"
    lr: float = 0.002
    steps: int = 1000
    batch: int = 64
    draws: int = 1000
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    one_of(PARTS, part=cfg.part)
    one_of(RULES if cfg.part == "anchor" else ("ours", "official"), rule=cfg.rule)
    one_of(tuple(DTYPES), dtype=cfg.dtype)
    positive(spread=cfg.spread, lr=cfg.lr, steps=cfg.steps, batch=cfg.batch, draws=cfg.draws)
    wanted = {"drift": "mezo", "anchor": SVRG}.get(cfg.part, "lozo")
    if cfg.method != wanted:
        raise ValueError(f"part {cfg.part} is about {wanted}, not {cfg.method}")
    if cfg.params.get("momentum") is not None or cfg.params.get("scale", "official") != "official":
        raise ValueError("the official rule of LOZO here has no momentum and no 1/r: leave momentum and scale alone")
    if cfg.part == "anchor" and cfg.params != {**ANCHORED, "shared_z": cfg.rule != "apart"}:
        raise ValueError("part anchor has its own settings of the method, which params cannot change")
    check_params(cfg.method, cfg.params)
    named(cfg.task, TASKS).ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One line of one picture."""
    measure = {"drift": _faults.drift, "change": _faults.change, "interval": _faults.interval, "anchor": _faults.anchor}
    return measure[cfg.part](cfg, log)


def drift(dtypes: Sequence[str], spreads: Sequence[float], steps: int) -> Any:
    """Both rules in several precisions."""
    return lambda earlier: [
        Config("drift", rule, dtype=d, spread=s, steps=steps) for d in dtypes for s in spreads for rule in _both()
    ]


def change(steps: int, interval: int = 50) -> Any:
    """Both rules of LOZO, step by step."""
    return lambda earlier: [
        Config("change", rule, "lozo", {**MATRIX, "interval": interval}, steps=steps) for rule in _both()
    ]


def intervals(values: Sequence[int], rates: Sequence[float], seeds: Sequence[int], steps: int) -> Any:
    """Both rules for every interval, at the same learning rates."""
    return lambda earlier: [
        Config("interval", rule, "lozo", {**MATRIX, "interval": n}, lr=lr, steps=steps, seed=s)
        for s in seeds
        for n in values
        for lr in rates
        for rule in _both()
    ]


def anchors(tasks: Sequence[str], draws: int) -> Any:
    """Ours, ours with two directions, and the official rule, on a smooth problem and on one with kinks."""
    return lambda earlier: [
        Config("anchor", rule, SVRG, {**ANCHORED, "shared_z": rule != "apart"}, task=t, draws=draws)
        for t in tasks
        for rule in RULES
    ]


def _both() -> tuple[str, str]:
    return "ours", "official"


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    seconds = {
        "drift": 0.005 * cfg.steps,
        "change": 0.004 * cfg.steps,
        "interval": 0.0025 * cfg.steps,
        "anchor": 0.0035 * cfg.draws * len(DISTANCES),
    }[cfg.part]
    return 0.01 + seconds / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.zeroth._report_official import present as made

    return made(results)


experiment = Experiment(
    name="zeroth/official",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("drift", drift(("bfloat16",), (1.0,), 100), minutes, "bfloat16, 100 steps"),
            Stage("change", change(120, 20), minutes, "LOZO's update and its perturbation, 120 steps"),
            Stage("interval", intervals((1, 10), (0.002,), (0,), 200), minutes, "two intervals, one rate"),
            Stage("anchor", anchors(("digits-softmax",), 60), minutes, "softmax regression, 60 draws"),
        ),
        "cpu": (
            Stage("drift", drift(("bfloat16", "float16", "float32"), SPREADS, 1000), minutes, "1,000 steps at lr = 0"),
            Stage("change", change(2000), minutes, "LOZO's update and its perturbation, 2,000 steps"),
            Stage("anchor", anchors(("digits-softmax", "digits"), 2000), minutes, "2,000 draws at 6 distances"),
            Stage(
                "interval",
                intervals(INTERVALS, RATES, SEEDS, 1000),
                minutes,
                f"{len(INTERVALS)} intervals, {len(RATES)} rates, {len(SEEDS)} seeds, 1,000 steps",
            ),
        ),
    },
    identity=lambda cfg: {} if cfg.part == "drift" else named(cfg.task, TASKS).identity(),
    check=check,
    present=present,
    primary="val_loss",
)
