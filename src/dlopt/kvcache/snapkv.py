"""SnapKV: what the end of the prompt attends to (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d, pad

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.scored import LOGITS, Scored, attention
from dlopt.kvcache.shape import Shape, whole
from dlopt.kvcache.watched import check_watched
from dlopt.memory import Bytes

POOLS = {"avg": avg_pool1d, "max": max_pool1d}
EVICTS = ("prompt", "blocks")


def window_score(window: int, kernel: int, pool: str) -> Callable[[Scored, Rows], Tensor]:
    """The scoring function of a window: mean attention of its queries to what is before it, pooled over neighbours."""

    def score(store: Scored, rows: Rows) -> Tensor:
        first, last = max(0, store.queries.shape[2] - window), store.queries.shape[2]
        size = max(1, LOGITS // (store.queries.shape[0] * store.queries.shape[1] * store.length))
        if size >= last - first:
            before = attention(store, rows, first).mean((2, 3))
        else:  # piece by piece, so that no temporary grows with the length
            pieces = (attention(store, rows, i, min(last, i + size)) for i in range(first, last, size))
            before = sum(piece.mean(2).sum(2) for piece in pieces) / (last - first)
        before = before[..., : store.length - window]
        # pads have attention 0, like what lies beyond the first token
        pooled = POOLS[pool](before, kernel, stride=1, padding=kernel // 2)
        return pad(pooled, (0, window))

    return score


def check_window(budget: Any, window: Any, kernel: Any, pool: Any, evict: Any) -> tuple[int, int, int]:
    """The three numbers of SnapKV and PyramidKV, checked."""
    window = whole("window", window, 1)
    budget, kernel = whole("budget", budget, window + 1), whole("kernel", kernel, 1)
    if kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, so that it has a middle, not {kernel}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
    if evict not in EVICTS:
        raise ValueError(f"evict must be one of {', '.join(EVICTS)}, not {evict!r}")
    return budget, window, kernel


@method(
    "snapkv",
    topic="kvcache",
    kind="cache",
    cite="li2024snapkv",
    summary="the prompt cut once, to what its last tokens attend to",
    needs=("transformers",),
)
def SnapKVCache(
    config: Any,
    budget: int = 320,
    window: int = 64,
    kernel: int = 5,
    pool: str = "avg",
    evict: str = "prompt",
    attention_mask: Tensor | None = None,
) -> KVCache:
    r"""SnapKV (arXiv 2404.14469): per layer and key-value head, of the prompt the last w tokens and those they look at.

    With p_ij the attention of query i to token j, averaged over the query heads that share a key head (softmax over all
    tokens up to i)::

        s_j = mean over the last w = `window` queries of p_ij        for tokens j before the window
        s   = pooled over `kernel` neighbours (stride 1), so that a kept token keeps its surroundings
        keep the window, and of the tokens before it the budget - w with the largest s_j

    once, after the first pass; what comes later is kept whole: generated tokens, but also later pieces of a prompt and
    later turns of a chat, for which there is `evict="blocks"`. Tokens keep the positions that they had.

    Args:
        config: a transformers model or its config.
        budget: tokens of the prompt kept per head, at least window + 1. The official default: 256 + 64.
        window: w, at least 1 (64; LongBench runs: 32).
        kernel: odd (5; LongBench runs: 7). pool: "avg", or "max" as in the LongBench runs.
        evict: "prompt" as above. "blocks": after every pass of two tokens or more, for a prompt that is read in pieces
            (`dlopt.kvcache.prefill(chunk=)`), each of which then chooses with its own last w tokens.
        attention_mask: (B, T) of the prompts, where rows are padded at the left. Pads neither score nor are scored.

    Bytes: 2 layers heads size (min(prompt, budget) + generated) numbers.

    Raises:
        ValueError: at construction, for values outside their range and for flash attention. RuntimeError: if a pass
            showed no queries.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> SnapKVCache(config).params["budget"]
        320
    """
    budget, window, kernel = check_window(budget, window, kernel, pool, evict)
    check_watched(config)
    score = window_score(window, kernel, pool)
    return KVCache(
        "snapkv",
        {"budget": budget, "window": window, "kernel": kernel, "pool": pool, "evict": evict},
        config,
        lambda layer: Scored(score, budget, window, when=evict),
        attention_mask,
    )


def memory(
    shape: Shape,
    tokens: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    generated: int = 0,
    budget: int = 320,
    window: int = 64,
    kernel: int = 5,
    pool: str = "avg",
    evict: str = "prompt",
) -> Bytes:
    """Bytes kept after `tokens` columns, the prompt of which came in one pass."""
    kept = min(tokens - generated, budget) + generated
    return Bytes(residual=shape.numbers(kept, batch) * dtype.itemsize)
