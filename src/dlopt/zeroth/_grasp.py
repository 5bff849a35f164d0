"""How many coordinates each layer gets (ZO-GraSP), and which ones: random masks drawn again from integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlopt.zeroth.estimators import random_gradient, shifted

RANKS = ("paper", "official", "uniform")


def allocate(
    loss: Callable[[], Any], weights: Sequence[Tensor], sparsity: float, rank: str, q: int, mu: float, seed: int
) -> tuple[list[int] | None, int]:
    """(coordinates per tensor, or None where a loss is not finite; forward passes), by one of RANKS."""
    if rank == "uniform" or not weights:
        return uniform_counts([w.numel() for w in weights], sparsity), 0
    found, forwards = scores(loss, weights, q, mu, seed)
    finite = all(bool(s.isfinite().all()) for s in found)
    return counts_by_score(found, sparsity, rank) if finite else None, forwards


def scores(
    loss: Callable[[], Any], weights: Sequence[Tensor], q: int, mu: float, seed: int
) -> tuple[list[Tensor], int]:
    """([-W Hg, shaped like the weights], forward passes), with Hg = (RGE(W + mu g) - RGE(W)) / mu and g = RGE(W).

    Source: arXiv 2310.02025, equation 3. Both estimates use the same directions, so that their noise does not enter
    the difference (the official code draws others for the second).
    """
    first = random_gradient(loss, weights, q=q, mu=mu, seed=seed)
    with shifted(weights, first.gradients, mu):
        second = random_gradient(loss, weights, q=q, mu=mu, seed=seed)
    curved = [(after - before) / mu for after, before in zip(second.gradients, first.gradients, strict=True)]
    return [-(w * hg) for w, hg in zip(weights, curved, strict=True)], first.forwards + second.forwards


def counts_by_score(found: Sequence[Tensor], sparsity: float, rank: str) -> list[int]:
    """Coordinates per layer: those left when a share `sparsity` of all is dropped by score.

    rank "paper": drop the largest signed scores, as GraSP does; "official": the smallest absolute ones. A layer that
    would be left without any gets 1, taken from the layer with the most, so the sum stays exact.
    """
    flat = torch.cat([s.reshape(-1) for s in found])
    flat = -flat.abs() if rank == "official" else flat
    order = torch.argsort(flat, stable=True)[: kept(len(flat), len(found), sparsity)]
    ends = torch.tensor([s.numel() for s in found], device=flat.device).cumsum(0)
    layer = torch.bucketize(order, ends, right=True)
    return _at_least_one(torch.bincount(layer, minlength=len(found)).tolist())


def uniform_counts(sizes: Sequence[int], sparsity: float) -> list[int]:
    """Coordinates per layer in proportion to its size (largest remainders), at least 1 each."""
    if not sizes:
        return []
    total = kept(sum(sizes), len(sizes), sparsity)
    exact = [total * size / sum(sizes) for size in sizes]
    found = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: found[i] - exact[i])
    for i in by_remainder[: total - sum(found)]:
        found[i] += 1
    return _at_least_one(found)


def kept(elements: int, layers: int, sparsity: float) -> int:
    """How many of all elements stay at a sparsity, rounded; at least one for every layer."""
    return max(layers, elements - round(elements * sparsity))


def mask(count: int, elements: int, seed: int) -> Tensor:
    """`count` different flat indices below `elements`, in ascending order; drawn on the CPU, so devices agree."""
    if count == elements:
        return torch.arange(elements)
    order = torch.randperm(elements, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


def _at_least_one(found: list[int]) -> list[int]:
    for i, count in enumerate(found):
        if count == 0:
            found[max(range(len(found)), key=found.__getitem__)] -= 1
            found[i] = 1
    return found
