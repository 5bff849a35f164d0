"""The rows of a batch: how many columns were seen, how many of them are left padding.

All caches keep one rule, which makes the masks of transformers fit as they are. A store holds n columns, the newest on
the right, and **every row holds all its tokens or exactly n of them**, so row r has min(n, seen - pads[r]) tokens at
the right end and what is left of them is masked. transformers asks a cache for kv_length = n + q and
kv_offset = seen - n, and then reads the mask of column j at `attention_mask[r, seen - n + j]`, which is 0 for
max(0, n - (seen - pads[r])) columns at the left: the same ones. So a row may evict at its own time, as long as it
evicts down to the common n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """seen: columns since the start, pads included. pads: left pads of each row, None where no row has any."""

    seen: int
    pads: tuple[int, ...] | None = None

    def held(self, length: int, device: torch.device | None = None) -> Tensor:
        """(B,) tokens of each row in a store of `length` columns: min(length, tokens of the row).

        Without pads (1,), which broadcasts.
        """
        pads = torch.tensor(self.pads or (0,), device=device)
        return (self.seen - pads).clamp(0, length)

    def valid(self, length: int, device: torch.device | None = None) -> Tensor:
        """(B, length) True where a column holds a token; (1, length) without pads."""
        held = self.held(length, device)
        return torch.arange(length, device=device) >= length - held[:, None]

    def lost(self, length: int) -> tuple[int, ...]:
        """How many tokens of each row a store of `length` columns no longer holds; one number without pads."""
        return tuple(max(0, self.seen - pads - length) for pads in self.pads or (0,))


def pads_of(attention_mask: Tensor | Sequence[Sequence[int]] | None) -> tuple[int, ...] | None:
    """Left pads of each row of a (B, T) mask of 0 and 1; None where there are none.

    Raises:
        ValueError: for another shape, or for zeros that are not at the left.
    """
    if attention_mask is None:
        return None
    mask = torch.as_tensor(attention_mask)
    if mask.ndim != 2 or not mask.shape[1]:
        raise ValueError(f"attention_mask must have shape (batch, tokens), not {tuple(mask.shape)}")
    mask = mask.to("cpu", torch.bool)
    counts = (~mask).sum(1)
    if not torch.equal(mask, torch.arange(mask.shape[1]) >= counts[:, None]):
        row = int((mask != (torch.arange(mask.shape[1]) >= counts[:, None])).any(1).nonzero()[0])
        raise ValueError(
            f"row {row} of attention_mask has zeros that are not at its left end; a cache serves left padding "
            '(tokenizer.padding_side = "left")'
        )
    return tuple(counts.tolist()) if counts.any() else None


def pick(tensor: Tensor, columns: Tensor) -> Tensor:
    """Columns of a (B, H, T, ...) tensor: `columns` is (B, n), the same for all heads, or (B, H, n)."""
    if columns.ndim == 2:
        columns = columns[:, None].expand(-1, tensor.shape[1], -1)
    index = columns.reshape(*columns.shape, *[1] * (tensor.ndim - 3)).expand(*columns.shape, *tensor.shape[3:])
    return tensor.gather(2, index)
