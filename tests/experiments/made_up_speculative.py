"""Made-up records of `speculative/bench` for every run of a scale, in the shape of real ones; numbers mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlopt import experiments
from dlopt.experiments.speculative._arms import BASELINES, arms
from dlopt.lab.experiment import Earlier
from dlopt.lab.record import Record
from dlopt.lab.study import Results
from tests.experiments.made_up import record

# seconds per token of plain decoding over those of an arm: {arm: speed-up}, or {(category, arm): speed-up}
SPEED: dict[Any, float] = {
    "plain-bf16": 1.5,
    "hf-lookup": 0.95,
    "prompt-lookup": 1.02,
    "prompt-lookup/fixed": 0.8,
    "best-of-drafts": 1.2,
    ("rewriting", "prompt-lookup"): 2.0,
    ("rewriting", "hf-lookup"): 1.4,
    ("rewriting", "best-of-drafts"): 2.1,
    ("code", "prompt-lookup"): 1.5,
    ("qa", "prompt-lookup"): 1.4,
}
TOKENS, WIDTH = 41, 3


def run(cfg: Any) -> dict[str, Any]:
    """40 tokens after the first, 0.05 s each; passes of 3 tokens that cost as much; drafting in the rest."""
    n = cfg.prompts
    wobble = [1 + 0.02 * ((i * 7) % 5 - 2) for i in range(n)]
    told: dict[str, Any] = {
        "repetition": [0.2] * n,
        "costs": {"1": 0.05, "4": 0.05, "16": 0.13},
        "prompt_tokens": [50] * n,
        "threads": 1,
    }
    rows = {"plain": 1.0} | {a.text: SPEED.get((cfg.category, a.text), SPEED.get(a.text, 1.0)) for a in arms(cfg.arms)}
    for name, speed in rows.items():
        seconds = [(TOKENS - 1) * 0.05 * w / speed for w in wobble]
        told |= {f"{name} cpu": seconds, f"{name} seconds": seconds, f"{name} prefill": [0.3] * n,
                 f"{name} tokens": [TOKENS] * n, f"{name} same": [True] * n}  # fmt: skip
        if name != "plain" and name not in BASELINES:
            rounds = min(24 if cfg.category == "rewriting" else 33, int(40 / speed))
            drafting = 40 * 0.05 / speed - rounds * 0.05  # so that prediction and measurement agree
            told |= {f"{name} rounds": [rounds] * n, f"{name} drafted": rounds * n * 2, f"{name} accepted": 7 * n,
                     f"{name} offered": [rounds * n] * 2, f"{name} taken": [5 * n, 2 * n],
                     f"{name} draft_seconds": drafting * n, f"{name} target_seconds": 1.0 * n,
                     f"{name} verify_seconds": 0.01 * n, f"{name} total_seconds": sum(seconds) + 0.3 * n,
                     f"{name} prefill_seconds": 0.3 * n,
                     f"{name} widths": {str(WIDTH): rounds * n}}  # fmt: skip
    return told


def results(
    status: Callable[[Any], str] = lambda cfg: "done", keep: Callable[[str, Any], bool] = lambda stage, cfg: True
) -> Results:
    """Records of every run of scale `cpu`."""
    experiment = experiments.load("speculative/bench")
    stages: dict[str, list[Record]] = {}
    missing = []
    for stage in experiment.stages["cpu"]:
        stages[stage.name] = []
        for cfg in stage.configs(Earlier(stages, {})):
            if not keep(stage.name, cfg):
                missing.append(f"{stage.name}: {cfg.category}")
                continue
            stages[stage.name].append(record(experiment, cfg, run(cfg), {}, status(cfg), seconds=600.0))
    return Results(experiment, "cpu", stages, missing)
