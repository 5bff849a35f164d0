"""Bytes by kind: what a method says it needs (`memory(...)`) and what the lab counts, in the same words.

All numbers are bytes. A prediction and a count of the same run can be compared kind by kind; the tests do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Bytes:
    """Bytes by kind. Kinds that were not asked for are 0.

    weights: parameters and buffers. gradients: `.grad` or what stands for it. state: what an optimizer keeps
    between steps. scratch: largest temporary inside a step. saved: activations kept for the backward pass.
    cache: keys and values kept for decoding. wire: bytes sent to other nodes.

    A compressed cache is split further: codes (packed integers), scales (with zero points), residual (keys and values
    in the model's own precision), scores (what eviction goes by). transient: largest copy that one layer hands to
    attention.
    """

    weights: int = 0
    gradients: int = 0
    state: int = 0
    scratch: int = 0
    saved: int = 0
    cache: int = 0
    wire: int = 0
    codes: int = 0
    scales: int = 0
    residual: int = 0
    scores: int = 0
    transient: int = 0

    @property
    def total(self) -> int:
        """Bytes held at once: all kinds but `wire`, which is traffic, and `transient`, which comes and goes."""
        return sum(getattr(self, f.name) for f in fields(self)) - self.wire - self.transient

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def as_dict(self) -> dict[str, int]:
        """{kind: bytes} of the kinds that are not 0."""
        return {kind: count for kind, count in asdict(self).items() if count}


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors: a tied or viewed tensor counts once.

    A storage is counted whole, also where a tensor shows only a part of it, since the whole stays in memory.
    """
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        # meta storages have no address, so a view of one is told by its identity instead
        storages[storage.data_ptr() or storage._cdata] = storage.nbytes()
    return sum(storages.values())


def human(count: float) -> str:
    """A number of bytes for people: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
