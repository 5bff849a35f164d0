"""LeNet-5."""

from __future__ import annotations

from torch import Tensor, nn

from dlopt.tasks.models.layers import scaled


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) in its usual modern form: ReLU, max pooling, linear output. 61,706 parameters.

    Input (b, channels, size, size), output (b, classes). The first convolution pads images of 28 pixels to 32.

    size: pixels of a side, at least 12; all but 32 are padded by 2 on each side. width: factor on all
    channels and hidden units.
    """

    def __init__(self, classes: int = 10, channels: int = 1, size: int = 28, width: float = 1.0) -> None:
        super().__init__()
        padding = 0 if size == 32 else 2
        side = ((size + 2 * padding - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"LeNet needs images of at least 12 pixels, got size {size}; an mlp takes smaller ones")
        first, second, third, fourth = (scaled(units, width) for units in (6, 16, 120, 84))
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(second * side * side, third), nn.ReLU(), nn.Linear(third, fourth), nn.ReLU(),
            nn.Linear(fourth, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


MODELS = {"lenet": LeNet}
