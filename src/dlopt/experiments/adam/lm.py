"""Adam variants on a byte-level Llama-like model of about 5M parameters, trained on books; and their ablations.

Settings that are not tuned are the same for all methods: windows of 256 bytes, 8 a step, cosine decay to 0 after a
warm-up over 10% of the steps, gradients clipped to norm 1 (as in the papers' language models).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments._steps import at_least, check_method, train_method
from dlopt.experiments.adam._common import NAMED, SEEDS, TRIALS, TUNING_SEED, methods, trials
from dlopt.lab.experiment import Earlier, Experiment, Pending, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import named
from dlopt.tasks.language import TASKS, Language

DIVERGED = 10 * math.log(256)  # ten times the loss of a guess among 256 bytes
DECOUPLED = {"weight_decay": 0.1}
FIXED: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.95)},  # AdamW's, so that the two differ in decay alone; L2 is an ablation
    "adamw": {**DECOUPLED, "betas": (0.9, 0.95)},
    "adafactor": DECOUPLED,
    "sophia-g": DECOUPLED,
    "adam-mini": {**DECOUPLED, "betas": (0.9, 0.95)},
    "lion": {"weight_decay": 1.0},  # ten times, as its steps are about ten times smaller (Chen et al. 2023)
    "muon": DECOUPLED,
    "sgd": {"momentum": 0.9, "nesterov": True},
}
BOXES = {
    "adam": {"lr": (3e-4, 3e-2, "log")},
    "adamw": {"lr": (3e-4, 3e-2, "log")},
    "adafactor": {"lr": (3e-3, 3e-1, "log")},
    "sophia-g": {"lr": (1e-4, 1e-2, "log")},
    "adam-mini": {"lr": (3e-4, 3e-2, "log")},
    "lion": {"lr": (3e-5, 3e-3, "log")},
    "muon": {"lr": (3e-4, 3e-2, "log")},
    "sgd": {"lr": (3e-2, 3.0, "log")},
}
# one change each, at the rate that was tuned without it
ABLATIONS: dict[str, Sequence[Mapping[str, Any]]] = {
    "adam-mini": ({"partition": "tensor"}, {"partition": "row"}, {"partition": "head"}),
    "adafactor": ({"clip_threshold": 1e9}, {"factored": False}),
    "sophia-g": ({"interval": 1}, {"interval": 50}, {"rho": 0.01}, {"rho": 0.16}),
    "adam": ({"weight_decay": 0.1},),  # coupled: the same number as AdamW's decoupled one
    "adamw": ({"weight_decay": 0.0},),
}


@dataclass(frozen=True)
class Config:
    """task: of `tasks.language`. method, params: the optimizer. steps: updates. batch: windows a step. warmup: share
    of the steps. clip: largest norm of the gradient. seed: of weights and order."""

    method: str = "adamw"
    params: dict[str, Any] = field(default_factory=dict)
    task: str = "books-5m"
    steps: int = 300
    batch: int = 8
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0


def task(cfg: Config) -> Language:
    """The task that a config names; a ValueError if there is none of that name."""
    return named(cfg.task, TASKS)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    at_least("steps", cfg.steps, 1)
    at_least("batch", cfg.batch, 1)
    if not 0 <= cfg.warmup < 1:
        raise ValueError(f"warmup must be a share of the steps in [0, 1), got {cfg.warmup}")
    if not cfg.clip > 0:
        raise ValueError(f"clip must be above 0, got {cfg.clip}")
    check_method(cfg.method, cfg.params)
    task(cfg).ready()


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one language model; validation and test loss in nats per byte, bytes by kind, seconds by phase."""
    return train_method(
        cfg.method,
        cfg.params,
        lambda: task(cfg).build(cfg.seed, cfg.batch, log.device),
        log,
        seed=cfg.seed,
        steps=cfg.steps,
        schedule="cosine",
        warmup=round(cfg.warmup * cfg.steps),
        clip=cfg.clip,
        eval_every=max(1, cfg.steps // 10),
        diverge_above=DIVERGED,
    )


def tune(earlier: Earlier) -> Sequence[Config]:
    """Sobol trials of the learning rate, a third of the steps each."""
    return [Config(method=m, params=p, steps=100, seed=TUNING_SEED) for m, p in trials(BOXES, FIXED)]


def _best(earlier: Earlier, method: str) -> dict[str, Any]:
    return earlier.best("tune", "val_loss", maximise=False, method=method)


def report(earlier: Earlier) -> Sequence[Config]:
    """The best trial of each method on fresh seeds; the first seed of all comes first."""
    return [Config(method=m, params=_best(earlier, m), seed=s) for s in SEEDS for m in methods()]


def ablations(earlier: Earlier) -> Sequence[Config]:
    """One change at a time; the unchanged runs are those of the report's first seed."""
    found = []
    for method, changes in ABLATIONS.items():
        params = _best(earlier, method)
        for change in changes:
            merged = params if isinstance(params, Pending) else {**params, **change}
            found.append(Config(method=method, params=merged))
    return found


def gpu(earlier: Earlier) -> Sequence[Config]:
    """124M parameters: the size of the papers' smallest language models."""
    return [
        Config(method=m, params=_best(earlier, m), task="books-124m", steps=5000, batch=32, seed=s)
        for s in SEEDS
        for m in NAMED
    ]


def smoke(earlier: Earlier) -> Sequence[Config]:
    """Ten steps of every method on Python's own source text."""
    return [Config(method=m, params={**FIXED.get(m, {})}, task="stdlib-tiny", steps=10, batch=4) for m in methods()]


SECONDS_PER_STEP = {"stdlib-tiny": 0.01, "books-5m": 1.0, "books-124m": 90.0}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation included."""
    return 0.1 + cfg.steps * cfg.batch / (8 if cfg.task == "books-5m" else 32) * SECONDS_PER_STEP.get(cfg.task, 1) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.adam._lm_report import present as made  # it needs this file's numbers

    return made(results)


TUNE = Stage("tune", tune, minutes, f"{TRIALS} Sobol trials of the learning rate, 100 steps")
experiment = Experiment(
    name="adam/lm",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("report", smoke, minutes, "10 steps on Python's source text"),),
        "cpu": (
            TUNE,
            Stage("report", report, minutes, f"300 steps, {len(SEEDS)} seeds"),
            Stage("ablations", ablations, minutes, "one change each, 300 steps, 1 seed"),
        ),
        "gpu": (TUNE, Stage("report", gpu, minutes, "124M parameters, 5,000 steps")),
    },
    identity=lambda cfg: task(cfg).identity(),
    check=check,
    present=present,
    primary="val_loss",
)
