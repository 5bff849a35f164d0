"""Drafters beside plain decoding on one category of prompts: identical text, fewer passes, and how much faster.

The target is SmolLM2-135M-Instruct in fp32 on one thread. Every prompt is decoded by every arm in turn, so that what
else the machine does falls on all of them; speed is CPU time after the prefill. An arm's speed-up is the plain time per
token over the arm's, over all prompts together, with an interval from resampling prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.experiments.speculative import distil, skipping
from dlopt.experiments.speculative._arms import NEED_SMALL, Workshop, arms
from dlopt.experiments.speculative._measure import Settings, earlier, measure, summed
from dlopt.experiments.speculative._tools import SMOLLM2, TINY, target
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log, Skipped
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import decoding
from dlopt.tasks.models import pretrained

LOOKUP = ("plain-bf16,hf-lookup,prompt-lookup,prompt-lookup/fixed,llma,llma/fixed,rest,rest/fixed,suffix-decoding,"
          "token-recycling,best-of-drafts")  # fmt: skip
LENGTHS = ",".join(f"prompt-lookup:length={n}/fixed" for n in (2, 4, 7, 10, 16))
TREES = ("suffix-decoding:tree=false/fixed,suffix-decoding/fixed,token-recycling:nodes=3/fixed,"
         "token-recycling:nodes=7/fixed,token-recycling:nodes=24/fixed")  # fmt: skip
STORES = ",".join(f"rest:store={store}/fixed" for store in ("instructions", "instructions,part=0.1",
                                                             "instructions,part=0.01", "books", "outputs"))  # fmt: skip
CASCADES = ",".join(f"cascade:shape={shape}/fixed" for shape in ("both", "both,order=1+0", "horizontal", "vertical",
                                                                 "alone", "both,lenience=1"))  # fmt: skip
CASCADES += ",prompt-lookup:length=10/fixed"  # the cheap one alone
DRAWN = "prompt-lookup,llma,suffix-decoding,best-of-drafts"
MODELS = ("plain-bf16,speculative-sampling,speculative-sampling/fixed,cascade,cascade/fixed,"
          "draft-and-verify:skips=found,draft-and-verify:skips=found/fixed,hf-assisted")  # fmt: skip
DISTILLED = "distilled"


@dataclass(frozen=True)
class Config:
    """category: of `tasks.decoding`. arms: see `_arms`. model: a name of the registry, or "tiny". drafter: the folder
    of the small model that drafts; "distilled" for that of `speculative/distil`, "" for none. prompts: how many, from
    number `first` on. tokens: new ones, at most. temperature: 0 is greedy. seed: of sampling."""

    category: str = "chat"
    arms: str = LOOKUP
    model: str = SMOLLM2
    drafter: str = ""
    prompts: int = 20
    first: int = 0
    tokens: int = 64
    temperature: float = 0.0
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    found = arms(cfg.arms)
    if cfg.model != TINY and not cfg.drafter and (needy := [a.text for a in found if a.method in NEED_SMALL]):
        raise ValueError(f"{needy[0]} drafts with a small model: give its folder as drafter, "
                         f"`dlopt speculative distill` makes one")  # fmt: skip
    if cfg.tokens < 2 or not cfg.temperature >= 0:
        raise ValueError(f"tokens must be at least 2 and temperature 0 or more, got {cfg.tokens}, {cfg.temperature}")
    if cfg.model != TINY:
        pretrained.find(cfg.model)
        decoding.prompts(cfg.category, cfg.prompts, cfg.first)
        if "store=outputs" in cfg.arms:
            _others(cfg)
    elif cfg.prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {cfg.prompts}")


def identity(cfg: Config) -> dict[str, str]:
    """sha256 of prompts and weights."""
    if cfg.model == TINY:
        return {}
    found = decoding.identity(cfg.category) | pretrained.identity(cfg.model)
    if cfg.drafter == DISTILLED:
        found["drafter"] = distil.digest(distil.place())
    elif cfg.drafter:
        found |= {f"drafter/{name}": sha256 for name, sha256 in pretrained.identity(cfg.drafter).items()}
    if "skips=found" in cfg.arms:
        path = skipping.place()
        found["skips"] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"
    return found


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """All arms on all prompts."""
    from dlopt.speculative.costs import costs_of

    shop, prompts = _workshop(cfg)
    wanted = arms(cfg.arms)
    if "store=outputs" in cfg.arms:  # of prompts that are not measured
        shop.outputs = earlier(shop, _others(cfg), cfg.tokens)
    found = measure(shop, wanted, prompts, Settings(cfg.tokens, cfg.temperature, cfg.seed), log)
    table = costs_of(shop.target)
    return summed(found) | {
        **{f"{arm.text} cost": share for arm in wanted if (share := shop.reads(arm)) is not None},
        "costs": {str(k): s for k, s in zip(table.lengths, table.seconds)},
        "prompt_tokens": [len(decoding.render(shop.tokenizer, p.text)) for p in prompts],
        "threads": torch.get_num_threads(),
    }


def _workshop(cfg: Config) -> tuple[Workshop, Sequence[decoding.Prompt]]:
    from dlopt.speculative import Skips

    if cfg.model == TINY:
        small = partial(llama, layers=1, seed=1, hidden_size=64, eos_token_id=None)
        return Workshop(llama(eos_token_id=None), ByteTokenizer(), small), _tiny_prompts(cfg.prompts)
    folder = str(distil.place()) if cfg.drafter == DISTILLED else cfg.drafter
    for needed, path, name in ((cfg.drafter == DISTILLED, distil.place(), "speculative/distil"),
                               ("skips=found" in cfg.arms, skipping.place(), "speculative/skipping")):  # fmt: skip
        if needed and not path.exists():
            raise Skipped(f"it drafts with what `dlopt run {name} --scale cpu` leaves behind, which is not here; where "
                          f"that is recorded already, `dlopt reproduce {path.stem}` makes it again")  # fmt: skip
    small = partial(_small, folder) if folder else None
    found = partial(Skips.load, skipping.place())
    return Workshop(*target(cfg.model), small, skips=found), decoding.prompts(cfg.category, cfg.prompts, cfg.first)


def _others(cfg: Config) -> Sequence[decoding.Prompt]:
    """As many prompts of the category as are measured, after them."""
    if cfg.model == TINY:
        return _tiny_prompts(2 * cfg.prompts)[cfg.prompts :]
    return decoding.prompts(cfg.category, cfg.prompts, cfg.first + cfg.prompts)


def _tiny_prompts(count: int) -> list[decoding.Prompt]:
    """Prompts that repeat themselves."""
    return [decoding.Prompt(f"{n} abcabc {n} abcabc", (f"{n} abcabc",)) for n in range(count)]


def _small(folder: str) -> Any:
    return pretrained.load(folder)[0]


def grid(line: str, categories: Sequence[str] = decoding.CATEGORIES, **more: Any) -> Any:
    """One run a category."""
    return lambda earlier: [Config(category=c, arms=line, **more) for c in categories]


def tempered(earlier: Earlier) -> Sequence[Config]:
    """Drawn text at two temperatures."""
    return [
        Config(category=c, arms=DRAWN, temperature=t, prompts=10) for t in (0.5, 1.0) for c in ("rewriting", "chat")
    ]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.model == TINY:
        return 0.05
    return cfg.prompts * (1 + len(arms(cfg.arms))) * (cfg.tokens * 0.05 + 0.7) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.speculative._report_bench import present as made

    return made(results)


SMOKE = ("prompt-lookup,prompt-lookup:length=3/fixed,suffix-decoding,speculative-sampling:length=2/fixed,"
         "rest:store=outputs,part=0.5/fixed,cascade/fixed,cascade:shape=both,order=1+0/fixed,draft-and-verify:attention=1,mlp=1/fixed,hf-lookup,"
         "plain-bf16")  # fmt: skip
FEW = {"prompts": 10}
experiment = Experiment(
    name="speculative/bench",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("lookup", grid(SMOKE, ("chat",), model=TINY, prompts=3, tokens=12), minutes, "a tiny model"),),
        "cpu": (
            Stage("lookup", grid(LOOKUP), minutes, "drafters that look up, 20 prompts of each of 9 categories"),
            Stage("models", grid(MODELS, drafter=DISTILLED), minutes, "a small model, a cascade, skipped layers"),
            Stage("stores", grid(STORES, ("code", "chat"), **FEW), minutes, "kinship and size of the datastore"),
            Stage(
                "cascades",
                grid(CASCADES, ("code", "rewriting"), drafter=DISTILLED, **FEW),
                minutes,
                "who drafts for whom, and in which order",
            ),
            Stage("trees", grid(TREES, ("code", "chat"), **FEW), minutes, "tree against chain"),
            Stage("lengths", grid(LENGTHS, ("rewriting", "code", "chat"), **FEW), minutes, "fixed draft lengths"),
            Stage("drawn", tempered, minutes, "temperature 0.5 and 1"),
        ),
    },
    identity=identity,
    check=check,
    present=present,
    primary="repetition",
)
