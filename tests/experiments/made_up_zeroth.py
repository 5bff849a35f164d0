"""Made-up records of topic `zeroth` for every run of a scale, in the shape of real ones; the numbers mean nothing."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dlopt import experiments
from dlopt.experiments.zeroth import _estimates, _faults, _lm_steps, lm, vision
from dlopt.lab.experiment import Earlier, Pending
from dlopt.lab.record import Record
from dlopt.lab.study import Results
from tests.experiments.made_up import record

PARTS = ("estimators", "vision", "lm", "official")
LOSS = {"sgd": 0.1, "mezo": 0.8, "mezo:q=4": 0.85, "mezo:q=16": 1.0, "rge:q=16": 0.9, "deepzero": 0.4}
ACCURACY = {"sgd": 0.86, "adamw": 0.90, "mezo": 0.70, "lozo": 0.70, "lozo-m": 0.703, "mezo-svrg": 0.66}
STILL = {"plain": 0.55, "content-free": 0.66, "training": 0.68}
AUC = {"adamw": 0.96, "sgd": 0.93, "mezo": 0.74}
# knobs that tests turn: what the made-up world is like
WORLD: dict[str, Any] = {
    "law": 1.0, "rank": 1.0, "bfloat16": 0.3, "drift": 0.5, "moved": 0.0, "change": 0.01, "official_end": 1.05,
    "ours_end": 0.5, "double": 2.0, "square": 2.0, "early": 3.0, "deepzero": 0.9, "best_lr": 2, "bf16_row": 1.5,
    "svrg": 1.4, "memory": 0.28, "lozo_pace": 0.6,
}  # fmt: skip
Change = Callable[[Any], str]


def noise(cfg: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(cfg).encode()))


def estimators_run(cfg: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if cfg.part == "law":
        d, qs = 61706, np.array(_estimates.LEVELS)
        rows = {"step": qs, "mse": (d + 1) / qs * WORLD["law"], "mse_predicted": (d + 1) / qs,
                "ratio": np.full(4, WORLD["law"]), "ratio_error": np.full(4, 0.02), "blocks": 4096 // qs,
                "cosine2": qs / (d + qs + 1), "cosine2_error": qs * 1e-7,
                "cosine2_predicted": qs / (d + qs + 1)}  # fmt: skip
        return {"d": d, "mean_error": 4.0, "mean_error_predicted": 4.0}, {k: v.tolist() for k, v in rows.items()}
    if cfg.part == "eps":
        eps = np.array(_estimates.EPS)
        low = cfg.dtype == "bfloat16"
        floor = WORLD["bfloat16"] if low else 1e-3
        error = floor + (floor / 3000 if low else 1e-7) / eps + eps**2 * 10
        curve = {"step": list(range(len(eps))), "eps": eps.tolist(), "error": error.tolist(), "bias": eps.tolist()}
        return {"best_error": float(error.min()), "best_eps": 1e-3, "loss": 2.3, "d": 61706}, curve
    d = cfg.size or {0.25: 4000, 0.5: 15738, 1.0: 61706, 2.0: 250000}[cfg.width]
    found = {"d": d, "scaled_cosine2": WORLD["rank"] if cfg.method == "lozo" else 1.02, "scaled_cosine2_error": 0.02,
             "second": d + 3.0, "second_error": 40.0, "second_predicted": d + 2.0}  # fmt: skip
    return found | ({"m": 84, "n": 120, "stable_rank": 1.4} if cfg.part == "rank" else {}), {}


def official_run(cfg: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    theirs = cfg.rule == "official"
    if cfg.part == "drift":
        steps = np.array(_faults.MARKS)
        rms = 0.001 * steps ** WORLD["drift"] if theirs else np.full(len(steps), WORLD["moved"])
        curve = {"step": steps, "rms": rms, "largest": 4 * rms, "moved_share": np.full(len(steps), 0.3 * theirs)}
        found = {"rms_shift": float(rms[-1]), "largest_shift": float(4 * rms[-1]), "numbers": 1000}
        return found, {k: v.tolist() for k, v in curve.items()}
    if cfg.part == "change":
        steps = np.arange(160)
        cosine = np.where((steps % 50 == 0) & theirs, WORLD["change"], 1.0)
        found = {"cosine_at_change": WORLD["change"] if theirs else 1.0, "cosine_between": 1.0, "changes": 40}
        return found, {"step": steps.tolist(), "cosine": cosine.tolist()}
    if cfg.part == "interval":
        n = cfg.params["interval"]
        ours, bad = WORLD["ours_end"], WORLD["official_end"]
        end = 2.3 * (ours + (bad - ours) / n if theirs else ours)
        return {"first_val_loss": 2.3, "val_loss": end, "val_accuracy": 0.5}, {
            "step": [0, 1000],
            "val_loss": [2.3, end],
        }
    distance = np.array(_faults.DISTANCES)
    ratio = {"ours": (10 * distance) ** WORLD["square"], "apart": 2.0 + distance}.get(
        cfg.rule, np.array([WORLD["double"]])
    )
    if theirs:
        distance = distance[:1]
    return {"ratio_at_anchor": float(ratio[0]), "ratio_at_anchor_error": 0.02, "parameters": 650}, {
        "step": list(range(len(distance))), "distance": distance.tolist(), "ratio": ratio.tolist()}  # fmt: skip


def vision_run(cfg: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    series, random = vision.series_of(vars(cfg)), noise(cfg)
    lr, eps = cfg.params["lr"], cfg.params.get("eps")
    if eps is not None:  # a heat map
        best = vision.HEAT_LR[WORLD["best_lr"] if eps < 1e-3 else 2]
        row = WORLD["bf16_row"] if cfg.dtype == "bfloat16" and eps < 1e-3 else 1.0
        loss = (0.5 + 0.2 * abs(math.log10(lr / best))) * row
        return {"val_loss": loss, "val_accuracy": 0.5}, {}
    deep = series == "deepzero"
    per_step = 6384 if deep else vision.PER_STEP[series]
    steps = np.linspace(0, cfg.steps, 21).round().astype(int)
    end = LOSS[series] * float(np.exp(0.02 * random.standard_normal()))
    share = steps / cfg.steps
    loss = end + (2.3 - end) * np.exp(-WORLD["early"] * share * (0.3 if deep else 1)) * (1 - share)
    accuracy = 0.95 - loss / 3
    if deep:
        accuracy = (WORLD["deepzero"] + 0.002 * random.standard_normal()) * (1 - np.exp(-20 * share))
    pace = 0.7 if deep else 0.0065 * per_step
    curve = {"step": steps, "forwards": steps * per_step, "val_loss": loss, "val_accuracy": accuracy,
             "seconds": steps * pace}  # fmt: skip
    summary = {"val_loss": float(loss[-1]), "val_accuracy": float(accuracy[-1]), "test_loss": float(loss[-1]),
               "test_accuracy": float(accuracy[-1]), "test_correct": "10", "forwards": int(cfg.steps * per_step),
               "seconds_per_step": pace, "parameters": 61706}  # fmt: skip
    if deep:
        summary |= {"mode": "batched", "work_share": 0.48, "coordinates": 6384}
    return summary, {k: v.tolist() for k, v in curve.items()}


def correct(share: float, seed: int) -> str:
    """872 examples of which so many are right: nested, so that a better model is right where a worse one is."""
    order = np.random.default_rng(3).permutation(872)
    right = order < round((share + 0.002 * seed) * 872)
    return "".join("1" if r else "0" for r in right)


def lm_run(cfg: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    if cfg.part == "zero-shot":
        found: dict[str, Any] = {}
        for prior, value in STILL.items():
            before = "" if prior == "plain" else f"{prior}_"
            found |= {f"{before}{p}_{k}": v for p in ("val", "test") for k, v in
                      {"accuracy": value, "auc": 0.71, "loss": 0.65, "correct": correct(value, 0)}.items()}  # fmt: skip
        return found, {}
    if cfg.part == "cost":
        weights = 538_000_000
        found = {"weights": weights, "forward_peak": weights + 10_000_000, "largest_parameter": 113_000_000,
                 "forward.seconds": 0.45}  # fmt: skip
        for s in _lm_steps.COSTED:
            first = s in ("adamw", "sgd")
            total = {"adamw": 4.2 * weights, "sgd": 2.2 * weights}.get(s, WORLD["memory"] * 4.2 * weights)
            total += weights if s == "mezo-svrg" else 0
            kinds = {"weights": weights, "scratch": int(total) - weights} if not first else {
                "weights": weights, "gradients": weights, "saved": int(total) - 2 * weights}  # fmt: skip
            seconds = {"mezo": 2.0, "mezo:gaussian": 3.0, "lozo": 2.0 * WORLD["lozo_pace"], "adamw": 2.5}.get(s, 1.5)
            found |= {
                f"{s}.bytes": kinds,
                f"{s}.counted": int(total),
                f"{s}.formula": int(total),
                f"{s}.seconds": seconds,
            }
        return found, {}
    series, random = lm.series_of(vars(cfg)), noise(cfg)
    accuracy = ACCURACY[series]
    per_step = lm.passes(lm.SST2, series)
    steps = np.linspace(0, cfg.steps, 9).round().astype(int)
    end = 1.2 - accuracy
    if series == "mezo-svrg":
        end *= WORLD["svrg"]
    away = sum(abs(math.log10(cfg.params[rate] / 1e-5)) for rate in ("lr", "anchor_lr") if rate in cfg.params)
    end += 0.002 * random.standard_normal() + 0.01 * away
    loss = end + (1.2 - end) * np.exp(-4 * steps / cfg.steps)
    curve = {"step": steps, "forwards": steps * per_step, "val_loss": loss, "val_accuracy": 0.5 + (accuracy - 0.5)
             * steps / cfg.steps, "seconds": steps * per_step * 0.8}  # fmt: skip
    summary = {
        "val_loss": float(loss[-1]),
        "val_accuracy": accuracy,
        "val_auc": 0.8,
        "test_loss": float(loss[-1]),
        "test_accuracy": accuracy + 0.002 * cfg.seed,
        "test_auc": AUC.get(series, 0.75),
        "test_correct": correct(accuracy, cfg.seed),
        "forwards": int(cfg.steps * per_step),
        "seconds_per_step": per_step * 0.8,
        "seconds_forward": per_step * 0.5,
        "parameters": 134_515_008,
    }
    return summary, {k: v.tolist() for k, v in curve.items()}


RUNS = {"estimators": estimators_run, "vision": vision_run, "lm": lm_run, "official": official_run}


def results(
    part: str, status: Change = lambda cfg: "done", scale: str = "cpu",
    keep: Callable[[str, Any], bool] = lambda stage, cfg: True,
) -> Results:  # fmt: skip
    """Records of every run of a scale, stage by stage, as the stages themselves ask for them.

    status(cfg): how a run ended. keep(stage, cfg): False for a run that has no record.
    """
    experiment = experiments.load(f"zeroth/{part}")
    stages: dict[str, list[Record]] = {}
    missing = []
    for stage in experiment.stages[scale]:
        stages[stage.name] = []
        for cfg in stage.configs(Earlier(stages, {})):
            if isinstance(getattr(cfg, "params", None), Pending) or not keep(stage.name, cfg):
                missing.append(f"{stage.name}: {cfg.method}")
                continue
            summary, curve = RUNS[part](cfg)
            stages[stage.name].append(record(experiment, cfg, summary, curve, status(cfg)))
    return Results(experiment, scale, stages, missing)


def every(**more: Any) -> dict[str, Results]:
    return {f"zeroth/{part}": results(part, **more) for part in PARTS}
