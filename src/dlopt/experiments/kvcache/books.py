"""Books, token after token: perplexity by position where the text is far longer than the cache.

The stream is read `chunk` tokens a pass, as a long prompt is; a pass attends to what the cache holds and to itself, and
then the cache evicts. Every pass predicts each of its tokens' successors. `positions` of the sinks are ablated.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt.experiments.kvcache import _models
from dlopt.experiments.kvcache._common import check_cache, keeping, make, settings
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log, Paused
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import data
from dlopt.tasks.data.files import locate
from dlopt.tasks.passages import passage

BUDGET, LENGTH, SHORTER = 256, 20_000, 8_192  # the second is what SmolLM2 was trained for
BANDS = (512, 2_048, 8_192, 20_000)  # perplexity between them
ROWS = 128  # of a curve
STREAMED = ("window", "sinks", "sinks:original", "h2o", "tova", "knorm")
SINKS, WINDOWS = (1, 2, 8), (124, 508, 1020)


@dataclass(frozen=True)
class Config:
    """method, params: the cache. tokens: of the stream. chunk: a pass. passage: number of the passage of `text`'s test
    part. model: as in `kvcache/openbookqa`."""

    method: str = "full"
    params: dict[str, Any] = field(default_factory=dict)
    tokens: int = LENGTH
    chunk: int = 64
    passage: int = 0
    text: str = "gutenberg-books"
    model: str = _models.SMOLLM


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    check_cache(cfg.method, cfg.params, cfg.model)
    if cfg.chunk < 1 or cfg.tokens < 2 * cfg.chunk or cfg.passage < 0:
        raise ValueError(f"chunk must be at least 1, tokens at least two chunks and passage at least 0, got "
                         f"{cfg.chunk}, {cfg.tokens} and {cfg.passage}")  # fmt: skip
    if cfg.method in ("snapkv", "pyramid") and cfg.params.get("evict") != "blocks":
        raise ValueError(f"{cfg.method} cuts its first pass alone; for a stream it needs params.evict=blocks")
    found = data.find(cfg.text)
    locate(found.name, found.files, found.help)


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Read the stream; perplexity between the bands and at the end, bytes and CPU seconds along the way."""
    network, tokenizer = _models.load(cfg.model, log.device)
    stream = passage(cfg.text, cfg.passage, cfg.tokens + 1, tokenizer)
    cache = make(cfg.method, cfg.params, network)
    nll = _read(cfg, log, network, cache, stream)
    log.bytes = cache.nbytes()
    found: dict[str, Any] = {"perplexity": math.exp(min(700.0, float(nll.mean()))), "nll": float(nll.mean())}
    start = 0
    for end in (*(b for b in BANDS if b < cfg.tokens), cfg.tokens):
        found[f"nll_to_{end}"] = float(nll[start:end].mean())
        start = end
    last = nll[-max(1, cfg.tokens // 5) :]
    return found | {
        "tail_nll": float(last.mean()),
        "tail_perplexity": math.exp(min(700.0, float(last.mean()))),
        "stored_bytes": cache.nbytes().total,
    }


@torch.no_grad()
def _read(cfg: Config, log: Log, network: Any, cache: Any, stream: Tensor) -> Tensor:
    """(tokens,) negative log-likelihood of each token's successor, in nats."""
    device = next(network.parameters()).device
    nll = torch.zeros(cfg.tokens, dtype=torch.float64)
    begin = _resume(log, cache, nll)
    every = max(cfg.chunk, -(-cfg.tokens // ROWS // cfg.chunk) * cfg.chunk)
    spent, since = 0.0, begin - begin % every
    for start in range(begin, cfg.tokens, cfg.chunk):
        if log.deadline is not None and time.time() >= log.deadline:
            _pause(log, cache, nll, start)
        end = min(cfg.tokens, start + cfg.chunk)
        clock = time.process_time()
        logits = network(input_ids=stream[None, start:end].to(device), past_key_values=cache).logits[0].float()
        nll[start:end] = F.cross_entropy(logits, stream[start + 1 : end + 1].to(device), reduction="none").cpu()
        spent += time.process_time() - clock
        if end % every == 0 or end == cfg.tokens:
            log.row(
                end,
                tokens=end,
                nll=float(nll[since:end].mean()),
                stored_bytes=cache.nbytes().total,
                cpu_seconds=round(spent, 3),
            )
            spent, since = 0.0, end
        log.progress(end, cfg.tokens)
    return nll


def _pause(log: Log, cache: Any, nll: Tensor, done: int) -> None:
    """Keep the cache as it is: its saved state goes on to the bit."""
    if log.work is not None:
        state = {"log": log.state_dict() | {"bytes": {}}, "cache": cache.state_dict(), "nll": nll, "done": done}
        temporary = log.work / "stream.tmp"
        torch.save(state, temporary)
        os.replace(temporary, log.work / "stream.pt")
    raise Paused(f"after {done} tokens")


def _resume(log: Log, cache: Any, nll: Tensor) -> int:
    """The token to go on from."""
    path = None if log.work is None else log.work / "stream.pt"
    if path is None or not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    log.load_state_dict(state["log"])
    cache.load_state_dict(state["cache"])
    nll.copy_(state["nll"])
    return int(state["done"])


def streams(passages: Sequence[int], tokens: int = LENGTH, budget: int = BUDGET, **more: Any) -> Any:
    """Caches of constant size on the whole stream, and the full one in longer passes, which change nothing."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        evicting = [settings(s, budget) for s in STREAMED]
        window = min(32, budget // 2)
        evicting.append({"method": "snapkv", "params": {"budget": budget, "window": window, "evict": "blocks"}})
        found = []
        for number in passages:
            found += [Config(**c, tokens=tokens, passage=number, **more) for c in evicting]
            found.append(Config(tokens=tokens, passage=number, **{"chunk": 256, **more}))
        return found

    return configs


def quantized(earlier: Earlier) -> Sequence[Config]:
    """Caches that keep everything, up to the length that the model was trained for."""
    return [Config(**keeping(s), tokens=SHORTER, chunk=128) for s in ("kivi-2", "kivi-4", "int8")]


def ablation(earlier: Earlier) -> Sequence[Config]:
    """The number of sinks in the same total, windows of other sizes, and a pass of fewer tokens."""
    sinks = [{"method": "sinks", "params": {"sinks": s, "window": BUDGET - s}} for s in SINKS]
    windows = [{"method": "sinks", "params": {"sinks": 4, "window": w}} for w in WINDOWS]
    found = [Config(**c, tokens=SHORTER) for c in (*sinks, *windows)]
    return [*found, Config(**settings("sinks", BUDGET), tokens=SHORTER, chunk=16)]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.model == _models.TINY:
        return 0.02
    per_token = 0.0045 + 0.03 / cfg.chunk
    if cfg.method in ("full", "kivi", "quant"):
        growing = 7e-7 if cfg.method == "full" else 9e-7
        return 0.1 + (cfg.tokens * per_token + growing * cfg.tokens**2 * (1 + 64 / cfg.chunk)) / 60
    return 0.1 + cfg.tokens * per_token * (1.3 if cfg.method in ("h2o", "tova", "snapkv") else 1.1) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.kvcache._report_books import present as made

    return made(results)


experiment = Experiment(
    name="kvcache/books",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage(
                "stream",
                streams((0,), 256, 32, text="stdlib-text", model=_models.TINY, chunk=16),
                minutes,
                "256 bytes, a random model",
            ),
        ),
        "cpu": (
            Stage("stream", streams((0,)), minutes, f"{LENGTH} tokens of a novel, {BUDGET} kept"),
            Stage("quantized", quantized, minutes, f"everything kept, {SHORTER} tokens"),
            Stage("ablation", ablation, minutes, f"sinks, windows and passes of other sizes, {SHORTER} tokens"),
            Stage("again", streams((1,)), minutes, f"{LENGTH} tokens of another novel"),
        ),
        "gpu": (
            Stage("stream", streams((0, 1), 100_000), minutes, f"100,000 tokens of two novels, {BUDGET} kept"),
            Stage("quantized", quantized, minutes, f"everything kept, {SHORTER} tokens"),
            Stage("ablation", ablation, minutes, f"sinks, windows and passes of other sizes, {SHORTER} tokens"),
        ),
    },
    identity=lambda cfg: data.identity(cfg.text) | _models.identity(cfg.model),
    check=check,
    present=present,
    primary="tail_perplexity",
)
