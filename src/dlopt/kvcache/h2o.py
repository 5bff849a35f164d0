"""H2O: heavy hitters, the tokens that all queries so far attended to most, and the newest (Zhang et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.scored import LOGITS, Scored, attention
from dlopt.kvcache.shape import Shape, whole
from dlopt.kvcache.watched import check_watched
from dlopt.memory import Bytes


def accumulated(store: Scored, rows: Rows) -> Tensor:
    """(B, H, length) attention that each column got, summed over the new queries and the query heads of a key head."""
    queries = store.queries
    size = max(1, LOGITS // (queries.shape[0] * queries.shape[1] * store.length))
    total = 0
    for first in range(0, queries.shape[2], size):
        total = total + attention(store, rows, first, first + size).sum((2, 3))
    return total


@method(
    "h2o",
    topic="kvcache",
    kind="cache",
    cite="zhang2023h2o",
    summary="the tokens with most attention so far, and the newest",
    needs=("transformers",),
)
def H2OCache(config: Any, budget: int = 256, recent: int = 128, attention_mask: Tensor | None = None) -> KVCache:
    r"""H2O (arXiv 2306.14048, algorithm 1): per layer and key-value head, `recent` newest tokens and budget - recent
    heavy ones.

    With p_ij the attention of query i to token j, summed over the query heads that share a key head::

        S_j = sum over the queries i so far of p_ij                          after each pass
        keep the `recent` newest, and of the others those with the largest S_j, until `budget` are left

    A prompt attends in full and is then cut to the budget; from there on every token evicts one. S_j of kept tokens
    goes on. The model keeps its sdpa or eager attention: p is recomputed from q . k (`dlopt.kvcache.watched` tells how
    the cache sees q), which costs one more product per pass.

    Args:
        config: a transformers model or its config.
        budget: tokens kept per head, at least recent + 1. The paper: 20% of the prompt, half of it recent; here one
            number for all rows of a batch.
        recent: newest tokens that are always kept, at least 1.
        attention_mask: (B, T) of the prompts, where rows are padded at the left. Pads neither score nor are scored.

    Tokens keep the positions that they had. A pass of several tokens evicts once, after all of them. A draft's queries
    count only if `crop` accepts them.

    Bytes: 2 layers heads size budget numbers, and 4 bytes of score per layer, head and token.

    Raises:
        ValueError: at construction, for a budget or a recent out of range and for flash attention. RuntimeError: if a
            pass showed no queries.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> H2OCache(config, budget=8, recent=4).params
        {'budget': 8, 'recent': 4}
    """
    recent = whole("recent", recent, 1)
    budget = whole("budget", budget, recent + 1)
    check_watched(config)
    return KVCache(
        "h2o",
        {"budget": budget, "recent": recent},
        config,
        lambda layer: Scored(accumulated, budget, recent, adds=True),
        attention_mask,
    )


def memory(
    shape: Shape,
    tokens: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    generated: int = 0,
    budget: int = 256,
    recent: int = 128,
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    kept = min(tokens, budget)
    score = torch.promote_types(dtype, torch.float32).itemsize
    return Bytes(
        residual=shape.numbers(kept, batch) * dtype.itemsize,
        scores=shape.layers * shape.heads * kept * batch * score,
    )
