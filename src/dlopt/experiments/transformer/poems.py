"""Whole poems by the assistant's model, free and under the rules: how often they are regular, and what the rules cost.

rates: for one form, poems from its name alone at temperature 1. Free ones are judged by the checker and by membership
in the very mask that the others are written under, whose costs estimate the same probability in another way. samples:
for each form the first test poems of the Tang collection; each first line is continued once, free and under the rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dlopt import catalog
from dlopt.experiments._steps import at_least
from dlopt.experiments.transformer import assistant
from dlopt.experiments.transformer._common import identity as data_identity
from dlopt.experiments.transformer._common import joined, prepared, ready
from dlopt.experiments.transformer._writing import (
    CHUNK,
    Writer,
    chunks,
    either,
    judge,
    members,
    text_of,
    told,
    wide,
    write,
)
from dlopt.lab.experiment import Earlier, Experiment, Run, Stage
from dlopt.lab.log import Log, Skipped
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.poetry import checkpoint
from dlopt.poetry.constrained import ProsodyConstraint
from dlopt.poetry.layout import prefix
from dlopt.poetry.patterns import FORMS
from dlopt.poetry.request import Request
from dlopt.poetry.sample import sample_poems
from dlopt.poetry.tables import Tables
from dlopt.poetry.vocabulary import PUNCTUATION, Vocabulary

WHOLE = ("五绝", "七绝", "五律", "七律")
PARTS = ("rates", "samples")


@dataclass(frozen=True)
class Config:
    """part: one of `PARTS`. method: always decoder. weights: "assistant" (the model of `transformer/assistant`), or
    "random": a small one as it is drawn, for smoke runs. form: of part rates. corpus: of the originals and first lines.
    free, masked: poems of part rates. each: first lines of every form in part samples. seed: of the draws."""

    part: str = "rates"
    method: str = "decoder"
    params: dict[str, Any] = field(default_factory=dict)
    weights: str = "assistant"
    form: str = ""
    corpus: str = "tang"
    free: int = 4000
    masked: int = 1500
    each: int = 2
    seed: int = 0


def check_config(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    if cfg.part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {cfg.part!r}")
    if cfg.method != "decoder" or cfg.weights not in ("assistant", "random"):
        raise ValueError(f"method must be decoder and weights assistant or random, got {cfg.method!r}, {cfg.weights!r}")
    if cfg.part == "rates" and cfg.form not in WHOLE:
        raise ValueError(f"form must be one of {', '.join(WHOLE)}, got {cfg.form!r}")
    if cfg.params and cfg.weights == "assistant":
        raise ValueError("the assistant's model has its own shape: params would have no effect")
    for name in ("free", "masked", "each"):
        at_least(name, getattr(cfg, name), 1)
    ready(cfg.corpus)


def place() -> Path | None:
    """Where the model of `transformer/assistant` is: what its run left here, else what is shipped; None if neither."""
    trained = assistant.artifact(Run.of(assistant.experiment, assistant.Config(), "train", "cpu").key)
    return next((path for path in (trained, checkpoint.SHIPPED) if path.is_file()), None)


def identity(cfg: Config) -> dict[str, str]:
    """sha256 of poems and weights."""
    found = dict(data_identity(cfg.corpus))
    if cfg.weights == "assistant":
        path = place()
        found["weights"] = hashlib.sha256(path.read_bytes()).hexdigest() if path else "absent"
    return found


def writer(cfg: Config) -> Writer:
    """The model; `Skipped` with a sentence where there is none."""
    if cfg.weights == "random":
        vocabulary = Vocabulary.build(text for poem in sample_poems() for text in poem["paragraphs"])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(cfg.seed)
            model = catalog.find("decoder").load()(len(vocabulary), **cfg.params).eval()
    else:
        path = place()
        if path is None:
            raise Skipped("the assistant's model is not here: run `dlopt run transformer/assistant --scale cpu` first")
        found = checkpoint.load(path)
        model, vocabulary = found.model, found.vocabulary
    return Writer(model, vocabulary, Tables(vocabulary))


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """One form, or the table of samples."""
    made = writer(cfg)
    return _rates(cfg, made, log) if cfg.part == "rates" else _samples(cfg, made, log)


# ------------------------------------------------------------------------------------------------ part rates


def _rates(cfg: Config, made: Writer, log: Log) -> dict[str, Any]:
    vocabulary, form = made.vocabulary, cfg.form
    head = torch.tensor([prefix(vocabulary, form)])
    request = Request(form)

    def rules() -> ProsodyConstraint:
        return ProsodyConstraint(vocabulary, request, start=head.shape[1], tables=made.tables)

    size = rules().length
    draws = torch.Generator().manual_seed(cfg.seed)
    texts, inside = [], 0
    for done, count in enumerate(chunks(cfg.free)):
        tokens = wide(write(made, head.expand(count, -1), size, None, draws).tokens, size, vocabulary.pad)
        inside += int(members(rules(), torch.cat((head.expand(count, -1), tokens), 1)).sum())
        texts += [text_of(vocabulary, row) for row in tokens.tolist()]
        log.progress(done, cfg.free // CHUNK + 1)
    found = judge(texts, form, "free") | {"free.inside": inside}
    free_texts = texts
    texts, costs = [], []
    for count in chunks(cfg.masked):
        out = write(made, head.expand(count, -1), size, rules(), draws)
        texts += [text_of(vocabulary, row) for row in out.tokens.tolist()]
        costs.append(wide((out.drawn - out.log_probs).double(), size))
    cost = torch.cat(costs)
    found |= judge(texts, form, "masked")
    shape = FORMS[form]
    step = shape.length + 1
    rhymes = [line * step + shape.length - 1 for line in range(1, shape.lines, 2)]
    # where the first line ends, a rhyme is open: it counts on neither side
    others = [i for i in range(size - 1) if i % step != shape.length and i not in rhymes and i != shape.length - 1]
    total = cost.sum(1)
    found |= {
        "cost": float(total.mean()) / shape.size,
        "cost_rhymes": joined(cost[:, rhymes].mean(1), 4),
        "cost_others": joined(cost[:, others].mean(1), 4),
        "cost_places": joined(cost.mean(0), 4),
        "log_allowed": joined(-total, 4),
        "either.free": either(made, free_texts),
        "either.masked": either(made, texts),
    }
    originals = ["，".join(poem.lines) for poem in prepared(cfg.corpus).part("test") if poem.form == form][:1000]
    return found | judge(originals, form, "original") | {"either.original": either(made, originals)}


# ------------------------------------------------------------------------------------------------ part samples


def _samples(cfg: Config, made: Writer, log: Log) -> dict[str, Any]:
    """{form: rows} as JSON text: original first line, both continuations, and what the checker finds."""
    rows = []
    for form in WHOLE:
        poems = [poem for poem in prepared(cfg.corpus).part("test") if poem.form == form]
        for index, poem in enumerate(poems[: cfg.each]):
            first = poem.lines[0]
            row: dict[str, Any] = {"form": form, "index": index + 1, "author": poem.author, "first": first}
            for how in ("free", "masked"):
                row[how] = _continued(made, form, first, index, masked=how == "masked")
                row[f"{how}_faults"] = told(row[how], form)
            rows.append(row)
            log.progress(len(rows), cfg.each * len(WHOLE))
    return {"samples": json.dumps(rows, ensure_ascii=False), "count": len(rows)}


def _continued(made: Writer, form: str, first: str, seed: int, masked: bool) -> str:
    vocabulary = made.vocabulary
    head = prefix(vocabulary, form)
    draws = torch.Generator().manual_seed(seed)
    size = FORMS[form].size + FORMS[form].lines + 1
    if not masked:
        begun = [*head, *vocabulary.encode(first), vocabulary.id(PUNCTUATION[0])]
        out = write(made, torch.tensor([begun]), size - len(first) - 1, None, draws)
        return f"{first}{PUNCTUATION[0]}{text_of(vocabulary, out.tokens[0].tolist())}"
    try:
        request = Request(form, (first,), judge_given=False)
        rules = ProsodyConstraint(vocabulary, request, start=len(head), tables=made.tables)
    except ValueError as error:
        return f"（不能满足：{error}）"
    return text_of(vocabulary, write(made, torch.tensor([head]), size, rules, draws).tokens[0].tolist())


# ------------------------------------------------------------------------------------------------ grids


def rates(**more: Any) -> Any:
    return lambda earlier: [Config("rates", form=form, **more) for form in WHOLE]


def samples(**more: Any) -> Any:
    return lambda earlier: [Config("samples", **more)]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.weights == "random":
        return 0.05
    if cfg.part == "samples":
        return 1.0
    size = FORMS[cfg.form].size if cfg.form in FORMS else 40
    return 0.6 + size * (cfg.free + 2 * cfg.masked) / 1800 * 0.02


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.transformer._report_poems import present as made

    return made(results)


def smoke_configs(part: str) -> Any:
    tiny = {"weights": "random", "params": {"width": 32, "layers": 1, "heads": 2}, "corpus": "sample", "each": 1}

    def configs(earlier: Earlier) -> Sequence[Config]:
        made = rates(free=8, masked=4, **tiny) if part == "rates" else samples(**tiny)
        return made(earlier)

    return configs


experiment = Experiment(
    name="transformer/poems",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("rates", smoke_configs("rates"), minutes, "an untrained model"),
            Stage("samples", smoke_configs("samples"), minutes, "an untrained model"),
        ),
        "cpu": (
            Stage("rates", rates(), minutes, "4,000 free poems and 1,500 under the rules of each form"),
            Stage("samples", samples(), minutes, "two first lines of each form"),
        ),
    },
    identity=identity,
    check=check_config,
    present=present,
    primary="cost",
)
