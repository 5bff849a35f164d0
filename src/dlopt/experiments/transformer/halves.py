"""Half-line to half-line: a Transformer (encoder-decoder and decoder-only), an LSTM with attention, and n-grams.

All see the same couplets in the same order, take the same number of learning-rate trials, and are measured by the same
answers: sampled at several temperatures, by beam search, and under the rules of prosody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dlopt import catalog
from dlopt.experiments._steps import at_least
from dlopt.experiments.transformer import _answers as measured
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
    joined,
    ready,
)
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.search import sobol
from dlopt.lab.study import Results
from dlopt.tasks.poetry import Answers
from dlopt.transformer.ngram import NGram

SIZE = {"width": 192, "layers": 2, "heads": 4, "dropout": 0.1}
# all three within 1% of 2.84 million parameters: the sizes of the second and third are chosen for it
MODELS: dict[str, dict[str, Any]] = {
    "seq2seq": {**SIZE, "norm": "rms", "feedforward": "swiglu"},
    "decoder": {**SIZE, "layers": 4, "hidden": 960, "norm": "rms", "feedforward": "swiglu"},
    "lstm": {"width": 192, "hidden": 276, "dropout": 0.1},
    "ngram": {},
}
SMALL: dict[str, dict[str, Any]] = {
    "seq2seq": {"width": 32, "layers": 1, "heads": 2},
    "decoder": {"width": 32, "layers": 1, "heads": 2},
    "lstm": {"width": 32, "hidden": 32, "layers": 1},
    "ngram": {},
}
BOX = {"lr": (3e-4, 1e-2, "log")}
TRIALS, TUNING_SEED, SEEDS = 3, 1000, (0, 1, 2)
TRAINED = ("seq2seq", "decoder", "lstm")
DECODERS = ("t0.5", "t0.7", "t1", "beam", "masked")
VALIDATED = 2000  # couplets of the validation part


@dataclass(frozen=True)
class Config:
    """method, params: the model. corpus: sample, tang or song. characters: of the vocabulary. steps, batch, lr,
    warmup (share of the steps): of the training; n-grams need none. poems: test poems that are answered; 0: none.
    seed: of weights, order and draws."""

    method: str = "seq2seq"
    params: dict[str, Any] = field(default_factory=dict)
    corpus: str = "tang"
    characters: int = CHARACTERS
    steps: int = 1500
    batch: int = 128
    lr: float = 2e-3
    warmup: float = WARMUP
    poems: int = 500
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.method not in MODELS:
        raise ValueError(f"method must be one of {', '.join(MODELS)}, got {cfg.method!r}")
    for name in ("characters", "steps", "batch"):
        at_least(name, getattr(cfg, name), 1)
    at_least("poems", cfg.poems, 0)
    if not 0 < cfg.lr < math.inf or not 0 <= cfg.warmup < 1:
        raise ValueError(f"lr must be above 0 and warmup in [0, 1), got {cfg.lr} and {cfg.warmup}")
    with torch.device("meta"):
        catalog.find(cfg.method).load()(16, **cfg.params)
    ready(cfg.corpus)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train one model, and measure its answers to the test couplets."""
    found = halves(cfg.corpus, cfg.characters)
    size = len(found.vocabulary)
    summary: dict[str, Any]
    model: Any
    if cfg.method == "ngram":
        rows = torch.cat((found.train[0], found.train[1]), dim=1)
        model = NGram(size, **cfg.params).fit(rows, found.vocabulary.pad)
        summary = {"val_loss": _ngram_loss(model, few(found.validation, VALIDATED))[0], "parameters": model.size()}
        each, counts = _ngram_losses(model, found.test)
        log.row(0, val_loss=summary["val_loss"])
    else:
        model = build(cfg.method, cfg.params, size, cfg.seed)
        validation = few(found.validation, VALIDATED)
        built = Answers(model, found.train, validation, batch_size=min(cfg.batch, len(found.train[0])), seed=cfg.seed,
                        device=log.device)  # fmt: skip
        summary = fit(built, log, steps=cfg.steps, lr=cfg.lr, warmup=cfg.warmup, vocabulary=size)
        each, counts = built.losses(found.test)
        model = model.to("cpu").eval()
    summary |= {"test_loss": float(each.sum() / counts.sum()), "test_couplets": len(each), "vocabulary": size}
    summary["test_perplexity"] = math.exp(summary["test_loss"])
    summary |= {"train_couplets": len(found.train[0]), "coverage": found.coverage}
    summary |= {f"poems_{part}": n for part, n in found.summary.poems.items()}
    if cfg.poems:
        kept = found.owner < 1000  # enough for the bootstrap, and short enough for a record
        by = torch.zeros(int(found.owner[kept].max()) + 1, dtype=torch.float64)
        summary["poem_nll"] = joined(by.scatter_add(0, found.owner[kept], each[kept]), 2)
        summary["poem_tokens"] = joined(by.scatter_add(0, found.owner[kept], counts[kept].double()))
        summary |= _answered(cfg, model)
    return summary


def _ngram_losses(model: NGram, pairs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    source, target = pairs
    logs = model.log_probs(torch.cat((source, target), dim=1))[:, source.shape[1] + 1 :]
    real = target[:, 1:] != 0
    return -(logs * real).sum(1), real.sum(1)


def _ngram_loss(model: NGram, pairs: Any) -> tuple[float, int]:
    each, counts = _ngram_losses(model, pairs)
    return float(each.sum() / counts.sum()), len(each)


def _answered(cfg: Config, model: Any) -> dict[str, Any]:
    found, asked = (
        halves(cfg.corpus, cfg.characters),
        measured.questions(cfg.corpus, cfg.poems, characters=cfg.characters),
    )
    length = asked.lengths(found.test[0], found.vocabulary.pad)
    result: dict[str, Any] = {"asked": asked.asked, "answered": len(asked.rows)}
    result |= measured.measure(measured.originals(found, asked), found, asked, cfg.corpus, "original")
    for decoder in DECODERS:
        made = measured.answers(model, found, asked, decoder, cfg.seed, cfg.corpus)
        result |= measured.measure(made, found, asked, cfg.corpus, decoder)
        if decoder == "t1":
            result["t1.inside"] = float(measured.inside(made, found, asked, cfg.corpus).double().mean())
        if made.cost is not None:
            inside = torch.arange(8) <= length[:, None]
            total = (made.cost * inside).sum(1)
            result["cost"] = float(total.sum() / length.sum())
            result["cost_by_poem"] = joined(_sums(found, asked, total), 2)
            result["chars_by_poem"] = joined(_sums(found, asked, length.double()))
            result["allowed"] = float((-total).exp().mean())  # estimates the share of free answers that are proper
            for n in (5, 7):
                result[f"cost_places_{n}"] = joined(measured.by_place(made.cost, length, n), 4)
    result["examples"] = _examples(found, asked, measured.answers(model, found, asked, "masked", cfg.seed, cfg.corpus))
    return result


def _sums(found: Any, asked: Any, values: torch.Tensor) -> torch.Tensor:
    _, place = found.owner[asked.rows].unique(return_inverse=True)
    return torch.zeros(int(place.max()) + 1, dtype=torch.float64).scatter_add(0, place, values.double())


def _examples(found: Any, asked: Any, made: Any, count: int = 4) -> str:
    """The first half-lines of the test part with the answers under the rules: none chosen, none drawn again."""
    return "；".join(
        f"{found.texts[int(row)][0]}，{found.vocabulary.decode(made.tokens[i].tolist())}"
        for i, row in enumerate(asked.rows[:count])
    )


def trials(method: str, corpus: str = "tang") -> list[Config]:
    """The same Sobol points of the learning rate for every model; a quarter of the steps."""
    return [
        Config(method, dict(MODELS[method]), corpus, lr=float(p["lr"]), steps=375, poems=0, seed=TUNING_SEED)
        for p in sobol(BOX, TRIALS, seed=5)
    ]


def tune(earlier: Earlier) -> Sequence[Config]:
    """Trials on the Tang couplets."""
    return [trial for method in TRAINED for trial in trials(method)]


def report(corpus: str, seeds: Sequence[int], ngram: bool = True) -> Any:
    """The best rate of each model on fresh seeds."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        found = [Config("ngram", {}, corpus)] if ngram else []
        for seed in seeds:
            for m in TRAINED:
                cfg = Config(m, dict(MODELS[m]), corpus, seed=seed)
                found.append(at_rate(cfg, best_rate(earlier, "tune", trials(m))))
        return found

    return configs


def smoke(earlier: Earlier) -> Sequence[Config]:
    """Every model on the 290 poems that travel with the package."""
    return [Config(m, dict(SMALL[m]), "sample", 3000, steps=7, batch=32, lr=1e-2, poems=30) for m in MODELS]


SECONDS = {"seq2seq": 0.38, "decoder": 0.6, "lstm": 0.3, "ngram": 0.0}


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server, evaluation and answers included."""
    if cfg.corpus == "sample":
        return 0.05
    load = 1.2 if cfg.corpus == "song" else 0.3
    return load + cfg.steps * SECONDS[cfg.method] / 60 + (1.3 if cfg.poems else 0.3)


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.transformer._report_halves import present as made

    return made(results)


experiment = Experiment(
    name="transformer/halves",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("report", smoke, minutes, "7 steps on the poems of the package"),),
        "cpu": (
            Stage("tune", tune, minutes, f"{TRIALS} Sobol trials of the learning rate, 375 steps"),
            Stage("report", report("tang", SEEDS[:1]), minutes, "Tang, 1,500 steps, first seed"),
            Stage("seeds", report("tang", SEEDS[1:], ngram=False), minutes, "Tang, two seeds more"),
            Stage("song", report("song", SEEDS[:1]), minutes, "Song, 1,500 steps, one seed"),
        ),
        "gpu": (Stage("report", lambda earlier: _gpu(), minutes, "512 wide, 6 + 6 layers, 20,000 steps"),),
    },
    identity=lambda cfg: identity(cfg.corpus),
    check=check,
    present=present,
    primary="test_loss",
)


def _gpu() -> Sequence[Config]:
    large = {"width": 512, "layers": 6, "heads": 8, "dropout": 0.1, "norm": "rms", "feedforward": "swiglu"}
    sizes = {"seq2seq": large, "decoder": {**large, "layers": 14}, "lstm": {"width": 512, "hidden": 1280, "layers": 3}}
    return [
        Config(m, dict(p), corpus, steps=20_000, batch=512, lr=5e-4, seed=seed)
        for seed in SEEDS
        for corpus in ("tang", "song")
        for m, p in sizes.items()
    ]
