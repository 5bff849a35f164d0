"""Which caches can verify a draft exactly, and how wide a block and how far back each of its tokens may look.

Exact means: a pass over several tokens, of which some are taken back, leaves what passes of one token each would have
left, and gave the same logits on the way. The full cache can do it for trees and batches. Windows can for a chain, with
a mask that hides from every token what would have left before it. KIVI can up to the place where the next block is
coded. A cache that ranks tokens by attention, or turns its sinks with every token, cannot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dlopt.kvcache.frame import KVCache


def dense(cache: Cache) -> bool:
    """Whether all keys and values are plain tensors, so that columns can be gathered."""
    replicated = cache.layer_class_to_replicate
    return replicated in (None, DynamicLayer) and all(type(layer) is DynamicLayer for layer in cache.layers)


def full(model: Any) -> bool:
    """Whether every layer of the model looks at all tokens; the cache does not tell, a `DynamicCache()` holds any."""
    return dense(DynamicCache(config=model.config))


def refusal(cache: Cache) -> str:
    """'' if a chain of one row can be verified with this cache, else a sentence that says why not."""
    if dense(cache):
        return ""
    advice = "use drafter=None or another cache"
    if isinstance(cache, KVCache):
        if cache.method == "sinks" and cache.params["positions"] != "original":
            return (
                "the sinks of this cache move with every token, so a block of draft tokens is not verified exactly; "
                'make it with positions="original"'
            )
        if cache.method in ("full", "window", "sinks", "kivi"):
            return ""
        return f"the cache {cache.method!r} keeps other tokens after a block than after single ones; {advice}"
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"{type(layer).__name__} cannot take back the tokens of a draft exactly; {advice}"
    return ""


def room(cache: Cache) -> int | None:
    """The most tokens of a pass that equals passes of one token each; None is any number."""
    if isinstance(cache, KVCache) and cache.method == "kivi" and cache.params["bits"] != 16:
        from dlopt.kvcache.kivi import steps_until_flush

        return steps_until_flush(cache)
    return None


def windowed(cache: Cache, width: int) -> Tensor | None:
    """Who sees whom in a chain of `width` tokens, (1, width, columns), where tokens would leave meanwhile; else None.

    A cache that keeps S sinks and W others holds n columns. Token d of the block would find min(n + d, S + W) of the
    columns before it: the oldest ones behind the sinks are gone.
    """
    if not isinstance(cache, KVCache) or cache.method not in ("window", "sinks"):
        return None
    sinks, keep = cache.params.get("sinks", 0), cache.params.get("sinks", 0) + cache.params["window"]
    held = cache.get_mask_sizes(width, 0)[0] - width
    if held + width - 1 <= keep:
        return None
    column, before = torch.arange(held + width), held + torch.arange(width)[:, None]
    gone = (column >= sinks) & (column < sinks + before - keep)
    return ((column <= before) & ~gone)[None]
