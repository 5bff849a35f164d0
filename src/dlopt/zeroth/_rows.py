"""Embeddings and heads at shifted weights by rows, so that no copy of a whole weight is needed.

An embedding gets a table of the shifted rows that its input looks up. A linear layer is computed in pieces of its
outputs, one after the other, each from a shifted copy of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dlopt.zeroth.perturb import Hooked, Shift, Trained


def by_rows(module: nn.Module, rows: int) -> bool:
    """Whether the weight of this module is shifted by rows: plain layers with more than `rows` > 0 of them."""
    if type(module) not in (nn.Linear, nn.Embedding) or "forward" in vars(module):
        return False  # a subclass, or a module whose forward somebody replaced, may read its weight as it likes
    if getattr(module, "max_norm", None) is not None:
        return False  # such an embedding changes its own weights as it is called
    return 0 < rows < module.weight.shape[0]


def embedding(hooked: Hooked, module: nn.Embedding, t: Trained, rows: int, shift: Shift) -> Callable[[Tensor], Any]:
    """A forward of an embedding at shifted weights."""
    plain, w = module.forward, t.tensor.detach()

    def forward(ids: Tensor) -> Any:
        if hooked.depth[t.index]:  # a module around this one has shifted the weight
            return plain(ids)
        used, places = ids.unique(return_inverse=True)  # sorted
        table = torch.empty(len(used), w.shape[1], dtype=w.dtype, device=w.device)
        with hooked.shifted(t, table):
            for low in range(0, len(w), rows):
                inside = (used >= low) & (used < low + rows)
                if inside.any():
                    old = w[low : low + rows]
                    part = torch.empty_like(old)
                    shift(t.index, part, old, low * w.shape[1], w.numel())
                    table[inside] = part[used[inside] - low]
            return table[places]

    return forward


def linear(hooked: Hooked, module: nn.Linear, t: Trained, rows: int, shift: Shift) -> Callable[[Tensor], Any]:
    """A forward of a linear layer at shifted weights."""
    plain, w = module.forward, t.tensor.detach()

    def forward(x: Tensor) -> Any:
        if hooked.depth[t.index]:
            return plain(x)
        bias, out = module.bias, None
        part = torch.empty_like(w[:rows])
        with hooked.shifted(t, part):
            for low in range(0, len(w), rows):
                old = w[low : low + rows]
                now = part[: len(old)]
                shift(t.index, now, old, low * w.shape[1], w.numel())
                y = nn.functional.linear(x, now, None if bias is None else bias[low : low + rows])
                if out is None:
                    out = y.new_empty(*y.shape[:-1], len(w))
                out[..., low : low + rows] = y
                del y
        return out

    return forward


def forward_by_rows(hooked: Hooked, module: nn.Module, t: Trained, rows: int, shift: Shift) -> Callable[[Tensor], Any]:
    """What stands in for `module.forward` during a shifted forward pass."""
    make = embedding if isinstance(module, nn.Embedding) else linear
    return make(hooked, module, t, rows, shift)
