"""Adafactor's step for a matrix on a CPU: the same rule in passes over pieces of rows that stay in cache.

The update U is never formed before its size is known: RMS(U)^2 = a' (G * G) b / (m n) with a = mean(R) / R, b = 1 / C.
So a matrix is read once for the means of its squares, once for RMS(U) and once for the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlopt.adam._shared import CHUNK, state_dtype


def takes(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether this is for such a tensor and such options; a meta tensor counts as one on a CPU."""
    plain = group["factored"] and group["beta1"] is None and not group["eps_floor"]
    return plain and p.dim() == 2 and p.numel() > 0 and p.device.type in ("cpu", "meta") and p.is_contiguous()


def scratch(p: Tensor) -> int:
    """Bytes that `update` holds in arrays of a piece's shape."""
    piece = min(p.numel(), _rows(p) * p.shape[1])
    return piece * state_dtype(p).itemsize * (1 if p.dtype == state_dtype(p) else 2)


def update(
    p: Tensor, state: dict[str, Any], rate: float, rho: float, keep: float, least: float | None, d: float, eps1: float
) -> None:
    """W = keep W - rho size U / max(1, RMS(U) / d), after R and C took in the gradient with weight `rate`.

    size: max(least, RMS(W)) before the step, or 1 where `least` is None. rho < 0 ascends.
    """
    kind, (m, n) = state_dtype(p), p.shape
    row, col = state["row"], state["col"]
    means, total = torch.empty_like(row), torch.zeros_like(col)
    buffer = row.new_empty(min(m, _rows(p)), n)
    for g, part in _pieces(p, p.grad, means):
        squared = _squares(g.to(kind), buffer)
        torch.mean(squared, dim=1, out=part)
        total += squared.sum(dim=0)
    row.lerp_(means.add_(eps1), rate)
    col.lerp_(total.div_(m).add_(eps1), rate)

    a, b = (row / row.mean()).rsqrt_(), col.rsqrt()
    b2, size = b * b, 0.0
    for g, part in _pieces(p, p.grad, a):
        if m > _rows(p):  # else the squares are still there
            squared = _squares(g.to(kind), buffer)
        # a twice: its square alone could overflow where a row of G is 0
        size += float(torch.dot(part, (squared @ b2).mul_(part)))
    rho /= max(1.0, math.sqrt(size / (m * n)) / d) if math.isfinite(size) else math.nan
    if least is not None:
        rho *= max(least, float(torch.linalg.vector_norm(p, dtype=kind)) / math.sqrt(m * n))

    for g, part, piece in _pieces(p, p.grad, a, p):
        step = torch.mul(g, part.unsqueeze(-1), out=buffer[: len(g)])
        w = piece.to(kind)
        if keep != 1:
            w.mul_(keep)
        w.addcmul_(step, b, value=-rho)
        if w is not piece:
            piece.copy_(w)
            del w  # before the next one


def _squares(g: Tensor, buffer: Tensor) -> Tensor:
    return torch.mul(g, g, out=buffer[: len(g)])


def _rows(p: Tensor) -> int:
    return max(1, CHUNK // p.shape[1])


def _pieces(p: Tensor, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors cut in the same places along their first axis, the pieces of p as large as fits the cache."""
    return (tensors,) if len(p) <= _rows(p) else zip(*(t.split(_rows(p)) for t in tensors))
