"""Knorm: keys of small norm are the ones attended to (Devoto et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.scored import Scored
from dlopt.kvcache.shape import Shape, whole
from dlopt.memory import Bytes


def small_norm(store: Scored, rows: Rows) -> Tensor:
    """(B, H, length) minus the Euclidean norm of each key."""
    wide = torch.promote_types(store.keys.dtype, torch.float32)
    return -store.keys.to(wide).norm(dim=-1)


@method(
    "knorm",
    topic="kvcache",
    kind="cache",
    cite="devoto2024knorm",
    summary="keeps the keys with the smallest norms",
    needs=("transformers",),
)
def KnormCache(config: Any, budget: int = 256, recent: int = 1, attention_mask: Tensor | None = None) -> KVCache:
    r"""Knorm (arXiv 2406.11430): per layer and key-value head, the tokens whose keys have the smallest norm |k_j|.

    After each pass the `recent` newest stay, and of the others those with the smallest norms, until `budget` are left.
    No query is needed, so every attention (sdpa, eager, flash) serves. Rotary positions do not change a norm. The paper
    keeps no recent tokens and spares the first two layers of some models; `recent` is the one difference here.

    Args:
        config: a transformers model or its config.
        budget: tokens kept per head, at least recent + 1.
        recent: newest tokens that are always kept, at least 1.
        attention_mask: (B, T) of the prompts, where rows are padded at the left. Pads are never scored.

    Bytes: 2 layers heads size budget numbers.

    Raises:
        ValueError: at construction, for values outside their range.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> KnormCache(config, budget=8).params
        {'budget': 8, 'recent': 1}
    """
    recent = whole("recent", recent, 1)
    budget = whole("budget", budget, recent + 1)
    return KVCache(
        "knorm",
        {"budget": budget, "recent": recent},
        config,
        lambda layer: Scored(small_norm, budget, recent, queries=False),
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
    recent: int = 1,
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    return Bytes(residual=shape.numbers(min(tokens, budget), batch) * dtype.itemsize)
