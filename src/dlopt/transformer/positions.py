"""Positions: sinusoids, rotary embeddings and the slopes of ALiBi. Shaw's relative ones stand in `shaw`.

RoPE turns each pair of channels of a query or key by an angle that grows with the position, so a score q.k depends on
the offset of the two positions only. Two layouts of the pairs are in use, and mixing them up is a common error:

* half-split (here, as in Llama of transformers): channel i is paired with channel i + d/2;
* interleaved (the RoPE paper, Llama of Meta): channel 2i is paired with channel 2i + 1.

Weights of one layout become those of the other by permuting the rows of the query and key projections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RoPE(nn.Module):
    """Tables of rotary positions (Su et al. 2021, arXiv:2104.09864): angle = position * base^(-2i/d), i < d/2.

    Called once per forward pass; all layers share the result. Angles are computed in float64, since in float32 those
    of far positions would be off by more than a rounding error of the result.

    width: channels of one head, even. base: 10,000 in the paper; larger for longer contexts.
    """

    def __init__(self, width: int, base: float = 10_000.0) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"RoPE turns pairs of channels, so the width of a head must be even, got {width}")
        if base <= 0:
            raise ValueError(f"the base of RoPE must be positive, got {base}")
        self.width, self.base = width, base

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(cosines, sines), each (..., t, width / 2) of `dtype`, for integer positions (..., t)."""
        pair = torch.arange(0, self.width, 2, dtype=torch.float64, device=positions.device)
        angle = positions[..., None].double() * self.base ** (-pair / self.width)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def extra_repr(self) -> str:
        return f"{self.width}, base={self.base:g}"


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channel pairs (i, i + d/2) of queries or keys: (a, b) -> (a cos - b sin, b cos + a sin).

    x: (..., t, d). rotation: what `RoPE` returned, (t, d / 2) or with leading axes that broadcast to those of x.
    """
    cosine, sine = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


def sinusoid(positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """PE(p, 2i) = sin(p / 10000^(2i/width)), PE(p, 2i + 1) = cos of the same (Vaswani et al. 2017, arXiv:1706.03762).

    positions: integers (..., t). Returns (..., t, width) of `dtype`, worked out in float64. width: even.
    """
    if width < 2 or width % 2:
        raise ValueError(f"sinusoid positions are pairs of channels, so the width must be even, got {width}")
    pair = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None].double() * 10_000.0 ** (-pair / width)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(dtype)


def alibi_slopes(heads: int) -> list[float]:
    """m of each head: a score falls by m per position of distance (Press et al. 2022, arXiv:2108.12409).

    m_i = 2^(-8 i / heads), i = 1..heads, where heads is a power of two; else those of the power below, followed by
    every second one of the power above, as in the paper's code.
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    below = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * i / below) for i in range(1, below + 1)]
    return slopes + [2.0 ** (-4 * i / below) for i in range(1, 2 * (heads - below), 2)]
