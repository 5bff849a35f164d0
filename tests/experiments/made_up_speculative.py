"""Made-up records of the experiments on drafting for every run of a scale; their numbers mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    "speculative-sampling/fixed": 0.6,
    "cascade/fixed": 0.8,
    ("rewriting", "prompt-lookup"): 2.0,
    ("rewriting", "hf-lookup"): 1.4,
    ("rewriting", "best-of-drafts"): 2.1,
    ("code", "prompt-lookup"): 1.5,
    ("qa", "prompt-lookup"): 1.4,
}
TOKENS, WIDTH = 41, 3


def run(cfg: Any) -> dict[str, Any]:
    """What a run of `speculative/bench` tells."""
    rows = {"plain": 1.0} | {a.text: SPEED.get((cfg.category, a.text), SPEED.get(a.text, 1.0)) for a in arms(cfg.arms)}
    return decoded(rows, cfg.prompts, 24 if cfg.category == "rewriting" else 33)


def decoded(speeds: Mapping[str, float], n: int, most: int) -> dict[str, Any]:
    """40 tokens after the first, 0.05 s each; at most so many passes, of 3 tokens at the price of one; drafting in the
    rest of the time, so that prediction and measurement agree."""
    wobble = [1 + 0.02 * ((i * 7) % 5 - 2) for i in range(n)]
    told: dict[str, Any] = {
        "repetition": [0.2] * n,
        "costs": {"1": 0.05, "4": 0.05, "16": 0.13},
        "prompt_tokens": [50] * n,
        "threads": 1,
    }
    for name, speed in speeds.items():
        seconds = [(TOKENS - 1) * 0.05 * w / speed for w in wobble]
        told |= {f"{name} cpu": seconds, f"{name} seconds": seconds, f"{name} prefill": [0.3] * n,
                 f"{name} tokens": [TOKENS] * n, f"{name} same": [True] * n}  # fmt: skip
        if name != "plain" and name not in BASELINES:
            rounds = min(most, int(40 / speed))
            drafting = 40 * 0.05 / speed - rounds * 0.05
            told |= {f"{name} rounds": [rounds] * n, f"{name} drafted": rounds * n * 2, f"{name} accepted": 7 * n,
                     f"{name} offered": [rounds * n] * 2, f"{name} taken": [5 * n, 2 * n],
                     f"{name} draft_seconds": drafting * n, f"{name} target_seconds": 1.0 * n,
                     f"{name} verify_seconds": 0.01 * n, f"{name} total_seconds": sum(seconds) + 0.3 * n,
                     f"{name} prefill_seconds": 0.3 * n,
                     f"{name} widths": {str(WIDTH): rounds * n}}  # fmt: skip
    return told


def skipped(cfg: Any) -> dict[str, Any]:
    """What a run of `speculative/skipping` tells; the search that may choose skips nothing."""
    told: dict[str, Any] = {"layers": 30, "agreement": 0.6, "cost": 0.8, "predicted": 1.0, "test_loss": 1.5, "arms": ""}
    if not cfg.share:
        return told | {"attention": [], "mlp": []}
    name = "draft-and-verify:attention=1,mlp=2,length=4/fixed"
    speed = SKIPPING["deeper" if cfg.share > 0.5 else "dropout" if cfg.dropout else cfg.model]
    return told | decoded({"plain": 1.0, name: speed}, 5, 30) | {"attention": [1], "mlp": [2], "arms": name}


def distilled(cfg: Any) -> dict[str, Any]:
    """What a run of `speculative/distil` tells."""
    return {"val_agreement": 0.35, "val_acceptance": 0.3, "learned": 7e6, "drafter_parameters": 35e6,
            "target_parameters": 134e6, "text_tokens": 120_000, "sha256": "made up"}  # fmt: skip


RUNS = {"speculative/bench": run, "speculative/skipping": skipped, "speculative/distil": distilled}
SKIPPING = {"smollm2-135m-instruct-q4_1": 0.7, "trained": 0.9, "dropout": 1.3, "deeper": 1.4}


def results(
    status: Callable[[Any], str] = lambda cfg: "done",
    keep: Callable[[str, Any], bool] = lambda stage, cfg: True,
    name: str = "speculative/bench",
) -> Results:
    """Records of every run of scale `cpu`."""
    experiment = experiments.load(name)
    stages: dict[str, list[Record]] = {}
    missing = []
    for stage in experiment.stages["cpu"]:
        stages[stage.name] = []
        for cfg in stage.configs(Earlier(stages, {})):
            if not keep(stage.name, cfg):
                missing.append(f"{stage.name}: {cfg}")
                continue
            stages[stage.name].append(
                record(experiment, cfg, RUNS[name](cfg), {"val_agreement": [0.1, 0.3]}, status(cfg), seconds=600.0)
            )
    return Results(experiment, "cpu", stages, missing)
