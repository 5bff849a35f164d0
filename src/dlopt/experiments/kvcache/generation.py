"""Writing from a compressed prompt: summaries and copies of passages of a book, beside the full cache's text.

The prompt attends in full, the cache compresses it, and the likeliest token is taken at each step. A different text
need not be a worse one; a copy, though, has a right answer: the passage itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments.kvcache import _models
from dlopt.experiments.kvcache._common import (
    EVICTING,
    KEEPING,
    check_cache,
    continued,
    fill,
    make,
    settings,
    sizes,
)
from dlopt.experiments.kvcache._pieces import each
from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import data
from dlopt.tasks.data.files import locate
from dlopt.tasks.writing import REQUESTS, common, first_difference, overlap, repetition, request

BUDGET, PASSAGE, GENERATED, PROMPTS = 128, 512, 64, 6


@dataclass(frozen=True)
class Config:
    """method, params: the cache. kind: "summary" or "copy". prompts: passages. passage: tokens of each. generated:
    tokens at most. text: of `tasks.data`. model: as in `kvcache/openbookqa`."""

    method: str = "full"
    params: dict[str, Any] = field(default_factory=dict)
    kind: str = "summary"
    prompts: int = PROMPTS
    passage: int = PASSAGE
    generated: int = GENERATED
    text: str = "gutenberg-books"
    model: str = _models.SMOLLM


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    check_cache(cfg.method, cfg.params, cfg.model)
    if cfg.kind not in REQUESTS:
        raise ValueError(f"kind takes {', '.join(REQUESTS)}, not {cfg.kind!r}")
    if min(cfg.prompts, cfg.passage, cfg.generated) < 1:
        raise ValueError(f"prompts, passage and generated must be at least 1, got {cfg.prompts}, {cfg.passage} and "
                         f"{cfg.generated}")  # fmt: skip
    found = data.find(cfg.text)
    locate(found.name, found.files, found.help)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Write, and compare with what the full cache writes."""
    _, tokenizer = _models.load(cfg.model, log.device)
    whole = Config(kind=cfg.kind, prompts=cfg.prompts, passage=cfg.passage, generated=cfg.generated, text=cfg.text,
                   model=cfg.model)  # fmt: skip

    def work(number: int) -> dict[str, Any]:
        theirs = _full(log.device, whole, number)[0]
        ours, passage, held = (
            _full(log.device, whole, number) if cfg.method == "full" else _write(log.device, cfg, number)
        )
        kept = passage[: max(1, len(ours))]
        return {
            "overlap": overlap(ours, theirs),
            "same": first_difference(ours, theirs) / max(1, len(theirs)),
            "identical": ours == theirs,
            "repetition": repetition(ours),
            "copied": common(ours, kept) / len(kept),
            "length": len(ours),
            "text": tokenizer.decode(ours),
            "held": held,
        }

    rows = each(log, range(cfg.prompts), work)
    mean = {
        f"{name}_share": statistics.fmean(row[name] for row in rows)
        for name in ("overlap", "same", "identical", "repetition", "copied")
    }
    return {
        **mean,
        "overlap_each": [round(row["overlap"], 4) for row in rows],
        "length": statistics.fmean(row["length"] for row in rows),
        "text": rows[0]["text"],
        **{k: statistics.fmean(row["held"][k] for row in rows) for k in ("tokens", "bytes_16bit", "smaller")},
    }


def _write(device: str, cfg: Config, number: int) -> tuple[list[int], list[int], Any]:
    network, tokenizer = _models.load(cfg.model, device)
    prompt, passage = request(cfg.kind, cfg.text, number, cfg.passage, tokenizer)
    cache = make(cfg.method, cfg.params, network)
    logits = fill(network, cache, prompt)
    held = sizes(network, cache, cfg.method, cfg.params)
    return continued(network, cache, logits, cfg.generated, tokenizer.eos_token_id), passage, held


# of this process
_kept: dict[Any, tuple[list[int], list[int], Any]] = {}


def _full(device: str, whole: Config, number: int) -> tuple[list[int], list[int], Any]:
    """What the full cache writes, kept for the other runs of this process."""
    key = (device, repr(whole), number)
    if key not in _kept:
        _kept[key] = _write(device, whole, number)
    return _kept[key]


def grid(kinds: Sequence[str], series: Sequence[str] = (*KEEPING, *EVICTING), budget: int = BUDGET, **more: Any) -> Any:
    """Every method on every kind of request."""
    return lambda earlier: [Config(**settings(s, budget), kind=kind, **more) for kind in kinds for s in series]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server; the full cache's text is written once a process and counts with its own run."""
    if cfg.model == _models.TINY:
        return 0.02
    prefill = 0.004 * (cfg.passage + 40)
    step = 0.075 + (8e-5 * cfg.passage if cfg.method in ("kivi", "quant") else 0.0)
    return 0.1 + cfg.prompts * (prefill + cfg.generated * step) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.kvcache._report_generation import present as made

    return made(results)


experiment = Experiment(
    name="kvcache/generation",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("copy", grid(("copy",), ("full", "kivi-4", "sinks", "h2o"), 32, prompts=1, passage=64, generated=8,
                  text="stdlib-text", model=_models.TINY), minutes, "one passage, a random model"),
        ),
        "cpu": (
            Stage("summary", grid(("summary",)), minutes, f"{PROMPTS} summaries, {BUDGET} tokens kept"),
            Stage("copy", grid(("copy",)), minutes, f"{PROMPTS} copies, {BUDGET} tokens kept"),
        ),
        "gpu": (
            Stage("summary", grid(("summary",), prompts=50, passage=2048, generated=256), minutes, "50 summaries"),
            Stage("copy", grid(("copy",), prompts=50, passage=2048, generated=256), minutes, "50 copies"),
        ),
    },
    identity=lambda cfg: data.identity(cfg.text) | _models.identity(cfg.model),
    check=check,
    present=present,
    primary="overlap_share",
)  # fmt: skip
