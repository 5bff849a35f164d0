"""Attention patterns: who sees whom, as a mask and as small dense attentions that need no mask over all pairs.

A pattern is one set per position i of a causal sequence. Child et al. 2019 (arXiv:1904.10509) factorise attention into
two of them, which here share the heads of a layer or take layers in turn. With l the stride and c the summary:

=========  ====================================================  ===============================================
full       j <= i
local      i - window < j <= i                                   window = l + 1 in the paper, l in its code
strided    j <= i, (i - j) mod l = 0
block      j <= i, floor(j / l) = floor(i / l)                   the first half of "fixed"
summary    j <= i, j mod l >= l - c                              the second half of "fixed"
=========  ====================================================  ===============================================

In `summary` the first l - c positions would see nothing; they see themselves, which the paper leaves open.

`Pattern.blocked` cuts the sequence so that each set lies in one block: O(t window d), O(t^2 d / l), O(t l d) and
O(t^2 c d / l) instead of O(t^2 d). Shapes: b batch, h heads, t positions, d channels of one head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dlopt.transformer.config import TransformerConfig

KINDS = ("full", "local", "strided", "block", "summary")


@dataclass(frozen=True)
class Pattern:
    """One of the sets above. window, stride, summary: positions, at least 1 where the kind uses them."""

    kind: str = "full"
    window: int = 0
    stride: int = 0
    summary: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a pattern is one of {', '.join(KINDS)}, got {self.kind!r}")
        needed = {"local": ("window",), "full": (), "summary": ("stride", "summary")}.get(self.kind, ("stride",))
        for name in needed:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kind == "summary" and self.summary > self.stride:
            raise ValueError(f"summary {self.summary} must be at most the stride {self.stride}")

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        """Bool: whether positions `query` see positions `key`, both integers that broadcast. j <= i is included."""
        causal = key <= query
        if self.kind == "local":
            return causal & (query - key < self.window)
        if self.kind == "strided":
            return causal & ((query - key) % self.stride == 0)
        if self.kind == "block":
            return causal & (query // self.stride == key // self.stride)
        if self.kind == "summary":
            early = self.stride - self.summary
            return causal & ((key % self.stride >= early) | ((query == key) & (query < early)))
        return causal

    def blocked(self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """Attention of positions 0..t-1 on themselves, each of q, k, v (b, h, t, d). slopes: (h,), of ALiBi."""
        t = q.shape[-2]
        if self.kind == "full" or (self.kind == "local" and t <= self.window):
            return attend(q, k, v, _distance(t, t, q.device), slopes, dropout)
        if self.kind == "local":
            return self._local(q, k, v, slopes, dropout)
        if self.kind == "summary":
            return self._summary(q, k, v, slopes, dropout)
        pad = -t % self.stride  # later positions, so no earlier one sees them
        rows = _pad(q, pad), _pad(k, pad), _pad(v, pad)
        # (b, h, n, l, d): blocks are along l; positions of equal remainder lie along n
        axes, step = ((0, 2, 1, 3, 4), 1) if self.kind == "block" else ((0, 3, 1, 2, 4), self.stride)
        q, k, v = (x.unflatten(2, (-1, self.stride)).permute(axes).flatten(0, 1) for x in rows)
        out = attend(q, k, v, step * _distance(q.shape[-2], q.shape[-2], q.device), slopes, dropout)
        out = out.unflatten(0, (rows[0].shape[0], -1))  # (b, n, h, l, d) or (b, l, h, n, d)
        out = out.permute(axes if self.kind == "block" else (0, 2, 3, 1, 4))
        return out.flatten(2, 3)[:, :, :t]

    def _local(self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, dropout: float) -> Tensor:
        """Blocks of window - 1 queries that see their own and the previous block; the first has no previous one."""
        t, size = q.shape[-2], max(self.window - 1, 1)
        pad = -t % size
        q, k, v = _pad(q, pad), _pad(k, pad), _pad(v, pad)
        b = q.shape[0]
        q, k, v = (x.unflatten(2, (-1, size)).transpose(1, 2) for x in (q, k, v))  # (b, n, h, size, d)
        near = [torch.cat((x[:, :-1], x[:, 1:]), dim=-2).flatten(0, 1) for x in (k, v)]
        distance = _distance(size, 2 * size, q.device)
        seen = (distance >= 0) & (distance < self.window)
        rest = attend(q[:, 1:].flatten(0, 1), near[0], near[1], distance, slopes, dropout, seen)
        rest = rest.unflatten(0, (b, -1)).transpose(1, 2).flatten(2, 3)
        first = attend(q[:, 0], k[:, 0], v[:, 0], _distance(size, size, q.device), slopes, dropout)
        return torch.cat((first, rest), dim=2)[:, :, :t]

    def _summary(self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, dropout: float) -> Tensor:
        """Every query against the last positions of all blocks, which are gathered once."""
        t, early = q.shape[-2], self.stride - self.summary
        place = torch.arange(t, device=q.device)
        kept = place[place % self.stride >= early]
        alone = v[:, :, :early] * F.dropout(v.new_ones(*v.shape[:2], min(early, t), 1), dropout)
        if not len(kept):
            return alone
        distance = place[early:, None] - kept
        out = attend(q[:, :, early:], k[:, :, kept], v[:, :, kept], distance, slopes, dropout, distance >= 0)
        return torch.cat((alone, out), dim=2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    distance: Tensor,
    slopes: Tensor | None,
    dropout: float,
    seen: Tensor | None = None,
) -> Tensor:
    """Torch's attention under `seen`, with ALiBi's -slope * distance on the scores if wanted.

    distance: i - j, (t, s). seen: bool (t, s); None means causal: distance >= 0.
    """
    if slopes is None:
        mask = seen
    else:
        mask = alibi(slopes, distance, distance >= 0 if seen is None else seen, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout)


def alibi(slopes: Tensor, distance: Tensor, seen: Tensor | None, dtype: torch.dtype) -> Tensor:
    """-slope * |distance|, and -inf where not seen: (b or 1, h, t, s). distance, seen: (t, s) or (b, 1, t, s)."""
    bias = (-slopes[:, None, None] * distance.abs()).to(dtype)
    bias = bias if seen is None else bias.masked_fill(~seen, -math.inf)
    return bias if bias.ndim == 4 else bias[None]  # torch's fast kernel on a CPU takes masks of 2 or 4 axes


def patterns(config: TransformerConfig, layer: int) -> tuple[Pattern, ...]:
    """Patterns of one layer of the decoder: one for all heads, or two for half of them each."""
    if config.attention == "full":
        return (Pattern(),)
    if config.attention == "local":
        return (Pattern("local", window=config.window or 0),)
    stride = config.stride or 0
    if config.attention == "strided":
        both = (Pattern("local", window=config.window or stride + 1), Pattern("strided", stride=stride))
    else:
        both = (Pattern("block", stride=stride), Pattern("summary", stride=stride, summary=config.summary or 0))
    return both if config.mixing == "heads" else (both[layer % 2],)


def _distance(queries: int, keys: int, device: torch.device) -> Tensor:
    """i - j where both end at the same position: (queries, keys)."""
    at = torch.arange(keys, device=device)
    return at[keys - queries :, None] - at


def _pad(x: Tensor, rows: int) -> Tensor:
    return F.pad(x, (0, 0, 0, rows)) if rows else x
