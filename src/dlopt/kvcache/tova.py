"""TOVA: drop what the newest token attends to least (Oren et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.scored import Scored, attention
from dlopt.kvcache.shape import Shape, whole
from dlopt.kvcache.watched import check_watched
from dlopt.memory import Bytes


def last_query(store: Scored, rows: Rows) -> Tensor:
    """(B, 1, length) attention of the newest query, averaged over all query heads of the layer."""
    return attention(store, rows, store.queries.shape[2] - 1).mean((1, 2))


@method(
    "tova",
    topic="kvcache",
    kind="cache",
    cite="oren2024tova",
    summary="drops the token that the newest query attends to least",
    needs=("transformers",),
)
def TOVACache(config: Any, budget: int = 256, attention_mask: Tensor | None = None) -> KVCache:
    r"""TOVA (arXiv 2401.06104): token omission via attention.

    With p_hj the attention of the newest query of head h to token j, after each pass::

        s_j = mean over all query heads h of the layer of p_hj
        keep the newest token, and of the others the budget - 1 with the largest s_j, the same for all heads

    There is no window and no sum over time: a token stays as long as each new query finds it among the best. (The paper
    also lets the newest token go if its own query ignores it; here it stays, since the next token follows it.)
    p is recomputed from q . k, the model keeps its sdpa or eager attention. Tokens keep the positions that they had.

    Args:
        config: a transformers model or its config.
        budget: tokens kept, at least 2.
        attention_mask: (B, T) of the prompts, where rows are padded at the left. Pads are never scored.

    Bytes: 2 layers heads size budget numbers.

    Raises:
        ValueError: at construction, for a budget below 2 and for flash attention. RuntimeError: if a pass
            showed no queries.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> TOVACache(config, budget=8).params
        {'budget': 8}
    """
    budget = whole("budget", budget, 2)
    check_watched(config)
    return KVCache("tova", {"budget": budget}, config, lambda layer: Scored(last_query, budget, 1), attention_mask)


def memory(
    shape: Shape, tokens: int, dtype: torch.dtype, *, batch: int = 1, generated: int = 0, budget: int = 256
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    return Bytes(residual=shape.numbers(min(tokens, budget), batch) * dtype.itemsize)
