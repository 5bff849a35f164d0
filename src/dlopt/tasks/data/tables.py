"""Tables of numbers for regression and classification, dense or sparse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

DENSE_LIMIT = 2 << 30  # bytes


@dataclass(frozen=True)
class Table:
    """Rows and what to predict for them.

    x: float64 (n, d), a numpy array or a `scipy.sparse.csr_matrix`. y: float64 (n,) for regression; for classification
    int64 (n,), where class i has the label classes[i] of the source (in ascending order, so -1 is 0 and +1 is 1).
    classes: empty for regression.
    """

    x: Any
    y: np.ndarray
    classes: tuple[str, ...] = ()

    def dense(self) -> Table:
        """The same table with a numpy array. ValueError if that takes over 2 GiB (news20 does)."""
        if isinstance(self.x, np.ndarray):
            return self
        size = 8 * self.x.shape[0] * self.x.shape[1]
        if size > DENSE_LIMIT:
            raise ValueError(
                f"dense, this {self.x.shape[0]} x {self.x.shape[1]} table takes {size:,} bytes; use it sparse"
            )
        return replace(self, x=self.x.toarray())

    def standardised(self, like: Table | None = None) -> Table:
        """Dense, with columns of mean 0 and variance 1 (constant columns become 0), by the statistics of `like`.

        like: the training part, when this is the test part; None means this table itself.
        """
        reference = (like or self).dense().x
        std = reference.std(0)
        return replace(self, x=(self.dense().x - reference.mean(0)) / np.where(std > 0, std, 1.0))

    def split(self, test: float = 0.2, seed: int = 0) -> tuple[Table, Table]:
        """(training part, test part), drawn at random; stratified by class for classification.

        test: share of the rows for the second part, 0 < test < 1.
        """
        if not 0 < test < 1:
            raise ValueError(f"test must be between 0 and 1, got {test}")
        random = np.random.default_rng(seed)
        groups = [np.flatnonzero(self.y == c) for c in range(len(self.classes))] or [np.arange(len(self.y))]
        chosen = np.zeros(len(self.y), dtype=bool)
        for rows in groups:
            chosen[random.permutation(rows)[: round(test * len(rows))]] = True
        return replace(self, x=self.x[~chosen], y=self.y[~chosen]), replace(self, x=self.x[chosen], y=self.y[chosen])


def classified(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int64 class of each row, labels of the classes as text) from labels as numbers, in ascending order."""
    values, y = np.unique(labels, return_inverse=True)
    return y.astype(np.int64), tuple(f"{value:g}" for value in values)
