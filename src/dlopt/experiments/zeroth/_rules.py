"""The rules of the official codes where they differ from the papers, written anew from their behaviour, and small.

MeZO's walk to the shifted weights and back; LOZO's draws at a change of V; MeZO-SVRG's anchor that is the live weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def walk(weights: Tensor, eps: float, seed: int) -> None:
    """MeZO at lr = 0: W + eps z, then - 2 eps z, then + eps z, each rounded; z is drawn anew in the weights' dtype."""
    for factor in (1, -2, 1):
        generator = torch.Generator().manual_seed(seed)
        z = torch.empty_like(weights).normal_(generator=generator)
        weights.add_(factor * z * eps)


class OfficialLOZO:
    """LOZO as published: U (m x r) and V (n x r) of all matrices come one after the other from one stream per step.

    Where V is new, the perturbation draws V and then U from the step's seed; the update starts the stream again and
    draws U at once, so it gets the numbers that V got before, and all later tensors, vectors too, are out of step.
    No 1/r: compare with LOZO(scale="official").
    """

    def __init__(
        self, params: Sequence[Tensor], lr: float, rank: int = 2, interval: int = 50, eps: float = 1e-3, seed: int = 0
    ) -> None:
        self.params, self.lr, self.rank, self.interval, self.eps = list(params), lr, rank, interval, eps
        self.seed, self.steps = seed, 0
        self.v: dict[int, Tensor] = {}

    def _directions(self, renew: bool) -> list[Tensor]:
        """The directions of all tensors; renew: draw V too, where the stream stands."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.steps)

        def normal(*shape: int, like: Tensor) -> Tensor:
            return torch.empty(shape, dtype=like.dtype).normal_(generator=generator)

        found = []
        for i, p in enumerate(self.params):
            if p.dim() < 2:
                found.append(normal(*p.shape, like=p))
                continue
            matrix = p.reshape(len(p), -1)
            if renew:
                self.v[i] = normal(matrix.shape[1], self.rank, like=p)
            found.append((normal(len(p), self.rank, like=p) @ self.v[i].T).reshape(p.shape))
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> tuple[float, list[Tensor], list[Tensor]]:
        """(mean loss, the perturbation's directions, those of the update)."""
        renew = self.steps % self.interval == 0
        start = [p.clone() for p in self.params]
        seen = self._directions(renew)
        losses = []
        for eps in (self.eps, -self.eps):
            for p, w, z in zip(self.params, start, seen):
                p.copy_(w + eps * z)
            losses.append(float(closure()))
        used = self._directions(renew=False)
        c = (losses[0] - losses[1]) / (2 * self.eps)
        for p, w, z in zip(self.params, start, used):
            p.copy_(w - self.lr * c * z)
        self.steps += 1
        return sum(losses) / 2, seen, used


@torch.no_grad()
def aliased_correction(
    params: Sequence[Tensor], closure: Callable[[], Tensor], eps: float, seeds: tuple[int, int]
) -> list[Tensor]:
    """MeZO-SVRG's correction when the anchor is the live weights and both estimates draw their own direction.

    (The official code also lets the first estimate move the weights before the second; that is of the order of lr.)
    """
    start = [p.clone() for p in params]
    estimates = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        zs = [torch.empty_like(p).normal_(generator=generator) for p in params]
        losses = []
        for shift in (eps, -eps):
            for p, w, z in zip(params, start, zs):
                p.copy_(w + shift * z)
            losses.append(float(closure()))
        estimates.append([(losses[0] - losses[1]) / (2 * eps) * z for z in zs])
    for p, w in zip(params, start):
        p.copy_(w)
    return [a - b for a, b in zip(*estimates)]
