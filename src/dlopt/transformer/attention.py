"""Multi-head attention with grouped queries.

Shapes: b batch, t queries, s keys, h heads, g key/value heads, d channels of one head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.transformer.cache import LayerCache
from dlopt.transformer.positions import rotate
from dlopt.transformer.scope import Scope
from dlopt.transformer.shaw import Shaw
from dlopt.transformer.sparse import Pattern


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v with fewer key/value heads than query heads, if wanted; of x on x or on a memory.

    Vaswani et al. 2017 (arXiv:1706.03762); grouped queries: Ainslie et al. 2023 (arXiv:2305.13245). Projections are
    named as in Llama. The work is done by `F.scaled_dot_product_attention`, in blocks under a sparse pattern;
    plain=True takes the readable `plain_attention` instead, with equal results.

    width: channels in and out, a multiple of heads. heads: h. kv_heads: g, a divisor of heads; None means as many
    (multi-head), 1 is multi-query. causal: a position sees itself and earlier ones only; it counts where no scope is
    given. dropout: on the attention weights, while training. bias: in the projections. patterns: one for all heads or
    two for half of them each; used with a scope. shaw_clip: k of Shaw's tables; None: no tables.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        causal: bool = True,
        dropout: float = 0.0,
        plain: bool = False,
        bias: bool = False,
        patterns: tuple[Pattern, ...] = (Pattern(),),
        shaw_clip: int | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} must be a multiple of the {heads} heads")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads {kv_heads} must divide the {heads} heads")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        if len(patterns) not in (1, 2) or heads % len(patterns):
            raise ValueError(f"1 or 2 patterns share the heads equally, got {len(patterns)} for {heads} heads")
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.causal, self.dropout, self.plain, self.patterns = causal, dropout, plain, patterns
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)
        self.shaw = None if shaw_clip is None else Shaw(self.head_width, shaw_clip)

    def forward(
        self,
        x_btd: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        scope: Scope | None = None,
        memory_bsd: Tensor | None = None,
        cache: LayerCache | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """(b, t, width) to the same shape.

        rotation: from `RoPE`, for queries and keys; None means no positions. scope: who sees whom, where that is more
        than `causal` says; it brings its own rotation. memory_bsd: what x attends to instead of itself. cache: keys and
        values of earlier calls. maps: a list that the weights (b, h, t, s) are added to, from the plain path.
        """
        q = split_heads(self.q_proj(x_btd), self.heads)
        rotation = scope.rotation if scope is not None else rotation
        if memory_bsd is not None and cache is not None and cache.cross is not None:
            k, v = cache.cross
        else:
            source = x_btd if memory_bsd is None else memory_bsd
            k = split_heads(self.k_proj(source), self.kv_heads)
            v = split_heads(self.v_proj(source), self.kv_heads)
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            if cache is not None and memory_bsd is not None:
                cache.cross = k, v
            elif cache is not None:
                k, v = cache.append(k, v)
        return self.o_proj(merge_heads(self._attend(q, k, v, scope, maps)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope | None, maps: list[Tensor] | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if scope is None or self.plain or maps is not None or self.shaw is not None or len(self.patterns) > 1:
            k, v = repeat_heads(k, self.heads // self.kv_heads), repeat_heads(v, self.heads // self.kv_heads)
        if scope is None and not self.plain:
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, dropout_p=dropout)
        if scope is None:
            return plain_attention(q, k, v, self.causal, dropout)[0]
        if self.shaw is not None:
            out, weights = self.shaw(q, k, v, scope.offsets(), scope.seen(self.patterns[0]), dropout)
        elif self.plain or maps is not None:
            out, weights = plain_attention(q, k, v, False, dropout, scope.mask(self.patterns, self.heads, q.dtype))
        else:
            return self._fast(q, k, v, scope, dropout)
        if maps is not None:
            maps.append(weights)
        return out

    def _fast(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope, dropout: float) -> Tensor:
        full = self.patterns == (Pattern(),)
        if scope.causal and scope.steady and not full:
            k, v = repeat_heads(k, q.shape[1] // k.shape[1]), repeat_heads(v, q.shape[1] // v.shape[1])
            size = self.heads // len(self.patterns)
            parts = [
                pattern.blocked(
                    q[:, i * size : (i + 1) * size],
                    k[:, i * size : (i + 1) * size],
                    v[:, i * size : (i + 1) * size],
                    None if scope.slopes is None else scope.slopes[i * size : (i + 1) * size],
                    dropout,
                )
                for i, pattern in enumerate(self.patterns)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        free = scope.causal and scope.steady and scope.slopes is None  # torch knows this mask without seeing it
        mask = None if free else scope.mask(self.patterns, self.heads, q.dtype)
        grouped = k.shape[1] != self.heads
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=free, dropout_p=dropout, enable_gqa=grouped
        )


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout: float = 0.0, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(outputs (b, h, t, d), weights (b, h, t, s)): attention written out, for tests and attention maps.

    q: (b, h, t, d). k, v: (b, h, s, d). causal: position i sees the positions up to i. mask: broadcasts to the scores;
    bool, True where seen, or float, added to them.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
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
