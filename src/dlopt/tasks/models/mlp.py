"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "identity": nn.Identity}


class MLP(nn.Module):
    """Linear layers with an activation between. Input (b, ...) is flattened to (b, features); output (b, classes).

    features: inputs per example. hidden: widths of the hidden layers; () is a linear model. classes: outputs, 1 for
    regression. activation: "relu", "gelu", "tanh", "sigmoid" or "identity" (a deep linear network).
    """

    def __init__(
        self, features: int = 784, hidden: Sequence[int] = (128,), classes: int = 10, activation: str = "relu"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        sizes = (features, *hidden, classes)
        if min(sizes) < 1:
            raise ValueError(f"features, hidden and classes must be at least 1, got {sizes}")
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


MODELS = {"mlp": MLP}
