"""One part of the Transformer changed at a time, at equal parameters and steps, on the couplets of the Tang poems.

The base is pre-norm LayerNorm, GELU, sinusoids and full attention in an encoder-decoder of width 128 with 2 + 2 layers.
The learning rate is tuned on the base and holds for all, so a variant that wants another rate is at a disadvantage.
Attention patterns are compared in a decoder that reads both halves, since a half-line alone is too short for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dlopt import catalog
from dlopt.experiments._steps import at_least
from dlopt.experiments.transformer._answers import answers, measure, questions
from dlopt.experiments.transformer._common import (
    CHARACTERS,
    WARMUP,
    at_rate,
    best_rate,
    build,
    few,
    fit,
    halves,
    identity,
    ready,
)
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.tasks.poetry import Answers

BASE: dict[str, Any] = {"width": 128, "layers": 2, "heads": 4}
PLAIN = ("relu", "gelu", "swish")
GATED = ("glu", "bilinear", "reglu", "geglu", "swiglu")
PLACES = ("pre", "post", "sandwich")
POSITIONS = ("sinusoid", "learned", "shaw", "rope", "alibi", "none")
PATTERNS: dict[str, dict[str, Any]] = {
    "full": {},
    "local": {"window": 5},
    "strided": {"stride": 4},
    "fixed": {"stride": 4, "summary": 1},
}
# (layers of each stack, width) of equally many parameters with a vocabulary of 4,013 tokens
SHAPES = ((1, 164), (2, 128), (4, 96), (8, 72))
BOX = {"lr": (5e-4, 8e-3, "log")}
TRIALS, TUNING_SEED, SEEDS = 3, 1000, (0, 1, 2)
VALIDATED = 2000


@dataclass(frozen=True)
class Config:
    """method, params: seq2seq or decoder. corpus, characters, steps, batch, lr: as in `transformer/halves`. warmup:
    share of the steps. poems: test poems that are answered at temperature 1. seed: of weights and order."""

    method: str = "seq2seq"
    params: dict[str, Any] = field(default_factory=dict)
    corpus: str = "tang"
    characters: int = CHARACTERS
    steps: int = 1000
    batch: int = 64
    lr: float = 2e-3
    warmup: float = WARMUP
    poems: int = 150
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.method not in ("seq2seq", "decoder"):
        raise ValueError(f"method must be seq2seq or decoder, got {cfg.method!r}")
    for name in ("characters", "steps", "batch"):
        at_least(name, getattr(cfg, name), 1)
    at_least("poems", cfg.poems, 0)
    if not 0 < cfg.lr < math.inf or not 0 <= cfg.warmup < 1:
        raise ValueError(f"lr must be above 0 and warmup in [0, 1), got {cfg.lr} and {cfg.warmup}")
    with torch.device("meta"):
        catalog.find(cfg.method).load()(16, **cfg.params)
    ready(cfg.corpus)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one variant; validation and test loss, and how often its answers keep to length and opposite tones."""
    found = halves(cfg.corpus, cfg.characters)
    size = len(found.vocabulary)
    model = build(cfg.method, cfg.params, size, cfg.seed)
    built = Answers(model, found.train, few(found.validation, VALIDATED), seed=cfg.seed, device=log.device,
                    batch_size=min(cfg.batch, len(found.train[0])))  # fmt: skip
    summary = fit(built, log, steps=cfg.steps, lr=cfg.lr, warmup=cfg.warmup, vocabulary=size)
    each, counts = built.losses(few(found.test, VALIDATED))
    summary["test_loss"] = float(each.sum() / counts.sum())
    model = model.to("cpu").eval()
    if cfg.poems:
        asked = questions(cfg.corpus, cfg.poems, characters=cfg.characters)
        made = answers(model, found, asked, "t1", cfg.seed, cfg.corpus)
        shares = measure(made, found, asked, cfg.corpus, "t1")
        summary |= {"answered": len(asked.rows), "length": shares["t1.length"], "opposite": shares["t1.opposite"]}
    return summary


def trials() -> list[Config]:
    """Sobol points of the learning rate on the base, half the steps."""
    return [
        Config(params=dict(BASE), lr=float(p["lr"]), steps=250, poems=0, seed=TUNING_SEED)
        for p in sobol(BOX, TRIALS, seed=9)
    ]


def tune(earlier: Earlier) -> Sequence[Config]:
    return trials()


def variant(seed: int = 0, warmup: float = WARMUP, method: str = "seq2seq", **changes: Any) -> Config:
    """The base with some fields of its model changed."""
    return Config(method, {**BASE, **changes}, warmup=warmup, seed=seed)


def stage(variants: Sequence[Config]) -> Any:
    """These variants at the rate that was found."""
    return lambda earlier: [at_rate(cfg, best_rate(earlier, "tune", trials())) for cfg in variants]


def feedforward(seeds: Sequence[int]) -> list[Config]:
    return [variant(s, feedforward=kind) for s in seeds for kind in (*PLAIN, *GATED)]


def norm(seeds: Sequence[int]) -> list[Config]:
    cases = [variant(s, w, norm_position=p) for s in seeds for p in PLACES for w in (WARMUP, 0.0)]
    return cases + [variant(s, norm="rms") for s in seeds]


def positions() -> list[Config]:
    return [variant(positions=p) for p in POSITIONS]


def attention() -> list[Config]:
    return [variant(method="decoder", layers=4, attention=a, **more) for a, more in PATTERNS.items()]


def shapes() -> list[Config]:
    return [variant(layers=layers, width=width) for layers, width in SHAPES]


def smoke(earlier: Earlier) -> Sequence[Config]:
    """Some of each kind on the poems of the package."""
    small = {"corpus": "sample", "characters": 3000, "steps": 7, "batch": 16, "poems": 30, "lr": 5e-3}
    shape = {"width": 32, "layers": 1, "heads": 2}
    changes: list[dict[str, Any]] = [{}, {"feedforward": "swiglu"}, {"norm_position": "post"}, {"positions": "rope"}]
    found = [Config(params={**shape, **c}, **small) for c in changes]  # type: ignore[arg-type]
    local = {**shape, "attention": "local", "window": 5}
    return [*found, Config("decoder", local, **small)]  # type: ignore[arg-type]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation included."""
    if cfg.corpus == "sample":
        return 0.04
    params = cfg.params if isinstance(cfg.params, Mapping) else {}
    # narrow and deep models pay for the many small products, those with Shaw's tables for the gathers
    factor = {8: 1.7, 4: 1.3}.get(int(params.get("layers", 2)), 1.0) * (1.2 if params.get("positions") == "shaw" else 1)
    return 0.3 + factor * cfg.steps * 0.115 / 60 + (0.1 if cfg.poems else 0.0)


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.transformer._report_ablation import present as made

    return made(results)


experiment = Experiment(
    name="transformer/ablation",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("norm", smoke, minutes, "7 steps on the poems of the package"),),
        # what is dropped first where time is short comes last
        "cpu": (
            Stage("tune", tune, minutes, f"{TRIALS} Sobol trials of the learning rate on the base, 250 steps"),
            Stage("norm", stage(norm(SEEDS)), minutes, "places of the norm, warm-up or none, RMSNorm; 3 seeds"),
            Stage("feedforward", stage(feedforward(SEEDS)), minutes, "8 feed-forward layers, 3 seeds"),
            Stage("positions", stage(positions()), minutes, "6 kinds of positions, 1 seed"),
            Stage("attention", stage(attention()), minutes, "4 patterns of attention, 1 seed"),
            Stage("shape", stage(shapes()), minutes, "4 shapes of equal size, 1 seed"),
        ),
    },
    identity=lambda cfg: identity(cfg.corpus),
    check=check,
    present=present,
    primary="val_loss",
)
