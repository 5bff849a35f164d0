"""Carry importance weights from a sampler, through the data set and the workers, to the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class Weighted(Dataset):
    """Unpacks the (index, weight) pairs of a weighted sampler: `Weighted(dataset)[i, w]` is `(*dataset[i], w)`.

    A sampler can only hand indices to a data set, so the weight travels with the index. w is a float32 number,
    which the default `collate_fn` makes a tensor (B,). A plain index counts as weight 1, so one training loop
    serves all samplers. A sample that is no tuple or list becomes `(sample, w)`.

        loader = DataLoader(Weighted(data), batch_size=128, sampler=Importance(data, weights))
        for x, y, w in loader:
            loss = weighted_mean(cross_entropy(model(x), y, reduction="none"), w)
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> tuple[Any, ...]:
        index, weight = key if isinstance(key, tuple) else (key, 1.0)
        return _with(self.dataset[index], weight)

    def __getitems__(self, keys: list[Any]) -> list[tuple[Any, ...]]:
        """A whole batch at once, where the data set can fetch one."""
        if not callable(getattr(self.dataset, "__getitems__", None)):
            return [self[key] for key in keys]
        pairs = [key if isinstance(key, tuple) else (key, 1.0) for key in keys]
        samples = self.dataset.__getitems__([index for index, _ in pairs])
        return [_with(sample, weight) for sample, (_, weight) in zip(samples, pairs)]


def _with(sample: Any, weight: float) -> tuple[Any, ...]:
    parts = tuple(sample) if isinstance(sample, tuple | list) else (sample,)
    return (*parts, np.float32(weight))


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(1/B) sum w_b loss_b, with losses and weights of shape (B,).

    It divides by B, not by sum w: the quotient would be biased. Weights may be of another dtype or device.
    """
    if losses.shape != weights.shape:
        raise ValueError(
            f"losses {tuple(losses.shape)} and weights {tuple(weights.shape)} must have the same shape (B,); "
            "the loss needs reduction='none'"
        )
    return (losses * weights.to(losses)).mean()
