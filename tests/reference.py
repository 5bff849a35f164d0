"""Readable twins of the fast implementations: plain loops over NumPy arrays in float64, written from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray


def rms(x: Array) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in x.flat) / x.size)


def adafactor(
    w: Array,
    gradients: Sequence[Array],
    *,
    lr: float | None = None,
    relative_step: bool = True,
    warmup_init: bool = False,
    scale_parameter: bool = True,
    d: float = 1.0,
    beta2_decay: float = -0.8,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    beta1: float = 0.0,
    weight_decay: float = 0.0,
    factored: bool = True,
) -> Array:
    """Shazeer & Stern (2018), algorithms 4 to 6, over the last two dimensions; the weights after all gradients."""
    w = np.array(w, dtype=np.float64)
    matrices = factored and w.ndim >= 2
    v, m = np.zeros_like(w), np.zeros_like(w)
    rows, cols = (np.zeros(w.shape[:-1]), np.zeros(w.shape[:-2] + w.shape[-1:])) if matrices else (None, None)
    for t, g in enumerate(gradients, start=1):
        b2 = 1 - t**beta2_decay
        u = np.zeros_like(w)
        if matrices:
            for lead in np.ndindex(w.shape[:-2]):
                n_rows, n_cols = w.shape[-2:]
                for i in range(n_rows):
                    mean = sum(g[lead][i, j] ** 2 + eps1 for j in range(n_cols)) / n_cols
                    rows[lead][i] = b2 * rows[lead][i] + (1 - b2) * mean
                for j in range(n_cols):
                    mean = sum(g[lead][i, j] ** 2 + eps1 for i in range(n_rows)) / n_rows
                    cols[lead][j] = b2 * cols[lead][j] + (1 - b2) * mean
                total = sum(rows[lead]) / n_rows
                for i in range(n_rows):
                    for j in range(n_cols):
                        u[lead][i, j] = g[lead][i, j] / math.sqrt(rows[lead][i] * cols[lead][j] / total)
        else:
            for i in np.ndindex(w.shape):
                v[i] = b2 * v[i] + (1 - b2) * (g[i] ** 2 + eps1)
                u[i] = g[i] / math.sqrt(v[i])
        u = u / max(1.0, rms(u) / d)
        m = beta1 * m + (1 - beta1) * u
        if relative_step:
            cap = 1e-2 if lr is None else lr
            if warmup_init:
                cap = 1e-6 * t
            rho = min(cap, 1 / math.sqrt(t))
        else:
            cap = rho = lr
        alpha = max(eps2, rms(w)) * rho if scale_parameter else rho
        w = w - cap * weight_decay * w - alpha * m
    return w


def mezo(
    weights: Sequence[Array],
    loss: Callable[[list[Array]], float],
    draw: Callable[[int, int], list[Array]],
    *,
    steps: int,
    lr: float,
    eps: float = 1e-3,
    n_directions: int = 1,
    weight_decay: Sequence[float] = (),
) -> list[Array]:
    """Malladi et al. (2023), algorithm 1, averaged over directions; `draw(step, k)` gives z, `weight_decay` is per
    tensor."""
    weights = [np.array(w, dtype=np.float64) for w in weights]
    decays = list(weight_decay) or [0.0] * len(weights)
    for step in range(steps):
        gradient = [np.zeros_like(w) for w in weights]
        for k in range(n_directions):
            z = draw(step, k)
            up = loss([w + eps * zi for w, zi in zip(weights, z)])
            down = loss([w - eps * zi for w, zi in zip(weights, z)])
            c = (up - down) / (2 * eps)
            gradient = [g + c * zi / n_directions for g, zi in zip(gradient, z)]
        weights = [w - lr * (g + decay * w) for w, g, decay in zip(weights, gradient, decays)]
    return weights
