"""Gradients from loss values alone: one coordinate at a time (CGE) or along random directions (RGE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlopt.zeroth.directions import DIRECTIONS, draw, mix, noise_dtype


@dataclass(frozen=True)
class Estimate:
    """gradients: one per tensor, of its shape (float32 for half-precision weights, else their dtype). loss: L(W);
    with central differences the mean of all losses. forwards: how often the loss was computed."""

    gradients: list[Tensor]
    loss: float
    forwards: int


@torch.no_grad()
def coordinate_gradient(
    loss: Callable[[], Any],
    params: Iterable[Tensor],
    coordinates: Sequence[Tensor | None] | None = None,
    *,
    mu: float = 1e-3,
    central: bool = False,
) -> Estimate:
    r"""Coordinate-wise estimate (CGE; arXiv 2310.02025, section 3)::

        g_i = (L(W + mu e_i) - L(W)) / mu                   for i in the coordinates, 0 elsewhere; n + 1 forwards
        g_i = (L(W + mu e_i) - L(W - mu e_i)) / (2 mu)      central: 2 n forwards, exact where L is quadratic

    The divisor is the step that rounding lets the weight make (at least to the next number of its dtype), so a
    large weight in low precision is not estimated as 0.

    Args:
        loss: runs the forward pass on the current weights and returns the loss, a number.
        params: the tensors W. They are changed in place during the call and come back bit for bit.
        coordinates: per tensor, the flat (row-major) indices to estimate, or None for all of them. Default: all.
        mu: size of the step, above 0.

    Raises:
        ValueError: for mu out of range or coordinates that do not fit the tensors.

    Example:
        >>> import torch
        >>> from dlopt.zeroth.estimators import coordinate_gradient
        >>> w = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        >>> found = coordinate_gradient(lambda: w.square().sum(), [w], [torch.tensor([0, 2])], mu=0.5, central=True)
        >>> found.gradients[0].tolist(), found.forwards, w.tolist()
        ([2.0, 0.0, 6.0], 4, [1.0, -2.0, 3.0])
    """
    params = list(params)
    _positive("mu", mu)
    chosen = _coordinates(params, coordinates)
    losses = [] if central else [number(loss())]
    gradients = []
    for p, indices in zip(params, chosen, strict=True):
        g = torch.zeros(p.shape, dtype=noise_dtype(p.dtype), device=p.device)
        old = values(p, indices)
        up, step_up = stepped(old, mu)
        down, step_down = stepped(old, -mu)
        for k, place in enumerate(places(p, indices)):
            above = loss_at(loss, p, place, up[k])
            losses.append(above)
            if central:
                losses.append(loss_at(loss, p, place, down[k]))
                g[place] = (above - losses[-1]) / float(step_up[k] - step_down[k])
            else:
                g[place] = (above - losses[0]) / float(step_up[k])
        gradients.append(g)
    return Estimate(gradients, float(np.mean(losses)) if central and losses else losses[0], len(losses))


@torch.no_grad()
def random_gradient(
    loss: Callable[[], Any],
    params: Iterable[Tensor],
    *,
    q: int = 1,
    mu: float = 1e-3,
    seed: int = 0,
    direction: str = "gaussian",
    central: bool = False,
) -> Estimate:
    r"""Random-direction estimate (RGE; arXiv 2310.02025, section 3), unbiased where L is quadratic::

        g = mean over k = 1..q of (L(W + mu z_k) - L(W)) / mu z_k                      q + 1 forwards
        g = mean over k = 1..q of (L(W + mu z_k) - L(W - mu z_k)) / (2 mu) z_k         central: 2 q forwards

    Args:
        loss, params, mu: as for `coordinate_gradient`.
        q: number of directions, at least 1.
        seed: an integer that, with k and a tensor's place in `params`, determines z_k.
        direction: "gaussian" N(0, I); "rademacher" signs; "sphere", uniform on norm(z) = sqrt(n).
            (The official code takes a sphere of radius 1 for each tensor, which shrinks every tensor's gradient by its
            own number of elements.)

    Raises:
        ValueError: for an argument out of range.
    """
    params = list(params)
    _positive("mu", mu)
    if isinstance(q, bool) or not isinstance(q, int) or q < 1:
        raise ValueError(f"q={q!r} is out of range: it must be an integer, at least 1")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} is unknown: it must be one of {', '.join(DIRECTIONS)}")
    if not params:
        raise ValueError("params is empty, so there is nothing to estimate")
    losses = [] if central else [number(loss())]
    gradients = [torch.zeros(p.shape, dtype=noise_dtype(p.dtype), device=p.device) for p in params]
    for k in range(q):
        zs = [draw(direction, p, mix(seed, k, index)) for index, p in enumerate(params)]
        if direction == "sphere":
            squares = sum(float(torch.linalg.vector_norm(z, dtype=torch.float64)) ** 2 for z in zs)
            zs = [z.mul_(math.sqrt(sum(p.numel() for p in params) / squares)) for z in zs]
        with shifted(params, zs, mu):
            losses.append(number(loss()))
        if central:
            with shifted(params, zs, -mu):
                losses.append(number(loss()))
            slope = (losses[-2] - losses[-1]) / (2 * mu)
        else:
            slope = (losses[-1] - losses[0]) / mu
        for g, z in zip(gradients, zs, strict=True):
            g.add_(z, alpha=slope / q)
    return Estimate(gradients, float(np.mean(losses)) if central else losses[0], len(losses))


@contextmanager
def shifted(params: Sequence[Tensor], zs: Sequence[Tensor], scale: float) -> Any:
    """Within the block the tensors are W + scale z, rounded once; after it they are W, bit for bit."""
    copies = [p.clone() for p in params]
    try:
        for p, z in zip(params, zs, strict=True):
            p.copy_(z.mul(scale).add_(p))
        yield
    finally:
        try:
            _back(params, copies)
        except KeyboardInterrupt:
            _back(params, copies)  # Ctrl-C must not leave some of them shifted
            raise


def _back(params: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for p, copy in zip(params, copies, strict=True):
        p.copy_(copy)


def values(p: Tensor, indices: Tensor) -> Tensor:
    """The elements of a tensor at flat (row-major) indices, whatever its layout in memory."""
    return p.detach().reshape(-1)[indices]


def stepped(old: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """(old + mu in the same dtype, moved by at least one representable number; the true steps, float64)."""
    new = (old.to(noise_dtype(old.dtype)) + mu).to(old.dtype)
    if bool((new == old).any()):
        if old.dtype.itemsize < 4:  # neighbours of a half-precision number, through its bits
            bits = old.view(torch.int16)
            away = (old > 0) == (mu > 0)  # away from zero: the next larger bit pattern
            near = torch.where(away, bits + 1, bits - 1)
            near = torch.where(old == 0, 1 if mu > 0 else 1 - 2**15, near).to(torch.int16).view(old.dtype)
        else:
            near = torch.nextafter(old, torch.full_like(old, math.copysign(math.inf, mu)))
        new = torch.where(new == old, near, new)
    return new, new.double() - old.double()


def places(p: Tensor, indices: Tensor) -> list[tuple[int, ...]]:
    """Flat (row-major) indices as indices into the tensor, whatever its layout in memory."""
    axes = np.unravel_index(indices.cpu().numpy(), tuple(p.shape)) if p.dim() else ()
    return [tuple(int(axis[k]) for axis in axes) for k in range(len(indices))]


def loss_at(loss: Callable[[], Any], p: Tensor, place: tuple[int, ...], new: Tensor) -> float:
    """The loss with one element replaced, which then comes back bit for bit."""
    old = p[place].clone()
    try:
        p[place] = new
        return number(loss())
    finally:
        p[place] = old


def number(loss: Any) -> float:
    """A loss as a float; ValueError if it is a tensor of several numbers."""
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the loss must be one number, but it is a tensor of shape {tuple(loss.shape)}")
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except TypeError:
        raise TypeError(f"the loss must be a scalar tensor or a float, not {loss!r}") from None


def _coordinates(params: Sequence[Tensor], coordinates: Sequence[Tensor | None] | None) -> list[Tensor]:
    if not params:
        raise ValueError("params is empty, so there is nothing to estimate")
    given = [None] * len(params) if coordinates is None else list(coordinates)
    if len(given) != len(params):
        raise ValueError(f"coordinates has {len(given)} entries for {len(params)} tensors: give one for each")
    found = []
    for p, indices in zip(params, given, strict=True):
        if indices is None:
            indices = torch.arange(p.numel(), device=p.device)
        indices = torch.as_tensor(indices, device=p.device)
        if indices.dim() != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError("coordinates of a tensor must be a list of integers: flat indices")
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= p.numel()):
            raise ValueError(f"a coordinate is out of range: the tensor has {p.numel()} elements")
        found.append(indices.long())
    if not any(map(len, found)):
        raise ValueError("coordinates is empty for every tensor, so there is nothing to estimate")
    return found


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} is out of range: it must be above 0")
