"""Samplers on images: VGG-8 on MNIST, ResNet-8 and ResNet-18 on CIFAR-10, with BatchNorm and without.

SGD with momentum 0.9, weight decay 5e-4, batch 128, cosine decay to 0 without warm-up; the learning rate is tuned for
each sampler by the same number of trials. Every sampler uses the same number of examples. Weights of importance
sampling and of unequal classes reach the loss through `weighted_mean`.

Importance sampling follows running norms of the loss's gradient in the logits, |softmax(z) - onehot(y)|_2: up to a
factor that is common to all examples, an upper bound of the example's gradient norm (Katharopoulos and Fleuret 2018).
It costs B x classes numbers from a forward pass that is done anyway; norms of all weights would cost about 1.6 times
the backward pass, and do not exist under BatchNorm, which mixes the examples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.experiments._steps import Schedule, make_optimizer
from dlopt.experiments.sampling._common import best, check_sampler, make, variant
from dlopt.experiments.sampling._stream import SampledBatches
from dlopt.lab.experiment import Earlier, Experiment, Pending, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.lab.train import train
from dlopt.sampling import weighted_mean
from dlopt.tasks import data, named
from dlopt.tasks.classification import TASKS, Classification, Classifier

SERIES = ("with-replacement", "fixed-order", "shuffle-once", "random-reshuffling", "class-blocks", "class-balanced",
          "importance:online")  # fmt: skip
TELLING = ("random-reshuffling", "class-blocks", "importance:online")  # for ResNet-18
NORMS = ("random-reshuffling", "class-blocks")  # with and without BatchNorm
BOX = {"lr": (0.01, 0.3, "log")}
TRIALS, TUNING_SEED, SEEDS = 3, 1000, (0, 1, 2)
MOMENTUM, DECAY = 0.9, 5e-4
EVALUATIONS = {"digits": 1, "mnist": 4, "cifar10-jpeg": 2}  # in an epoch
RECALIBRATION = 40  # batches from which BatchNorm's running statistics are taken anew


@dataclass(frozen=True)
class Config:
    """method, params, by: the sampler. task: of `tasks.classification`. epochs: of as many examples as the training
    set has. batch: examples a step. lr: of SGD at the start. seed: of weights, order and augmentation."""

    method: str = "random-reshuffling"
    params: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    task: str = "cifar10-resnet8"
    epochs: int = 8
    batch: int = 128
    lr: float = 0.1
    seed: int = 0


def task(cfg: Config) -> Classification:
    """The task that a config names; a ValueError if there is none of that name."""
    return named(cfg.task, TASKS)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.epochs < 1 or cfg.batch < 1 or not 0 < cfg.lr < math.inf:
        raise ValueError(f"epochs and batch must be at least 1 and lr above 0, got {cfg.epochs}, {cfg.batch} "
                         f"and {cfg.lr}")  # fmt: skip
    check_sampler(cfg.method, cfg.by, cfg.params)
    if cfg.method == "grab" or cfg.by in ("smoothness", "root"):
        raise ValueError(f"{cfg.method} by {cfg.by or 'gradients'} is not for deep networks here: it needs "
                         f"gradients or smoothness constants of single examples")  # fmt: skip
    task(cfg).ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one network with one sampler; what it has learned of each class, and what BatchNorm's statistics cost."""
    built = task(cfg).build(cfg.seed, cfg.batch, log.device)
    labels = built.batches.tensors[1]
    sampler = make(cfg.method, cfg.by, cfg.params, len(labels), cfg.seed, labels=labels)
    batches = SampledBatches(built.batches.tensors, sampler, cfg.batch, cfg.seed, built.batches.transform)
    steps = cfg.epochs * batches.per_epoch
    settings = {"lr": cfg.lr, "momentum": MOMENTUM, "weight_decay": DECAY}
    optimizer = make_optimizer("sgd", settings, built.model)
    rates = Schedule(optimizer, "cosine", steps)
    state: dict[str, Any] = {"model": built.model, "optimizer": optimizer, "schedule": rates}
    every = max(1, batches.per_epoch // EVALUATIONS.get(task(cfg).data, 2))
    train(_step(built, sampler, optimizer, rates, log), batches, state, steps=steps, log=log,
          evaluate=built.evaluate, eval_every=every)  # fmt: skip
    found: dict[str, Any] = built.evaluate() | built.test()
    found |= {f"seconds_{phase}": spent / steps for phase, spent in log.meter.seconds.items()}
    found |= _by_class(cfg, found["test_correct"])
    if any(isinstance(m, nn.BatchNorm2d) for m in built.model.modules()):
        found["recalibrated_test_accuracy"] = _recalibrated(built, cfg.seed)
    sizes = dict(zip(("train_size", "validation_size", "test_size"), built.sizes))
    counts = {"steps": steps, "parameters": sum(p.numel() for p in built.model.parameters())}
    return found | sizes | counts


def _step(built: Classifier, sampler: Any, optimizer: Any, rates: Schedule, log: Log) -> Any:
    def step(batch: Any) -> dict[str, Any]:
        x, y, weights, indices = batch
        rates.apply()
        optimizer.zero_grad(set_to_none=True)
        with log.meter.phase("forward"):
            logits = built.forward(built.model, (x, y))
            target = y.to(logits.device)
            loss = weighted_mean(F.cross_entropy(logits, target, reduction="none"), weights)
        with log.meter.phase("backward"):
            loss.backward()
        with log.meter.phase("optimizer"):
            optimizer.step()
        if getattr(sampler, "online", False):
            with log.meter.phase("sampling"):
                norms = logit_gradient_norms(logits.detach(), target)
                if bool(torch.isfinite(norms).all()):  # else the loop stops at the loss
                    sampler.update(indices, norms)
        return {"loss": float(loss.detach()), "forwards": 1, "examples": len(y)}

    return step


def logit_gradient_norms(logits: Tensor, target: Tensor) -> Tensor:
    """(B,): |softmax(z) - onehot(y)|_2, the norm of the cross-entropy's gradient in the logits (B, classes)."""
    return (logits.softmax(1) - F.one_hot(target, logits.shape[1])).norm(dim=1)


def _by_class(cfg: Config, correct: str) -> dict[str, Any]:
    """Test accuracy on the best and the worst class, and how uneven the classes are (standard deviation)."""
    right = torch.tensor([c == "1" for c in correct], dtype=torch.float64)
    y = data.get(task(cfg).data).y_test
    recalls = torch.stack([right[y == c].mean() for c in range(int(y.max()) + 1)])
    return {
        "worst_class_accuracy": float(recalls.min()),
        "best_class_accuracy": float(recalls.max()),
        "class_deviation": float(recalls.std()),
    }


def _recalibrated(built: Classifier, seed: int) -> float:
    """Test accuracy after BatchNorm's running statistics were taken anew from mixed batches, weights untouched.

    What it gains over the plain test accuracy is what the order of the classes did to the statistics alone.
    """
    norms = [m for m in built.model.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over batches
    built.model.train()
    with torch.no_grad():
        for number in range(min(RECALIBRATION, built.batches.per_epoch)):
            built.forward(built.model, built.batches.batch(number))
    for m, momentum in zip(norms, kept):
        m.momentum = momentum
    return float(built.test()["test_accuracy"])


def _trials(series: str, name: str, epochs: int, batch: int, count: int) -> list[Config]:
    points = sobol(BOX, count, seed=3)
    return [
        Config(**variant(series), task=name, epochs=epochs, batch=batch, lr=float(p["lr"]), seed=TUNING_SEED)
        for p in points
    ]


@dataclass(frozen=True)
class Plan:
    """How a task is tuned (stage, epochs) and reported."""

    task: str
    tuning: int
    epochs: int
    batch: int = 128
    trials: int = TRIALS


MNIST, CIFAR = Plan("mnist-vgg8-half", 1, 3), Plan("cifar10-resnet8", 2, 8)
SMOKE = Plan("digits-vgg8", 1, 2, batch=64, trials=2)


def tune(*plans: Plan) -> Any:
    """The same Sobol points of the learning rate for every sampler."""
    return lambda earlier: [
        trial for p in plans for s in SERIES for trial in _trials(s, p.task, p.tuning, p.batch, p.trials)
    ]


def _runs(earlier: Earlier, plan: Plan, name: str, epochs: int, series: Sequence[str], seeds: Sequence[int]) -> Any:
    found = []
    for seed in seeds:
        for s in series:
            trials = _trials(s, plan.task, plan.tuning, plan.batch, plan.trials)
            lr = best(earlier, "tune", trials, "lr", "val_loss")
            values = variant(s) | ({"params": lr} if isinstance(lr, Pending) else {"lr": lr})
            found.append(Config(**values, task=name, epochs=epochs, batch=plan.batch, seed=seed))
    return found


def report(*plans: Plan, seeds: Sequence[int] = SEEDS) -> Any:
    """The best trial of each sampler on fresh seeds; the first seed of all comes first."""
    return lambda earlier: [
        c for seed in seeds for p in plans for c in _runs(earlier, p, p.task, p.epochs, SERIES, (seed,))
    ]


def norms(*plans: Plan, seeds: Sequence[int] = SEEDS) -> Any:
    """GroupNorm in the place of BatchNorm, at the rates found with BatchNorm."""
    return lambda earlier: [c for p in plans for c in _runs(earlier, p, f"{p.task}-group", p.epochs, NORMS, seeds)]


def joined(*parts: Any) -> Any:
    """The runs of several parts as one stage."""
    return lambda earlier: [c for part in parts for c in part(earlier)]


def deeper(earlier: Earlier) -> Sequence[Config]:
    """ResNet-18 at half width at the rates found on ResNet-8."""
    return list(_runs(earlier, CIFAR, "cifar10-resnet18-half", 2, TELLING, (0,)))


# of one core: a step of 128 examples, and an evaluation of 5,000
SECONDS = {"mnist-vgg8-half": (0.19, 4.0), "mnist-vgg8-half-group": (0.21, 4.0), "cifar10-resnet8": (0.18, 2.0),
           "cifar10-resnet8-group": (0.21, 2.0), "cifar10-resnet18-half": (1.35, 20.0)}  # fmt: skip


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation included."""
    step, evaluation = SECONDS.get(cfg.task, (0.01, 0.02))
    source = task(cfg).data
    per_epoch = {"mnist": 430, "cifar10-jpeg": 352}.get(source, 21)
    times = cfg.epochs * EVALUATIONS.get(source, 2) + 7
    return 0.05 + (cfg.epochs * per_epoch * step + times * evaluation) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.sampling._report_vision import present as made

    return made(results)


experiment = Experiment(
    name="sampling/vision",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("tune", tune(SMOKE), minutes, "2 Sobol trials of the learning rate on digits"),
            Stage("report", report(SMOKE, seeds=(0,)), minutes, "VGG-8 of an eighth of the width, 2 epochs"),
            Stage("norms", norms(SMOKE, seeds=(0,)), minutes, "GroupNorm instead of BatchNorm"),
        ),
        # what is dropped first where time is short comes last
        "cpu": (
            Stage("tune", tune(MNIST, CIFAR), minutes, f"{TRIALS} Sobol trials of the learning rate, 1 or 2 epochs"),
            Stage(
                "report",
                joined(report(MNIST, CIFAR, seeds=SEEDS[:1]), report(CIFAR, seeds=SEEDS[1:])),
                minutes,
                f"VGG-8 3 epochs, 1 seed; ResNet-8 8 epochs, {len(SEEDS)} seeds",
            ),
            Stage(
                "norms",
                joined(norms(MNIST, seeds=SEEDS[:1]), norms(CIFAR)),
                minutes,
                f"GroupNorm instead of BatchNorm, 1 and {len(SEEDS)} seeds",
            ),
            Stage("resnet18", deeper, minutes, "ResNet-18 at half width, 2 epochs, 1 seed"),
            Stage(
                "seeds",
                joined(report(MNIST, seeds=SEEDS[1:]), norms(MNIST, seeds=SEEDS[1:])),
                minutes,
                "VGG-8, both norms, 2 seeds more",
            ),
        ),
    },
    identity=lambda cfg: task(cfg).identity(),
    check=check,
    present=present,
    primary="val_accuracy",
)
