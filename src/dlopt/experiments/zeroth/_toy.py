"""A toy in the shape of prompted classification: made-up praise and blame in bytes, and a tiny Llama of random weights.

Nothing is fetched and nothing is pretrained, so its numbers say only that everything runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.tasks import data, models
from dlopt.tasks.data.batches import generator
from dlopt.tasks.prompted import area

WORDS = (("dull", "poor", "weak", "flat"), ("warm", "fine", "neat", "keen"))  # of four letters each
LENGTH, NEUTRAL, ANSWERS = 5, "none", (ord("b"), ord("g"))
SIZES = {"train": 64, "validation": 64, "test": 128}
SHAPE = {"vocabulary": 128, "width": 16, "layers": 2, "heads": 2, "hidden": 32}


@dataclass(frozen=True)
class Toy:
    """The task, with what the experiment asks of one."""

    name: str = "toy"
    train: int = SIZES["train"]

    def identity(self) -> dict[str, str]:
        return {}

    def ready(self, batch: int = 1) -> None:
        if batch > self.train:
            raise ValueError(f"batch must be at most {self.train}, the training examples of {self.name}, got {batch}")

    def build(self, seed: int, batch_size: int, device: str = "cpu") -> BuiltToy:
        return BuiltToy(seed, batch_size, device)


class BuiltToy:
    """Prompts of five words, of which four are of the class, all of one length: no padding, no mask."""

    def __init__(self, seed: int, batch_size: int, device: str) -> None:
        self.device = device
        self.parts = {part: _draw(part, n) for part, n in SIZES.items()}
        self.model: nn.Module = models.build("lm", seed=seed, **SHAPE).to(device).eval()
        self.batches = data.Batches(self.parts["train"], batch_size, seed)

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0].to(self.device))[:, -1]  # type: ignore[no-any-return]

    def criterion(self, logits: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(logits[:, list(ANSWERS)], batch[1].to(logits.device))

    def consumed(self, batch: Any) -> dict[str, int]:
        return {"examples": len(batch[1]), "tokens": batch[0].numel()}

    def evaluate(self) -> dict[str, float]:
        found = self.zero_shot("validation")
        return {f"val_{key}": found[key] for key in ("loss", "accuracy", "auc")}

    def test(self) -> dict[str, Any]:
        return {f"test_{key}": value for key, value in self.zero_shot("test").items()}

    @torch.no_grad()
    def zero_shot(self, part: str = "validation", prior: str | None = None) -> dict[str, Any]:
        tokens, labels = self.parts[part]
        scores = self._scores(tokens)
        if prior is not None:
            empty = _encode([[NEUTRAL] * LENGTH]) if prior == "content-free" else self.parts["train"][0]
            scores = (scores - self._scores(empty).softmax(1).mean(0).log()).log_softmax(1)
        right = scores.argmax(1) == labels
        return {"loss": float(F.nll_loss(scores, labels)), "accuracy": float(right.double().mean()),
                "auc": area(scores, labels), "correct": "".join("1" if r else "0" for r in right.tolist())}  # fmt: skip

    def _scores(self, tokens: Tensor) -> Tensor:
        logits = self.model(tokens.to(self.device))[:, -1]
        return logits[:, list(ANSWERS)].double().log_softmax(1).cpu()


def _draw(part: str, n: int) -> tuple[Tensor, Tensor]:
    random = generator(0, part, 0)
    labels = torch.arange(n) % 2
    rows = []
    for label in labels.tolist():
        words = [WORDS[label][int(torch.randint(4, (1,), generator=random))] for _ in range(LENGTH)]
        words[int(torch.randint(LENGTH, (1,), generator=random))] = WORDS[1 - label][0]
        rows.append(words)
    return _encode(rows), labels


def _encode(rows: list[list[str]]) -> Tensor:
    return torch.tensor([list(" ".join([*words, "It", "was", ""]).encode()) for words in rows])
