"""Feed-forward layers."""

from __future__ import annotations

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
