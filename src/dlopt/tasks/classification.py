"""Image classification on small networks: the task on which training methods of several topics meet.

A task fixes model, data, loss, metric and target; methods may not change it. The training set is split once, the same
way for every seed: 10% of it (at most 5,000 examples) become the validation set, on which hyper-parameters are chosen
and curves are drawn. The test set is looked at once, when a run has ended.
"""

from __future__ import annotations

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
class Classification:
    """data, model: names in `tasks.data` and `tasks.models`. options: of the model. target: validation accuracy
    whose first crossing is reported. pad, flip: random crop after padding by so many pixels, and mirroring, of the
    training images. validation: share of the training set held out."""

    name: str
    data: str
    model: str
    target: float
    options: Mapping[str, Any] = field(default_factory=dict)
    pad: int = 0
    flip: bool = False
    validation: float = 0.1

    def identity(self) -> dict[str, str]:
        """What the results depend on beside the settings: sha256 of the data."""
        return data.identity(self.data)

    def ready(self, batch: int = 1) -> None:
        """Raise `DataUnavailable` if the data is not on this machine, `ValueError` if it does not fill a batch."""
        spec = data.find(self.data)
        locate(spec.name, spec.files, spec.help)
        if batch > 1 and batch > (n := _training_size(self)):
            raise ValueError(f"batch must be at most {n}, the training examples of {self.data}, got {batch}")

    def build(self, seed: int, batch_size: int, device: str = "cpu") -> Classifier:
        """Model and batches of one seed: the seed draws initial weights, order and augmentation, not the split."""
        return Classifier(self, seed, batch_size, device)


class Classifier:
    """One built task. model: on its device. batches: endless (x, y). sizes: (train, validation, test)."""

    def __init__(self, task: Classification, seed: int, batch_size: int, device: str):
        images = data.get(task.data)
        x, y = images.x_train, images.y_train
        held = _held(task, len(y))
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        train, validation = order[held:], order[:held]
        self.device = device
        self._images = images
        self._validation = (x[validation], y[validation])
        self._test = (images.x_test, images.y_test)
        transform = data.training_transform(images, pad=task.pad, flip=task.flip)
        self.batches = data.Batches((x[train], y[train]), batch_size, seed, transform=transform)
        model = models.build(task.model, seed=seed, **task.options)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.sizes = (len(train), held, len(images.y_test))

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (batch, classes)."""
        return model(_laid(batch[0].to(self.device)))

    def criterion(self, logits: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of a batch."""
        return F.cross_entropy(logits, batch[1].to(self.device))

    def consumed(self, batch: tuple[Tensor, Tensor]) -> dict[str, int]:
        """What a batch counts for."""
        return {"examples": len(batch[0])}

    def evaluate(self) -> dict[str, float]:
        """Validation loss and accuracy, in eval mode."""
        loss, accuracy, _ = self._measure(*self._validation)
        return {"val_loss": loss, "val_accuracy": accuracy}

    def test(self) -> dict[str, Any]:
        """Test loss and accuracy, and which examples were right (a string of 0 and 1, for paired tests)."""
        loss, accuracy, correct = self._measure(*self._test)
        right = "".join("1" if c else "0" for c in correct.tolist())
        return {"test_loss": loss, "test_accuracy": accuracy, "test_correct": right}

    @torch.no_grad()
    def _measure(self, x: Tensor, y: Tensor, chunk: int = 500) -> tuple[float, float, Tensor]:
        losses, correct = 0.0, []
        with evaluating(self.model):
            for start in range(0, len(y), chunk):
                target = y[start : start + chunk].to(self.device)
                logits = self.model(_laid(self._images.normalise(x[start : start + chunk].to(self.device))))
                losses += float(F.cross_entropy(logits, target, reduction="sum"))
                correct.append((logits.argmax(1) == target).cpu())
        right = torch.cat(correct)
        return losses / len(y), float(right.double().mean()), right


def _laid(images: Tensor) -> Tensor:
    """Channels last, as the weights: the same numbers, a step on an AVX2 core 7 to 25% sooner."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def _held(task: Classification, n: int) -> int:
    """How many of n training examples become the validation set."""
    return min(5000, round(task.validation * n))


_sizes: dict[str, int] = {}  # of whole training sets, so that each is opened once


def _training_size(task: Classification) -> int:
    if task.data not in _sizes:
        _sizes[task.data] = len(data.get(task.data).y_train)
    return _sizes[task.data] - _held(task, _sizes[task.data])


TASKS = {
    task.name: task
    for task in (
        Classification("digits", "digits", "mlp", target=0.9, options={"features": 64, "hidden": (32,)}),
        # smooth and convex
        Classification("digits-softmax", "digits", "mlp", target=0.9, options={"features": 64, "hidden": ()}),
        Classification("mnist-lenet", "mnist", "lenet", target=0.85),
        Classification(
            "digits-vgg8", "digits", "vgg8", target=0.9, options={"channels": 1, "width": 0.125, "hidden": 128}
        ),
        Classification("mnist-vgg8-half", "mnist", "vgg8", target=0.98, options={"channels": 1, "width": 0.5}),
        # GroupNorm in the place of BatchNorm: no statistics over a batch
        Classification(
            "digits-vgg8-group",
            "digits",
            "vgg8",
            target=0.9,
            options={"channels": 1, "width": 0.125, "hidden": 128, "norm": "group"},
        ),
        Classification(
            "mnist-vgg8-half-group",
            "mnist",
            "vgg8",
            target=0.98,
            options={"channels": 1, "width": 0.5, "norm": "group"},
        ),
        Classification(
            "cifar10-resnet8-group", "cifar10-jpeg", "resnet8", target=0.7, options={"norm": "group"}, pad=4, flip=True
        ),
        Classification("cifar10-resnet8", "cifar10-jpeg", "resnet8", target=0.7, pad=4, flip=True),
        Classification("cifar10-resnet18", "cifar10-jpeg", "resnet18", target=0.8, pad=4, flip=True),
        Classification(
            "cifar10-resnet18-half", "cifar10-jpeg", "resnet18", target=0.7, options={"width": 0.5}, pad=4, flip=True
        ),
    )
}
