"""The demonstration: first-order against zeroth-order optimizers on handwritten digits, in a few minutes.

Every method gets the same number of tuning trials (Sobol points in its own box) on a tuning seed; its best setting
then runs on fresh seeds. First-order methods take `FIRST` steps; MeZO, which never calls backward, takes more steps
of two forward passes each, and is compared both at equal examples and at equal forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt import catalog
from dlopt.experiments._steps import at_least, check_method, train_method
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS, Classification

METHODS = ("sgd", "adamw", "adafactor", "mezo")
# the methods' own boxes are for larger models: this small network takes larger steps, MeZO from scratch above all
BOXES = {"adafactor": {"lr": (1e-3, 1.0, "log")}, "mezo": {"lr": (1e-4, 1e-1, "log")}}
FIRST, ZEROTH = 600, 10_000
TRIALS, TUNING_SEED, SEEDS = 5, 1000, (0, 1, 2)
DIVERGED = 10 * math.log(10)  # ten times the loss of a guess among ten classes


@dataclass(frozen=True)
class Config:
    """method, params: the optimizer and its hyper-parameters. steps: updates. batch: examples a step.
    schedule: "constant" or "cosine" decay to 0. seed: of initial weights, data order and directions."""

    method: str = "adamw"
    params: dict[str, Any] = field(default_factory=dict)
    task: str = "digits"
    steps: int = FIRST
    batch: int = 64
    schedule: str = "cosine"
    seed: int = 0


def task(cfg: Config) -> Classification:
    """The task that a config names; a ValueError if there is none of that name."""
    return named(cfg.task, TASKS)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    at_least("steps", cfg.steps, 1)
    at_least("batch", cfg.batch, 1)
    if cfg.schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule takes constant or cosine, not {cfg.schedule!r}")
    check_method(cfg.method, cfg.params)
    task(cfg).ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one classifier; its figures on validation and test data, bytes by kind and seconds per step."""
    summary = train_method(
        cfg.method,
        cfg.params,
        lambda: task(cfg).build(cfg.seed, cfg.batch, log.device),
        log,
        seed=cfg.seed,
        steps=cfg.steps,
        schedule=cfg.schedule,
        eval_every=max(1, cfg.steps // 40),
        diverge_above=DIVERGED,
    )
    sizes = task(cfg).build(cfg.seed, cfg.batch).sizes
    return summary | dict(zip(("train_size", "validation_size", "test_size"), sizes))


def box(method: str) -> Mapping[str, tuple[Any, ...]]:
    """Where a method is tuned."""
    return BOXES.get(method, catalog.find(method).search)


def _methods() -> list[str]:
    """The four of the report, then what other packages have added to their topics."""
    others = [m.name for m in catalog.methods().values() if m.origin != "dlopt" and m.kind in ("optimizer", "zeroth")]
    return [*METHODS, *others]


def _steps(method: str) -> int:
    return ZEROTH if catalog.find(method).kind == "zeroth" else FIRST


def tune(earlier: Earlier) -> Sequence[Config]:
    """The same number of Sobol points for every method, in its own search box, on the tuning seed."""
    return [
        Config(method=m, params=point, steps=_steps(m), seed=TUNING_SEED)
        for m in _methods()
        for point in sobol(box(m), TRIALS, seed=7)
    ]


def report(earlier: Earlier) -> Sequence[Config]:
    """The best trial of each method on fresh seeds."""
    return [
        Config(
            method=m,
            params=earlier.best("tune", "val_loss", maximise=False, method=m),
            steps=_steps(m),
            seed=seed,
        )
        for m in _methods()
        for seed in SEEDS
    ]


def minutes(cfg: Config) -> float:
    """On one core, from runs on two-core machines of 2026."""
    return 0.02 + cfg.steps * (1.4e-5 if catalog.find(cfg.method).kind == "zeroth" else 3e-5)


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments._demo_report import present as made  # it needs this file's numbers

    return made(results)


experiment = Experiment(
    name="demo",
    config=Config,
    run=run,
    version=2,  # 2: MeZO draws its directions in pieces
    stages={
        "smoke": (
            Stage("tune", tune, minutes, f"{TRIALS} Sobol trials per method on a tuning seed"),
            Stage("report", report, minutes, f"best trial on {len(SEEDS)} fresh seeds"),
        )
    },
    identity=lambda cfg: task(cfg).identity(),
    check=check,
    present=present,
    primary="val_accuracy",
)
