"""Time and saved bytes of attention patterns: one attention, and one training step of a small model of bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt.experiments._steps import make_optimizer
from dlopt.lab.log import Log
from dlopt.lab.meter import saved_for_backward
from dlopt.transformer.attention import plain_attention
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder
from dlopt.transformer.scope import Scope
from dlopt.transformer.sparse import patterns

PATTERNS = ("full", "local", "strided", "fixed")
STRIDE, SUMMARY = 64, 8  # a local window is stride + 1
HEADS, HEAD_WIDTH, LAYERS = 4, 32, 2
PLAIN_UP_TO = 4096  # positions: attention written out keeps several matrices of all pairs


def sparse(pattern: str, stride: int, summary: int) -> dict[str, Any]:
    """The fields of a pattern."""
    own: dict[str, dict[str, Any]] = {
        "full": {},
        "local": {"window": stride + 1},
        "strided": {"stride": stride},
        "fixed": {"stride": stride, "summary": summary},
    }
    return {"attention": pattern, **own[pattern]}


def timed(t: int, rounds: int, seed: int, log: Log) -> dict[str, Any]:
    """CPU seconds of every pattern in turn (what other processes do then counts little), and bytes saved."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, t, HEAD_WIDTH, generator=generator, requires_grad=True) for _ in range(3))
    direction = torch.randn(1, HEADS, t, HEAD_WIDTH, generator=generator)
    forwards: dict[str, Callable[[], Tensor]] = {
        "full": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    }
    for name in PATTERNS[1:]:
        forwards[name] = _blocked(name, t, q, k, v)
    masked = _mask("strided", t)
    forwards["masked"] = lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=masked)
    gap = float((forwards["strided"]() - forwards["masked"]()).detach().abs().max())

    def both(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            q.grad = k.grad = v.grad = None
            forward().backward(direction)

        return work

    works = {name: both(forward) for name, forward in forwards.items()}
    found: dict[str, Any] = {"gap": gap}
    found |= {f"seconds.{n}": s for n, s in _turns(works, rounds, log).items()}
    for name, forward in forwards.items():
        found[f"saved.{name}"] = saved_for_backward(forward, weights=[q, k, v])
    if t <= PLAIN_UP_TO:
        found["saved.plain"] = saved_for_backward(lambda: plain_attention(q, k, v)[0], weights=[q, k, v])
    steps = {name: _step(name, t, generator) for name in PATTERNS}
    found |= {f"step_seconds.{n}": s for n, s in _turns(steps, max(1, rounds // 2), log).items()}
    return found


def _blocked(pattern: str, t: int, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    parts = patterns(_config(pattern, t), 0)
    share = HEADS // len(parts)

    def work() -> Tensor:
        pieces = zip(parts, q.split(share, 1), k.split(share, 1), v.split(share, 1))
        return torch.cat([part.blocked(a, b, c) for part, a, b, c in pieces], dim=1)

    return work


def _config(pattern: str, t: int) -> TransformerConfig:
    shape = {"width": HEADS * HEAD_WIDTH, "layers": LAYERS, "heads": HEADS, "positions": "rope", "max_length": t}
    return TransformerConfig(256, **shape, **sparse(pattern, STRIDE, SUMMARY))  # type: ignore[arg-type]


def _mask(pattern: str, t: int) -> Tensor | None:
    at = torch.arange(t)
    return Scope(at, at).mask(patterns(_config(pattern, t), 0), HEADS, torch.float32)


def _step(pattern: str, t: int, generator: torch.Generator) -> Callable[[], None]:
    """Forward, backward and AdamW of a small model of bytes."""
    model = Decoder(_config(pattern, t))
    optimizer = make_optimizer("adamw", {"lr": 1e-4}, model)
    tokens = torch.randint(256, (1, t + 1), generator=generator)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return work


def _turns(works: Mapping[str, Callable[[], Any]], rounds: int, log: Log) -> dict[str, float]:
    """Median CPU seconds; all in turn, the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if i:
                times[name].append(time.process_time() - start)
        log.progress(i, rounds + 1)
    return {name: statistics.median(values) for name, values in times.items()}
