"""Attention over the packed codes of a `KIVICache`, in blocks: no float copy of the cache is ever made.

With s, z the scale and zero of a group and c its codes, keys are k_jd = z_Gd + s_Gd c_jd for the tokens j of group G,
and values v_jd = z_jG + s_jG c_jd for the channels d of group G, so::

    q . k_j                = (q * s_G) . c_j + q . z_G           once per group of tokens: q * s_G and q . z_G
    sum_j p_j v_jd         = sum_j (p_j s_jG) c_jd + sum_j p_j z_jG      once per group of channels

and only codes meet the large matrix products. A byte holds 4 codes of 2 bits that are far apart, so each of its bit
fields, taken over a block of tokens, is a matrix of neighbouring channels ("plane"): byte & mask, a code times a power
of two that is taken back in the small factor, needs no shift. A lookup table of 256 entries of 4 floats gives the same
numbers; per layer of 3 heads, 8,192 tokens, size 64 on one core it took 1.3 ms against 0.25 ms for masks and
conversion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dlopt.kvcache.coded import Coded
from dlopt.kvcache.packing import planes
from dlopt.kvcache.sealed import PACKED, Sealed

BLOCK = 1 << 19  # numbers unpacked at a time: 2 MiB of float32, about a core's own cache
LOGITS = 1 << 24  # logits at a time; a longer run of queries is cut


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Run a transformers model with packed attention inside, and with its own attention again after.

    A `KIVICache` made from this model (or its config) is then read from its codes; other caches are read as with sdpa.

        with packed(model):
            model.generate(**inputs, past_key_values=KIVICache(model.config))

    `model.set_attn_implementation("dlopt_packed")` does the same for good. One cache may live inside and outside.
    """
    before = {}
    for module in [model, *model.modules()]:
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            before[id(config)] = (config, config._attn_implementation)
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        for config, name in before.values():
            config._attn_implementation = name


def packed_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: (B, Hq, q, D) queries to a (B, q, Hq, D) result.

    Raises:
        ValueError: for dropout, a position bias or a soft cap over coded tokens.
    """
    if not isinstance(key, Sealed):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    layer = key.layer
    store, rows = layer.store, layer.rows
    if store.keys.codes is None and store.values.codes is None:
        dense = store.dense(rows, query.dtype)
        found, _ = sdpa_attention_forward(
            module, query, *dense, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    else:
        asked = [name for name in ("position_bias", "softcap") if kwargs.get(name) is not None]
        if dropout or asked:
            raise ValueError(f"the attention {PACKED!r} has no {' or '.join(asked) or 'dropout'}; use sdpa or eager")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        step = max(1, LOGITS // (query.shape[0] * query.shape[1] * rows.seen))
        parts = []
        for start in range(0, query.shape[2], step):
            mask = None if attention_mask is None else attention_mask[:, :, start : start + step]
            parts.append(attend(store, rows, query[:, :, start : start + step], mask, scaling))
        found = torch.cat(parts, dim=2).to(query.dtype).transpose(1, 2).contiguous()
        layer.transient = max(layer.transient, _scratch(store, query, min(step, query.shape[2]), rows.seen))
    layer.observe()
    return found, None


AttentionInterface.register(PACKED, packed_attention_forward)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def attend(store: Any, rows: Any, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """(B, Hq, q, D) queries over all columns of a `Kivi` store. mask: bool (True attends) or added to the logits."""
    keys, values, committed, seen = store.keys, store.values, store.committed, rows.seen
    wide = torch.promote_types(query.dtype, torch.float32)
    heads = (keys.rest if keys.codes is None else keys.codes).shape[1]
    grouped = (query.to(wide) * scaling).reshape(query.shape[0], heads, -1, query.shape[3])  # (B, H, group q, D)

    logits = [] if keys.codes is None else _key_products(keys, grouped)
    if keys.rest is not None:
        logits = [*logits, grouped @ keys.rest.to(wide).transpose(2, 3)]
    scores = torch.cat(logits, dim=-1)
    if rows.pads is not None:
        places = keys.places(rows, committed, scores.device)[:, None, None]
        scores = scores.gather(3, places.expand(*scores.shape[:3], -1))
    scores = scores.view(*query.shape[:3], seen)
    if mask is not None and mask.dtype == torch.bool:
        # a query that may attend to nothing (a pad) gets 0, as from sdpa
        share = scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0)
    else:
        share = (scores if mask is None else scores + mask).softmax(-1)
    share = share.view(*grouped.shape[:3], seen)

    coded = 0 if values.codes is None else values.codes.shape[2]
    whole = 0 if values.rest is None else values.rest.shape[2]
    old, new = share[..., :coded], share[..., seen - whole :]
    if rows.pads is not None:
        pads = torch.tensor(rows.pads, device=share.device)[:, None]
        counts = torch.tensor(values.counts(rows, committed), device=share.device)[:, None]
        token = torch.arange(coded, device=share.device)
        at = (token + pads).clamp_max(seen - 1)[:, None, None].expand(*share.shape[:3], -1)
        old = share.gather(3, at) * (token < counts)[:, None, None]
        column = torch.arange(seen - whole, seen, device=share.device)
        new = new * (column - pads >= counts)[:, None, None]
    parts = [_value_sums(values, old)] if coded else []
    parts += [new @ values.rest.to(wide)] if whole else []
    return sum(parts).view(query.shape)


def _key_products(side: Coded, query: Tensor) -> list[Tensor]:
    """[(B, H, M, n)] q . k of the coded keys, block by block."""
    batch, heads, count, dim = query.shape
    group, bits = side.group, side.bits
    factor = query.new_tensor([2.0**-shift for _, shift in planes(bits)]).repeat_interleave(dim * bits // 8)
    step = max(1, BLOCK // (batch * heads * dim * group))  # groups
    found = []
    for start in range(0, side.scales.shape[2], step):
        codes = side.codes[:, :, start * group : (start + step) * group].unflatten(2, (-1, group))
        scale = side.scales[:, :, start : start + step].to(query.dtype) * factor
        zero = side.zeros[:, :, start : start + step].to(query.dtype)
        plain = torch.cat([codes & mask for mask, _ in planes(bits)], dim=-1).to(query.dtype)  # (B, H, G, g, D)
        if count <= group:  # a few queries: scale them, once per group
            products = (query[:, :, None] * scale[:, :, :, None]) @ plain.transpose(3, 4)
            products = products.transpose(2, 3)
        else:
            products = query @ (plain * scale[:, :, :, None]).flatten(2, 3).transpose(2, 3)
            products = products.unflatten(3, (-1, group))
        found.append((products + (query @ zero.transpose(2, 3))[..., None]).flatten(3))
    return found


def _value_sums(side: Coded, share: Tensor) -> Tensor:
    """(B, H, M, D) sum_j p_j v_j of the coded values."""
    batch, heads, count, coded = share.shape
    group, bits = side.group, side.bits
    width = side.codes.shape[3]  # channels of a plane
    dim, part = width * 8 // bits, math.gcd(group, width)  # part: channels of a plane that share their scales
    fields = planes(bits)
    factor = share.new_tensor([2.0**-shift for _, shift in fields]).repeat_interleave(width)
    step = max(1, BLOCK // (batch * heads * width))
    found: Tensor | float = 0.0
    for start in range(0, coded, step):
        codes, here = side.codes[:, :, start : start + step], share[..., start : start + step]
        scale = side.scales[:, :, start : start + step].to(share.dtype).transpose(2, 3)  # (B, H, D / g, n)
        scaled = [here * scale[:, :, g, None] for g in range(dim // group)]
        sums: list[Tensor] = []
        for place, (mask, _) in enumerate(fields):
            plane, own = (codes & mask).to(share.dtype), place * width
            sums += [scaled[(own + at) // group] @ plane[..., at : at + part] for at in range(0, width, part)]
        found = found + torch.cat(sums, dim=-1)
    zeros = share @ side.zeros[:, :, :coded].to(share.dtype)
    return found * factor + zeros.repeat_interleave(group, dim=-1)


def _scratch(store: Any, query: Tensor, queries: int, seen: int) -> int:
    """Bytes of the largest temporaries: logits, and one block of unpacked codes."""
    wide = torch.promote_types(query.dtype, torch.float32).itemsize
    batch, heads, _, dim = query.shape
    coded = [side.codes.numel() * 8 // side.bits for side in (store.keys, store.values) if side.codes is not None]
    return wide * (batch * heads * queries * seen + min(BLOCK, max(coded)))
