"""Made-up records of topic `sampling` for every run of a scale, in the shape of real ones; the numbers mean nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlopt import experiments
from dlopt.experiments.sampling import lasso
from dlopt.experiments.sampling._common import series_of
from dlopt.lab.experiment import Earlier, Pending
from dlopt.lab.record import Record
from dlopt.lab.study import Results
from tests.experiments.made_up import record

PARTS = ("lasso", "logistic", "theory", "vision")  # those that judge questions
LEVEL = {  # lg suboptimality, lower is better
    "with-replacement": -2.0, "importance": -2.6, "importance:row norms": -2.4, "importance:online": -2.5,
    "fixed-order": -2.7, "shuffle-once": -3.0, "random-reshuffling": -3.4, "class-blocks": -1.5,
    "class-balanced": -3.5, "grab": -3.8, "saga": -6.0, "coordinate descent": -12.0,
}  # fmt: skip
ACCURACY = {"class-blocks": 0.2, "with-replacement": 0.748, "importance:online": 0.749}
Change = Callable[[Any], str]


def noise(cfg: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(cfg).encode()))


def lasso_run(cfg: Any, level: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    random, epochs = noise(cfg), np.arange(41)
    best = {"importance": 5.0}.get(series_of(vars(cfg)), 0.3)
    end = level[series_of(vars(cfg))] + 0.05 * random.standard_normal() + 0.4 * abs(np.log(cfg.step / best))
    values = 10 ** (end * (1 - np.exp(-epochs / 8)))
    curve = {"step": (epochs * 100).tolist(), "epoch": epochs.tolist(), "suboptimality": values.tolist(),
             "solver_seconds": (epochs * 0.01).tolist(), "seconds": (epochs * 0.02).tolist()}  # fmt: skip
    summary = {"log_suboptimality": end, "log_distance": end / 2, "support_share": 0.6, "solver_seconds": 0.4,
               "skew": 70.0 if cfg.data == "abalone" else 5.0, "gap": 1e-13, "n": 4177, "d": 8, "optimal_support": 4,
               "lam": 0.05}  # fmt: skip
    return summary, curve


def logistic_run(cfg: Any, level: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    random, epochs = noise(cfg), np.arange(0, 251, 10)
    end = 2 * level[cfg.method] + 0.1 * random.standard_normal()
    values = 10 ** (end * epochs / 250)
    curve = {"step": (epochs * 98).tolist(), "epoch": epochs.tolist(), "suboptimality": values.tolist(),
             "distance": (values * 10).tolist()}  # fmt: skip
    summary = {"log_suboptimality": end, "log_distance": end + 1, "skew": 9.8, "gap": 1e-14, "n": 49749, "d": 300,
               "l2": 0.003, "condition": 224.0, "steps_per_epoch": 98}  # fmt: skip
    return summary, curve


SLOPES = {"with-replacement": (1.0, -1.0), "fixed-order": (2.0, -2.0), "shuffle-once": (2.0, -2.0),
          "random-reshuffling": (2.8, -2.6), "grab": (2.5, -2.8)}  # fmt: skip


def theory_run(cfg: Any, level: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    if cfg.part == "floor":
        return {"distance": cfg.step ** SLOPES[cfg.method][0], "standard_error": 0.0, "skew": 3.0}, {}
    if cfg.part == "epochs":
        return {"distance": float(cfg.epochs) ** SLOPES[cfg.method][1], "standard_error": 0.0, "skew": 3.0}, {}
    if cfg.part == "formula":
        names = ("msd", "risk")
        found = {f"{n}{end}": v for n in names for end, v in (("", 2e-3), ("_predicted", 2.1e-3), ("_ratio", 0.97))}
        return found | {"skew": 20.0}, {}
    ratio = 1.0 if cfg.normalised or cfg.at == "optimum" else float(np.exp(-4 * cfg.spread)) * 0.9
    return {"variance_ratio": ratio, "drawn_ratio": ratio, "skew": 2.0 * float(np.exp(3 * cfg.spread))}, {}


def vision_run(cfg: Any, level: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    random = noise(cfg)
    steps = np.linspace(0, 1000, 13).round().astype(int)
    end = ACCURACY.get(series_of(vars(cfg)), 0.75) + 0.002 * random.standard_normal() - 0.02 * abs(np.log(cfg.lr / 0.1))
    loss = 2.3 - (2.3 * end) * (1 - np.exp(-steps / 200))
    curve = {"step": steps.tolist(), "examples": [None, *(steps[1:] * 128).tolist()], "val_loss": loss.tolist(),
             "val_accuracy": (end * steps / 1000).tolist(), "seconds": (steps * 0.2).tolist()}  # fmt: skip
    summary = {"val_loss": float(loss[-1]), "val_accuracy": end, "test_loss": float(loss[-1]), "test_accuracy": end,
               "test_correct": "".join("1" if r < end else "0" for r in random.random(500)), "parameters": 75290,
               "worst_class_accuracy": end / 2, "best_class_accuracy": 0.9, "class_deviation": 0.1,
               "seconds_forward": 0.06, "seconds_backward": 0.12, "seconds_optimizer": 0.001}  # fmt: skip
    if not cfg.task.endswith("group"):
        summary["recalibrated_test_accuracy"] = end + 0.01
    if cfg.method == "importance":
        summary["seconds_sampling"] = 0.001
    return summary, curve


def variance_run(cfg: Any, level: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"variance_ratio": 0.5, "log_variance_ratio": -0.3, "skew": 70.0}, {}


RUNS = {"lasso": lasso_run, "logistic": logistic_run, "theory": theory_run, "variance": variance_run,
        "vision": vision_run}  # fmt: skip


def results(
    part: str, status: Change = lambda cfg: "done", level: Mapping[str, float] = {}, scale: str = "cpu",
    keep: Callable[[str, Any], bool] = lambda stage, cfg: True,
) -> Results:  # fmt: skip
    """Records of every run of a scale, stage by stage, as the stages themselves ask for them.

    status(cfg): how a run ended. level: over `LEVEL`. keep(stage, cfg): False for a run that has no record.
    """
    experiment = experiments.load(f"sampling/{part}")
    stages: dict[str, list[Record]] = {}
    missing = []
    for stage in experiment.stages[scale]:
        stages[stage.name] = []
        for cfg in stage.configs(Earlier(stages, {})):
            if isinstance(getattr(cfg, "params", None), Pending) or not keep(stage.name, cfg):
                missing.append(f"{stage.name}: {cfg.method}")
                continue
            summary, curve = RUNS[part](cfg, {**LEVEL, **level})
            stages[stage.name].append(record(experiment, cfg, summary, curve, status(cfg)))
    return Results(experiment, scale, stages, missing)


def every(**more: Any) -> dict[str, Results]:
    return {f"sampling/{part}": results(part, **more) for part in RUNS}


assert set(lasso.SERIES) < set(LEVEL)
