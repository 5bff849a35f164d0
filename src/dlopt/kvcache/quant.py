"""Keys and values as 8 or 4 bits, one scale per token and head: the simple, nearly lossless baseline."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.layer import appended
from dlopt.kvcache.rows import Rows
from dlopt.kvcache.shape import Shape, shape_of
from dlopt.memory import Bytes

LARGEST = {"int8": 127, "int4": 7, "fp8": 448}  # of a code; 448 is the largest float8_e4m3fn
CODES = (*LARGEST, "identity")
SMALLEST = torch.finfo(torch.bfloat16).tiny


def quantize(x: Tensor, code: str) -> tuple[Tensor, Tensor]:
    """(..., D) numbers as codes (..., D or D / 2), uint8, and scales (..., 1), bfloat16.

    x is about scale q with q = round(x / scale) in -127..127 (int8) or -7..7 (int4), or the nearest float8 (fp8), where
    scale = max |x| / (largest code). So |x - scale q| is at most scale / 2 for integers, and for fp8 at most 2^-4 |x|
    (2^-10 scale near 0). Rounding the scale to bfloat16 keeps that: it makes a ratio larger by at most 1 / 256, and
    127 + 127 / 256 still rounds to 127 (448 + 448 / 256 to 448). bfloat16 has float32's range: no scale overflows.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = wide.abs().amax(-1, keepdim=True) / LARGEST[code]
    scale = scale.to(torch.bfloat16).clamp_min(SMALLEST)
    ratio = wide / scale.to(wide.dtype)
    if code == "fp8":
        return ratio.to(torch.float8_e4m3fn).view(torch.uint8), scale
    whole = ratio.round().to(torch.int8)
    if code == "int8":
        return whole.view(torch.uint8), scale
    shifted = (whole + 8).to(torch.uint8)
    return shifted[..., ::2] | (shifted[..., 1::2] << 4), scale


def dequantize(codes: Tensor, scale: Tensor, code: str, dtype: torch.dtype) -> Tensor:
    """The numbers that codes and scales stand for, (..., D)."""
    wide = torch.promote_types(dtype, torch.float32)
    if code == "fp8":
        values = codes.view(torch.float8_e4m3fn).to(wide)
    elif code == "int8":
        values = codes.view(torch.int8).to(wide)
    else:
        values = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).to(wide) - 8
    return (values * scale.to(wide)).to(dtype)


class Quantized:
    """The tokens of one layer as codes and scales; with `record_past`, new tokens wait in full precision."""

    kinds: ClassVar = {
        "key_codes": "codes",
        "value_codes": "codes",
        "key_scales": "scales",
        "value_scales": "scales",
        "keys": "residual",
        "values": "residual",
    }
    facts: ClassVar = ("dtype",)
    waits: ClassVar = False

    def __init__(self, code: str) -> None:
        self.code = code
        self.dtype = ""  # a name, since a saved state holds plain values
        self.key_codes: Tensor | None = None
        self.value_codes: Tensor | None = None
        self.key_scales: Tensor | None = None
        self.value_scales: Tensor | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return sum(t.shape[2] for t in (self.key_codes, self.keys) if t is not None)

    def start(self, keys: Tensor, values: Tensor) -> None:
        self.dtype = str(keys.dtype).removeprefix("torch.")

    def append(self, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        self.keys, self.values = appended((self.keys, self.values), (keys, values))
        if self.key_codes is None:
            return self.keys, self.values
        dtype = getattr(torch, self.dtype)
        old_keys = dequantize(self.key_codes, self.key_scales, self.code, dtype)
        old_values = dequantize(self.value_codes, self.value_scales, self.code, dtype)
        return torch.cat([old_keys, self.keys], dim=2), torch.cat([old_values, self.values], dim=2)

    def commit(self, rows: Rows) -> None:
        if self.keys is None or self.code == "identity":
            return
        new = (*quantize(self.keys, self.code), *quantize(self.values, self.code))
        old = (self.key_codes, self.key_scales, self.value_codes, self.value_scales)
        self.key_codes, self.key_scales, self.value_codes, self.value_scales = appended(old, new)
        self.keys = self.values = None

    def drop(self, count: int, rows: Rows) -> None:
        waiting = 0 if self.keys is None else self.keys.shape[2]
        for name, kind in self.kinds.items():
            tensor = getattr(self, name)
            if tensor is not None:  # the newest wait in full precision; beyond them, codes go
                left = tensor.shape[2] - (count if kind == "residual" else max(0, count - waiting))
                setattr(self, name, tensor[:, :, :left].clone() if left > 0 else None)

    def reversible(self, count: int, rows: Rows) -> bool:
        return True  # every token has codes of its own


@method(
    "quant",
    topic="kvcache",
    kind="cache",
    cite="dettmers2022llmint8",
    summary="int8, int4 or fp8 codes, one scale per token and head",
    needs=("transformers",),
)
def QuantCache(config: Any, code: str = "int8", attention_mask: Tensor | None = None) -> KVCache:
    """Every key and value vector of D numbers as D codes and one scale, once and for all::

        scale = max |x| / c,   q = round(x / scale),   x' = scale q

    with c = 127 (int8), 7 (int4) or 448 (fp8: q is x / scale as float8_e4m3fn). A pass attends to its own new tokens in
    full precision and to the codes of all earlier ones.

    Args:
        config: a transformers model or its config.
        code: "int8", "int4", "fp8"; "identity" keeps numbers as they are, to show that nothing else changes.
        attention_mask: changes nothing here, since tokens do not meet; all caches take it.

    Bytes: for T tokens 2 layers heads T (D b / 8 + 2), b = 8 or 4. Error: at most scale / 2 (integers), 2^-4 of the
    number (fp8). Attention needs floats, so one layer at a time is expanded: that is the transient.

    Raises:
        ValueError: at construction, for another code, and for int4 with an odd head size.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> QuantCache(config, code="int4").describe()
        'quant(code=int4) for 2 layers of 4 key-value heads of size 8: 0 tokens seen, 0 stored in 0 B'
    """
    if code not in CODES:
        raise ValueError(f"code must be one of {', '.join(CODES)}, not {code!r}")
    dim = shape_of(config).dim
    if code == "int4" and dim % 2:
        raise ValueError(f"int4 packs two codes into a byte, which the head size {dim} does not allow; it must be even")
    return KVCache("quant", {"code": code}, config, lambda layer: Quantized(code), attention_mask)


def memory(
    shape: Shape, tokens: int, dtype: torch.dtype, *, batch: int = 1, generated: int = 0, code: str = "int8"
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    numbers = shape.numbers(tokens, batch)
    if code == "identity":
        return Bytes(residual=numbers * dtype.itemsize)
    return Bytes(codes=numbers // 2 if code == "int4" else numbers, scales=numbers // shape.dim * 2)
