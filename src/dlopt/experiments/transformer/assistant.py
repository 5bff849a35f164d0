"""The run that trains the poem assistant's model: a small decoder on the regular poems of Tang and Song.

The model is written, rounded to fp16, into `artifacts()/poetry/<key>.safetensors`, where `<key>` is the record's. Its
perplexities are per character of the poem, without titles, on the validation and the test part; a guess among the
vocabulary has a perplexity of its size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.experiments._artifacts import artifacts
from dlopt.experiments._present import partial_note
from dlopt.experiments._steps import at_least, check_method, train_method
from dlopt.experiments.transformer import _verses as verses
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.poetry import checkpoint
from dlopt.poetry.layout import LONGEST, encode
from dlopt.tasks.modes import evaluating
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder

LARGEST = 12_000_000  # bytes: what may be shipped


@dataclass(frozen=True)
class Config:
    """source: "tang+song", "tang", or "sample" (290 poems, embedded). min_count: of a character in the train part.

    width, layers, heads: of the decoder (RMSNorm before each sub-layer, SwiGLU, RoPE, tied embeddings). steps: updates.
    tokens: about so many in a batch. warmup: share of the steps. clip: largest norm of the gradient. evaluated: poems
    of the validation part per evaluation. seed: of weights and order.
    """

    method: str = "muon"
    params: dict[str, Any] = field(default_factory=lambda: {"lr": 5e-3})
    source: str = "tang+song"
    min_count: int = 8
    width: int = 256
    layers: int = 5
    heads: int = 4
    steps: int = 2500
    tokens: int = 2048
    warmup: float = 0.05
    clip: float = 1.0
    evaluated: int = 512
    seed: int = 0


class Built:
    """The task of one seed: see `experiments._steps.Built`."""

    def __init__(self, cfg: Config, device: str) -> None:
        found = verses.read(cfg.source, cfg.min_count)
        self.vocabulary, self.summary, self.device = found.vocabulary, found.summary, device
        self.batches = verses.VerseBatches(found, cfg.tokens, cfg.seed)
        torch.manual_seed(cfg.seed)
        self.model = Decoder(shape(cfg, len(self.vocabulary))).to(device)
        self._validation = self._rows(found, "validation", cfg.evaluated)
        self._test = self._rows(found, "test", 2 * cfg.evaluated)

    def forward(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Logits (b, t - 1, v)."""
        return model(batch[:, :-1].to(self.device))

    def criterion(self, logits: Tensor, batch: Tensor) -> Tensor:
        """Mean cross-entropy over what is learned, in nats."""
        goal = verses.targets(batch, self.vocabulary).to(self.device)
        return F.cross_entropy(logits.flatten(0, 1), goal.flatten(), ignore_index=self.vocabulary.pad)

    def consumed(self, batch: Tensor) -> dict[str, int]:
        """What a batch counts for; padding does not."""
        return {"examples": len(batch), "tokens": int((batch != self.vocabulary.pad).sum())}

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per character."""
        return {"val_loss": self.measure(self._validation)}

    def test(self) -> dict[str, Any]:
        """Test loss in nats per character."""
        return {"test_loss": self.measure(self._test)}

    @torch.no_grad()
    def measure(self, parts: Sequence[Tensor]) -> float:
        """Mean loss over the characters of rows that are grouped by length."""
        total, count = 0.0, 0
        with evaluating(self.model):
            for rows in parts:
                for chunk in rows.split(32):
                    goal = verses.targets(chunk, self.vocabulary)
                    told = verses.characters(goal, self.vocabulary).flatten().to(self.device)
                    losses = F.cross_entropy(
                        self.forward(self.model, chunk).flatten(0, 1), goal.flatten().to(self.device), reduction="none"
                    )
                    total, count = total + float(losses[told].sum()), count + int(told.sum())
        return total / count

    def _rows(self, found: verses.Verses, part: str, limit: int) -> list[Tensor]:
        """Poems at equal distances over a part, forms in proportion, without titles."""
        poems = found.poems[part]
        share = min(1.0, limit / max(1, sum(map(len, poems.values()))))
        rows = []
        for form, every in poems.items():
            if every:
                places = torch.linspace(0, len(every) - 1, max(1, round(share * len(every)))).round().long().tolist()
                chosen = [encode(self.vocabulary, form, every[i][1]) for i in places]
                rows.append(verses.padded(chosen, self.vocabulary.pad))
        return rows


def shape(cfg: Config, vocabulary: int) -> TransformerConfig:
    """The model that a config describes."""
    return TransformerConfig(
        vocabulary, width=cfg.width, layers=cfg.layers, heads=cfg.heads, norm="rms", feedforward="swiglu",
        positions="rope", init="scaled", max_length=LONGEST,
    )  # fmt: skip


def artifact(key: str) -> Path:
    """Where the run of that key puts its model."""
    return artifacts() / "poetry" / f"{key or 'unnamed'}.safetensors"


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    for name in ("steps", "tokens", "evaluated", "min_count"):
        at_least(name, getattr(cfg, name), 1)
    if not 0 <= cfg.warmup < 1:
        raise ValueError(f"warmup must be a share of the steps in [0, 1), got {cfg.warmup}")
    if not cfg.clip > 0:
        raise ValueError(f"clip must be above 0, got {cfg.clip}")
    shape(cfg, 100)
    check_method(cfg.method, cfg.params)
    verses.ready(cfg.source)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train, write the model, and measure it once more as it was written, rounded to fp16."""
    made: list[Built] = []

    def build() -> Built:
        made[:] = [Built(cfg, log.device)]
        return made[0]

    summary = train_method(
        cfg.method, cfg.params, build, log, seed=cfg.seed, steps=cfg.steps, schedule="cosine",
        warmup=round(cfg.warmup * cfg.steps), clip=cfg.clip, eval_every=max(1, cfg.steps // 20),
        diverge_above=3 * math.log(len(verses.read(cfg.source, cfg.min_count).vocabulary)),
    )  # fmt: skip
    (built,) = made
    built.model.load_state_dict({name: value.float() for name, value in checkpoint.rounded(built.model).items()})
    found = {"val": built.evaluate()["val_loss"], "test": built.test()["test_loss"]}
    figures = {f"{part}_perplexity": math.exp(loss) for part, loss in found.items()}
    card = checkpoint.Card(log.key, data=" + ".join(verses.SOURCES[cfg.source]) or "sample", figures=figures)
    path = checkpoint.save(artifact(log.key), built.model, built.vocabulary, card)
    content = path.read_bytes()
    return summary | figures | {
        "vocabulary": len(built.vocabulary),
        "poems": built.summary.kept,
        "train_poems": built.summary.poems["train"],
        "artifact_bytes": len(content),
        "artifact_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


def smoke(earlier: Earlier) -> Sequence[Config]:
    """A tiny model on the embedded poems."""
    return [Config(source="sample", min_count=1, width=32, layers=2, heads=2, steps=60, tokens=1024, evaluated=40,
                   params={"lr": 1e-2})]  # fmt: skip


def cpu(earlier: Earlier) -> Sequence[Config]:
    """The model that is shipped."""
    return [Config()]


def gpu(earlier: Earlier) -> Sequence[Config]:
    """The same model, ten epochs with larger batches."""
    return [Config(steps=12_000, tokens=8192)]


SHOWN = ("parameters", "vocabulary", "poems", "train_poems", "val_perplexity", "test_perplexity", "artifact_bytes")


def present(results: Results) -> Presentation:
    """What a report may say of the model; None where the run has no record yet."""
    records = [r for r in results.stages.get("train", ()) if r.status == "done"]
    record = records[0] if records else None
    values: dict[str, Any] = {name: record.summary[name] if record else None for name in (*SHOWN, "seconds")}
    values |= {
        name: record.config[name] if record else None for name in ("steps", "layers", "width", "heads", "source")
    }
    values |= {
        "key": record.key if record else None,
        "tokens": (record.curve["tokens"] or [None])[-1] if record else None,
    }
    return Presentation(values=values, notes=partial_note(results))


def minutes(cfg: Config) -> float:
    """On one core of a busy 2026 server: about 1,200 tokens a second at 5.7M parameters; reading takes a minute."""
    if cfg.source == "sample":
        return 0.2
    return 1.5 + cfg.steps * cfg.tokens / 1200 / 60 * (cfg.width / 256) ** 2 * (2 + cfg.layers) / 7


experiment = Experiment(
    name="transformer/assistant",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("train", smoke, minutes, "a tiny model on 290 embedded poems"),),
        "cpu": (
            Stage("train", cpu, minutes, "the assistant's model: a decoder on the regular poems of Tang and Song"),
        ),
        "gpu": (Stage("train", gpu, minutes, "the same model, longer"),),
    },
    identity=lambda cfg: verses.identity(cfg.source),
    check=check,
    present=present,
    primary="val_perplexity",
)
