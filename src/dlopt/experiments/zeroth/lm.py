"""Fine-tuning a pretrained language model by prompts: SST-2 and TREC with SmolLM2-135M (4-bit weights, dequantized).

MeZO, MeZO-SVRG, LOZO and LOZO-M at constant rates; AdamW and SGD on all weights with cosine decay; the model as it
is, also with the prior of its answers divided out. 256 examples train, 8 a step, so the whole set, which MeZO-SVRG
asks for at an anchor, is 32 batches. Loss and prediction are over the answers (MeZO's `--train_as_classification`).
A backward pass counts as two forward passes; those of tuning and evaluation are not counted. Zeroth-order tuning trials
have equal forward passes. MeZO and MeZO-SVRG draw signs: a normal number costs about three times as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlopt import catalog
from dlopt.experiments._steps import Schedule, check_method, make_optimizer, step_bytes
from dlopt.experiments.zeroth._common import SVRG, TUNING_SEED, one_of, positive
from dlopt.experiments.zeroth._lm_steps import BACKWARD, INTERVAL, TOGETHER, VARIANTS, cost, given, step
from dlopt.experiments.zeroth._toy import Toy
from dlopt.lab.experiment import Earlier, Experiment, Pending, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.lab.train import train
from dlopt.tasks import named, prompted

PARTS = ("train", "zero-shot", "cost")
DIVERGED = 15.0
EXAMPLES = {"train": 256, "validation": 250, "objective": "answers"}
TASKS: dict[str, Any] = {
    "sst2-256": replace(prompted.TASKS["sst2"], name="sst2-256", **EXAMPLES),
    "trec-256": replace(prompted.TASKS["trec"], name="trec-256", **EXAMPLES),
    "toy": Toy(),
}
FIRST = ("adamw", "sgd")
ZEROTH = ("mezo", "lozo", "lozo-m", SVRG)
RATE = (1e-6, 1e-4, "log")
BOXES: dict[str, dict[str, tuple[float, float, str]]] = {
    "mezo": {"lr": RATE},
    "lozo": {"lr": RATE},
    "lozo-m": {"lr": RATE},
    SVRG: {"lr": RATE, "anchor_lr": RATE},
    "adamw": {"lr": (3e-6, 3e-4, "log")},
    "sgd": {"lr": (3e-4, 3e-1, "log")},
}
SEEDS, TRIALS, PRIORS = (0, 1), 3, ("content-free", "training")


@dataclass(frozen=True)
class Config:
    """part: "train", "zero-shot" (no training), or "cost" (bytes and interleaved times of all methods). method,
    params: the optimizer. task: one of `TASKS`. steps; of "cost": rounds. batch: examples a step. evaluations: along
    the run. tested: whether the test set is looked at and bytes are counted (not in trials). seed: of order and
    directions."""

    part: str = "train"
    method: str = "mezo"
    params: dict[str, Any] = field(default_factory=dict)
    task: str = "sst2-256"
    steps: int = 2000
    batch: int = 8
    evaluations: int = 8
    tested: bool = True
    seed: int = 0


def series_of(config: Mapping[str, Any]) -> str:
    """The series that a record's config belongs to."""
    momentum = config["params"].get("momentum")
    return "lozo-m" if config["method"] == "lozo" and momentum is not None else str(config["method"])


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    one_of(PARTS, part=cfg.part)
    positive(steps=cfg.steps, batch=cfg.batch, evaluations=cfg.evaluations)
    if catalog.find(cfg.method).kind not in ("optimizer", "zeroth"):
        raise ValueError(f"{cfg.method} is a {catalog.find(cfg.method).kind}, which cannot train a language model here")
    check_method(cfg.method, cfg.params)
    task = named(cfg.task, TASKS)
    if task.train % (cfg.batch * TOGETHER):
        raise ValueError(f"{TOGETHER} batches must divide the {task.train} training examples, which MeZO-SVRG goes "
                         f"through in equal parts; got batch {cfg.batch}")  # fmt: skip
    task.ready(cfg.batch)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train, or look at the model as it is, or measure what steps cost."""
    return {"train": _train, "zero-shot": _zero_shot, "cost": _cost}[cfg.part](cfg, log)


def _zero_shot(cfg: Config, log: Log) -> dict[str, Any]:
    built = named(cfg.task, TASKS).build(cfg.seed, cfg.batch, log.device)
    found = {}
    for prior in (None, *PRIORS):
        before = "" if prior is None else f"{prior}_"
        for part, short in (("validation", "val"), ("test", "test")):
            values = built.zero_shot(part, prior)
            found |= {f"{before}{short}_{k}": v for k, v in values.items() if short == "test" or k != "correct"}
    return found


def _cost(cfg: Config, log: Log) -> dict[str, Any]:
    return cost(cfg, named(cfg.task, TASKS).build(cfg.seed, cfg.batch, log.device), log)


def _train(cfg: Config, log: Log) -> dict[str, Any]:
    task = named(cfg.task, TASKS)
    log.checkpoint_seconds = max(log.checkpoint_seconds, 300.0)  # a checkpoint is half a gigabyte and more
    if cfg.tested and not log.rows and not log.bytes.total:
        log.bytes = step_bytes(cfg.method, given(cfg), task.build(cfg.seed, cfg.batch, log.device))
    built = task.build(cfg.seed, cfg.batch, log.device)
    optimizer = make_optimizer(cfg.method, given(cfg), built.model)
    first = catalog.find(cfg.method).kind == "optimizer"
    rates = Schedule(optimizer, "cosine" if first else "constant", cfg.steps, cfg.steps // 10 if first else 0)
    state = {"model": built.model, "optimizer": optimizer, "schedule": rates}
    train(step(cfg, built, optimizer, rates, log), built.batches, state, steps=cfg.steps, log=log,
          evaluate=built.evaluate, eval_every=max(1, cfg.steps // cfg.evaluations), diverge_above=DIVERGED)  # fmt: skip
    found: dict[str, Any] = built.evaluate() | (built.test() if cfg.tested else {})
    found |= {f"seconds_{phase}": spent / cfg.steps for phase, spent in log.meter.seconds.items()}
    found |= {"seconds_per_step": sum(log.meter.seconds.values()) / cfg.steps, "forwards": log.meter.forwards}
    return found | {"parameters": sum(p.numel() for p in built.model.parameters())}


@dataclass(frozen=True)
class Plan:
    """How a task is tuned and reported. tuning: steps of a trial of MeZO, in whose forward passes all are tuned."""

    task: str
    steps: int
    first: int  # steps of AdamW and SGD
    tuning: int
    tuning_first: int
    trials: int = TRIALS
    batch: int = 8
    evaluations: int = 8
    series: Sequence[str] = (*FIRST, *ZEROTH)

    def trial_steps(self, series: str) -> int:
        if series in FIRST:
            return self.tuning_first
        return max(2, round(self.tuning * 2 / passes(self, series)))

    def trials_of(self, series: str) -> list[Config]:
        method, fixed = VARIANTS[series]
        points = sobol(BOXES[series], self.trials, seed=1)
        return [
            Config(
                "train", method, {**fixed, **p}, self.task, self.trial_steps(series), self.batch, 1, False, TUNING_SEED
            )
            for p in points
        ]

    def final(self, series: str, params: dict[str, Any], seed: int) -> Config:
        steps = self.first if series in FIRST else self.steps
        evaluations = min(steps, self.evaluations)
        return Config("train", VARIANTS[series][0], params, self.task, steps, self.batch, evaluations, True, seed)


def passes(plan: Plan, series: str) -> float:
    """Forward passes of a step, in the mean over an interval of MeZO-SVRG."""
    if series == SVRG:
        return (2 * (TASKS[plan.task].train / plan.batch) + 4 * (INTERVAL - 1)) / INTERVAL
    return 1 + BACKWARD if series in FIRST else 2


SST2 = Plan("sst2-256", steps=2000, first=400, tuning=100, tuning_first=60)
TREC = Plan("trec-256", steps=2000, first=400, tuning=0, tuning_first=0, series=("adamw", "mezo", "lozo"))
SMOKE = Plan("toy", steps=30, first=20, tuning=10, tuning_first=5, trials=2, evaluations=3)
LONG = Plan("sst2-256", steps=20_000, first=1000, tuning=1000, tuning_first=200, trials=6, evaluations=20)


def tune(*plans: Plan) -> Any:
    """The same number of Sobol points for every series."""
    return lambda earlier: [c for p in plans for s in p.series for c in p.trials_of(s)]


def best(earlier: Earlier, plan: Plan, series: str) -> dict[str, Any]:
    """The best trial's params, by validation loss; `Pending` while trials are missing."""
    lowest, chosen = math.inf, Pending(f"no trial of {series} on {plan.task} ended well")
    for trial in plan.trials_of(series):
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


def report(*plans: Plan, series: Sequence[str], seeds: Sequence[int]) -> Any:
    """The best trial of each series on fresh seeds."""
    return lambda earlier: [
        p.final(s, best(earlier, p, s), k) for p in plans for k in seeds for s in series if s in p.series
    ]


def transferred(earlier: Earlier) -> Sequence[Config]:
    """The second task, at the rates that were found on the first."""
    return [TREC.final(s, best(earlier, SST2, s), SEEDS[0]) for s in TREC.series]


def still(*plans: Plan, rounds: int) -> Any:
    """The model as it is on each task, and what steps cost on the first."""
    return lambda earlier: [
        *(Config("zero-shot", task=p.task, steps=1, batch=p.batch, evaluations=1) for p in plans),
        Config("cost", task=plans[0].task, steps=rounds, batch=plans[0].batch, evaluations=1),
    ]


# of one core: a step of 8 examples, and an evaluation on validation; `toy` takes milliseconds
SECONDS = {"mezo": 2.9, "lozo": 1.8, "lozo-m": 1.9, SVRG: 5.4, "adamw": 2.6, "sgd": 1.7}
SIZE = {"sst2-256": 1.0, "trec-256": 1.1, "toy": 0.005}
COST = {"zero-shot": 7.0, "cost": 3.5}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation included."""
    size = SIZE.get(cfg.task, 1.0)
    if cfg.part != "train":
        return 0.02 + size * COST[cfg.part] * (1 if cfg.part == "zero-shot" else 0.3 * (cfg.steps + 4))
    lozo_m = isinstance(cfg.params, Pending) or cfg.params.get("momentum") is None
    series = cfg.method if lozo_m else series_of(vars(cfg))
    evaluations = (cfg.evaluations + 2) * 15 + (125 if cfg.tested else 0)
    return 0.02 + size * (cfg.steps * cfg.batch / 8 * SECONDS.get(series, 2.0) + evaluations) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.zeroth._report_lm import present as made

    return made(results)


CHEAP = ("adamw", "sgd", "mezo", "lozo", "lozo-m")
experiment = Experiment(
    name="zeroth/lm",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("still", still(SMOKE, rounds=1), minutes, "a tiny Llama of random weights on a made-up task"),
            Stage("tune", tune(SMOKE), minutes, "2 Sobol trials"),
            Stage("report", report(SMOKE, series=(*CHEAP, SVRG), seeds=(0,)), minutes, "30 steps"),
        ),
        # what is dropped first where time is short comes last
        "cpu": (
            Stage("still", still(SST2, TREC, rounds=5), minutes, "zero-shot, calibrated; bytes and times of a step"),
            Stage("tune", tune(SST2), minutes, f"{TRIALS} Sobol trials of equal forward passes, SST-2"),
            Stage("report", report(SST2, series=(*CHEAP, SVRG), seeds=SEEDS[:1]), minutes, "SST-2, 2,000 steps"),
            Stage("seeds", report(SST2, series=CHEAP, seeds=SEEDS[1:]), minutes, "SST-2, second seed"),
            Stage("svrg", report(SST2, series=(SVRG,), seeds=SEEDS[1:]), minutes, "MeZO-SVRG, second seed"),
            Stage("trec", transferred, minutes, "TREC at the rates found on SST-2, 1 seed"),
        ),
        "gpu": (
            Stage("still", still(LONG, TREC, rounds=20), minutes, "zero-shot, calibrated; bytes and times of a step"),
            Stage("tune", tune(LONG), minutes, "6 Sobol trials of 1,000 steps"),
            Stage("report", report(LONG, series=(*CHEAP, SVRG), seeds=range(3)), minutes, "SST-2, 20,000 steps"),
        ),
    },
    identity=lambda cfg: named(cfg.task, TASKS).identity(),
    check=check,
    present=present,
    primary="val_accuracy",
)
