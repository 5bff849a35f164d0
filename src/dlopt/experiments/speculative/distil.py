"""The small model that drafts: a few layers of SmolLM2-135M-Instruct, trained on its laws over chats of Alpaca.

The text is instructions with GPT-4's answers, in the target's chat format; none is a prompt of `speculative/bench`. The
drafter goes into `artifacts()/speculative/<key>`, a folder that `transformers` loads; `<key>` is the record's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlopt.experiments._artifacts import artifacts
from dlopt.experiments._present import partial_note
from dlopt.experiments._steps import at_least
from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.experiments.speculative._tools import SMOLLM2, TINY, target
from dlopt.lab.experiment import Earlier, Experiment, Run, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.lab.train import train
from dlopt.tasks import data
from dlopt.tasks.decoding import render
from dlopt.tasks.models import pretrained

CORPUS, HELD_OUT = "alpaca-en", 64  # the last rows are not trained on


@dataclass(frozen=True)
class Config:
    """model: the target, a name of the registry, or "tiny". layers, steps, batch, window, lr, seed: see
    `dlopt.speculative.distill.Recipe`."""

    model: str = SMOLLM2
    layers: int = 2
    steps: int = 400
    batch: int = 4
    window: int = 128
    lr: float = 5e-4
    seed: int = 0


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    from dlopt.speculative.distill import Recipe

    Recipe(**_recipe(cfg))
    at_least("seed", cfg.seed, 0)
    if cfg.model != TINY:
        pretrained.find(cfg.model)
        data.identity(CORPUS)


def _recipe(cfg: Config) -> dict[str, Any]:
    return {name: getattr(cfg, name) for name in ("layers", "steps", "batch", "window", "lr", "seed")}


def identity(cfg: Config) -> dict[str, str]:
    """sha256 of text and weights."""
    return {} if cfg.model == TINY else data.identity(CORPUS) | pretrained.identity(cfg.model)


def artifact(key: str) -> Path:
    """Where the run of that key puts the drafter."""
    return artifacts() / "speculative" / (key or "unnamed")


def place() -> Path:
    """Where the drafter of scale `cpu` is put."""
    return artifact(Run.of(experiment, Config(), "train", "cpu").key)


def digest(folder: Path) -> str:
    """sha256 of a drafter's weights, or "absent"."""
    weights = folder / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "absent"


class Endless:
    """What the training loop asks of data: `Distillation` draws its own windows, from the number of the step."""

    def __iter__(self) -> Iterator[None]:
        return repeat(None)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to remember."""


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Train, measure on rows that were not trained on, and write the folder."""
    from dlopt.speculative.distill import Distillation, Recipe

    model, tokenizer = target(cfg.model) if cfg.model != TINY else (llama(layers=3), ByteTokenizer())
    tokens, held_out = _texts(cfg, tokenizer)
    made = Distillation(model, tokens, Recipe(**_recipe(cfg)), identity(cfg))

    def step(batch: None) -> dict[str, Any]:
        return {"loss": made.step(), "forwards": 1, "tokens": cfg.batch * cfg.window}

    def evaluate() -> dict[str, float]:
        return {f"val_{name}": value for name, value in made.acceptance(held_out).items()}

    train(step, Endless(), {"distillation": made}, steps=cfg.steps, log=log, evaluate=evaluate,
          eval_every=max(1, cfg.steps // 8))  # fmt: skip
    folder = artifact(log.key)
    made.drafter.save_pretrained(folder, max_shard_size="100GB")
    if cfg.model != TINY:
        tokenizer.save_pretrained(folder)
    weights = {name: sum(p.numel() for p in net.parameters()) for name, net in (("drafter", made.drafter),
                                                                                ("target", model))}  # fmt: skip
    return {
        **evaluate(),
        "learned": sum(p.numel() for p in made.learned.values()),
        "drafter_parameters": weights["drafter"],
        "target_parameters": weights["target"],
        "text_tokens": len(tokens),
        "sha256": digest(folder),
    }


def _texts(cfg: Config, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids to train on, and others to measure on."""
    if cfg.model == TINY:
        ids = torch.tensor(list(b"a tiny text that says the same again and again. " * 40))
        return ids, ids[: 4 * cfg.window]
    rows = data.get(CORPUS)
    end = tokenizer.eos_token_id
    chats = []
    for row in rows:
        asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
        chats.append([*render(tokenizer, asked), *tokenizer(row.output, add_special_tokens=False)["input_ids"], end])
    parts = (chats[:-HELD_OUT], chats[-HELD_OUT:])
    train_ids, held = (torch.tensor([token for chat in part for token in chat], dtype=torch.long) for part in parts)
    return train_ids, held


def smoke(earlier: Earlier) -> Sequence[Config]:
    """A tiny model."""
    return [Config(model=TINY, layers=1, steps=4, batch=2, window=16)]


def cpu(earlier: Earlier) -> Sequence[Config]:
    """The drafter of `speculative/bench`."""
    return [Config()]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    return 0.05 if cfg.model == TINY else 1 + cfg.steps * cfg.batch * cfg.window * 0.0085 / 60


def present(results: Results) -> Presentation:
    """What the report says of the drafter; None without a record."""
    records = [r for r in results.stages.get("train", ()) if r.status == "done"]
    summary: Mapping[str, Any] = records[0].summary if records else {}
    config: Mapping[str, Any] = records[0].config if records else {}
    values = {name: summary.get(name) for name in ("val_agreement", "val_acceptance", "learned", "text_tokens")}
    values |= {name: config.get(name) for name in ("layers", "steps")}
    values["first_agreement"] = records[0].curve["val_agreement"][0] if records else None
    ratio = summary["drafter_parameters"] / summary["target_parameters"] if summary else None
    return Presentation(values=values | {"ratio": ratio}, notes=partial_note(results))


experiment = Experiment(
    name="speculative/distil",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (Stage("train", smoke, minutes, "a tiny model"),),
        "cpu": (Stage("train", cpu, minutes, "two layers, 400 steps on the target's laws"),),
    },
    identity=identity,
    check=check,
    present=present,
    primary="val_agreement",
)
