"""Made-up records of topic `transformer` for every run of a scale, in the shape of real ones; the numbers mean nothing.

As they stand, every prediction of the report holds; a test changes what it needs.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlopt import experiments
from dlopt.experiments.transformer import poems
from dlopt.experiments.transformer._common import joined
from dlopt.experiments.transformer.ablation import GATED
from dlopt.experiments.transformer.halves import DECODERS
from dlopt.lab.experiment import Earlier, Pending
from dlopt.lab.record import Record
from dlopt.lab.study import Results
from dlopt.poetry.checker import KINDS
from dlopt.poetry.patterns import FORMS
from tests.experiments.made_up import record

PARTS = ("halves", "ablation", "gradient", "sparse", "poems")
POEMS, COUPLETS = 300, 4
# what the tests change: {name: number}
LEVEL: dict[str, float] = {
    "seq2seq": 4.70, "decoder": 4.71, "lstm": 4.75, "ngram": 5.40,  # nats per token
    "opposite": 0.77, "poets": 0.78, "length": 1.0, "cost": 0.15, "proper": 1.0, "beam": 0.06, "t1": 0.01,
    "gate": -0.015, "cold": 0.2, "warm": 0.005, "none": 0.08, "relative": 0.0,
    "post": 1.0, "pre": 0.42, "sandwich": 0.40,
    "speed": 6.0, "far": 0.03, "reach": 0.98,
    "short": 0.3, "long": 0.1, "rhyme": 3.0, "bias": 1.0, "alike": 0.01,
}  # fmt: skip
Change = Callable[[Any], str]
WEIGHTS = {"weights": "0123456789abcdef0123"}


def noise(cfg: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(cfg).encode()))


def learning(end: float) -> dict[str, Any]:
    steps = np.linspace(0, 500, 9).round()
    loss = end + 4 * np.exp(-steps / 60)
    return {
        "step": steps.tolist(),
        "loss": [None, *loss[1:].tolist()],
        "val_loss": loss.tolist(),
        "seconds": steps.tolist(),
    }


def halves_run(cfg: Any, x: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    random = noise(cfg)
    loss = x[cfg.method] + (0.1 if cfg.corpus == "song" else 0) + 0.3 * abs(np.log(cfg.lr / 2e-3))
    same = np.random.default_rng(1)  # what is common to all models: poems differ much, models little
    spread = same.normal(size=POEMS)
    summary: dict[str, Any] = {
        "val_loss": loss, "test_loss": loss, "test_perplexity": float(np.exp(loss)), "parameters": 2_830_000,
        "seconds_per_step": 0.5, "test_couplets": 10_000, "train_couplets": 180_000, "vocabulary": 4013,
        "coverage": 0.99, "poems_train": 40_000, "poems_validation": 2000, "poems_test": 2000,
    }  # fmt: skip
    if not cfg.poems:
        return summary, learning(loss)
    tokens = np.full(POEMS, 24.0)
    summary["poem_nll"] = joined(tokens * (loss + 0.3 * spread + 0.02 * random.normal(size=POEMS)), 2)
    summary |= {"poem_tokens": joined(tokens), "poem_couplets": joined(np.full(POEMS, COUPLETS)), "asked": 2500,
                "answered": POEMS * COUPLETS, "allowed": 0.3, "t1.inside": 0.31, "cost": x["cost"],
                "examples": "海上生明月，天涯共此時"}  # fmt: skip
    summary["cost_by_poem"] = joined(20 * (x["cost"] + 0.02 * random.normal(size=POEMS)), 3)
    summary["chars_by_poem"] = joined(np.full(POEMS, 20))
    summary |= {f"cost_places_{n}": joined(np.linspace(0.01, 0.4, n + 1), 4) for n in (5, 7)}
    for d in ("original", *DECODERS):
        hit = {"beam": x["beam"], "t1": x["t1"]}.get(d, 0.02)
        opposite = {"original": x["poets"], "masked": 0.95}.get(d, x["opposite"])
        shares = {"length": x["length"] if d == "t1" else 1.0, "opposite": opposite, "level": 0.9, "unlike": 0.9,
                  "hit": hit, "regular": 0.7, "proper": x["proper"] if d == "masked" else 0.6}  # fmt: skip
        summary |= {f"{d}.{k}": v for k, v in shares.items()}
        summary |= {f"{d}.either": 0.14, f"{d}.longest": 2.5, f"{d}.distinct1": 0.2,
                    f"{d}.distinct2": 0.6 if d == "beam" else 0.9}  # fmt: skip
        common = np.random.default_rng(2)
        for name in ("opposite", "hit", "length", "proper"):
            summary[f"{d}.poem_{name}"] = joined(common.binomial(COUPLETS, shares[name], size=POEMS))
    return summary, learning(loss)


def ablation_run(cfg: Any, x: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    p = cfg.params
    loss = 4.9 + 0.01 * cfg.seed + 0.2 * abs(np.log(cfg.lr / 2e-3))
    loss += 1e-4 * noise(cfg).normal()
    if p.get("feedforward") in GATED:
        loss += x["gate"]
    place = p.get("norm_position", "pre")
    if place == "post":
        loss += x["warm"] if cfg.warmup else x["cold"]
    loss += {"none": x["none"], "shaw": x["relative"], "rope": x["relative"]}.get(p.get("positions"), 0.0)
    loss += x["alike"] if p.get("attention", "full") != "full" else 0.0
    summary = {"val_loss": loss, "test_loss": loss + 0.02, "parameters": 1_432_704, "seconds_per_step": 0.2}
    if cfg.poems:
        summary |= {"opposite": 0.7, "length": 1.0, "answered": 500}
    return summary, learning(loss)


def gradient_run(cfg: Any, x: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    place, depth = cfg.params["norm_position"], cfg.params["layers"]
    ratio = x[place] ** (np.log(depth / 2) / np.log(8))
    stream = 1.0 if place == "post" else 1.5 + depth
    value = 0.5 * ratio * np.exp(0.02 * noise(cfg).normal())
    summary = {"last_gradient": value, "first_gradient": value, "stream_first": 1.5, "stream_last": stream,
               "depth": depth, "gradients": joined([value] * depth, 5), "stream": joined([stream] * depth, 4),
               "parameters": 10**6}  # fmt: skip
    return summary, {}


def sparse_run(cfg: Any, x: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    if cfg.part == "time":
        full = 0.4 * (cfg.length / 4096) ** 2
        own = {"full": full, "masked": full * 1.3}
        own |= dict.fromkeys(("local", "strided", "fixed"), full / (x["speed"] * (cfg.length / 4096) ** 0.5))
        found: dict[str, Any] = {"gap": 1e-6} | {f"seconds.{k}": v for k, v in own.items()}
        found |= {f"step_seconds.{k}": 0.1 + v for k, v in own.items() if k != "masked"}
        return found | {f"saved.{k}": 1000 * cfg.length for k in own} | {"saved.plain": 4 * cfg.length**2}, {}
    pattern = cfg.params["attention"]
    if cfg.part == "books":
        return {"val_loss": 2.2, "test_loss": 2.3, "seconds_per_step": 0.9, "parameters": 800_000}, learning(2.2)
    places = (8, 12, 20, 28, 40, 56, 72, 92) if cfg.part == "recall" else (63,)
    accuracy = {
        d: x["far"] if pattern == "local" and d > 49 else 1.0 if pattern == "full" else x["reach"] for d in places
    }
    found = {f"accuracy.{d}": v for d, v in accuracy.items()} | {"accuracy": float(np.mean(list(accuracy.values())))}
    found |= {"tested": 2000, "seconds_per_step": 0.1, "parameters": 150_000, "distances": ",".join(map(str, places))}
    return found, {"step": [0, 100], "val_accuracy": [0.0, 0.9], "seconds": [0, 10]}


def poems_run(cfg: Any, x: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    if cfg.part == "samples":
        rows = [
            {"form": f, "index": i, "author": "王維", "first": "空山新雨後", "free": "空山新雨後，" * FORMS[f].lines,
             "free_faults": "第2句失对", "masked": "空山新雨後，" * FORMS[f].lines, "masked_faults": "合律"}
            for f in poems.WHOLE
            for i in (1, 2)
        ]  # fmt: skip
        return {"samples": json.dumps(rows, ensure_ascii=False), "count": len(rows)}, {}
    random, lines = noise(cfg), FORMS[cfg.form].lines
    right = x["short"] if lines == 4 else x["long"]
    found: dict[str, Any] = {"cost": 0.2, "either.free": 0.14, "either.masked": 0.15, "either.original": 0.13}
    for how, share in (("free", right), ("masked", x["proper"]), ("original", 0.8)):
        found |= {f"{how}.lenient": share, f"{how}.strict": share / 2, f"{how}.unlike": 0.7, f"{how}.count": 1000,
                  f"{how}.right": round(1000 * share)}  # fmt: skip
        found |= {f"{how}.fault.{k}": (1 - share) / 3 for k in KINDS}
    z = np.clip(right * (1 + 0.3 * random.normal(size=400)), 1e-3, 1)
    found["log_allowed"] = joined(np.log(z), 4)
    found["free.inside"] = round(1000 * min(1.0, x["bias"] * float(z.mean())))
    others = np.abs(0.2 + 0.02 * random.normal(size=400))
    found |= {"cost_others": joined(others, 4), "cost_rhymes": joined(x["rhyme"] * others, 4)}
    found["cost_places"] = joined(np.linspace(0, 1, FORMS[cfg.form].size + lines + 1), 4)
    return found, {}


RUNS = {"halves": halves_run, "ablation": ablation_run, "gradient": gradient_run, "sparse": sparse_run,
        "poems": poems_run}  # fmt: skip


def results(
    part: str, status: Change = lambda cfg: "done", level: Mapping[str, float] = {}, scale: str = "cpu",
    keep: Callable[[str, Any], bool] = lambda stage, cfg: True,
) -> Results:  # fmt: skip
    """Records of every run of a scale, stage by stage, as the stages themselves ask for them.

    status(cfg): how a run ended. level: over `LEVEL`. keep(stage, cfg): False for a run that has no record.
    """
    experiment = experiments.load(f"transformer/{part}")
    stages: dict[str, list[Record]] = {}
    missing = []
    for stage in experiment.stages[scale]:
        stages[stage.name] = []
        for cfg in stage.configs(Earlier(stages, {})):
            if isinstance(cfg.params, Pending) or not keep(stage.name, cfg):
                missing.append(f"{stage.name}: {cfg.method}")
                continue
            summary, curve = RUNS[part](cfg, {**LEVEL, **level})
            stages[stage.name].append(
                record(experiment, cfg, summary, curve, status(cfg), seconds=90.0, identity=WEIGHTS)
            )
    return Results(experiment, scale, stages, missing)


def every(**more: Any) -> dict[str, Results]:
    return {f"transformer/{part}": results(part, **more) for part in PARTS}
