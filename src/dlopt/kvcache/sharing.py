"""Caches that a model must be trained for: a latent for keys and values (MLA), layers that share them (CLA, YOCO).

No checkpoint without such a design can use these, so there are formulas and one toy module each, which show what is
stored and that decoding from it equals the full pass. Shapes: b rows, t tokens, m model size, h heads, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlopt.kvcache.shape import Shape, whole
from dlopt.memory import Bytes


def latent_bytes(layers: int, latent: int, rotary: int, tokens: int, dtype: torch.dtype, batch: int = 1) -> Bytes:
    """Bytes of a multi-head latent cache: `latent` + `rotary` numbers per token and layer, whatever the heads.

    DeepSeek-V2 (arXiv 2405.04434, section 2.1): the latent c serves all heads, the rotary key is one for all.
    """
    for name, value in {"layers": layers, "latent": latent, "tokens": tokens, "batch": batch}.items():
        whole(name, value)
    return Bytes(residual=layers * (latent + whole("rotary", rotary)) * tokens * batch * dtype.itemsize)


def shared_bytes(shape: Shape, share: int, tokens: int, dtype: torch.dtype, batch: int = 1) -> Bytes:
    """Bytes of the full cache of a model in which groups of `share` layers use the keys and values of one.

    Cross-layer attention (arXiv 2405.12981): ceil(layers / share) layers store, the others read. share = layers is
    one global cache, as in YOCO (arXiv 2405.05254).
    """
    storing = -(-shape.layers // whole("share", share, 1))
    numbers = 2 * storing * shape.heads * shape.dim * whole("tokens", tokens) * whole("batch", batch, 1)
    return Bytes(residual=numbers * dtype.itemsize)


def turned(x: Tensor, start: int) -> Tensor:
    """(..., t, d) numbers with rotary positions start, start + 1, ...: pairs (i, i + d / 2), base 10,000."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    place = torch.arange(start, start + x.shape[-2], dtype=torch.float64, device=x.device)
    angle = place[:, None] * frequencies
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def attend(scores: Tensor, past: int) -> Tensor:
    """Causal softmax of (..., q, t) scores, where query i stands at position past + i."""
    place = torch.arange(scores.shape[-1], device=scores.device)
    query = past + torch.arange(scores.shape[-2], device=scores.device)
    return scores.masked_fill(place > query[:, None], float("-inf")).softmax(-1)


class LatentAttention(nn.Module):
    r"""Multi-head latent attention, a toy of DeepSeek-V2's (arXiv 2405.04434, section 2.1)::

        c   = x W_down                     (b, t, latent)     stored
        k_r = RoPE(x W_rotary)             (b, t, rotary)     stored, one for all heads
        k   = [c W_k, k_r],  v = c W_v     (b, h, t, d [+ rotary])
        o   = softmax(q k^T / sqrt(d + rotary)) v

    `absorbed` never forms k and v: q c^T = (q W_k^T) c^T, and the weighted c is expanded once per query, so a step
    reads latent + rotary numbers per token. Queries are not compressed here.

    Args:
        size: m. heads: h. dim: d. latent: numbers of c. rotary: numbers of k_r, even. absorbed: as above.

    `forward(x, cache)` takes (b, q, m) and the pair (c, k_r) of earlier tokens or None, and returns the output and the
    new pair.
    """

    def __init__(self, size: int, heads: int, dim: int, latent: int, rotary: int, absorbed: bool = True):
        super().__init__()
        if whole("rotary", rotary) % 2:
            raise ValueError(f"rotary must be even, not {rotary}")
        self.heads, self.dim, self.rotary, self.absorbed = heads, dim, rotary, absorbed
        self.query = nn.Linear(size, heads * (dim + rotary), bias=False)
        self.down = nn.Linear(size, latent, bias=False)
        self.rotary_key = nn.Linear(size, rotary, bias=False)
        self.key_up = nn.Parameter(torch.randn(heads, latent, dim) * latent**-0.5)
        self.value_up = nn.Parameter(torch.randn(heads, latent, dim) * latent**-0.5)
        self.out = nn.Linear(heads * dim, size, bias=False)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        past = 0 if cache is None else cache[0].shape[1]
        c_btl, rotary_btr = self.down(x), turned(self.rotary_key(x), past)
        if cache is not None:
            c_btl, rotary_btr = torch.cat([cache[0], c_btl], 1), torch.cat([cache[1], rotary_btr], 1)
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        plain, turning = query[..., : self.dim], turned(query[..., self.dim :], past)
        scores = turning @ rotary_btr[:, None].mT
        if self.absorbed:
            scores = scores + (plain @ self.key_up.mT) @ c_btl[:, None].mT
        else:
            scores = scores + plain @ (c_btl[:, None] @ self.key_up).mT
        weights = attend(scores * (self.dim + self.rotary) ** -0.5, past)
        if self.absorbed:
            mixed = (weights @ c_btl[:, None]) @ self.value_up
        else:
            mixed = weights @ (c_btl[:, None] @ self.value_up)
        return self.out(mixed.transpose(1, 2).flatten(2)), (c_btl, rotary_btr)


class SharedLayers(nn.Module):
    """Attention layers of which each group of `share` reads the keys and values of its first (arXiv 2405.12981).

    Args:
        layers: L. share: layers of a group, at least 1. size: m. heads: h. dim: d, even.

    `forward(x, cache)` takes (b, q, m) and a list of ceil(L / share) pairs (keys, values) of shape (b, h, t, d) or
    None, and returns the output and the new list.
    """

    def __init__(self, layers: int, share: int, size: int, heads: int, dim: int):
        super().__init__()
        self.share, self.heads, self.dim = whole("share", share, 1), heads, dim
        storing = -(-whole("layers", layers, 1) // share)
        self.queries = nn.ModuleList(nn.Linear(size, heads * dim, bias=False) for _ in range(layers))
        self.outs = nn.ModuleList(nn.Linear(heads * dim, size, bias=False) for _ in range(layers))
        self.pairs = nn.ModuleList(nn.Linear(size, 2 * heads * dim, bias=False) for _ in range(storing))

    def forward(
        self, x: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        past = 0 if cache is None else cache[0][0].shape[2]
        kept: list[tuple[Tensor, Tensor]] = []
        for number, (to_query, out) in enumerate(zip(self.queries, self.outs, strict=True)):
            group, first = divmod(number, self.share)
            if not first:
                keys, values = self.pairs[group](x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
                keys = turned(keys, past)
                if cache is not None:
                    keys, values = torch.cat([cache[group][0], keys], 2), torch.cat([cache[group][1], values], 2)
                kept.append((keys, values))
            query = turned(to_query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), past)
            weights = attend(query @ kept[group][0].mT * self.dim**-0.5, past)
            x = x + out((weights @ kept[group][1]).transpose(1, 2).flatten(2))
        return x, kept
