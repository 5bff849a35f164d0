"""Random directions drawn again from integers whenever they are needed, so that none has to be kept.

The direction of one tensor depends on four integers only: the run's seed, the step, which of the step's directions
it is, and the tensor's index. torch's global generators are never touched, and the order in which tensors are
visited cannot matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

DIRECTIONS = ("gaussian", "rademacher", "sphere")


def mix(*integers: int) -> int:
    """One integer in [0, 2^63) from several: a hash, so that neighbouring seeds and steps share nothing."""
    text = ",".join(map(str, integers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Directions of half-precision weights are drawn and added in float32; the sum is rounded once."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def draw(direction: str, like: Tensor, seed: int) -> Tensor:
    """A direction shaped like a tensor, on its device, in `noise_dtype`, contiguous whatever `like` is.

    "gaussian" and "sphere": N(0, 1) numbers (a sphere still has to be multiplied by `sphere_factor`).
    "rademacher": -1 or 1. Drawn whole and serially, so the number of threads does not matter.
    """
    generator = torch.Generator(device=like.device).manual_seed(seed)
    z = torch.empty(like.shape, dtype=noise_dtype(like.dtype), device=like.device)
    if direction == "rademacher":
        return z.random_(0, 2, generator=generator).mul_(2).sub_(1)
    return z.normal_(generator=generator)


def sphere_factor(tensors: Iterable[tuple[int, Tensor]], seed: int) -> float:
    """sqrt(d) / norm(z) over all (index, tensor) together: brings z to the sphere on which E[z z^T] = I."""
    d, squares = 0, 0.0
    for index, p in tensors:
        z = draw("sphere", p, mix(seed, index))
        squares += float(torch.linalg.vector_norm(z, dtype=torch.float64)) ** 2
        d += p.numel()
    return math.sqrt(d / squares)


class Directions:
    """The n directions of one step, over all trained (index, tensor) pairs."""

    def __init__(self, direction: str, n: int, step_seed: int, tensors: Sequence[tuple[int, Tensor]]) -> None:
        self.direction = direction
        self.seeds = [mix(step_seed, k) for k in range(n)]
        # the radius of a joint sphere is known only after a pass over all tensors
        self.factors = [sphere_factor(tensors, s) if direction == "sphere" else 1.0 for s in self.seeds]

    def z(self, k: int, index: int, like: Tensor, scale: float) -> Tensor:
        """scale times direction k of the tensor with that index, newly drawn."""
        return draw(self.direction, like, mix(self.seeds[k], index)).mul_(scale * self.factors[k])

    def descend(self, index: int, p: Tensor, scalars: Sequence[float], lr: float, weight_decay: float) -> None:
        """p -= lr (mean over k of scalars[k] z_k + weight_decay p), computed in `noise_dtype` and rounded once."""
        if lr == 0:
            return  # not p - 0: that would turn -0.0 into 0.0
        total = self.z(0, index, p, scalars[0] / len(scalars))
        for k in range(1, len(scalars)):
            total += self.z(k, index, p, scalars[k] / len(scalars))
        if weight_decay:
            total += p.to(total.dtype, copy=True).mul_(weight_decay)
        # product and sum apart: a fused multiply-add would round differently from one machine to the next
        p.copy_(total.mul_(-lr).add_(p))
