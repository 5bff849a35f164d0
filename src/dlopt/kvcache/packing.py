"""Numbers as codes of 2, 4 or 8 bits with a 16-bit scale and zero per group, packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (2, 4, 8)
LARGEST = 65504.0  # of float16
SLACK = 1 - 2**-13  # of a range: what float32 rounds off must not push a scale to the next float16


def quantize(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Codes (as x, uint8, not packed), scales and zeros (float16, size 1 in `dim`) of groups that lie along `dim`.

    With c = 2^bits - 1, for each group::

        zero  = min(x), rounded down to float16
        scale = (max(x) - zero) (1 - 2^-13) / c, rounded up to float16, at least 2^-24
        code  = round((x - zero) / scale), in 0 .. c;     x' = zero + scale code

    The zero is not above the minimum, and zero + c scale is below the maximum by at most 2^-13 c < 1/2 scales, both as
    stored. So |x - x'| is at most scale / 2 (and one rounding of x' to its own precision), for constant groups, too.
    Where a scale is at least two float16 steps of its zero, quantizing the x' (float32 or wider) again gives the same
    bytes.

    Raises:
        ValueError: for bits other than 2, 4, 8, and for numbers that float16 cannot hold as a zero: below -65504, a
            range beyond 65504 c, or not finite.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be one of 2, 4, 8, not {bits!r}")
    most = 2**bits - 1
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    low, high = wide.aminmax(dim=dim, keepdim=True)
    zero = _down(low)
    scale = _up((high - zero.to(wide.dtype)) * (SLACK / most)).clamp_min(2**-24)
    if not (zero.isfinite() & scale.isfinite()).all():
        raise ValueError(
            f"cannot quantize numbers from {float(low.min()):g} to {float(high.max()):g}: the zero and the scale of a "
            f"group are float16, which ends at {LARGEST:g}"
        )
    codes = ((wide - zero.to(wide.dtype)) / scale.to(wide.dtype)).round_().clamp_(0, most)
    return codes.to(torch.uint8), scale, zero


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """zero + scale code, computed in float32 or wider and rounded once to `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    return (codes.to(wide) * scale.to(wide) + zero.to(wide)).to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(..., N) codes as (..., N bits / 8) bytes. N must be a multiple of 8 / bits.

    Byte i holds codes i, i + n, i + 2 n, ... from its low bits up, n = N bits / 8: each bit field of all bytes is one
    run of neighbouring codes, a plane, which one mask takes out as a block (`planes`).
    """
    parts = codes.chunk(8 // bits, dim=-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], 1):
        packed |= part << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """(..., n) bytes as (..., 8 n / bits) codes."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for _, shift in planes(bits)], dim=-1)


def planes(bits: int) -> list[tuple[int, int]]:
    """[(mask, shift)] of each bit field of a byte: byte & mask is the code times 2^shift."""
    return [((2**bits - 1) << shift, shift) for shift in range(0, 8, bits)]


def _down(x: Tensor) -> Tensor:
    """The largest float16 not above x. float16's own bits count its numbers in order, so one less is the next below."""
    half = x.to(torch.float16)
    bits = half.view(torch.int16)
    below = torch.where(half > 0, bits - 1, torch.where(half < 0, bits + 1, torch.full_like(bits, -(2**15) + 1)))
    return torch.where(half.to(x.dtype) > x, below, bits).view(torch.float16)


def _up(x: Tensor) -> Tensor:
    """The smallest float16 not below x, for x of at least 0."""
    half = x.to(torch.float16)
    bits = half.view(torch.int16)
    return torch.where(half.to(x.dtype) < x, bits + 1, bits).view(torch.float16)
