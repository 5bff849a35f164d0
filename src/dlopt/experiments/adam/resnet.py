"""Adam variants on CIFAR-10: ResNet-8 tuned and repeated over seeds, then ResNet-18 at the rates found.

Settings that are not tuned are the same for all methods: batch 128, crop and flip, cosine decay to 0 after a warm-up
over 5% of the steps, no clipping. Weight decay is decoupled except for Adam and SGD, where it is the L2 penalty of
the original papers; it spares biases and norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments._steps import at_least, check_method, train_method
from dlopt.experiments.adam._common import NAMED, SEEDS, TRIALS, TUNING_SEED, methods, trials
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS, Classification

DIVERGED = 10 * math.log(10)  # ten times the loss of a guess among ten classes
DECOUPLED, COUPLED = {"weight_decay": 0.05}, {"weight_decay": 5e-4}
FIXED: dict[str, dict[str, Any]] = {
    "adam": COUPLED,
    "adamw": DECOUPLED,
    "adafactor": DECOUPLED,
    "sophia-g": DECOUPLED,
    "adam-mini": DECOUPLED,
    "lion": {"weight_decay": 0.5},  # ten times, as its steps are about ten times smaller (Chen et al. 2023)
    "muon": DECOUPLED,
    "sgd": {**COUPLED, "momentum": 0.9, "nesterov": True},
}
BOXES = {
    "adam": {"lr": (3e-4, 3e-2, "log")},
    "adamw": {"lr": (3e-4, 3e-2, "log")},
    "adafactor": {"lr": (1e-3, 1e-1, "log")},
    "sophia-g": {"lr": (1e-4, 1e-2, "log")},
    "adam-mini": {"lr": (3e-4, 3e-2, "log")},
    "lion": {"lr": (3e-5, 3e-3, "log")},
    "muon": {"lr": (3e-4, 3e-2, "log")},
    "sgd": {"lr": (1e-2, 1.0, "log")},
}


@dataclass(frozen=True)
class Config:
    """task: of `tasks.classification`. method, params: the optimizer. epochs: over the training set; steps: instead,
    if above 0. batch: examples a step. warmup: share of the steps. seed: of weights, order and augmentation."""

    method: str = "adamw"
    params: dict[str, Any] = field(default_factory=dict)
    task: str = "cifar10-resnet8"
    epochs: int = 8
    steps: int = 0
    batch: int = 128
    warmup: float = 0.05
    seed: int = 0


def task(cfg: Config) -> Classification:
    """The task that a config names; a ValueError if there is none of that name."""
    return named(cfg.task, TASKS)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    at_least("epochs", cfg.epochs, 1)
    at_least("steps", cfg.steps, 0)
    at_least("batch", cfg.batch, 1)
    if not 0 <= cfg.warmup < 1:
        raise ValueError(f"warmup must be a share of the steps in [0, 1), got {cfg.warmup}")
    check_method(cfg.method, cfg.params)
    task(cfg).ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one network; figures on validation and test data, bytes by kind, seconds per step by phase."""
    built = task(cfg).build(cfg.seed, cfg.batch, log.device)
    per_epoch = built.batches.per_epoch
    steps = cfg.steps or cfg.epochs * per_epoch
    sizes = dict(zip(("train_size", "validation_size", "test_size"), built.sizes))
    del built
    found = train_method(
        cfg.method,
        cfg.params,
        lambda: task(cfg).build(cfg.seed, cfg.batch, log.device),
        log,
        seed=cfg.seed,
        steps=steps,
        schedule="cosine",
        warmup=round(cfg.warmup * steps),
        eval_every=max(1, per_epoch // 2) if not cfg.steps else 0,
        diverge_above=DIVERGED,
    )
    return found | sizes | {"steps": steps}


def tune(earlier: Earlier) -> Sequence[Config]:
    """Sobol trials of the learning rate, two epochs each."""
    return [Config(method=m, params=p, epochs=2, seed=TUNING_SEED) for m, p in trials(BOXES, FIXED)]


def _best(earlier: Earlier, method: str) -> dict[str, Any]:
    return earlier.best("tune", "val_loss", maximise=False, method=method)


def report(earlier: Earlier) -> Sequence[Config]:
    """The best trial of each method, eight epochs on fresh seeds; the first seed of all comes first."""
    return [Config(method=m, params=_best(earlier, m), seed=s) for s in SEEDS for m in methods()]


def deeper(earlier: Earlier) -> Sequence[Config]:
    """ResNet-18 at half width at the rate found on ResNet-8: does the order of the methods carry over?"""
    return [Config(method=m, params=_best(earlier, m), task="cifar10-resnet18-half", epochs=3) for m in NAMED]


def cost(earlier: Earlier) -> Sequence[Config]:
    """Full ResNet-18 for 100 steps: bytes by kind, and seconds by phase on a quiet machine."""
    return [Config(method=m, params=_best(earlier, m), task="cifar10-resnet18", steps=100) for m in NAMED]


def gpu(epochs: int) -> Any:
    """The papers' size of experiment: full ResNet-18, five methods, three seeds."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        return [
            Config(method=m, params=_best(earlier, m), task="cifar10-resnet18", epochs=epochs, seed=s)
            for s in SEEDS
            for m in NAMED
        ]

    return configs


def smoke(earlier: Earlier) -> Sequence[Config]:
    """Two steps' worth of every method on digits, which need no download."""
    return [Config(method=m, params={**FIXED.get(m, {})}, task="digits", steps=20, batch=32) for m in methods()]


SECONDS_PER_STEP = {"digits": 0.002, "cifar10-resnet8": 0.18, "cifar10-resnet18-half": 1.7, "cifar10-resnet18": 6.6}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation included."""
    steps = cfg.steps or cfg.epochs * 351
    return 0.05 + steps * SECONDS_PER_STEP.get(cfg.task, 0.2) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.adam._resnet_report import present as made  # it needs this file's numbers

    return made(results)


TUNE = Stage("tune", tune, minutes, f"{TRIALS} Sobol trials of the learning rate, 2 epochs")
experiment = Experiment(
    name="adam/resnet",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("report", smoke, minutes, "20 steps on digits"),),
        "cpu": (
            TUNE,
            Stage("report", report, minutes, f"ResNet-8, 8 epochs, {len(SEEDS)} seeds"),
            Stage("resnet18", deeper, minutes, "ResNet-18 at half width, 3 epochs"),
            Stage("cost", cost, minutes, "full ResNet-18, 100 steps, for memory and time"),
        ),
        "gpu": (
            TUNE,
            Stage("resnet18-30", gpu(30), minutes, "ResNet-18, 30 epochs"),
            Stage("resnet18-200", gpu(200), minutes, "ResNet-18, 200 epochs"),
        ),
    },
    identity=lambda cfg: task(cfg).identity(),
    check=check,
    present=present,
    primary="val_accuracy",
)
