"""How tensors are cut into blocks that share a number, and the table of a whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Blocks(NamedTuple):
    """One tensor cut along `axis`: `repeat` times over, for each (size, count) of `runs`, count blocks of size slices.

    Example: the output axis of a fused projection with 8 query heads and 2 key and value heads of width 64, whose
    values are cut by row, is ``Blocks(0, ((64, 8), (64, 2), (1, 128)))``. ``axis=None`` makes every element a block.
    """

    axis: int | None
    runs: tuple[tuple[int, int], ...]
    repeat: int = 1

    @property
    def total(self) -> int:
        """How many blocks there are."""
        return self.repeat * sum(count for _, count in self.runs)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the blocks cover a tensor of that shape exactly. A scalar counts as a vector of one."""
        shape = tuple(shape) or (1,)
        if self.axis is not None and not 0 <= self.axis < len(shape):
            return False
        length = math.prod(shape) if self.axis is None else shape[self.axis]
        whole = all(size > 0 and count >= 0 for size, count in self.runs)
        return whole and self.repeat * sum(size * count for size, count in self.runs) == length

    def pieces(self, x: Tensor) -> list[Tensor]:
        """Views of x, one for each run, of shape (repeat, count, size, ...). With axis None, x itself."""
        if self.axis is None:
            return [x]
        x = (x if x.dim() else x.view(1)).movedim(self.axis, 0).unflatten(0, (self.repeat, -1))
        parts = x.split([size * count for size, count in self.runs], dim=1)
        return [part.unflatten(1, (count, size)) for part, (size, count) in zip(parts, self.runs)]

    def numbers(self, v: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        """Views (repeat, count) of a vector v with one number for each block, in the order of `pieces`."""
        if self.axis is None:
            return [v.view(shape)]
        return list(v.view(self.repeat, -1).split([count for _, count in self.runs], dim=1))

    def __str__(self) -> str:
        if self.axis is None:
            return f"{self.total} of 1 element"
        cut = " + ".join(f"{count} of {size}" for size, count in self.runs)
        return f"{f'{self.repeat} x ({cut})' if self.repeat > 1 else cut} along axis {self.axis}"


def whole(tensor: Tensor) -> Blocks:
    """The tensor as one block; of nothing, where there is nothing along axis 0, there is none."""
    length = tensor.shape[0] if tensor.dim() else 1
    return Blocks(0, ((length, 1),) if length else ((1, 0),))


def slices(tensor: Tensor, axis: int = 0) -> Blocks:
    """One block for each slice along an axis: each output of a matrix, each token of an embedding."""
    return Blocks(axis, ((1, tensor.shape[axis]),))


def elements(tensor: Tensor) -> Blocks:
    """One block for each element."""
    return Blocks(None, ((1, tensor.numel()),))


@dataclass(frozen=True)
class Row:
    """One tensor of a partition: its name, its role in the model, its shape, its blocks."""

    name: str
    role: str
    shape: tuple[int, ...]
    blocks: Blocks


class Partition:
    """A table to print, or to index by parameter name; `find(tensor)` is the row of a parameter, or None."""

    def __init__(self) -> None:
        self._rows: dict[Tensor, Row] = {}

    def add(self, tensor: Tensor, name: str, role: str, blocks: Blocks) -> None:
        if not blocks.fits(tensor.shape):
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} cannot be cut into {blocks}")
        self._rows[tensor] = Row(name, role, tuple(tensor.shape), blocks)

    def find(self, tensor: Tensor) -> Row | None:
        return self._rows.get(tensor)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> Row:
        return {row.name: row for row in self}[name]

    def __str__(self) -> str:
        lines = [("name", "role", "shape", "blocks")]
        lines += [(row.name, row.role, " x ".join(map(str, row.shape)) or "scalar", str(row.blocks)) for row in self]
        widths = [max(len(line[i]) for line in lines) for i in range(3)] + [0]
        table = ["  ".join(map(str.ljust, line, widths)) for line in lines]
        count = sum(math.prod(row.shape) for row in self)
        blocks = sum(row.blocks.total for row in self)
        return "\n".join([*table, f"{len(self)} tensors, {count} elements, {blocks} blocks"])
