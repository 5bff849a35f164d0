"""Draw from n given probabilities in O(1): Walker's alias table, built without a loop in Python."""

from __future__ import annotations

import numpy as np


class AliasTable:
    """Draws i with probability q_i / n, for q >= 0 of mean 1, by two random numbers and two look-ups per draw.

    Column i of n equally likely ones gives i with probability `keep[i]` and `alias[i]` otherwise. Built as the
    sweep of Huebschle-Schneider and Sanders (2019): light columns (q < 1) in a row have deficits 1 - q with
    cumulative sums D, heavy ones surpluses q - 1 with sums E. Light i takes its deficit from the first heavy h with
    E_h > D_{i-1}; heavy h is used up by the first light i with D_i >= E_h, keeps 1 + E_h - D_i, and has the next
    heavy as its alias. Sums and binary searches replace the two stacks.

    Light examples get exactly q_i / n, however small: rounding errors (below 1e-8 of the heavy ones' own
    probability at n = 10^7) only move mass between heavy columns. Column and fraction are drawn apart, so that a
    fraction of 1e-12 keeps its accuracy also where n is beyond 2^24. Memory: 12 n bytes (16 n beyond 2^31).
    """

    def __init__(self, q: np.ndarray) -> None:
        n = len(q)
        self.keep = np.ones(n)
        self.alias = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
        light, heavy = np.flatnonzero(q < 1), np.flatnonzero(q >= 1)
        if not len(light) or not len(heavy):
            return  # all are 1, but for rounding
        deficit = np.cumsum(1 - q[light], dtype=np.longdouble).astype(np.float64)
        surplus = np.cumsum(q[heavy] - 1, dtype=np.longdouble).astype(np.float64)
        before = np.concatenate([[0.0], deficit[:-1]])
        giver = np.searchsorted(surplus, before, side="right")
        self.keep[light] = q[light]
        self.alias[light] = heavy[np.minimum(giver, len(heavy) - 1)]
        last = np.searchsorted(deficit, surplus, side="left")
        # the very last heavy keeps what is left, 1 but for rounding
        spent = np.flatnonzero(last[:-1] < len(light))
        self.keep[heavy[spent]] = np.clip(1 + surplus[spent] - deficit[last[spent]], 0, 1)
        self.alias[heavy[spent]] = heavy[spent + 1]

    def draw(self, columns: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """Indices for uniform integers in [0, n) and uniform numbers in [0, 1), of the same shape."""
        return np.where(fractions < self.keep[columns], columns, self.alias[columns])

    def probabilities(self) -> np.ndarray:
        """(n,): what the table really draws, added up from its columns."""
        moved = np.bincount(self.alias, weights=1 - self.keep, minlength=len(self.keep))
        return (self.keep + moved) / len(self.keep)
