"""Normalisation layers, and where they stand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    Neither centred nor shifted. 16-bit inputs are normalised in float32, as in Llama, and cast back.

    width: size of the last axis. eps: added to the mean square, so a zero vector gives zero. Shapes: (..., width).
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return scaled.to(x.dtype) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def make_norm(kind: str, width: int, eps: float = 1e-5, bias: bool = False) -> nn.Module:
    """A norm by name: "layer" is torch's LayerNorm, "rms" is `RMSNorm`, which never has a bias."""
    if kind == "layer":
        return nn.LayerNorm(width, eps, bias=bias)
    if kind == "rms":
        return RMSNorm(width, eps)
    raise ValueError(f"norm must be layer or rms, got {kind!r}")


class Residual(nn.Module):
    """A sub-layer F with its residual connection, norms and dropout, at one of three places.

    "pre": x + F(norm(x)) and "post": norm(x + F(x)) (Xiong et al. 2020, arXiv:2002.04745, compares them); "sandwich":
    x + after(F(norm(x))) (Ding et al. 2021, arXiv:2105.13290). Dropout falls on the output of F, as in Vaswani et al.
    2017. Shapes: (..., width).
    """

    def __init__(
        self, kind: str, position: str, width: int, eps: float = 1e-5, bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if position not in ("pre", "post", "sandwich"):
            raise ValueError(f"norm_position must be pre, post or sandwich, got {position!r}")
        self.position, self.dropout = position, dropout
        self.norm = make_norm(kind, width, eps, bias)
        self.after = make_norm(kind, width, eps, bias) if position == "sandwich" else None

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x with the sub-layer's output added."""
        y = sublayer(x if self.position == "post" else self.norm(x))
        if self.after is not None:
            y = self.after(y)
        if self.dropout and self.training:
            y = F.dropout(y, self.dropout)
        return self.norm(x + y) if self.position == "post" else x + y

    def extra_repr(self) -> str:
        return f"{self.position}, dropout={self.dropout:g}"
