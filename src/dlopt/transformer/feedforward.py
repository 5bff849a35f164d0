"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """y = (silu(x W_gate) * (x W_up)) W_down, without bias (Shazeer 2020, arXiv:2002.05202).

    Projections are named as in Llama. Shapes: (..., width) to (..., width).

    width: channels in and out. hidden: channels between; None means `matched_hidden(width)`.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = matched_hidden(width) if hidden is None else hidden
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def matched_hidden(width: int, multiple: int = 8) -> int:
    """8/3 of the width, rounded up to a multiple: three matrices then hold what two of 4 * width would."""
    return -(-8 * width // (3 * multiple)) * multiple


def _identity(x: Tensor) -> Tensor:
    return x


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}
GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": F.sigmoid,
    "bilinear": _identity,
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
}


class FeedForward(nn.Module):
    """y = f(x W_up) W_down, or gated y = (f(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202).

    kind: f is ReLU, GELU (exact, with erf) or Swish (silu) in "relu", "gelu", "swish"; gated, it is the sigmoid in
    "glu", the identity in "bilinear", ReLU in "reglu", GELU in "geglu" and Swish in "swiglu". hidden: channels between
    of the plain kinds; None: 4 width. Gated kinds take `gated_hidden` of it. bias: in all matrices; the paper has none.
    Shapes: (..., width) to (..., width).
    """

    def __init__(self, width: int, hidden: int | None = None, kind: str = "gelu", bias: bool = False) -> None:
        super().__init__()
        if kind not in PLAIN and kind not in GATED:
            raise ValueError(f"feedforward must be one of {', '.join([*PLAIN, *GATED])}, got {kind!r}")
        hidden = 4 * width if hidden is None else hidden
        gated = kind in GATED
        self.kind, self.f = kind, GATED[kind] if gated else PLAIN[kind]
        hidden = gated_hidden(hidden) if gated else hidden
        self.gate_proj = nn.Linear(width, hidden, bias=bias) if gated else None
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        return self.down_proj(self.f(up) if self.gate_proj is None else self.f(self.gate_proj(x)) * up)

    def extra_repr(self) -> str:
        return self.kind


def gated_hidden(hidden: int, multiple: int = 8) -> int:
    """Two thirds of the plain layer's `hidden`, to the nearest multiple (at least one): as many parameters."""
    return max(1, round(2 * hidden / (3 * multiple))) * multiple
