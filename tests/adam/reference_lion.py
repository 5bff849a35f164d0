"""Lion from its formulas: float64 loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lion(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> np.ndarray:
    """The weights after all gradients."""
    w, (b1, b2) = np.array(w, dtype=np.float64), betas
    m = np.zeros_like(w)
    for g in gradients:
        for i in np.ndindex(w.shape):
            c = b1 * m[i] + (1 - b1) * g[i]
            sign = 1 if c > 0 else -1 if c < 0 else 0
            w[i] = w[i] - lr * (sign + weight_decay * w[i])
            m[i] = b2 * m[i] + (1 - b2) * g[i]
    return w
