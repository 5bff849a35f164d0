"""What each position sees in one forward pass: worked out once, shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlopt.transformer.sparse import Pattern, alibi


@dataclass
class Scope:
    """The keys that the queries of a forward pass may see, and where both stand.

    query, key: integer positions, (t,) and (s,), or (b, t) and (b, s) where rows are padded differently. first: index
    of the first query among the keys; 0 but for a filled cache. real: bool (b, s), False at padding; None for no
    padding. causal: a position sees itself and earlier ones only. rotation: tables of `RoPE` for the queries. slopes:
    (h,) of ALiBi. A padded query sees itself, whatever else it sees, so that nothing becomes NaN.
    """

    query: Tensor
    key: Tensor
    first: int = 0
    real: Tensor | None = None
    causal: bool = True
    rotation: tuple[Tensor, Tensor] | None = None
    slopes: Tensor | None = None
    _made: dict[object, Tensor | None] = field(default_factory=dict)

    @property
    def steady(self) -> bool:
        """Whether queries and keys are the same unpadded positions 0, 1, ..."""
        return self.first == 0 and self.real is None

    def offsets(self) -> Tensor:
        """j - i: (t, s) or (b, 1, t, s)."""
        offsets = self.key[..., None, :] - self.query[..., :, None]
        return offsets[:, None] if offsets.ndim == 3 else offsets

    def seen(self, pattern: Pattern) -> Tensor | None:
        """Bool (t, s), (b, 1, t, s) or (b, 1, 1, s): what is seen under a pattern; None for everything."""
        if pattern not in self._made:
            self._made[pattern] = self._seen(pattern)
        return self._made[pattern]

    def _seen(self, pattern: Pattern) -> Tensor | None:
        if not self.causal:
            return None if self.real is None else self.real[:, None, None]
        queries, keys = self.query.shape[-1], self.key.shape[-1]
        if pattern.kind == "full" and queries == 1 and self.real is None:
            return None  # the newest position sees all that the cache holds
        seen = pattern.seen(self.query[..., :, None], self.key[..., None, :])
        if self.real is None:
            return seen
        # padding on the left shares position 0 with the first real token, so the order is taken from the index
        at = torch.arange(keys, device=self.key.device)
        now = at[self.first :, None]
        real = self.real[:, None]
        return ((seen & (at <= now) & real) | ((at == now) & ~real))[:, None]

    def mask(self, patterns: tuple[Pattern, ...], heads: int, dtype: torch.dtype) -> Tensor | None:
        """What torch's attention takes: None, bool, or ALiBi's float scores; two patterns take half the heads each."""
        key = (patterns, heads, dtype)
        if key not in self._made:
            masks = [self.seen(p) for p in patterns]
            seen = masks[0] if len(masks) == 1 else torch.cat([_expanded(m, heads // 2) for m in masks], dim=1)
            if self.slopes is not None:
                seen = alibi(self.slopes, self.offsets(), seen, dtype)
            self._made[key] = seen
        return self._made[key]


def _expanded(mask: Tensor | None, heads: int) -> Tensor:
    assert mask is not None, "only full attention alone needs no mask"
    mask = mask if mask.ndim == 4 else mask[None, None]
    return mask.expand(-1, heads, -1, -1)
