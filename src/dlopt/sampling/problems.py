"""Finite sums over linear models, dense or sparse: LASSO, ridge, elastic net, logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlopt.sampling.base import nonnegative

LOSSES = ("squares", "logistic")


class FiniteSum:
    """F(x) = (1/n) sum_i f_i(x) + (l2/2) |x|_2^2 + lam |x|_1, with f_i(x) = phi_i(a_i . x).

    loss "squares": phi_i(z) = (z - b_i)^2 / 2. loss "logistic": phi_i(z) = log(1 + exp(-b_i z)), b_i in {-1, 1}.
    A: (n, d), a NumPy array, a tensor on the CPU or a scipy.sparse matrix (kept as CSR). b: (n,). No intercept.

    **Scaling.** The data term is a mean, so lam means the same for every n and equals scikit-learn's
    `Lasso(alpha=lam)`; where the data term is the sum (1/2)|A x - b|^2 (benchopt, most papers), use n * lam there.
    `LogisticRegression(C=1/(n l2))` is l2 here.

    All methods take x (d,) or several points (S, d) and return a number or (S,), gradients of x's shape.
    """

    def __init__(self, A: Any, b: Any, lam: float = 0.0, *, loss: str = "squares", l2: float = 0.0) -> None:
        self.sparse = hasattr(A, "tocsr")
        self.A = A.tocsr().astype(np.float64) if self.sparse else np.ascontiguousarray(A, dtype=np.float64)
        self.b = np.asarray(b, dtype=np.float64)
        if self.A.ndim != 2 or not all(self.A.shape):
            raise ValueError(f"A must have shape (n, d) with n and d at least 1, not {self.A.shape}")
        self.n, self.d = self.A.shape
        if self.b.shape != (self.n,):
            raise ValueError(f"b must have shape ({self.n},), not {self.b.shape}")
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        if not np.isfinite(self.A.data if self.sparse else self.A).all() or not np.isfinite(self.b).all():
            raise ValueError("A and b must be finite, but they hold NaN or infinite numbers")
        if loss == "logistic" and not np.isin(self.b, (-1.0, 1.0)).all():
            raise ValueError(f"logistic labels must be -1 or 1, not {self.b[~np.isin(self.b, (-1.0, 1.0))][0]}")
        self.loss = loss
        self.lam, self.l2 = nonnegative("(lam, l2)", [lam, l2], 2).tolist()

    def value(self, x: np.ndarray) -> Any:
        """F(x)."""
        z, b = self._margins(x)
        phi = (z - b) ** 2 / 2 if self.loss == "squares" else np.logaddexp(0, -b * z)
        return phi.mean(0) + self.l2 / 2 * (x * x).sum(-1) + self.lam * np.abs(x).sum(-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Of the smooth part, with l2."""
        z, b = self._margins(x)
        return (self.A.T @ self.slopes(z, b)).T / self.n + self.l2 * x

    def slopes(self, z: Any, b: Any) -> Any:
        """phi'(z): grad f_i = phi_i'(a_i . x) a_i."""
        if self.loss == "squares":
            return z - b
        return -b * (0.5 - 0.5 * np.tanh(0.5 * b * z))  # -b sigmoid(-b z), without overflow

    def smoothness(self) -> np.ndarray:
        """(n,): L_i of f_i + (l2/2)|x|^2: |a_i|^2 (squares) or |a_i|^2 / 4 (logistic), plus l2."""
        return self.row_norms() ** 2 * self._curvature + self.l2

    def row_norms(self) -> np.ndarray:
        """(n,): |a_i|. Times |phi_i'| these are the gradient norms of the f_i."""
        squares = self.A.multiply(self.A) if self.sparse else self.A * self.A
        return np.sqrt(np.asarray(squares.sum(1)).reshape(-1))

    def full_smoothness(self) -> float:
        """L of the whole smooth part: the largest eigenvalue of its Hessian (for logistic, a bound of it)."""
        gram = self.A @ self.A.T if self.n < self.d else self.A.T @ self.A
        gram = gram.toarray() if self.sparse else gram
        return float(np.linalg.eigvalsh(gram)[-1]) / self.n * self._curvature + self.l2

    def lam_max(self) -> float:
        """The smallest lam for which 0 is optimal."""
        return float(np.abs(self.gradient(np.zeros(self.d))).max())

    def gap(self, x: np.ndarray) -> Any:
        """F(x) minus a dual value: an upper bound of F(x) - F*, 0 at the optimum. Needs lam or l2 above 0.

        Dual: -(1/n) sum phi_i*(u_i) - g*(-A'u/n) at u = phi'(A x), scaled down where l2 = 0 until |A'u/n|_inf <= lam.
        """
        if not self.lam and not self.l2:
            raise ValueError("the duality gap needs lam or l2 above 0; both are 0")
        z, b = self._margins(x)
        u = self.slopes(z, b)
        correlations = np.abs((self.A.T @ u).T) / self.n
        if self.l2:
            regular = (np.maximum(correlations - self.lam, 0) ** 2).sum(-1) / (2 * self.l2)
        else:
            u = u * np.minimum(1, self.lam / np.maximum(correlations.max(-1), np.finfo(float).tiny))
            regular = 0.0
        if self.loss == "squares":
            conjugate = u * u / 2 + b * u
        else:
            s = np.clip(-b * u, 0, 1)
            conjugate = _x_log_x(s) + _x_log_x(1 - s)
        return self.value(x) + conjugate.mean(0) + regular

    @property
    def _curvature(self) -> float:
        return 1.0 if self.loss == "squares" else 0.25

    def _margins(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A x, (n,) or (n, S), and b in a shape that goes with it."""
        return self.A @ x.T, self.b if x.ndim == 1 else self.b[:, None]


def _x_log_x(s: np.ndarray) -> np.ndarray:
    return s * np.log(np.maximum(s, np.finfo(float).tiny))


def soft_threshold(x: np.ndarray, amount: Any) -> np.ndarray:
    """prox of amount |x|_1: each number moves towards 0 by `amount`, and stops there."""
    return x - np.minimum(np.maximum(x, -amount), amount)
