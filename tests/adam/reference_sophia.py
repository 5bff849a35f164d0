"""Sophia from its formulas: float64 loops, and the exact curvature of softmax regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def sophia(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    estimates: Mapping[int, np.ndarray],
    *,
    lr: float,
    betas: tuple[float, float],
    rho: float,
    weight_decay: float,
) -> np.ndarray:
    """The weights after all gradients; estimates[t] is the diagonal that is sampled before step t = 0, 1, ..."""
    w, (b1, b2) = np.array(w, dtype=np.float64), betas
    m, h = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients):
        for i in np.ndindex(w.shape):
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            if t in estimates:
                h[i] = b2 * h[i] + (1 - b2) * estimates[t][i]
            w[i] = w[i] - lr * weight_decay * w[i]
            w[i] = w[i] - lr * max(-1.0, min(1.0, m[i] / max(rho * h[i], 1e-12)))
    return w


def sophia_official(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    curvature_gradients: Mapping[int, np.ndarray],
    *,
    lr: float,
    betas: tuple[float, float],
    rho: float,
    weight_decay: float,
    bs: int,
) -> np.ndarray:
    """SophiaG as published with the paper: no B in h, the batch in the denominator, the sign from the momentum.

    curvature_gradients[t] is the gradient of the mean cross-entropy with sampled labels, before step t.
    """
    w, (b1, b2) = np.array(w, dtype=np.float64), betas
    m, h = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients):
        for i in np.ndindex(w.shape):
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            if t in curvature_gradients:
                h[i] = b2 * h[i] + (1 - b2) * curvature_gradients[t][i] ** 2
            w[i] = w[i] * (1 - lr * weight_decay)
            ratio = min(1.0, abs(m[i]) / (rho * bs * h[i] + 1e-15))
            w[i] = w[i] - lr * np.sign(m[i]) * ratio
    return w


def softmax_regression_diagonal(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Diagonal of the Hessian of the mean cross-entropy of logits x W^T, W of shape (classes, inputs): for every
    target p_c (1 - p_c) x_j^2, whatever its label. It is the diagonal of the Gauss-Newton matrix too."""
    diagonal = np.zeros_like(weight)
    for row in x:
        z = [sum(weight[c, j] * row[j] for j in range(len(row))) for c in range(len(weight))]
        p = np.exp(np.array(z) - max(z))
        p /= p.sum()
        for c in range(len(weight)):
            for j in range(len(row)):
                diagonal[c, j] += p[c] * (1 - p[c]) * row[j] ** 2 / len(x)
    return diagonal


def sampled_diagonal(x: np.ndarray, weight: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """B g^2, where g is the gradient of the mean cross-entropy of those labels over the B rows of x."""
    g = np.zeros_like(weight)
    for row, label in zip(x, labels, strict=True):
        z = weight @ row
        p = np.exp(z - z.max())
        p /= p.sum()
        for c in range(len(weight)):
            for j in range(len(row)):
                g[c, j] += (p[c] - (c == label)) * row[j] / len(x)
    return len(x) * g**2
