"""Reading a long prompt in pieces, so that an evicting cache never holds more than its budget and one piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from dlopt.kvcache.shape import whole


@torch.no_grad()
def prefill(
    model: Any,
    input_ids: Tensor,
    cache: Cache,
    chunk: int | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Feed (B, T) tokens to a cache, `chunk` at a time; return the model's output of the last piece.

    Each piece attends to what the cache still holds and to itself, then the cache evicts: the transient is bounded by
    budget + chunk tokens instead of T. A cache that loses nothing gives the result of one pass; from another, later
    pieces read what it has kept of the earlier ones, which is the price.

    Args:
        model: a causal language model. input_ids: (B, T), T at least 1. cache: as in `past_key_values`.
        chunk: tokens a piece, at least 1; None reads all at once.
        attention_mask: (B, seen + T) of 0 and 1 where rows are padded at the left; give it to the cache, too.
        kwargs: for the model. Logits are made for the last token alone unless `logits_to_keep` says otherwise.

    Raises:
        ValueError: for a mask of another shape, and for pieces of a prompt beyond the budget of a cache that cuts only
            what comes first (SnapKV and PyramidKV with evict="prompt").
    """
    size = input_ids.shape[1]
    whole("the number of tokens", size, 1)
    chunk = size if chunk is None else whole("chunk", chunk, 1)
    past = cache.get_seq_length()
    if chunk < size and getattr(cache, "params", {}).get("evict") == "prompt" and _least(cache) < past + size:
        raise ValueError(
            f"the cache {cache.method!r} cuts what comes first and keeps the rest whole, so pieces of {chunk} tokens "
            'would pile up; make it with evict="blocks", or read the prompt at once'
        )
    if attention_mask is not None and attention_mask.shape != (input_ids.shape[0], past + size):
        raise ValueError(
            f"attention_mask must cover the {past} tokens of the cache and the {size} new ones, shape "
            f"{(input_ids.shape[0], past + size)}, not {tuple(attention_mask.shape)}"
        )
    kwargs = {"logits_to_keep": 1, "use_cache": True, **kwargs}
    for start in range(0, size, chunk):
        end = min(size, start + chunk)
        if attention_mask is not None:
            mask = attention_mask[:, : past + end]
            positions = (mask.long().cumsum(1) - 1).clamp_min(0)[:, past + start :]
            kwargs.update(attention_mask=mask, position_ids=positions)
        output = model(input_ids[:, start:end], past_key_values=cache, **kwargs)
    return output


def _least(cache: Any) -> int:
    """The smallest budget of a layer."""
    return min(layer.store.budget for layer in cache.layers)
