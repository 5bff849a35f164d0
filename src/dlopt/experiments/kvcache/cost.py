"""What a cache costs: seconds of prefill and of a decoding step, and bytes, against context and batch.

Each run is a process of its own (`_cost`). Seconds are CPU seconds, median of the steps; on a GPU, by the clock.
Weights of 135M parameters dwarf a small cache, so resident memory is told beside the exact bytes of the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments.kvcache import _models
from dlopt.experiments.kvcache._common import check_cache, settings
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.memory import Bytes

BUDGET = 256
SERIES = ("full", "sinks", "kivi-2", "kivi-2:packed", "int8", "h2o", "snapkv", "tova")
CONTEXTS, BATCHES, BATCHED = (1024, 2048, 4096), (4, 16), 512
FEWER = ("full", "sinks", "kivi-2", "kivi-2:packed", "h2o")


@dataclass(frozen=True)
class Config:
    """method, params: the cache. packed: attention over packed codes (kivi). context: tokens of the prompt. batch:
    rows. steps: of decoding. seed: of the tokens. model: as in `kvcache/openbookqa`."""

    method: str = "full"
    params: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    context: int = 1024
    batch: int = 1
    steps: int = 16
    seed: int = 0
    model: str = _models.SMOLLM


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    check_cache(cfg.method, cfg.params, cfg.model)
    if cfg.packed and cfg.method != "kivi":
        raise ValueError(f"packed attention reads the codes of kivi alone, not {cfg.method}")
    if min(cfg.context, cfg.batch, cfg.steps) < 1:
        raise ValueError(f"context, batch and steps must be at least 1, got {cfg.context}, {cfg.batch} and {cfg.steps}")


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Start the process and wait for it."""
    import torch

    asked = {
        "method": cfg.method,
        "params": cfg.params,
        "packed": cfg.packed,
        "context": cfg.context,
        "batch": cfg.batch,
        "steps": cfg.steps,
        "seed": cfg.seed,
        "model": cfg.model,
        "device": log.device,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "dlopt.experiments.kvcache._cost", json.dumps(asked)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"it ended with {ended.returncode}"]
        raise RuntimeError(f"the process that measures failed: {last[0]}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    log.bytes = Bytes(**found.pop("bytes"))
    return found


def config(series: str, **more: Any) -> Config:
    """The settings of a series, which may end in ":packed"."""
    name = series.removesuffix(":packed")
    return Config(**settings(name, BUDGET), packed=series.endswith(":packed"), **more)


def contexts(earlier: Earlier) -> Sequence[Config]:
    """One row, longer and longer."""
    return [config(s, context=n) for n in CONTEXTS for s in SERIES]


def batches(earlier: Earlier) -> Sequence[Config]:
    """More and more rows of 512 tokens."""
    return [config(s, context=BATCHED, batch=b) for b in BATCHES for s in FEWER]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, start of the process included."""
    if cfg.model == _models.TINY:
        return 0.2
    tokens = cfg.context * cfg.batch
    prefill = 0.0036 * tokens + 7e-7 * cfg.context * tokens
    step = 0.07 + 0.012 * (cfg.batch - 1) + (7e-5 if cfg.method in ("kivi", "quant") else 1.5e-5) * tokens
    return 0.2 + (prefill + (cfg.steps + 2) * step) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.kvcache._report_cost import present as made

    return made(results)


experiment = Experiment(
    name="kvcache/cost",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("contexts", lambda e: [config("kivi-2:packed", context=64, steps=2, model=_models.TINY)],
                  minutes, "64 tokens, a random model"),
        ),
        "cpu": (
            Stage("contexts", contexts, minutes, "one row of 1,024 to 4,096 tokens"),
            Stage("batches", batches, minutes, "4 and 16 rows of 512 tokens"),
        ),
        "gpu": (
            Stage("contexts", lambda e: [config(s, context=n) for n in (1024, 4096, 8000) for s in SERIES], minutes,
                  "one row of 1,024 to 8,000 tokens"),
            Stage("batches", lambda e: [config(s, context=4096, batch=b) for b in (4, 16) for s in FEWER], minutes,
                  "4 and 16 rows of 4,096 tokens"),
        ),
    },
    identity=lambda cfg: _models.identity(cfg.model),
    check=check,
    present=present,
    primary="decode_seconds",
)  # fmt: skip
