"""Made-up records of topic `kvcache` for every run of a scale, in the shape of real ones; the numbers mean nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dlopt import experiments
from dlopt.experiments.kvcache._common import KEEPING, budget_of, series_of
from dlopt.lab.experiment import Earlier
from dlopt.lab.record import Record
from dlopt.lab.study import Results
from tests.experiments.made_up import record

# divergence of a cache from the full one; that of a method which forgets falls with its budget
LEVEL = {"full": 0.0, "int8": 1e-4, "int4": 0.02, "kivi-8": 1e-5, "kivi-4": 0.0025, "kivi-2": 0.09, "window": 1.4,
         "sinks": 0.18, "sinks:original": 0.17, "h2o": 0.13, "snapkv": 0.14, "pyramid": 0.13, "tova": 0.12,
         "knorm": 0.5}  # fmt: skip
Level = Mapping[str, float]


def questions(cfg: Any, level: Level) -> dict[str, Any]:
    random = np.random.default_rng(zlib.crc32(repr(cfg).encode()))
    mean = level[series_of(vars(cfg))]
    params = cfg.params
    if (params.get("key_axis", "channel"), params.get("value_axis", "token")) != ("channel", "token"):
        mean = 4 * mean
    n = cfg.questions
    each = (mean * (1 + 0.1 * random.standard_normal(n))).tolist()
    small = 1 if series_of(vars(cfg)) == "full" else 5
    return {
        "questions": n, "prefix_tokens": 420, "prefill_seconds": 1.4, "decode_seconds": 0.08, "accuracy": 0.2,
        "accuracy_norm": 0.31, "gold_nll": 18 + mean, "gold_nll_each": [18 + e for e in each], "divergence": mean,
        "divergence_each": each, "token_divergence": 2 * mean, "agreement": 0.9, "tokens": 420,
        "bytes_16bit": 10_000_000 // small, "full_bytes_16bit": 10_000_000, "smaller": float(small), "key_error": 0.2,
        "value_error": 0.4, "covered": 40, "covered_nll": 19 + mean,
    }  # fmt: skip


def books(cfg: Any, level: Level) -> tuple[dict[str, Any], dict[str, Any]]:
    name = series_of(vars(cfg))
    late = {"window": 6.0, "full": 5.0, "sinks:original": 4.2}.get(name, 3.6)
    near = {"window": 5.0, "full": 3.3}.get(name, 3.5)
    places = np.linspace(64, cfg.tokens, 20).astype(int).tolist()
    values = [near if p < 8192 else late for p in places]
    stored = [min(p, 256) * 46080 for p in places]
    summary = {f"nll_to_{n}": near for n in (512, 2048, 8192)} | {
        "nll_to_20000": late, "nll": near, "perplexity": 30.0, "tail_nll": late, "tail_perplexity": float(np.exp(late)),
        "stored_bytes": 11_796_480}  # fmt: skip
    curve = {"step": places, "tokens": places, "nll": values, "stored_bytes": stored, "cpu_seconds": [1.0] * 20}
    return summary, curve


def passkeys(cfg: Any, level: Level) -> dict[str, Any]:
    keeps = series_of(vars(cfg)) in KEEPING
    share = 1.0 if keeps else 0.3 if cfg.asked == "after" else 0.8
    return {"retrieved_share": share, "digits_share": share, "key_nll": 2.0, "stored_bytes": 1_000_000,
            "digits_by_depth": [share] * 5}  # fmt: skip


def texts(cfg: Any, level: Level) -> dict[str, Any]:
    near = 1 - min(0.9, 2 * level[series_of(vars(cfg))])
    return {f"{n}_share": near for n in ("overlap", "same", "identical", "repetition", "copied")} | {
        "length": 60.0, "smaller": 4.0}  # fmt: skip


def costs(cfg: Any, level: Level) -> dict[str, Any]:
    step = 0.06 + {"full": 2e-5, "kivi": 1e-5 if cfg.packed else 8e-5}.get(cfg.method, 0.0) * cfg.context
    return {"prefill_seconds": 3.0, "decode_seconds": step, "stored_bytes": 10**7, "transient_bytes": 10**6,
            "held_bytes": 2 * 10**7, "peak_bytes": 5 * 10**7}  # fmt: skip


RUNS: dict[str, Any] = {"openbookqa": questions, "kivi": questions, "books": books, "passkey": passkeys,
                        "generation": texts, "cost": costs}  # fmt: skip


def results(
    part: str,
    level: Level | None = None,
    keep: Callable[[str, Any], bool] = lambda stage, cfg: True,
    status: Callable[[Any], str] = lambda cfg: "done",
) -> Results:
    """Records of every run of scale `cpu`. level: over `LEVEL`. keep(stage, cfg): False for a run without a record."""
    experiment = experiments.load(f"kvcache/{part}")
    stages: dict[str, list[Record]] = {}
    missing = []
    for stage in experiment.stages["cpu"]:
        stages[stage.name] = []
        for cfg in stage.configs(Earlier(stages, {})):
            if not keep(stage.name, cfg):
                missing.append(f"{stage.name}: {cfg.method}")
                continue
            made = RUNS[part](cfg, {**LEVEL, **(level or {})})
            summary, curve = made if isinstance(made, tuple) else (made, {})
            stages[stage.name].append(record(experiment, cfg, summary, curve, status(cfg)))
    return Results(experiment, "cpu", stages, missing)


def every(**more: Any) -> dict[str, Results]:
    return {f"kvcache/{part}": results(part, **more) for part in RUNS}


assert budget_of({"method": "tova", "params": {"budget": 3}}) == 3
