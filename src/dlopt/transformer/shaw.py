"""Relative positions of Shaw et al.: learned tables that enter keys and values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shaw(nn.Module):
    """Attention with a learned vector per clipped offset, for keys and for values (Shaw et al. 2018, arXiv:1803.02155).

    With r = clip(j - i, -k, k)::

        e_ij = q_i . (k_j + aK_r) / sqrt(d)        z_i = sum over j of softmax(e)_ij (v_j + aV_r)

    The paper's tables hold 2k + 1 vectors and are shared by the heads. No (t, s, d) tensor is formed: the queries meet
    the 2k + 1 vectors in one product, which is then looked up by offset; the weights of equal offsets are added
    up before they meet aV.

    width: channels of one head. clip: k, in positions, at least 1.
    """

    def __init__(self, width: int, clip: int = 16) -> None:
        super().__init__()
        if clip < 1:
            raise ValueError(f"shaw_clip must be at least 1, got {clip}")
        self.clip = clip
        self.keys = nn.Parameter(torch.empty(2 * clip + 1, width))
        self.values = nn.Parameter(torch.empty(2 * clip + 1, width))
        nn.init.xavier_normal_(self.keys)
        nn.init.xavier_normal_(self.values)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, seen: Tensor | None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(outputs (b, h, t, d), weights (b, h, t, s)).

        q: (b, h, t, d). k, v: (b, h, s, d). offsets: j - i, integers that broadcast to (b, h, t, s). seen: bool of such
        a shape, or None for all.
        """
        rows = (offsets.clamp(-self.clip, self.clip) + self.clip).expand(*q.shape[:-1], k.shape[-2])
        scores = (q @ k.mT + (q @ self.keys.mT).gather(-1, rows)) / math.sqrt(q.shape[-1])
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        weights = scores.softmax(-1)
        kept = F.dropout(weights, dropout)
        sums = kept.new_zeros(*q.shape[:-1], 2 * self.clip + 1).scatter_add(-1, rows, kept)
        return kept @ v + sums @ self.values, weights

    def extra_repr(self) -> str:
        return f"clip={self.clip}"
