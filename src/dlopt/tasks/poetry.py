"""Answering one half-line with the other: the task on which sequence models meet. Tokens come from the caller.

Losses are in nats per token of the answer, its end token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.tasks.data.batches import Batches
from dlopt.tasks.modes import evaluating

Pairs = tuple[Tensor, Tensor]


class Answers:
    """One built task. model(source (b, s), target (b, t)) gives logits (b, t, v) of what follows each target token.

    train, validation: (source (n, s), target (n, t + 1)), int64; targets begin with a start token and are padded.
    batches: endless (source, target). pad: token that no loss counts.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Pairs,
        validation: Pairs,
        *,
        batch_size: int,
        seed: int,
        pad: int = 0,
        device: str = "cpu",
    ) -> None:
        self.model, self.pad, self.device = model.to(device), pad, device
        self.validation = validation
        self.batches = Batches(train, batch_size, seed)

    def forward(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Logits (b, t, v)."""
        source, target = (x.to(self.device) for x in batch)
        return model(source, target[:, :-1])

    def criterion(self, logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy over the answers' tokens."""
        goal = batch[1][:, 1:].to(self.device)
        return F.cross_entropy(logits.flatten(0, 1), goal.flatten(), ignore_index=self.pad)

    def consumed(self, batch: Sequence[Tensor]) -> dict[str, int]:
        """What a batch counts for."""
        return {"examples": len(batch[0]), "tokens": int((batch[1][:, 1:] != self.pad).sum())}

    def evaluate(self) -> dict[str, float]:
        """Validation loss."""
        losses, counts = self.losses(self.validation)
        return {"val_loss": float(losses.sum() / counts.sum())}

    def test(self) -> dict[str, Any]:
        """Nothing: callers measure more than a loss on the test part."""
        return {}

    @torch.no_grad()
    def losses(self, pairs: Pairs, chunk: int = 256) -> tuple[Tensor, Tensor]:
        """Per pair: (sum of the answer's -log p, number of its tokens), both (n,), the first float64."""
        found = []
        with evaluating(self.model):
            for start in range(0, len(pairs[0]), chunk):
                batch = tuple(x[start : start + chunk] for x in pairs)
                logits = self.forward(self.model, batch).transpose(1, 2)
                goal = batch[1][:, 1:].to(self.device)
                each = F.cross_entropy(logits, goal, ignore_index=self.pad, reduction="none")
                found.append(each.double().sum(1).cpu())
        return torch.cat(found), (pairs[1][:, 1:] != self.pad).sum(1)
