"""From scratch with forward passes: LeNet on MNIST and ResNet-8 on CIFAR-10, against forward passes and seconds.

SGD with gradients by backpropagation; MeZO with 1, 4 and 16 directions; SGD with gradients of 16 random directions
(RGE, one-sided, 17 forward passes); DeepZero. Momentum 0.9 where a method has it, constant rates, no weight decay but
DeepZero's own. Equal forward passes for all that draw directions; DeepZero needs thousands in a step and gets as much
time. A backward pass counts as two forward passes. Passes of tuning and evaluation are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dlopt import catalog
from dlopt.experiments._steps import Schedule
from dlopt.experiments.zeroth._common import DTYPES, TUNING_SEED, Cast, one_of, positive
from dlopt.experiments.zeroth._vision_steps import BACKWARD, Q, make, step
from dlopt.lab.experiment import Earlier, Experiment, Pending, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.lab.train import train
from dlopt.tasks import named
from dlopt.tasks.classification import TASKS, Classification

DIVERGED = 5 * math.log(10)
PER_STEP = {"sgd": 1 + BACKWARD, "mezo": 2, "mezo:q=4": 8, "mezo:q=16": 32, "rge:q=16": 17}
# {series: (method, where gradients come from, what is fixed)}
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sgd": ("sgd", "", {"momentum": 0.9}),
    "mezo": ("mezo", "", {}),
    "mezo:q=4": ("mezo", "", {"n_directions": 4}),
    "mezo:q=16": ("mezo", "", {"n_directions": 16}),
    "rge:q=16": ("sgd", "rge", {"momentum": 0.9}),
    "deepzero": ("deepzero", "", {}),
    "lozo": ("lozo", "", {}),
}
SERIES = ("sgd", "mezo", "mezo:q=4", "mezo:q=16", "rge:q=16", "deepzero")
BOXES = {
    "sgd": (0.003, 0.3),
    "mezo": (1e-4, 1e-2),
    "mezo:q=4": (3e-4, 3e-2),
    "mezo:q=16": (1e-3, 1e-1),
    "rge:q=16": (1e-4, 1e-2),
    "deepzero": (0.01, 0.3),
}
HEAT_LR, HEAT_EPS = tuple(10 ** (k / 2) for k in range(-8, -2)), (1e-4, 1e-3, 1e-2, 1e-1)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Config:
    """method, params: the optimizer. gradient: "" (its own way) or "rge": by 16 random directions. task: of
    `tasks.classification`. steps. batch: examples. evaluations: on the validation set along the run. dtype: of weights
    and forward passes. seed: of weights, order and directions."""

    method: str = "mezo"
    params: dict[str, Any] = field(default_factory=dict)
    gradient: str = ""
    task: str = "mnist-lenet"
    steps: int = 1000
    batch: int = 64
    evaluations: int = 20
    dtype: str = "float32"
    seed: int = 0


def series_of(config: Mapping[str, Any]) -> str:
    """The series that a record's config belongs to."""
    if config["gradient"]:
        return f"{config['gradient']}:q={Q}"
    n = config["params"].get("n_directions", 1)
    return str(config["method"]) + (f":q={n}" if n > 1 else "")


def task(cfg: Config) -> Classification:
    """The task that a config names; a ValueError if there is none of that name."""
    return named(cfg.task, TASKS)


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    positive(steps=cfg.steps, batch=cfg.batch, evaluations=cfg.evaluations)
    one_of(("float32", "bfloat16"), dtype=cfg.dtype)
    one_of(("", "rge"), gradient=cfg.gradient)
    kind = catalog.find(cfg.method).kind
    if kind not in ("optimizer", "zeroth", "zeroth-model") or (cfg.gradient and kind != "optimizer"):
        raise ValueError(f"{cfg.method} is a {kind}, which this experiment cannot run with gradient={cfg.gradient!r}")
    if "seed" in cfg.params:
        raise ValueError("a method draws from the seed of its run: set seed, not params.seed")
    make(cfg, torch.nn.Sequential(torch.nn.Linear(2, 2)))
    task(cfg).ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one network; loss and accuracy, forward passes, and what DeepZero says of its evaluation."""
    built = task(cfg).build(cfg.seed, cfg.batch, log.device)
    if cfg.dtype != "float32":
        built.model = Cast(built.model, DTYPES[cfg.dtype])
    optimizer = make(cfg, built.model)
    rates = Schedule(optimizer, "constant", cfg.steps)
    state = {"model": built.model, "optimizer": optimizer, "schedule": rates}
    train(step(cfg, built, optimizer, rates, log), built.batches, state, steps=cfg.steps, log=log,
          evaluate=built.evaluate, eval_every=max(1, cfg.steps // cfg.evaluations), diverge_above=DIVERGED)  # fmt: skip
    found: dict[str, Any] = built.evaluate() | built.test()
    found |= {"forwards": log.meter.forwards, "seconds_per_step": sum(log.meter.seconds.values()) / cfg.steps}
    if hasattr(optimizer, "describe"):
        said = optimizer.describe()
        found |= {"mode": said["mode"], "work_share": said["work"] / max(1, said["forwards"]),
                  "coordinates": optimizer.forwards // max(1, optimizer.steps)}  # fmt: skip
    return found | {"parameters": sum(p.numel() for p in built.model.parameters())}


@dataclass(frozen=True)
class Plan:
    """How a task is tuned and reported: forward passes of a run (tuning: a share of it), DeepZero's and SGD's steps."""

    task: str
    forwards: int
    deepzero: int
    sgd: int
    batch: int = 64
    trials: int = 4
    tuning: float = 0.2
    evaluations: int = 20
    sparse: Mapping[str, Any] = field(default_factory=dict)
    series: Sequence[str] = SERIES

    def steps(self, series: str) -> int:
        """Of a whole run of that series."""
        fixed = {"deepzero": self.deepzero, "sgd": self.sgd}
        return fixed.get(series) or self.forwards // PER_STEP[series]

    def config(self, series: str, params: Mapping[str, Any], share: float = 1.0, seed: int = 0) -> Config:
        """One run; share: of its steps."""
        method, gradient, _ = VARIANTS[series]
        # DeepZero takes few steps of thousands of passes, and is compared with methods early in its run
        evaluations = 3 * self.evaluations if series == "deepzero" and share == 1 else self.evaluations
        steps = max(2, round(share * self.steps(series)))
        values = params if isinstance(params, Pending) else dict(params)
        return Config(method, values, gradient, self.task, steps, self.batch, min(evaluations, steps), seed=seed)

    def fixed(self, series: str) -> dict[str, Any]:
        return {**VARIANTS[series][2], **(self.sparse if series == "deepzero" else {})}

    def trial(self, series: str, lr: float) -> Config:
        return self.config(series, {**self.fixed(series), "lr": lr}, self.tuning, TUNING_SEED)

    def points(self, series: str) -> list[float]:
        low, high = BOXES[series]
        return [float(p["lr"]) for p in sobol({"lr": (low, high, "log")}, self.trials, seed=5)]


SPARSE = {"sparsity": 0.9, "q_pruning": 192}
MNIST = Plan("mnist-lenet", forwards=40_000, deepzero=250, sgd=2000, sparse=SPARSE)
CIFAR = Plan("cifar10-resnet8", forwards=12_000, deepzero=100, sgd=2000, batch=32, trials=3, tuning=0.1,
             evaluations=10, sparse={"sparsity": 0.99, "q_pruning": 192})  # fmt: skip
SMOKE = Plan("digits", forwards=1600, deepzero=20, sgd=60, trials=2, tuning=0.25, evaluations=5,
             sparse={"sparsity": 0.9, "q_pruning": 16})  # fmt: skip


def tune(*plans: Plan) -> Any:
    """The same number of Sobol points of the learning rate for every series."""
    return lambda earlier: [p.trial(s, lr) for p in plans for s in p.series for lr in p.points(s)]


def best(earlier: Earlier, plan: Plan, series: str) -> dict[str, Any]:
    """The best trial's params, by validation loss; `Pending` while trials are missing."""
    trials = [plan.trial(series, lr) for lr in plan.points(series)]
    lowest, chosen = math.inf, Pending(f"no trial of {series} on {plan.task} ended well")
    for trial in trials:
        mine = [r for r in earlier.records("tune") if _fits(r.config, trial)]
        if not mine:
            return Pending(f"stage tune lacks runs of {series} on {plan.task}")
        value = mine[0].summary.get("val_loss") if mine[0].status == "done" else None
        if value is not None and value < lowest:
            lowest, chosen = value, dict(trial.params)  # type: ignore[assignment]
    return chosen


def _fits(config: Mapping[str, Any], trial: Config) -> bool:
    return (
        (config["task"], config["steps"], config["seed"]) == (trial.task, trial.steps, trial.seed)
        and series_of(config) == series_of(vars(trial))
        and config["params"]["lr"] == trial.params["lr"]
    )


def report(*plans: Plan, seeds: Sequence[int] = SEEDS) -> Any:
    """The best trial of each series on fresh seeds; the first seed of all comes first."""
    return lambda earlier: [p.config(s, best(earlier, p, s), seed=k) for k in seeds for p in plans for s in p.series]


def heat(task: str, steps: int, grid: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]]) -> Any:
    """{(method, dtype): (learning rates, values of eps)}: every pair once, for few steps."""
    return lambda earlier: [
        Config(method, {"lr": lr, "eps": eps}, "", task, steps, evaluations=2, dtype=dtype, seed=TUNING_SEED)
        for (method, dtype), (rates, values) in grid.items()
        for eps in values
        for lr in rates
    ]


HEAT = {
    ("mezo", "float32"): (HEAT_LR, HEAT_EPS),
    ("mezo", "bfloat16"): (HEAT_LR, HEAT_EPS[:3]),
    ("lozo", "float32"): (HEAT_LR, HEAT_EPS),
}
# of one core: a forward pass of a batch of 64 (bfloat16: by emulation), DeepZero's step, an evaluation
FORWARD = {"mnist-lenet": 0.0065, "cifar10-resnet8": 0.037}
DEEPZERO = {"mnist-lenet": 0.7, "cifar10-resnet8": 12.0}
EVALUATION = {"mnist-lenet": 0.25, "cifar10-resnet8": 3.0}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation included."""
    share = cfg.batch / 64
    if cfg.method == "deepzero":
        one = DEEPZERO.get(cfg.task, 0.02) * share
    else:
        passes = PER_STEP.get(_series(cfg), 2)
        one = passes * FORWARD.get(cfg.task, 0.0012) * share * (4 if cfg.dtype == "bfloat16" else 1)
    return 0.02 + (cfg.steps * one + (cfg.evaluations + 3) * EVALUATION.get(cfg.task, 0.01)) / 60


def _series(cfg: Config) -> str:
    """The series of a config, also of one whose params are not known yet: its steps tell how many directions it has."""
    if not isinstance(cfg.params, Pending):
        return series_of(vars(cfg))
    plan = next(p for p in (MNIST, CIFAR, SMOKE) if p.task == cfg.task)
    fits = (s for s in SERIES if VARIANTS[s][:2] == (cfg.method, cfg.gradient) and plan.steps(s) == cfg.steps)
    return next(fits, cfg.method)


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.zeroth._report_vision import present as made

    return made(results)


experiment = Experiment(
    name="zeroth/vision",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("tune", tune(SMOKE), minutes, "2 Sobol trials of the learning rate, an MLP on digits"),
            Stage("report", report(SMOKE, seeds=(0,)), minutes, "1,600 forward passes"),
            Stage(
                "heat",
                heat(
                    "digits",
                    60,
                    {
                        ("mezo", "float32"): (HEAT_LR[2::3], HEAT_EPS[:2]),
                        ("mezo", "bfloat16"): (HEAT_LR[2::3], HEAT_EPS[:2]),
                        ("lozo", "float32"): (HEAT_LR[2::3], HEAT_EPS[:2]),
                    },
                ),
                minutes,
                "learning rate x eps, 60 steps",
            ),
        ),
        # what is dropped first where time is short comes last
        "cpu": (
            Stage("tune", tune(MNIST, CIFAR), minutes, "4 and 3 Sobol trials of the learning rate, short runs"),
            Stage("report", report(MNIST), minutes, f"LeNet, 40,000 forward passes, {len(SEEDS)} seeds"),
            Stage("heat", heat("mnist-lenet", 600, HEAT), minutes, "learning rate x eps, 600 steps"),
            Stage("resnet8", report(CIFAR, seeds=(0,)), minutes, "ResNet-8, 12,000 forward passes, 1 seed"),
        ),
        "gpu": (
            Stage("tune", tune(MNIST, CIFAR), minutes, "4 and 3 Sobol trials of the learning rate, short runs"),
            Stage("report", report(MNIST, seeds=range(5)), minutes, "LeNet, 5 seeds"),
            Stage("heat", heat("mnist-lenet", 2000, HEAT), minutes, "learning rate x eps, 2,000 steps"),
            Stage("resnet8", report(CIFAR, seeds=SEEDS), minutes, "ResNet-8, 3 seeds"),
        ),
    },
    identity=lambda cfg: task(cfg).identity(),
    check=check,
    present=present,
    primary="val_accuracy",
)
