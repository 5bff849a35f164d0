"""Muon for matrices and AdamW for the rest, from their formulas: NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def muon(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = True,
    ns_steps: int = 5,
    original: bool = False,
) -> np.ndarray:
    """The weights after all gradients; dimensions after the first are taken as one."""
    shape, w = w.shape, np.array(w, dtype=np.float64).reshape(len(w), -1)
    rows, cols = w.shape
    m = np.zeros_like(w)
    for g in gradients:
        g = g.reshape(w.shape)
        m = momentum * m + (1 - momentum) * g
        u = (1 - momentum) * g + momentum * m if nesterov else m
        s = math.sqrt(max(1, rows / cols)) if original else 0.2 * math.sqrt(max(rows, cols))
        w = w - lr * weight_decay * w - lr * s * newton_schulz(u, ns_steps)
    return w.reshape(shape)


def newton_schulz(u: np.ndarray, steps: int) -> np.ndarray:
    """The odd polynomial a s + b s^3 + c s^5, applied `steps` times to every singular value of u / norm(u)."""
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / max(float(np.sqrt((s**2).sum())), 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left @ np.diag(s) @ right


def adamw(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> np.ndarray:
    """The weights after all gradients."""
    w, (b1, b2) = np.array(w, dtype=np.float64), betas
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        for i in np.ndindex(w.shape):
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            w[i] = (1 - lr * weight_decay) * w[i]
            w[i] -= lr * (m[i] / (1 - b1**t)) / (math.sqrt(v[i] / (1 - b2**t)) + eps)
    return w
