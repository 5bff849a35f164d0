"""Passkeys generated at 512 to 4,096 tokens by depth: what a forgotten token costs.

asked="after": the text is read and compressed, then the question comes, as to a cache that serves many questions.
asked="in": the question is the end of the prompt, so that methods that look at the last queries know what is asked.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dlopt.experiments.kvcache import _models
from dlopt.experiments.kvcache._common import EVICTING, KEEPING, check_cache, continued, fill, make, settings
from dlopt.experiments.kvcache._pieces import each
from dlopt.lab.experiment import Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks.passkey import found, passkey

BUDGET = 128
LENGTHS, DEPTHS, KEYS = (512, 1024, 2048), (0.0, 0.25, 0.5, 0.75, 1.0), 2
ASKED = ("after", "in")
GENERATED = 8


@dataclass(frozen=True)
class Config:
    """method, params: the cache. length: tokens of the prompt. asked: "after" or "in". keys: drawn for each depth.
    seed: of the keys. model: as in `kvcache/openbookqa`."""

    method: str = "full"
    params: dict[str, Any] = field(default_factory=dict)
    length: int = 1024
    asked: str = "after"
    keys: int = KEYS
    seed: int = 0
    model: str = _models.SMOLLM


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    check_cache(cfg.method, cfg.params, cfg.model)
    if cfg.asked not in ASKED:
        raise ValueError(f"asked takes {' or '.join(ASKED)}, not {cfg.asked!r}")
    if cfg.keys < 1:
        raise ValueError(f"keys must be at least 1, got {cfg.keys}")
    if cfg.model == _models.TINY:
        passkey(_models.load(cfg.model)[1], cfg.length, 0.0, cfg.seed)
    elif cfg.length < 256:
        raise ValueError(f"length must be at least 256, got {cfg.length}")


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Generate behind each text; shares of right keys and digits, and the key's negative log-likelihood."""
    network, tokenizer = _models.load(cfg.model, log.device)
    cells = [(depth, key) for depth in DEPTHS for key in range(cfg.keys)]

    def work(cell: tuple[float, int]) -> dict[str, Any]:
        depth, number = cell
        text = passkey(tokenizer, cfg.length, depth, 1000 * cfg.seed + number)
        cache = make(cfg.method, cfg.params, network)
        if cfg.asked == "after":
            fill(network, cache, text.body)
            stored = cache.nbytes().total
            logits = fill(network, cache, text.question)
        else:
            logits = fill(network, cache, text.body + text.question)
            stored = cache.nbytes().total
        nll = likelihood(network, cache, logits, text.answer)
        said = tokenizer.decode(continued(network, cache, logits, GENERATED, tokenizer.eos_token_id))
        right, digits = found(said, text.key)
        return {"right": right, "digits": digits, "nll": nll, "stored": stored, "tokens": len(text.body)}

    rows = each(log, cells, work)
    summary: dict[str, Any] = {
        "retrieved_share": statistics.fmean(row["right"] for row in rows),
        "digits_share": statistics.fmean(row["digits"] for row in rows),
        "key_nll": statistics.fmean(row["nll"] for row in rows),
        "prompt_tokens": rows[0]["tokens"],
        "stored_bytes": rows[0]["stored"],
    }
    for name, figure in (("retrieved", "right"), ("digits", "digits"), ("nll", "nll")):
        summary[f"{name}_by_depth"] = [
            statistics.fmean(row[figure] for (at, _), row in zip(cells, rows) if at == depth) for depth in DEPTHS
        ]
    return summary


@torch.no_grad()
def likelihood(network: Any, cache: Any, logits: Any, answer: Sequence[int]) -> float:
    """Nats that the right digits cost, read in one pass that is taken back; the cache is as before afterwards."""
    device = next(network.parameters()).device
    cache.activate_past_recording()
    rest = network(input_ids=torch.tensor([answer[:-1]], device=device), past_key_values=cache).logits[0]
    cache.crop(1 - len(answer))
    for layer in cache.layers:
        layer.record_past = False
    logs = torch.cat([logits[None], rest]).log_softmax(-1)
    return -float(logs.gather(1, torch.tensor(answer, device=device)[:, None]).sum())


def grid(lengths: Sequence[int], asked: str = "after", budget: int = BUDGET, **more: Any) -> Any:
    """Every method at every length."""
    return lambda earlier: [
        Config(**settings(s, budget), length=length, asked=asked, **more)
        for length in lengths
        for s in (*KEEPING, *EVICTING)
    ]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.model == _models.TINY:
        return 0.02
    prompt = cfg.length * 0.0035 + 7e-7 * cfg.length**2
    step = 0.07 + (8e-5 * cfg.length if cfg.method in ("kivi", "quant") else 1e-5 * cfg.length)
    return 0.1 + len(DEPTHS) * cfg.keys * (prompt + (GENERATED + 2) * step) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.kvcache._report_passkey import present as made

    return made(results)


def _kept(configs: Any, series: Sequence[str]) -> Any:
    from dlopt.experiments.kvcache._common import series_of

    return lambda earlier: [c for c in configs(earlier) if series_of(vars(c)) in series]


SMOKED = ("full", "kivi-2", "sinks", "snapkv")
FEW: tuple[str, ...] = ("full", "kivi-2", "sinks", "h2o", "snapkv", "tova")

experiment = Experiment(
    name="kvcache/passkey",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("after", _kept(grid((512,), budget=32, keys=1, model=_models.TINY), SMOKED),
                  minutes, "one key a depth, a random model"),
        ),
        "cpu": (
            Stage("after", grid(LENGTHS), minutes, f"{KEYS} keys a depth, {BUDGET} tokens kept, asked afterwards"),
            Stage("in", grid((1024,), "in"), minutes, "the question in the prompt"),
            Stage("long", _kept(grid((4096,), keys=1), FEW), minutes, "4,096 tokens, one key a depth, six methods"),
        ),
        "gpu": (
            Stage("after", grid((*LENGTHS, 4096, 8000), keys=10), minutes, "10 keys a depth, up to 8,000 tokens"),
            Stage("in", grid((*LENGTHS, 4096, 8000), "in", keys=10), minutes, "the question in the prompt"),
        ),
    },
    identity=lambda cfg: _models.identity(cfg.model),
    check=check,
    present=present,
    primary="retrieved_share",
)  # fmt: skip
