"""Next-byte prediction by a small Llama-like model: the language task on which training methods meet.

Tokens are bytes of UTF-8, so no tokenizer stands between methods and data. Validation and test losses are means over
fixed windows, in nats per byte; `bits` (per byte) is the same divided by ln 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.tasks import data, models
from dlopt.tasks.data.files import locate
from dlopt.tasks.modes import evaluating


@dataclass(frozen=True)
class Language:
    """data: a text in `tasks.data`. options: of the model "lm". length: tokens a window. target: validation loss
    whose first crossing is reported. windows: how many of validation and test text are evaluated."""

    name: str
    data: str
    target: float
    options: Mapping[str, Any] = field(default_factory=dict)
    length: int = 256
    windows: int = 32

    def identity(self) -> dict[str, str]:
        """sha256 of the text."""
        return data.identity(self.data)

    def ready(self) -> None:
        """Raise `DataUnavailable` if the text is not on this machine."""
        spec = data.find(self.data)
        locate(spec.name, spec.files, spec.help)

    def build(self, seed: int, batch_size: int, device: str = "cpu") -> LanguageModel:
        """Model and batches of one seed: the seed draws initial weights and the order of windows."""
        return LanguageModel(self, seed, batch_size, device)


class LanguageModel:
    """One built task. model: on its device. batches: endless (inputs, targets), each int64 (batch, length)."""

    def __init__(self, task: Language, seed: int, batch_size: int, device: str):
        text = data.get(task.data)
        self.device = device
        self.batches = data.TextBatches(text.train, batch_size, task.length, seed)
        self.model = models.build("lm", seed=seed, **task.options).to(device)
        self._validation = _spread(text.valid, task)
        self._test = _spread(text.test, task)
        self.sizes = (len(text.train), self._validation[1].numel(), self._test[1].numel())

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (batch, length, 256)."""
        return model(batch[0].to(self.device))

    def criterion(self, logits: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy over all positions, in nats."""
        return F.cross_entropy(logits.flatten(0, 1), batch[1].to(self.device).flatten())

    def consumed(self, batch: tuple[Tensor, Tensor]) -> dict[str, int]:
        """What a batch counts for."""
        return {"examples": len(batch[0]), "tokens": batch[1].numel()}

    def evaluate(self) -> dict[str, float]:
        """Validation loss in nats per byte."""
        return {"val_loss": self._measure(*self._validation)}

    def test(self) -> dict[str, Any]:
        """Test loss in nats per byte, and bits per byte."""
        loss = self._measure(*self._test)
        return {"test_loss": loss, "test_bits": loss / math.log(2)}

    @torch.no_grad()
    def _measure(self, inputs: Tensor, targets: Tensor, chunk: int = 16) -> float:
        total = 0.0
        with evaluating(self.model):
            for start in range(0, len(inputs), chunk):
                logits = self.model(inputs[start : start + chunk].to(self.device))
                goal = targets[start : start + chunk].to(self.device).flatten()
                total += float(F.cross_entropy(logits.flatten(0, 1), goal, reduction="sum"))
        return total / targets.numel()


def _spread(tokens: Tensor, task: Language) -> tuple[Tensor, Tensor]:
    """Windows at equal distances over a text, the same for every run."""
    inputs, targets = data.windows(tokens, task.length)
    chosen = torch.linspace(0, len(inputs) - 1, min(task.windows, len(inputs))).round().long()
    return inputs[chosen], targets[chosen]


TASKS = {
    task.name: task
    for task in (
        Language("stdlib-tiny", "stdlib-text", target=2.5, options={"width": 64, "layers": 2, "heads": 4},
                 length=64, windows=32),
        Language("books-5m", "gutenberg-books", target=1.6,
                 options={"width": 256, "layers": 7, "heads": 8, "kv_heads": 4}),
        Language("books-124m", "gutenberg-books", target=1.2, length=1024, windows=256,
                 options={"width": 768, "layers": 16, "heads": 12, "kv_heads": 12}),
    )
}  # fmt: skip
