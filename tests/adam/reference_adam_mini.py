"""Adam-mini from its formulas: float64 loops over the elements of each block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def adam_mini(
    w: np.ndarray,
    block_of: np.ndarray,
    gradients: Sequence[np.ndarray],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> np.ndarray:
    """The weights after all gradients; `block_of` has the shape of w and holds the number of each element's block."""
    w, (b1, b2) = np.array(w, dtype=np.float64), betas
    members = [list(map(tuple, np.argwhere(block_of == b))) for b in range(int(block_of.max()) + 1)]
    m, v = np.zeros_like(w), [0.0] * len(members)
    for t, g in enumerate(gradients, start=1):
        for b, inside in enumerate(members):
            v[b] = b2 * v[b] + (1 - b2) * sum(float(g[i]) ** 2 for i in inside) / len(inside)
            root = math.sqrt(v[b] / (1 - b2**t)) + eps
            for i in inside:
                m[i] = b1 * m[i] + (1 - b1) * g[i]
                w[i] = (1 - lr * weight_decay) * w[i] - lr * (m[i] / (1 - b1**t)) / root
    return w
