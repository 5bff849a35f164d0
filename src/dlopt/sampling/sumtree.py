"""Draw from n weights that change: a binary tree of sums, walked by whole arrays."""

from __future__ import annotations

import numpy as np


class SumTree:
    """n weights >= 0; `set` and `draw` of k of them take O(k log n), in about 3 log2 n NumPy calls.

    `nodes[1]` is the total, node j the sum of nodes 2j and 2j + 1, the leaves start at `size`. Parents are added up
    anew, never corrected by differences, so errors do not pile up: each sum has a relative error below
    1.2e-16 log2 n whatever the history. Memory: 16 bytes times n rounded up to a power of 2.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.n = len(weights)
        self.size = 1 << (self.n - 1).bit_length() if self.n > 1 else 1
        self.nodes = np.zeros(2 * self.size)
        self.fill(weights)

    @property
    def weights(self) -> np.ndarray:
        """(n,), a view."""
        return self.nodes[self.size : self.size + self.n]

    @property
    def total(self) -> float:
        return float(self.nodes[1])

    def fill(self, weights: np.ndarray | float) -> None:
        """Set all weights."""
        self.weights[:] = weights
        low = self.size
        while low > 1:
            level = self.nodes[low : 2 * low]
            self.nodes[low // 2 : low] = level[0::2] + level[1::2]
            low //= 2

    def set(self, indices: np.ndarray, weights: np.ndarray) -> None:
        """weights[indices] = weights; the indices must be distinct."""
        self.weights[indices] = weights
        node = indices + self.size
        for _ in range(self.size.bit_length() - 1):
            node = node >> 1  # siblings write the same sum twice, which is cheaper than finding them
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def draw(self, fractions: np.ndarray) -> np.ndarray:
        """Indices with probability weight / total, for uniform numbers in [0, 1). A weight of 0 is never drawn."""
        rest = fractions * self.total
        node = np.ones(len(rest), dtype=np.int64)
        for _ in range(self.size.bit_length() - 1):
            left = self.nodes[2 * node]
            # rounding may leave `rest` at or above a whole subtree: never enter one that is empty
            right = (rest >= left) & (self.nodes[2 * node + 1] > 0)
            rest = np.where(right, rest - left, rest)
            node = 2 * node + right
        return node - self.size
