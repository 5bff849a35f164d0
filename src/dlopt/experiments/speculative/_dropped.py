"""A small byte-level Llama trained with layer dropout, so that it can do without some of its sub-layers.

In every training step each sub-layer l of L is left out with probability p l / (L - 1), by the lot of that step (the
linear rule of Huang et al. 2016; LayerSkip, Elhoushi et al. 2024, drops whole layers by an exponential one).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.experiments._tiny import VOCABULARY, llama
from dlopt.tasks import data
from dlopt.tasks.modes import evaluating


class Dropped:
    """What the lab trains: see `experiments._steps.Built`. corpus: a data set of text. shape: of the
    model. dropout: p, from 0 to below 1. length, batch: of windows."""

    def __init__(
        self, corpus: str, shape: dict[str, Any], dropout: float, length: int, batch: int, seed: int, device: str
    ) -> None:
        text = data.get(corpus)
        self.dropout, self.device = dropout, device
        self.batches = data.TextBatches(text.train, batch, length, seed)
        self.model = llama(seed=seed, initializer_range=0.02, **shape).to(device).train()
        self._parts = {}
        for name, tokens in (("val", text.valid), ("test", text.test)):
            inputs, goal = data.windows(tokens, length)
            chosen = torch.linspace(0, len(inputs) - 1, min(32, len(inputs))).round().long()
            self._parts[name] = (inputs[chosen], goal[chosen])
        self.held_out = text.test

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (batch, length, vocabulary); in training some sub-layers are left out."""
        from dlopt.speculative.sublayers import skipping, sublayers

        net: Any = model
        if self.dropout and model.training:
            layers = sublayers(model).count
            rates = torch.linspace(0, self.dropout, layers)  # the first layer always stays
            lots = torch.rand(2, layers) < rates
            net = skipping(model, *(row.nonzero().flatten().tolist() for row in lots))
        logits: Tensor = net(input_ids=batch[0].long().to(self.device), use_cache=False).logits
        return logits

    def criterion(self, logits: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy, in nats per byte."""
        return F.cross_entropy(logits.view(-1, VOCABULARY), batch[1].long().to(self.device).flatten())

    def consumed(self, batch: tuple[Tensor, Tensor]) -> dict[str, int]:
        return {"examples": len(batch[0]), "tokens": batch[1].numel()}

    def evaluate(self) -> dict[str, float]:
        """Validation loss of the whole model."""
        return {"val_loss": self._measure(self._parts["val"])}

    def test(self) -> dict[str, Any]:
        loss = self._measure(self._parts["test"])
        return {"test_loss": loss, "test_bits": loss / math.log(2)}

    @torch.no_grad()
    def _measure(self, part: tuple[Tensor, Tensor]) -> float:
        with evaluating(self.model):
            losses = [
                float(self.criterion(self.forward(self.model, pair), pair)) for pair in zip(*(p.split(8) for p in part))
            ]
        return sum(losses) / len(losses)
