"""The baseline without a network: counts of n-grams, interpolated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dlopt.catalog import method


@method(
    "ngram",
    topic="transformer",
    kind="module",
    cite="witten1991zero",
    summary="n-gram language model with Witten-Bell interpolation: counts, no training",
)
class NGram:
    """p(w | h) = (c(h w) + d(h) p(w | h')) / (c(h) + d(h)), down to p = 1 / vocabulary (Witten and Bell 1991).

    c: how often. d(h): how many different tokens followed h. h': h without its first token. Tokens before the first
    one of a row do not exist, so contexts are shorter there.

    vocabulary: tokens, at most 65,536. order: n, from 1 to 4 (keys of n tokens must fit into 63 bits).
    """

    def __init__(self, vocabulary: int, order: int = 3) -> None:
        if not 1 <= vocabulary <= 65_536 or not 1 <= order <= 4 or vocabulary**order >= 2**63:
            raise ValueError(f"vocabulary must be 1 to 65,536 and order 1 to 4, got {vocabulary} and {order}")
        self.vocabulary, self.order = vocabulary, order
        self._grams: list[tuple[np.ndarray, np.ndarray]] = []
        self._contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def fit(self, rows_nt: Tensor, pad: int = 0) -> NGram:
        """Count the rows (n, t), int64, each up to its first pad within the row's tail. Returns itself."""
        rows = rows_nt.numpy().astype(np.int64)
        self._grams, self._contexts = [], []
        for n in range(1, self.order + 1):
            keys = np.zeros((len(rows), rows.shape[1] - n + 1), dtype=np.int64)
            for i in range(n):
                keys = keys * self.vocabulary + rows[:, i : rows.shape[1] - n + 1 + i]
            kept = keys[rows[:, n - 1 :] != pad]
            grams, counts = np.unique(kept, return_counts=True)
            heads, places = np.unique(grams // self.vocabulary, return_index=True)
            self._grams.append((grams, counts))
            self._contexts.append((heads, np.add.reduceat(counts, places), np.diff([*places, len(grams)])))
        return self

    def log_probs(self, rows_nt: Tensor) -> Tensor:
        """(n, t) float64: log p of every token given those before it in its row."""
        rows = rows_nt.numpy().astype(np.int64)
        p = np.full(rows.shape, 1 / self.vocabulary)
        for n in range(1, self.order + 1):
            keys, length = np.zeros((len(rows), rows.shape[1] - n + 1), dtype=np.int64), rows.shape[1] - n + 1
            for i in range(n):
                keys = keys * self.vocabulary + rows[:, i : length + i]
            count = _found(*self._grams[n - 1], keys)
            heads, totals, kinds = self._contexts[n - 1]
            total, kind = (_found(heads, x, keys // self.vocabulary) for x in (totals, kinds))
            known = total > 0
            mixed = (count + kind * p[:, n - 1 :]) / np.maximum(total + kind, 1)
            p[:, n - 1 :] = np.where(known, mixed, p[:, n - 1 :])
        return torch.from_numpy(np.log(p))

    def next(self, tokens_bt: Tensor) -> Tensor:
        """(b, vocabulary) float32: log p of what may follow rows (b, t)."""
        found = np.empty((len(tokens_bt), self.vocabulary))
        for row, tokens in enumerate(tokens_bt.tolist()):
            p = np.full(self.vocabulary, 1 / self.vocabulary)
            for n in range(1, min(self.order, len(tokens) + 1) + 1):
                head = 0
                for token in tokens[len(tokens) - n + 1 :]:
                    head = head * self.vocabulary + token
                heads, totals, kinds = self._contexts[n - 1]
                at = int(np.searchsorted(heads, head))
                if at == len(heads) or heads[at] != head:
                    break  # longer contexts were not seen either
                grams, counts = self._grams[n - 1]
                low, high = np.searchsorted(grams, (head * self.vocabulary, (head + 1) * self.vocabulary))
                p *= kinds[at]
                p[grams[low:high] % self.vocabulary] += counts[low:high]
                p /= totals[at] + kinds[at]
            found[row] = np.log(p)
        return torch.from_numpy(found).float()

    def size(self) -> int:
        """Numbers that are stored: one count for each n-gram."""
        return sum(len(grams) for grams, _ in self._grams)


def _found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values at the sorted keys that equal `wanted`; 0 where none does."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
