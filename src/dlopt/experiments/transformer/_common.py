"""What the parts of topic `transformer` share: the couplets, the models that answer them, and how one is trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dlopt import catalog
from dlopt.experiments._steps import Schedule, first_order, make_optimizer
from dlopt.lab.experiment import Earlier, Pending
from dlopt.lab.log import Log
from dlopt.lab.train import train
from dlopt.poetry.corpus import Corpus, Couplets, Poem, Summary, prepare
from dlopt.poetry.sample import fingerprint, sample_poems
from dlopt.poetry.vocabulary import PUNCTUATION, Vocabulary
from dlopt.tasks import data
from dlopt.tasks.data.files import locate
from dlopt.tasks.poetry import Answers, Pairs
from dlopt.transformer.cache import Cache
from dlopt.transformer.model import Decoder, Seq2Seq
from dlopt.transformer.steps import Seq2SeqStep

CORPORA = {"sample": "", "tang": "tang-poems", "song": "song-poems"}
CHARACTERS = 4000  # of the vocabulary: 99% of what the Tang poems hold
CLIP, DECAY, BETAS = 1.0, 0.01, (0.9, 0.98)
WARMUP = 0.1  # share of the steps


@dataclass(frozen=True)
class Halves:
    """The couplets of a corpus as tensors. poems: of the test part, those whose couplets are `test`, in order.

    owner: (n,) which of them a test couplet belongs to. texts: the test couplets as text. characters: of `vocabulary`.
    """

    vocabulary: Vocabulary
    train: Pairs
    validation: Pairs
    test: Pairs
    owner: Tensor
    texts: tuple[tuple[str, str], ...]
    poems: tuple[Poem, ...]
    summary: Summary
    coverage: float


def identity(corpus: str) -> dict[str, str]:
    """sha256 of the poems. ValueError for an unknown corpus."""
    _known(corpus)
    return data.identity(CORPORA[corpus]) if CORPORA[corpus] else fingerprint()


def ready(corpus: str) -> None:
    """ValueError for an unknown corpus, `DataUnavailable` where its file is not on this machine."""
    _known(corpus)
    if CORPORA[corpus]:
        spec = data.find(CORPORA[corpus])
        locate(spec.name, spec.files, spec.help)


def _known(corpus: str) -> None:
    if corpus not in CORPORA:
        raise ValueError(f"corpus must be one of {', '.join(CORPORA)}, got {corpus!r}")


@cache
def prepared(corpus: str) -> Corpus:
    """The clean poems; kept, as it takes half a minute."""
    ready(corpus)
    return prepare(data.get(CORPORA[corpus]) if CORPORA[corpus] else sample_poems())


@cache
def halves(corpus: str, characters: int = CHARACTERS) -> Halves:
    """The couplets of a corpus; the vocabulary holds the most frequent characters of its training part."""
    poems = prepared(corpus)
    counts: Counter[str] = Counter()
    for a, b in poems.couplets("train"):
        counts.update(a + b)
    chars = sorted(counts, key=lambda c: (-counts[c], c))[:characters]
    vocabulary = Vocabulary([*PUNCTUATION, *chars])
    tested = poems.part("test")
    texts = tuple(pair for poem in tested for pair in poem.couplets)
    parts = [Couplets(pairs, vocabulary) for pairs in (poems.couplets("train"), poems.couplets("validation"), texts)]
    tensors = [_sevens(part, vocabulary) for part in parts]
    owner = torch.tensor([i for i, poem in enumerate(tested) for _ in poem.couplets])
    covered = sum(counts[c] for c in chars) / max(1, sum(counts.values()))
    return Halves(vocabulary, *tensors, owner, texts, tuple(tested), poems.summary, covered)


def _sevens(part: Couplets, vocabulary: Vocabulary) -> Pairs:
    """Both sides wide enough for seven characters, whatever a part holds."""
    wide = [(part.source, 7), (part.target, 9)]
    source, target = (nn.functional.pad(x, (0, n - x.shape[1]), value=vocabulary.pad) for x, n in wide)
    return source, target


class Continuation(nn.Module):
    """A `Decoder` that reads the first half, padded, and goes on with the second: the interface of `Seq2Seq`."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, source_bs: Tensor, target_bt: Tensor) -> Tensor:
        return self.model(torch.cat((source_bs, target_bt), dim=1))[:, source_bs.shape[1] :]


class ContinuationStep:
    """Decoding steps of a `Continuation`: the source goes before the first token."""

    def __init__(self, model: Continuation, source_bs: Tensor) -> None:
        self.model, self.source, self.cache = model.model, source_bs, Cache()

    def __call__(self, tokens_bt: Tensor) -> Tensor:
        new = tokens_bt if self.cache.length else torch.cat((self.source, tokens_bt), dim=1)
        return self.model(new, self.cache)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        self.cache.reorder(rows)


class WholeStep:
    """Decoding steps that compute everything anew: for models without a cache. answer(source, tokens) -> (b, v)."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor], source_bs: Tensor) -> None:
        self.answer, self.source = answer, source_bs
        self.tokens: Tensor | None = None

    def __call__(self, tokens_bt: Tensor) -> Tensor:
        self.tokens = tokens_bt if self.tokens is None else torch.cat((self.tokens, tokens_bt), dim=1)
        return self.answer(self.source, self.tokens)

    def reorder(self, rows: Tensor) -> None:
        assert self.tokens is not None
        self.tokens, self.source = self.tokens.index_select(0, rows), self.source.index_select(0, rows)


def build(method: str, params: Mapping[str, Any], vocabulary: int, seed: int) -> nn.Module:
    """A model with the interface of `Seq2Seq`, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: nn.Module = catalog.find(method).load()(vocabulary, **params)
    return Continuation(model) if isinstance(model, Decoder) else model


def step_of(model: Any, source_bs: Tensor) -> Any:
    """What decodes answers to these sources."""
    if isinstance(model, Seq2Seq):
        return Seq2SeqStep(model, source_bs)
    if isinstance(model, Continuation):
        return ContinuationStep(model, source_bs)
    if isinstance(model, nn.Module):
        return WholeStep(lambda s, t: model(s, t)[:, -1], source_bs)
    return WholeStep(lambda s, t: model.next(torch.cat((s, t), dim=1)), source_bs)


def fit(
    built: Answers, log: Log, *, steps: int, lr: float, warmup: float = WARMUP, vocabulary: int
) -> dict[str, Any]:  # fmt: skip
    """Train by AdamW, cosine decay to 0 after a linear warm-up over a share of the steps, gradients clipped."""
    settings = {"lr": lr, "betas": BETAS, "weight_decay": DECAY}
    optimizer = make_optimizer("adamw", settings, built.model)
    rates = Schedule(optimizer, "cosine", steps, round(warmup * steps))
    state: dict[str, Any] = {"model": built.model, "optimizer": optimizer, "schedule": rates}
    train(first_order(built, optimizer, log.meter, rates, CLIP), built.batches, state, steps=steps, log=log,
          evaluate=built.evaluate, eval_every=steps // 8, diverge_above=2 * math.log(vocabulary))  # fmt: skip
    found: dict[str, Any] = dict(built.evaluate())
    found["seconds_per_step"] = sum(log.meter.seconds.values()) / steps
    found["parameters"] = sum(p.numel() for p in built.model.parameters())
    return found


def few(pairs: Pairs, count: int) -> Pairs:
    """At most so many pairs, at equal distances."""
    if len(pairs[0]) <= count:
        return pairs
    rows = torch.linspace(0, len(pairs[0]) - 1, count).round().long()
    return pairs[0][rows], pairs[1][rows]


def best_rate(earlier: Earlier, stage: str, trials: list[Any], metric: str = "val_loss") -> float | Pending:
    """The learning rate of the trial with the least `metric`; `Pending` while trials are missing."""
    from dlopt.lab import search  # imports torch

    def mine(record: Any, trial: Any) -> bool:
        return all(record.config.get(n) == getattr(trial, n) for n in ("method", "corpus", "lr", "steps", "seed"))

    scores = []
    for trial in trials:
        record = next((r for r in earlier.records(stage) if mine(r, trial)), None)
        if record is None:
            return Pending(f"stage {stage} lacks trials of {trial.method}")
        value = record.summary.get(metric) if record.status == "done" else None
        scores.append((trial.lr, math.nan if value is None else float(value)))
    try:
        return search.best(scores, higher_is_better=False)
    except ValueError:
        return Pending(f"no trial of {trials[0].method} in stage {stage} ended well")


def at_rate(cfg: Any, lr: float | Pending) -> Any:
    """The config at a learning rate, or waiting for it."""
    return replace(cfg, params=lr) if isinstance(lr, Pending) else replace(cfg, lr=lr)


def joined(values: Any, digits: int = 0) -> str:
    """Numbers of single poems in a summary, as one short text."""
    return ",".join(f"{float(v):.{digits}f}" for v in values)


def split(text: str) -> list[float]:
    """The inverse of `joined`."""
    return [float(v) for v in text.split(",")] if text else []
