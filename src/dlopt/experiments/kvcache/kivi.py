"""What each choice of KIVI is worth: the axis of groups of K and V, bits, group, residual.

Questions of OpenbookQA behind 24 shots, as in `kvcache/openbookqa`, and beside them the error that the codes make:
the relative root mean square difference of the keys and values that attention reads from those of the full cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dlopt.experiments.kvcache import _models, _scoring
from dlopt.experiments.kvcache._common import check_cache, fill, make, sizes
from dlopt.experiments.kvcache.openbookqa import LONG, SHOTS
from dlopt.kvcache.coded import AXES
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import data
from dlopt.tasks.openbookqa import parse

BASE: dict[str, Any] = {"bits": 2, "group": 32, "residual": 32}
BITS, GROUPS, RESIDUALS = (2, 4, 8), (16, 32, 64), (32, 64, 128, 256)
QUESTIONS = 200


@dataclass(frozen=True)
class Config:
    """params: of `KIVICache`. part: what is varied ("axes", "bits", "group", "residual"). prefix, questions, data,
    model: as in `kvcache/openbookqa`."""

    method: str = "kivi"
    params: dict[str, Any] = field(default_factory=lambda: dict(BASE))
    part: str = "axes"
    prefix: str = SHOTS
    questions: int = QUESTIONS
    data: str = "openbookqa"
    model: str = _models.SMOLLM


PARTS = ("axes", "bits", "group", "residual")


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.method != "kivi":
        raise ValueError(f"this experiment is about kivi, not {cfg.method}")
    if cfg.part not in PARTS:
        raise ValueError(f"part takes {', '.join(PARTS)}, not {cfg.part!r}")
    if cfg.prefix == "zero":
        raise ValueError("without a prefix nothing is cached: prefix takes shots:NUMBER or book:TOKENS")
    _scoring.check(cfg.data, cfg.prefix, cfg.questions, "packed")
    check_cache(cfg.method, cfg.params, cfg.model)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Distance from the full cache on the questions, errors of keys and values, bytes."""
    found, cache = _scoring.measure(
        log, cfg.model, cfg.data, cfg.prefix, cfg.questions, cfg.method, cfg.params, "packed"
    )
    network, _ = _models.load(cfg.model, log.device)
    log.bytes = cache.nbytes()
    return found | sizes(network, cache, cfg.method, cfg.params) | errors(cfg, network, cache)


@torch.no_grad()
def errors(cfg: Config, network: Any, cache: Any) -> dict[str, float]:
    """Relative root mean square errors of all keys and values behind the prefix."""
    before, _ = _scoring.questions(cfg.model, cfg.data, cfg.prefix, cfg.questions)
    whole = make("full", {}, network)
    fill(network, whole, before.tokens)
    off: dict[str, list[float]] = {"key": [0.0, 0.0], "value": [0.0, 0.0]}
    for ours, theirs in zip(cache.layers, whole.layers, strict=True):
        pairs = zip(ours.store.dense(ours.rows, theirs.store.keys.dtype), (theirs.store.keys, theirs.store.values))
        for sums, (found, exact) in zip(off.values(), pairs):
            sums[0] += float((found - exact).double().square().sum())
            sums[1] += float(exact.double().square().sum())
    return {f"{name}_error": (wrong / total) ** 0.5 for name, (wrong, total) in off.items()}


def _runs(parts: Mapping[str, Sequence[Mapping[str, Any]]], **more: Any) -> Any:
    return lambda earlier: [
        Config(params={**BASE, **params}, part=part, **more) for part, grid in parts.items() for params in grid
    ]


def axes(bits: Sequence[int], **more: Any) -> Any:
    """Keys and values along either axis; the paper's pair first."""
    pairs = [("channel", "token"), ("token", "token"), ("channel", "channel"), ("token", "channel")]
    assert {axis for pair in pairs for axis in pair} == set(AXES)
    return _runs({"axes": [{"bits": b, "key_axis": k, "value_axis": v} for b in bits for k, v in pairs]}, **more)


def others(earlier: Earlier) -> Sequence[Config]:
    """Bits, group and residual, one at a time; a group of 64 needs a residual of 64."""
    made: Sequence[Config] = _runs(
        {
            "bits": [{"bits": b} for b in BITS],
            "group": [{"group": g, "residual": 64} for g in GROUPS],
            "residual": [{"residual": r} for r in RESIDUALS],
        }
    )(earlier)
    return made


def longer(earlier: Earlier) -> Sequence[Config]:
    """The axes and residuals behind 2,000 tokens."""
    made: Sequence[Config] = [
        *axes((2,), prefix=LONG)(earlier),
        *_runs({"residual": [{"residual": r} for r in RESIDUALS]}, prefix=LONG)(earlier),
    ]
    return made


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.model == _models.TINY:
        return 0.02
    kind, number = parse(cfg.prefix)
    tokens = number if kind == "book" else 17.5 * number
    return 0.1 + (cfg.questions * (0.085 + 1e-5 * tokens) + 8e-3 * tokens) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.kvcache._report_kivi import present as made

    return made(results)


_SAMPLE = {"data": "openbookqa-sample", "model": _models.TINY, "prefix": "shots:4", "questions": 4}
experiment = Experiment(
    name="kvcache/kivi",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("axes", lambda e: [Config(params={"bits": 2, "group": 8, "residual": 8, "key_axis": k}, **_SAMPLE)
                  for k in ("channel", "token")], minutes, "the axis of keys on a sample, a random model"),
        ),
        "cpu": (
            Stage("axes", axes((2, 4)), minutes, f"axis of K and V at 2 and 4 bits, {QUESTIONS} questions"),
            Stage("others", others, minutes, f"bits, group, residual, {QUESTIONS} questions"),
            Stage("longer", longer, minutes, f"axes and residual behind 2,000 tokens, {QUESTIONS} questions"),
        ),
        "gpu": (
            Stage("axes", axes((2, 4, 8), questions=500), minutes, "axis of K and V, 500 questions"),
            Stage("others", others, minutes, f"bits, group, residual, {QUESTIONS} questions"),
            Stage("longer", longer, minutes, f"axes and residual behind 2,000 tokens, {QUESTIONS} questions"),
        ),
    },
    identity=lambda cfg: data.identity(cfg.data) | _models.identity(cfg.model),
    check=check,
    present=present,
    primary="divergence",
)  # fmt: skip
