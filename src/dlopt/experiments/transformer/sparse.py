"""Sparse attention on long sequences: what it saves, and what it no longer finds.

time: one attention, forward and backward, and one training step, all patterns in turn within one run, from 512 to 8,192
positions; recall and copy: accuracy by distance; books: bytes of Gutenberg books, loss of each pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt import catalog
from dlopt.experiments._steps import Schedule, at_least, make_optimizer
from dlopt.experiments.transformer._common import BETAS, CLIP, DECAY
from dlopt.experiments.transformer._sequences import VOCABULARY, Copy, Endless, Recall
from dlopt.experiments.transformer._timings import PATTERNS, sparse, timed
from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.lab.train import train
from dlopt.tasks import data
from dlopt.tasks.data.files import locate
from dlopt.transformer.model import Decoder

PARTS = ("time", "recall", "copy", "books")
LENGTHS = (512, 1024, 2048, 4096, 8192)
# recall: stride 16, a window of 17, three layers: the receptive field of the local pattern is 3 * 16 + 1 = 49
RECALL_STRIDE, RECALL_SUMMARY = 16, 4
RECALL: dict[str, Any] = {"width": 64, "layers": 3, "heads": 4, "positions": "rope", "norm": "rms"}
DISTANCES = (8, 12, 20, 28, 40, 56, 72, 92)
BOOKS: dict[str, Any] = {
    "width": 128,
    "layers": 4,
    "heads": 4,
    "positions": "rope",
    "norm": "rms",
    "feedforward": "swiglu",
}


@dataclass(frozen=True)
class Config:
    """part: one of `PARTS`. method, params: of a decoder (time: all patterns meet at params.attention="full").
    text: of the books. length: positions. steps, batch, lr: of the training. rounds: timings, of which the median
    counts. seed: of weights and data."""

    part: str = "time"
    method: str = "decoder"
    params: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    length: int = 512
    steps: int = 0
    batch: int = 1
    lr: float = 0.0
    rounds: int = 0
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {cfg.part!r}")
    if cfg.method != "decoder":
        raise ValueError(f"method must be decoder, got {cfg.method!r}")
    at_least("length", cfg.length, 16)
    at_least("batch", cfg.batch, 1)
    if cfg.part == "time":
        at_least("rounds", cfg.rounds, 1)
    elif cfg.steps < 1 or not 0 < cfg.lr < math.inf:
        raise ValueError(f"part {cfg.part} needs steps of at least 1 and an lr above 0, got {cfg.steps} and {cfg.lr}")
    with torch.device("meta"):
        catalog.find("decoder").load()(16, **cfg.params)
    if cfg.part == "books":
        spec = data.find(cfg.text)
        locate(spec.name, spec.files, spec.help)
    elif cfg.text:
        raise ValueError(f"part {cfg.part} reads no text, so text={cfg.text!r} would have no effect")
    elif cfg.part == "recall":
        Recall(cfg.length, _distances(cfg.length))


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One part."""
    if cfg.part == "time":
        return timed(cfg.length, cfg.rounds, cfg.seed, log)
    return _books(cfg, log) if cfg.part == "books" else _synthetic(cfg, log)


def _distances(length: int) -> tuple[int, ...]:
    return tuple(d for d in DISTANCES if d < 3 * length // 4)


# ------------------------------------------------------------------------------------------------ training


def _model(cfg: Config, vocabulary: int) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cfg.seed)
        model: Decoder = catalog.find("decoder").load()(vocabulary, **cfg.params)
    return model


def _fit(
    cfg: Config, log: Log, model: Decoder, batches: Any, evaluate: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    """Cross-entropy over the targets that are asked, by AdamW with warm-up and cosine."""
    model.to(log.device)
    optimizer = make_optimizer("adamw", {"lr": cfg.lr, "betas": BETAS, "weight_decay": DECAY}, model)
    rates = Schedule(optimizer, "cosine", cfg.steps, cfg.steps // 10)

    def step(batch: Sequence[Tensor]) -> dict[str, Any]:
        rates.apply()
        optimizer.zero_grad(set_to_none=True)
        with log.meter.phase("forward"):
            logits = model(batch[0].to(log.device))
            loss = F.cross_entropy(logits.flatten(0, 1), batch[1].to(log.device).flatten())
        with log.meter.phase("backward"):
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        with log.meter.phase("optimizer"):
            optimizer.step()
        return {"loss": float(loss.detach()), "forwards": 1, "tokens": batch[0].numel()}

    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": rates}
    train(step, batches, state, steps=cfg.steps, log=log, evaluate=evaluate, eval_every=cfg.steps // 8,
          diverge_above=2 * math.log(model.config.vocabulary))  # fmt: skip
    return {
        "seconds_per_step": sum(log.meter.seconds.values()) / cfg.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _synthetic(cfg: Config, log: Log) -> dict[str, Any]:
    """Accuracy by distance on rows that training did not see."""
    task: Any = Recall(cfg.length, _distances(cfg.length)) if cfg.part == "recall" else Copy(cfg.length)
    model = _model(cfg, VOCABULARY)
    tokens, targets, distance = task.rows(min(256, 8 * cfg.batch), torch.Generator().manual_seed(2**40 + cfg.seed))

    def right(count: int) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([model(part.to(log.device)).cpu() for part in tokens[:count].split(64)])
        return logits.argmax(-1) == targets[:count]

    asked = distance > 0
    found = _fit(cfg, log, model, Endless(task, cfg.batch, cfg.seed),
                 lambda: {"val_accuracy": float(right(64)[:, asked].double().mean())})  # fmt: skip
    correct = right(len(tokens))
    places = sorted({int(d) for d in distance if d > 0})
    found |= {f"accuracy.{d}": float(correct[:, distance == d].double().mean()) for d in places}
    found |= {"accuracy": float(correct[:, asked].double().mean()), "tested": len(tokens)}
    found["distances"] = ",".join(map(str, places))
    return found


def _books(cfg: Config, log: Log) -> dict[str, Any]:
    """Loss in nats per byte."""
    text = data.get(cfg.text)
    model = _model(cfg, text.vocabulary)
    batches = data.TextBatches(text.train, cfg.batch, cfg.length, cfg.seed)
    parts = {name: _spread(part, cfg.length) for name, part in (("val", text.valid), ("test", text.test))}

    @torch.no_grad()
    def loss(name: str) -> float:
        inputs, targets = parts[name]
        total = 0.0
        for a, b in zip(inputs.split(4), targets.split(4)):
            logits = model(a.to(log.device))
            total += float(F.cross_entropy(logits.flatten(0, 1), b.to(log.device).flatten(), reduction="sum"))
        return total / targets.numel()

    found = _fit(cfg, log, model, batches, lambda: {"val_loss": loss("val")})
    return found | {"val_loss": loss("val"), "test_loss": loss("test")}


def _spread(tokens: Tensor, length: int, count: int = 24) -> tuple[Tensor, Tensor]:
    inputs, targets = data.windows(tokens, length)
    rows = torch.linspace(0, len(inputs) - 1, min(count, len(inputs))).round().long()
    return inputs[rows], targets[rows]


# ------------------------------------------------------------------------------------------------ grids


def times(lengths: Sequence[int], rounds: int) -> Any:
    return lambda earlier: [Config("time", length=t, rounds=rounds) for t in lengths]


def synthetic(part: str, steps: int, seeds: Sequence[int] = (0,), length: int = 128, batch: int = 32) -> Any:
    return lambda earlier: [
        Config(part, params={**RECALL, **sparse(p, RECALL_STRIDE, RECALL_SUMMARY), "max_length": length}, lr=3e-3,
               length=length, steps=steps, batch=batch, seed=seed)
        for seed in seeds
        for p in PATTERNS
    ]  # fmt: skip


def books(text: str, length: int, steps: int, shape: Mapping[str, Any], stride: int, batch: int = 2) -> Any:
    return lambda earlier: [
        Config("books", params={**shape, **sparse(p, stride, max(1, stride // 8)), "max_length": length}, text=text,
               length=length, steps=steps, batch=batch, lr=2e-3)
        for p in PATTERNS
    ]  # fmt: skip


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.part == "time":
        return 0.05 + cfg.rounds * (cfg.length / 4096) ** 1.8 * 4 / 60
    if cfg.part == "books":
        return 0.3 + cfg.steps * cfg.batch * cfg.length / 2048 * 0.9 / 60
    return 0.1 + cfg.steps * cfg.batch * cfg.length / 4096 * 0.16 / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.transformer._report_sparse import present as made

    return made(results)


TINY: dict[str, Any] = {"width": 32, "layers": 2, "heads": 2}
experiment = Experiment(
    name="transformer/sparse",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("time", times((256, 512), 1), minutes, "2 lengths, 1 round"),
            Stage("recall", synthetic("recall", 3, length=64, batch=8), minutes, "3 steps"),
            Stage("copy", synthetic("copy", 3, length=64, batch=8), minutes, "3 steps"),
            Stage("books", books("stdlib-text", 128, 3, TINY, 16), minutes, "3 steps on Python's source text"),
        ),
        # what is dropped first where time is short comes last
        "cpu": (
            Stage("time", times(LENGTHS, 5), minutes, "five lengths, 5 rounds of all patterns in turn"),
            Stage("recall", synthetic("recall", 800, seeds=(0, 1)), minutes, "T = 128, 800 steps, 2 seeds"),
            Stage("copy", synthetic("copy", 400), minutes, "T = 128, 400 steps"),
            Stage("books", books("gutenberg-books", 1024, 250, BOOKS, 32), minutes, "T = 1,024, 250 steps"),
        ),
    },
    identity=lambda cfg: data.identity(cfg.text) if cfg.text else {"generated": "recall-1"},
    check=check,
    present=present,
    primary="accuracy",
)
