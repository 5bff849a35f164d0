"""Made-up records of topic `adam`, in the shape of real ones: their numbers mean nothing, but for the state's bytes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from dlopt.experiments.adam import _report, lm, resnet
from dlopt.experiments.adam._common import NAMED, SEEDS, TUNING_SEED, methods, trials
from dlopt.lab.experiment import Experiment
from dlopt.lab.record import Record
from dlopt.lab.study import Results
from dlopt.tasks import models
from tests.experiments import made_up

ACCURACY = {"adam": 0.775, "adamw": 0.78, "adafactor": 0.77, "sophia-g": 0.765, "adam-mini": 0.778, "lion": 0.776,
            "muon": 0.80, "sgd": 0.785}  # fmt: skip
LOSS = {"adam": 1.71, "adamw": 1.70, "adafactor": 1.73, "sophia-g": 1.72, "adam-mini": 1.705, "lion": 1.72,
        "muon": 1.62, "sgd": 2.10}  # fmt: skip
PACE = {"muon": 9.0, "sgd": 4.0}


@cache
def model(kind: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return models.build(kind, device="meta", **dict(options))


def record(
    experiment: Experiment, cfg: Any, good: float, status: str = "done", share: float = 0.02, **more: Any
) -> Record:
    """One run: `good` is its accuracy (ResNet) or its loss (language model) at the end, before the seed's noise."""
    noise = np.random.default_rng([cfg.seed, zlib.crc32(repr((cfg.method, sorted(cfg.params.items()))).encode())])
    image = experiment.name == "adam/resnet"
    t = experiment_task(experiment, cfg)
    net = model("lm", tuple(t.options.items())) if not image else model(t.model, tuple(t.options.items()))
    count = sum(p.numel() for p in net.parameters())
    steps = cfg.steps or cfg.epochs * 351
    share_of = np.linspace(0, 1, 17)
    step = (share_of * steps).round().astype(int)
    pace = PACE.get(cfg.method, 6.0)
    wiggle = 0.002 * noise.standard_normal(17)
    end = float(good + 0.003 * noise.standard_normal())
    if image:
        accuracy = (end - (end - 0.1) * np.exp(-pace * share_of) + wiggle).clip(0, 1)
        loss = 2.3 * (1 - accuracy) / 0.9
    else:
        loss = end + (5.55 - end) * np.exp(-pace * share_of) + np.abs(wiggle) * (share_of < 1)
    if status == "diverged":
        loss = 2.3 * np.exp(4 * share_of)
    per_step = 0.18 if image else 1.1
    curve: dict[str, list[Any]] = {
        "step": step.tolist(),
        "val_loss": loss.tolist(),
        "seconds": (step * per_step * (1 + 0.01 * cfg.seed % 0.1)).tolist(),
        "forwards": [None, *step[1:].tolist()],
        "examples": [None, *(step[1:] * cfg.batch).tolist()],
        "loss": [None, *(loss[1:] * 1.02).tolist()],
    }
    if image:
        curve["val_accuracy"] = accuracy.tolist()
    else:
        curve["tokens"] = [None, *(step[1:] * cfg.batch * 256).tolist()]
    state = _report.predicted_state(cfg.method, cfg.params, net) or 0
    summary: dict[str, Any] = {"seconds": float(steps * per_step)}
    if status == "done":
        curvature = 0.03 * per_step if cfg.method == "sophia-g" else 0.0
        own = share * per_step - curvature if share * per_step > curvature else 0.001
        summary |= {
            "val_loss": float(loss[-1]), "test_loss": float(loss[-1] + 0.01), "forwards": steps,
            "seconds_forward": 0.33 * per_step, "seconds_backward": 0.65 * per_step, "seconds_optimizer": own,
            "seconds_per_step": per_step * 0.98 + own + curvature, "parameters": count,
        }  # fmt: skip
        if curvature:
            summary |= {"seconds_curvature": curvature, "share_unclipped": 0.2 + 0.01 * cfg.seed}
        if image:
            right = noise.random(1000) < end
            summary |= {"val_accuracy": end, "test_accuracy": end,
                        "test_correct": "".join("1" if r else "0" for r in right), "train_size": 45000,
                        "validation_size": 5000, "test_size": 10000, "steps": steps}  # fmt: skip
        else:
            summary["test_bits"] = summary["test_loss"] / math.log(2)
    summary |= more
    seconds, empty = summary.pop("seconds"), status in ("failed", "skipped")
    bytes_ = {} if empty else {"weights": 4 * count, "gradients": 4 * count, "state": state, "saved": 9 * 10**7}
    return made_up.record(experiment, cfg, summary, curve, status, seconds=seconds, bytes=bytes_)


def experiment_task(experiment: Experiment, cfg: Any) -> Any:
    return (resnet if experiment.name == "adam/resnet" else lm).TASKS[cfg.task]


def _tuned(part: Any, worst: float, sign: int) -> tuple[list[Record], dict[str, dict[str, Any]]]:
    """The trials, of which the third is the best of each method."""
    found, best, seen = [], {}, dict.fromkeys(methods(), 0)
    short = {"epochs": 2} if part is resnet else {"steps": 100}
    for m, p in trials(part.BOXES, part.FIXED):
        cfg = part.Config(method=m, params=p, seed=TUNING_SEED, **short)
        seen[m] += 1
        if seen[m] == 3:
            best[m] = p
        found.append(record(part.experiment, cfg, worst - sign * 0.1 * abs(seen[m] - 3)))
    return found, best


def resnet_results(
    accuracy: Mapping[str, float] = {}, deep: Mapping[str, float] = {}, share: float = 0.02,
    status: Mapping[tuple[str, int], str] = {}, missing: tuple[str, ...] = (),
) -> Results:  # fmt: skip
    """status: {(method, seed): how its run of the report ended, if not well}."""
    level = {**dict.fromkeys(methods(), 0.7), **ACCURACY, **accuracy}
    tuned, best = _tuned(resnet, 0.6, 1)
    make = lambda good, state="done", **settings: record(  # noqa: E731
        resnet.experiment, resnet.Config(**settings), good, state, share
    )
    stages = {
        "tune": tuned,
        "report": [make(level[m], status.get((m, s), "done"), method=m, params=best[m], seed=s)
                   for s in SEEDS for m in methods()],
        "resnet18": [make({**level, **deep}[m] + 0.05, method=m, params=best[m], task="cifar10-resnet18-half", epochs=3)
                     for m in NAMED],
        "cost": [make(0.4, method=m, params=best[m], task="cifar10-resnet18", steps=100) for m in NAMED],
    }  # fmt: skip
    return Results(resnet.experiment, "cpu", stages, missing)


def lm_results(
    loss: Mapping[str, float] = {}, changes: Mapping[str, float] = {},
    status: Mapping[tuple[str, int], str] = {}, missing: tuple[str, ...] = (),
) -> Results:  # fmt: skip
    """changes: {an ablation's "name=value": its loss; "diverged" where it is infinite}."""
    level = {**dict.fromkeys(methods(), 1.8), **LOSS, **loss}
    tuned, best = _tuned(lm, 2.4, -1)
    stages = {"tune": tuned, "report": [], "ablations": []}
    for s in SEEDS:
        for m in methods():
            cfg = lm.Config(method=m, params=best[m], seed=s)
            stages["report"].append(record(lm.experiment, cfg, level[m], status.get((m, s), "done")))
    for m, all_changes in lm.ABLATIONS.items():
        for change in all_changes:
            ((name, value),) = change.items()
            good = changes.get(f"{name}={value}", level[m] + 0.01)
            cfg = lm.Config(method=m, params={**best[m], **change})
            stages["ablations"].append(
                record(
                    lm.experiment, cfg, 2.0 if math.isinf(good) else good, "diverged" if math.isinf(good) else "done"
                )
            )
    return Results(lm.experiment, "cpu", stages, missing)
