"""Directions U V^T of low rank, added to weights without a dense product beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlopt.zeroth.directions import PIECE, draw, mix, noise_dtype
from dlopt.zeroth.directions import scratch as drawing


def sides(w: Tensor) -> tuple[int, int]:
    """(m, n) of a weight as a matrix: shape[0] rows."""
    m = w.shape[0]
    return m, w.numel() // m if m else 0


def add(w: Tensor, u: Tensor, v: Tensor, alpha: float, keep: float = 1.0, source: Tensor | None = None) -> None:
    """w = keep source + alpha u v^T, for w as a matrix; in half precision computed in float32 and rounded once.

    source: by default w itself.
    """
    source = w if source is None else source
    if not w.numel():
        return
    if not w.is_contiguous():
        whole = torch.empty(w.shape, dtype=w.dtype, device=w.device)
        add(whole, u, v, alpha, keep, source.contiguous())
        w.copy_(whole)
        return
    matrix, given = w.detach().view(sides(w)), source.detach().reshape(sides(w))
    if w.dtype == u.dtype:
        # the product itself is never stored
        torch.addmm(given, u, v.t(), beta=keep, alpha=alpha, out=matrix)
        return
    rows = _rows(w)
    for low in range(0, len(matrix), rows):
        part = slice(low, low + rows)
        matrix[part].copy_(given[part].to(u.dtype).addmm_(u[part], v.t(), beta=keep, alpha=alpha))


def scratch(w: Tensor, rank: int, directions: int = 1) -> int:
    """Bytes of U, V, what drawing them needs, and in half precision the piece that is worked on; or of two U, where
    several directions are averaged."""
    m, n = sides(w)
    kind = noise_dtype(w.dtype)
    piece = 0 if w.dtype == kind else min(m, _rows(w)) * n * kind.itemsize
    like = [torch.empty(m, rank, dtype=kind, device="meta"), torch.empty(n, rank, dtype=kind, device="meta")]
    both = (m + n) * rank * kind.itemsize + max(piece, drawing(like[1:]))
    return both if directions == 1 else max(both, 2 * m * rank * kind.itemsize + drawing(like[:1]))


def _rows(w: Tensor) -> int:
    return max(1, 4 * PIECE // max(1, sides(w)[1]))


class Plane:
    """U and V of every weight in one step of a run with these options, drawn again from their seeds."""

    def __init__(self, options: dict[str, Any], step: int) -> None:
        self.seed, self.rank, self.interval = options["seed"], options["rank"], options["interval"]
        self.beta, self.official = options["momentum"], options["scale"] == "official"
        self.direction = options["direction"]
        self.step, self.period = step, step // self.interval

    def u(self, index: int, w: Tensor, k: int = 0) -> Tensor:
        """(m, r), of direction k of this step."""
        return self._draw(w, sides(w)[0], mix(mix(self.seed, self.step), index, 2 * k + 1))

    def v(self, index: int, w: Tensor, period: int | None = None) -> Tensor:
        """(n, r), of this step's period or another one."""
        period = self.period if period is None else period
        return self._draw(w, sides(w)[1], mix(mix(self.seed, period), index, 2))

    def mean(self, index: int, w: Tensor, scalars: Sequence[float]) -> tuple[Tensor, float]:
        """(A, c) whose product is the mean over k of scalars[k] U_k; of one direction U itself and its scalar."""
        if len(scalars) == 1:
            return self.u(index, w), scalars[0]
        total = self.u(index, w).mul_(scalars[0] / len(scalars))
        for k, c in enumerate(scalars[1:], 1):
            total.add_(self.u(index, w, k), alpha=c / len(scalars))
        return total, 1.0

    def carry(self, index: int, w: Tensor, scalars: Sequence[float], state: dict[str, Any]) -> Tensor:
        """The momentum N (m, r) after this step, also kept in `state` with the period of the V that it belongs to."""
        u, c = self.mean(index, w, scalars)
        cu = u.mul_(c)
        if "momentum" not in state:
            state["momentum"] = cu if self.official else cu.mul_(1 - self.beta)
        else:
            if state["period"] != self.period:
                old, new = self.v(index, w, state["period"]), self.v(index, w)
                state["momentum"] = state["momentum"] @ (old.t() @ new).div_(max(1, len(new)))
            state["momentum"].mul_(self.beta).add_(cu.mul_(1 - self.beta))
        state["period"] = self.period
        return state["momentum"]

    def descend(self, index: int, w: Tensor, u: Tensor, c: float, lr: float, decay: float) -> None:
        """w -= lr (c u v^T / r + decay w)"""
        if lr == 0:
            return  # not w - 0: that would turn -0.0 into 0.0
        alpha = -lr * c if self.official else -lr * c / self.rank
        add(w, u, self.v(index, w), alpha, 1 - lr * decay)

    def _draw(self, w: Tensor, rows: int, seed: int) -> Tensor:
        z = draw(self.direction, torch.empty(rows, self.rank, dtype=w.dtype, device=w.device), seed)
        if self.direction == "sphere" and z.numel():
            z.mul_(math.sqrt(z.numel()) / float(torch.linalg.vector_norm(z, dtype=torch.float64)))
        return z
