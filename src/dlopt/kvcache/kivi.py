"""KIVI: keys by channel and values by token in 2 or 4 bits, the newest tokens whole (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.coded import AXES, FLUSHES, Coded
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.packing import BITS
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.sealed import PACKED, sealed
from dlopt.kvcache.shape import Shape, shape_of, text_config, whole
from dlopt.memory import Bytes


def _of(side: str, name: str) -> Any:
    """A tensor of one side under a name of the store's own, by which the frame saves, counts and reorders it."""
    return property(
        lambda store: getattr(getattr(store, side), name),
        lambda store, value: setattr(getattr(store, side), name, value),
    )


class Kivi:
    """The tokens of one layer: two `Coded`, and how many columns the last commit had seen."""

    kinds: ClassVar = {
        "key_codes": "codes",
        "key_scales": "scales",
        "key_zeros": "scales",
        "key_rest": "residual",
        "value_codes": "codes",
        "value_scales": "scales",
        "value_zeros": "scales",
        "value_rest": "residual",
    }
    facts: ClassVar = ("columns", "committed")
    key_codes, key_scales = _of("keys", "codes"), _of("keys", "scales")
    key_zeros, key_rest = _of("keys", "zeros"), _of("keys", "rest")
    value_codes, value_scales = _of("values", "codes"), _of("values", "scales")
    value_zeros, value_rest = _of("values", "zeros"), _of("values", "rest")

    def __init__(self, keys: Coded, values: Coded, attention: Callable[[], str | None]):
        self.keys, self.values, self.attention = keys, values, attention
        self.columns = self.committed = 0
        self.waits = False  # packed attention reads the codes after `append`, so the commit must wait for it

    @property
    def length(self) -> int:
        return self.columns

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Nothing to learn."""

    def append(self, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        self.columns = rows.seen
        self.waits = self.attention() == PACKED
        if self.waits:
            return keys, values
        return self.dense(rows, keys.dtype)

    def dense(self, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """All keys and values as floats, (B, H, columns, D) each."""
        return self.keys.dense(rows, self.committed, dtype), self.values.dense(rows, self.committed, dtype)

    def mark(self, keys: Tensor, layer: Any) -> Tensor:
        return sealed(keys, layer)

    def observe(self, rows: Rows) -> None:
        """Attention is done with the codes as they were."""

    def commit(self, rows: Rows) -> None:
        self.keys.commit(rows, self.committed)
        self.values.commit(rows, self.committed)
        self.committed = rows.seen

    def drop(self, count: int, rows: Rows) -> None:
        self.keys.drop(count)
        self.values.drop(count)
        self.columns -= count
        self.committed = min(self.committed, self.columns)

    def reversible(self, count: int, rows: Rows) -> bool:
        return self.keys.codes is None and self.values.codes is None


@method(
    "kivi",
    topic="kvcache",
    kind="cache",
    cite="liu2024kivi",
    summary="keys by channel and values by token in 2 or 4 bits, the newest tokens whole",
    needs=("transformers",),
)
def KIVICache(
    config: Any,
    bits: int = 2,
    group: int = 32,
    residual: int = 128,
    key_axis: str = "channel",
    value_axis: str = "token",
    flush: str = "token",
    attention_mask: Tensor | None = None,
) -> KVCache:
    r"""KIVI (arXiv 2402.02750, algorithm 1): asymmetric codes along the axis where outliers lie.

    Each group of g = `group` numbers has a float16 zero and scale of its own (`dlopt.kvcache.packing` has the formula
    and its bound, scale / 2). A pass attends to the stored tokens and to its own in full precision; after it, with T
    tokens in all and R = `residual`::

        keys, per channel:   the first T - T mod R tokens are codes; a group is g tokens of one channel
        values, per token:   the first max(0, T - R) tokens are codes; a group is g channels of one token

    so keys are coded R at a time and their residual swings between 0 and R - 1; of values the R newest stay whole.
    The layout depends on T alone, not on how the tokens came.

    Args:
        config: a transformers model or its config.
        bits: 2, 4 or 8 per number; 16 keeps all as it is, equal to `DynamicCache` to the bit.
        group: g. Along tokens it must divide R, along channels the head size. The paper: 32.
        residual: R, at least 1. The paper: 128; 32 for GSM8K.
        key_axis, value_axis: "channel" or "token", for the ablation. The schedule goes with the axis.
        flush: "token" as above: per token, the oldest of the residual is coded with every new token. "block": it waits
            until T is a multiple of R, so that the residual swings between R and 2 R - 1 (for speculation, below).
        attention_mask: (B, T) of the prompts, where rows are padded at the left. Every row follows the schedule of its
            own tokens, so a pad is never in a group and a row's codes do not depend on its neighbours.

    Bytes: 2 layers heads size (C (bits / 8 + 4 / g) + (T - C) b) for C coded tokens and b bytes per number of the
    model.

    **Attention.** With sdpa, eager or flash the codes of one layer at a time are expanded: that is the transient.
    Inside `dlopt.kvcache.packed_attention.packed(model)` attention works on the packed bytes.

    **Roll-back and speculation.** After `activate_past_recording()` new tokens stay whole until `crop`, so a rejected
    draft never touches a group. Several tokens in one pass equal single steps only as long as no step would have coded
    anything in between. With flush="token" that is one token a pass as soon as T is at least R; with flush="block" it
    is `steps_until_flush(cache)` tokens, up to R: cut drafts there and verification is exact.

    Raises:
        ValueError: at construction for values outside their range, for a group that does not divide, for a head size
            that does not fill bytes. When coding: for keys or values that are not finite or beyond float16 (65504).

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=2)
        >>> KIVICache(config, bits=4).params["bits"]
        4
    """
    shape = shape_of(config)
    if bits not in (*BITS, 16) or isinstance(bits, float):
        raise ValueError(f"bits must be one of 2, 4, 8, 16, not {bits!r}")
    group, residual = whole("group", group, 1), whole("residual", residual, 1)
    for name, axis in (("key_axis", key_axis), ("value_axis", value_axis)):
        if axis not in AXES:
            raise ValueError(f"{name} must be one of {', '.join(AXES)}, not {axis!r}")
        size, what = (residual, "residual") if axis == "channel" else (shape.dim, "head size")
        if size % group and bits != 16:
            raise ValueError(f"group = {group} must divide the {what} {size}, since {name} is {axis!r}")
    if flush not in FLUSHES:
        raise ValueError(f"flush must be one of {', '.join(FLUSHES)}, not {flush!r}")
    if bits < 8 and shape.dim % (8 // bits):
        raise ValueError(f"codes of {bits} bits fill bytes only if {8 // bits} divides the head size {shape.dim}")
    decoder = text_config(config)
    options = {
        "bits": bits,
        "group": group,
        "residual": residual,
        "key_axis": key_axis,
        "value_axis": value_axis,
        "flush": flush,
    }

    def attention() -> str | None:
        name = getattr(decoder, "_attn_implementation", None)
        if name == PACKED and (key_axis, value_axis) != ("channel", "token"):
            raise ValueError(
                f'the attention {PACKED!r} serves key_axis="channel" and value_axis="token" alone, not {key_axis!r} '
                f'and {value_axis!r}; use attn_implementation="sdpa"'
            )
        return name

    def store(layer: int) -> Kivi:
        sides = (Coded(axis, bits, group, residual, flush) for axis in (key_axis, value_axis))
        return Kivi(*sides, attention)

    return KVCache("kivi", options, config, store, attention_mask)


def steps_until_flush(cache: KVCache) -> int:
    """How many tokens one pass may bring to a `KIVICache` and still equal single steps, at least 1.

    Rows of a batch agree on the smallest. Counted from the committed tokens: call it before a draft is fed.
    """
    layer = cache.layers[0]
    sides, seen = (layer.store.keys, layer.store.values), layer.store.committed
    if sides[0].bits == 16:
        raise ValueError("a KIVICache of 16 bits codes nothing, so a pass may have any number of tokens")
    found = []
    for pad in layer.pads or (0,):
        tokens, steps = max(0, seen - pad), 1
        while all(side.due(tokens + steps) == side.due(tokens) for side in sides):
            steps += 1
        found.append(steps)
    return min(found)


def memory(
    shape: Shape,
    tokens: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    generated: int = 0,
    bits: int = 2,
    group: int = 32,
    residual: int = 128,
    key_axis: str = "channel",
    value_axis: str = "token",
    flush: str = "token",
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    coded = sum(Coded(axis, bits, group, residual, flush).due(tokens) for axis in (key_axis, value_axis))
    numbers = shape.numbers(1, batch) // 2  # of the keys or the values of one column
    return Bytes(
        codes=numbers * coded * bits // 8 if coded else 0,
        scales=numbers * coded // group * 4,
        residual=numbers * (2 * tokens - coded) * dtype.itemsize,
    )
