"""Draft & Verify: which sub-layers a model can do without, and whether drafting without them pays.

Stage "searched": SmolLM2-135M-Instruct as it is, sets of skipped sub-layers of several sizes, found by
`find_skips` on prompts with the model's own answers, measured on other prompts. Stage "trained": a byte-level model
trained here, with and without layer dropout. Speed is that of `speculative/bench`: CPU time after the prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlopt.experiments._steps import at_least, train_method
from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.experiments.speculative import _resume
from dlopt.experiments.speculative._arms import Workshop, arms
from dlopt.experiments.speculative._dropped import Dropped
from dlopt.experiments.speculative._measure import Settings, earlier, measure, summed
from dlopt.experiments.speculative._tools import SMOLLM2, TINY, target
from dlopt.experiments.speculative.distil import artifact
from dlopt.lab.experiment import Earlier, Experiment, Run, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import data, decoding
from dlopt.tasks.models import pretrained

TRAINED = "trained"  # a byte-level model, trained in the run
ANSWER, LONGEST = 48, 320  # tokens of an answer in the texts of a search, and of such a text
ASKED = 9  # texts of a search on the model that is trained
MEASURED = ("chat", "rewriting", "code")  # categories on which SmolLM2 is measured


@dataclass(frozen=True)
class Config:
    """model: a name of the registry, "trained", or "tiny". share: of sub-layers skipped; 0 lets the search choose, by
    the predicted speed-up. trials: of the search. length: of drafts, at most. prompts: of each category. tokens: new
    ones. corpus, dropout, layers, width, steps, batch, window, lr: of the model that is trained. seed: of all of it."""

    model: str = SMOLLM2
    share: float = 0.25
    trials: int = 40
    length: int = 4
    prompts: int = 5
    tokens: int = 48
    corpus: str = "gutenberg-books"
    dropout: float = 0.0
    layers: int = 12
    width: int = 128
    steps: int = 800
    batch: int = 8
    window: int = 256
    lr: float = 3e-3
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    for name in ("trials", "length", "prompts", "steps", "batch", "window"):
        at_least(name, getattr(cfg, name), 1)
    at_least("tokens", cfg.tokens, 2)
    at_least("layers", cfg.layers, 2)
    if not 0 <= cfg.share < 1 or not 0 <= cfg.dropout < 1:
        raise ValueError(f"share and dropout must be from 0 to below 1, got {cfg.share}, {cfg.dropout}")
    if cfg.width < 4 or cfg.width % 8:
        raise ValueError(f"width must be a multiple of 8, got {cfg.width}")
    if cfg.model == TRAINED:
        data.identity(cfg.corpus)
    elif cfg.model != TINY:
        pretrained.find(cfg.model)
        _prompts(cfg)


def identity(cfg: Config) -> dict[str, str]:
    """sha256 of text and weights."""
    if cfg.model == TINY:
        return {}
    if cfg.model == TRAINED:
        return data.identity(cfg.corpus)
    parts: dict[str, str] = {}
    for category in decoding.CATEGORIES:
        parts |= decoding.identity(category)
    return parts | pretrained.identity(cfg.model)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train if asked to, search, measure."""
    from dlopt.speculative import find_skips

    shop, prompts, others, told = _workshop(cfg, log)
    answers = earlier(shop, others, min(ANSWER, cfg.tokens))
    asked = [decoding.render(shop.tokenizer, prompt.text) for prompt in others]
    texts = [(ids + answer)[-LONGEST:] for ids, answer in zip(asked, answers)]
    table = _resume.costs(log, shop.target)  # the search looks at it, and must find the same set after a stop
    skips = find_skips(shop.target, texts, cfg.share or None, trials=cfg.trials, seed=cfg.seed, costs=table,
                       progress=lambda done, total, best: log.progress(done, total))  # fmt: skip
    found = {"attention": list(skips.attention), "mlp": list(skips.mlp), "agreement": skips.agreement,
             "cost": skips.cost, "predicted": skips.speedup, "layers": skips.layers,
             "costs": {str(k): s for k, s in zip(table.lengths, table.seconds)}}  # fmt: skip
    if not skips.attention and not skips.mlp:
        return told | found | {"arms": ""}  # the search chose to skip nothing: there is no drafter to measure
    line = arm(skips.attention, skips.mlp, cfg.length)
    both = f"{line},{line}/fixed"
    how = Settings(cfg.tokens, 0.0, cfg.seed)
    measured = measure(shop, arms(both), prompts, how, log)
    if log.key:
        path = artifact(log.key).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        skips.save(path)
    return told | found | summed(measured) | {"arms": both}


def arm(attention: Sequence[int], mlp: Sequence[int], length: int) -> str:
    """The arm of a skip set."""
    sets = [
        f"{name}={'+'.join(map(str, numbers))}" for name, numbers in (("attention", attention), ("mlp", mlp)) if numbers
    ]
    return f"draft-and-verify:{','.join(sets)},length={length}"


def place() -> Path:
    """The skip set of scale `cpu` that `speculative/bench` drafts with."""
    return artifact(Run.of(experiment, Config(), "searched", "cpu").key).with_suffix(".json")


def _workshop(cfg: Config, log: Log) -> tuple[Workshop, list[decoding.Prompt], list[decoding.Prompt], dict[str, Any]]:
    """The model, prompts to measure on, others to search on, and what training told."""
    if cfg.model == TRAINED:
        return _trained(cfg, log)
    if cfg.model == TINY:
        every = [decoding.Prompt(f"{n} abcabc {n} abcabc") for n in range(2 * cfg.prompts)]
        shop = Workshop(llama(layers=cfg.layers, eos_token_id=None), ByteTokenizer())
        return shop, every[: cfg.prompts], every[cfg.prompts :], {}
    return Workshop(*target(cfg.model)), *_prompts(cfg), {}


def _prompts(cfg: Config) -> tuple[list[decoding.Prompt], list[decoding.Prompt]]:
    """(to measure on, to search on): the first of three categories, and number 40 of every category."""
    measured = [p for category in MEASURED for p in decoding.prompts(category, cfg.prompts)]
    searched = [decoding.prompts(category, 1, 40)[0] for category in decoding.CATEGORIES]
    return measured, searched


def _trained(cfg: Config, log: Log) -> tuple[Workshop, list[decoding.Prompt], list[decoding.Prompt], dict[str, Any]]:
    made: list[Dropped] = []
    shape = {"layers": cfg.layers, "hidden_size": cfg.width, "intermediate_size": 3 * cfg.width, "eos_token_id": None}

    def build() -> Dropped:
        made[:] = [Dropped(cfg.corpus, shape, cfg.dropout, cfg.window, cfg.batch, cfg.seed, log.device)]
        return made[0]

    told = train_method(
        "adamw", {"lr": cfg.lr, "weight_decay": 0.1, "betas": (0.9, 0.95)}, build, log, seed=cfg.seed, steps=cfg.steps,
        schedule="cosine", warmup=round(0.1 * cfg.steps), clip=1.0, eval_every=max(1, cfg.steps // 8),
    )  # fmt: skip
    (built,) = made
    built.model.eval()
    every = _excerpts(built.held_out, cfg.prompts * len(MEASURED) + ASKED)
    cut = len(every) - ASKED
    return Workshop(built.model, ByteTokenizer()), every[:cut], every[cut:], told


def _excerpts(tokens: Any, count: int, size: int = 200) -> list[decoding.Prompt]:
    """Beginnings of ASCII text at even distances over a text of bytes."""
    starts = [i * (len(tokens) - size) // count for i in range(count)]
    return [decoding.Prompt(bytes(tokens[s : s + size].tolist()).decode("ascii", errors="ignore")) for s in starts]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.model == TINY:
        return 0.05
    if cfg.model == TRAINED:
        return 1 + cfg.steps * cfg.batch * cfg.window * cfg.layers * (cfg.width / 128) ** 2 * 3.5e-5 / 60
    return 1 + cfg.trials * 0.1 + 3 * cfg.prompts * 3 * (0.06 * cfg.tokens + 0.7) / 60


def smoke(earlier: Earlier) -> Sequence[Config]:
    """A tiny model with random weights."""
    return [Config(model=TINY, share=0.25, trials=3, prompts=2, tokens=8, layers=3)]


def searched(earlier: Earlier) -> Sequence[Config]:
    """An eighth, a quarter, a half of the sub-layers of SmolLM2, and as many as the search wants."""
    return [Config(share=share) for share in (0.25, 0.125, 0.5, 0.0)]


def trained(earlier: Earlier) -> Sequence[Config]:
    """With layer dropout and without it, half of the sub-layers skipped."""
    return [Config(model=TRAINED, dropout=p, share=0.5) for p in (0.8, 0.0)]


def deeper(earlier: Earlier) -> Sequence[Config]:
    """The same two models without three quarters of their sub-layers: added when half had not paid on either."""
    return [Config(model=TRAINED, dropout=p, share=0.75) for p in (0.8, 0.0)]


def present(results: Results) -> Presentation:
    """Values and tables of the report."""
    from dlopt.experiments.speculative._report_skipping import present as made

    return made(results)


experiment = Experiment(
    name="speculative/skipping",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("searched", smoke, minutes, "a tiny model"),),
        "cpu": (
            Stage("searched", searched, minutes, "SmolLM2 without some of its sub-layers"),
            Stage("trained", trained, minutes, "a small model trained with layer dropout, and without"),
            Stage("deeper", deeper, minutes, "the same without three quarters of its sub-layers"),
        ),
    },
    identity=identity,
    check=check,
    present=present,
    primary="agreement",
)
