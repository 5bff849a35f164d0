"""PyramidKV: SnapKV with more tokens for the first layers and fewer for the last (Cai et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.scored import Scored
from dlopt.kvcache.shape import Shape, shape_of, whole
from dlopt.kvcache.snapkv import check_window, window_score
from dlopt.kvcache.watched import check_watched
from dlopt.memory import Bytes


def budgets(layers: int, budget: int, window: int, beta: int) -> list[int]:
    """Tokens kept in each layer: a falling line whose mean is exactly `budget`."""
    mean = budget - window
    low = mean // beta
    fall = 2 * (mean - low)  # from the first layer to the last
    first = [2 * mean - low - fall * i // max(1, layers - 1) for i in range(layers // 2)]
    middle = [mean] * (layers % 2)
    return [window + kept for kept in [*first, *middle, *(2 * mean - kept for kept in reversed(first))]]


@method(
    "pyramid",
    topic="kvcache",
    kind="cache",
    cite="cai2024pyramidkv",
    summary="SnapKV with budgets that fall from layer to layer",
    needs=("transformers",),
)
def PyramidKVCache(
    config: Any,
    budget: int = 320,
    window: int = 64,
    kernel: int = 5,
    pool: str = "avg",
    beta: int = 20,
    evict: str = "prompt",
    attention_mask: Tensor | None = None,
) -> KVCache:
    r"""PyramidKV (arXiv 2406.02069): `SnapKVCache`, with a budget of its own for each layer l of L.

    With c = budget - window, the mean number of tokens beside the window::

        c_(L-1) = c / beta (rounded down),   c_0 = 2 c - c_(L-1),   linear between;   layer l keeps window + c_l

    The budgets add up to L budget exactly. (The official code also gives what short prompts leave unused in the first
    layers to the others. That depends on the prompt, and rows of a batch would no longer be independent, so it is left
    out: a prompt shorter than window + c_0 uses less than its budget here.)

    Args:
        config: a transformers model or its config.
        budget: mean number of tokens of the prompt kept per head, at least window + 1.
        beta: at least 1, which is SnapKV; the larger, the steeper. The paper: 20.
        window, kernel, pool, evict, attention_mask: as in `SnapKVCache`.

    All layers get one mask from the model, made for the longest layer; shorter ones read its right end
    (`dlopt.kvcache.watched`), so the attention must be sdpa or eager.

    Raises:
        ValueError: at construction, for values outside their range and for flash attention. RuntimeError: if a pass
            showed no queries.

    Example:
        >>> budgets(layers=4, budget=20, window=4, beta=4)
        [32, 24, 16, 8]
    """
    budget, window, kernel = check_window(budget, window, kernel, pool, evict)
    beta = whole("beta", beta, 1)
    check_watched(config)
    score, kept = window_score(window, kernel, pool), budgets(shape_of(config).layers, budget, window, beta)
    return KVCache(
        "pyramid",
        {"budget": budget, "window": window, "kernel": kernel, "pool": pool, "beta": beta, "evict": evict},
        config,
        lambda layer: Scored(score, kept[layer], window, when=evict),
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
    beta: int = 20,
    evict: str = "prompt",
) -> Bytes:
    """Bytes kept after `tokens` columns, the prompt of which came in one pass."""
    kept = sum(min(tokens - generated, most) + generated for most in budgets(shape.layers, budget, window, beta))
    return Bytes(residual=shape.numbers(kept, batch) // shape.layers * dtype.itemsize)
