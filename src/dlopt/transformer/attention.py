"""Multi-head attention with grouped queries.

Shapes: b batch, t positions, h heads, g key/value heads, d channels of one head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.transformer.positions import rotate


class Attention(nn.Module):
    """Self-attention softmax(q k^T / sqrt(d)) v with fewer key/value heads than query heads, if wanted.

    Vaswani et al. 2017 (arXiv:1706.03762); grouped queries: Ainslie et al. 2023 (arXiv:2305.13245). Projections are
    named as in Llama, without bias. The work is done by `F.scaled_dot_product_attention`; plain=True takes the
    readable `plain_attention` instead, with equal results.

    width: channels in and out, a multiple of heads. heads: h. kv_heads: g, a divisor of heads; None means as many
    (multi-head), 1 is multi-query. causal: a position sees itself and earlier ones only. dropout: on the attention
    weights, while training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        plain: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} must be a multiple of the {heads} heads")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads {kv_heads} must divide the {heads} heads")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.causal, self.dropout, self.plain = causal, dropout, plain
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_btd: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(b, t, width) to the same shape. rotation: from `RoPE`, for queries and keys; None means no positions."""
        q = split_heads(self.q_proj(x_btd), self.heads)
        k = split_heads(self.k_proj(x_btd), self.kv_heads)
        v = split_heads(self.v_proj(x_btd), self.kv_heads)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        k, v = repeat_heads(k, self.heads // self.kv_heads), repeat_heads(v, self.heads // self.kv_heads)
        dropout = self.dropout if self.training else 0.0
        if self.plain:
            out, _ = plain_attention(q, k, v, self.causal, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=dropout)
        return self.o_proj(merge_heads(out))


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(outputs (b, h, t, d), weights (b, h, t, s)): attention written out, for tests and attention maps.

    q: (b, h, t, d). k, v: (b, h, s, d). causal: position i sees the positions up to i.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    weights = scores.softmax(-1)
    return F.dropout(weights, dropout) @ v, weights


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, t, h * d) to (b, h, t, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(b, h, t, d) to (b, t, h * d)."""
    return x.transpose(1, 2).flatten(2)


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """(b, g, t, d) to (b, g * times, t, d): each head `times` times in a row, as the queries are grouped."""
    return x if times == 1 else x.repeat_interleave(times, dim=1)
