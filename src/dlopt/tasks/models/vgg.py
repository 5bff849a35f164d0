"""VGG networks for small images."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from dlopt.tasks.models.layers import kaiming, norm_layer, scaled

# channels of the convolutions in the five stages; each stage ends in a pooling. With three linear layers at the end,
# the number in the name counts the layers with weights.
PLANS = {
    "vgg8": ((64,), (128,), (256,), (512,), (512,)),
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman 2015, arXiv:1409.1556) for images of up to 32 pixels.

    As in the paper but for the head, whose hidden layers have `hidden` units, not 4,096: at 32 pixels the last stage
    leaves one pixel of 512 channels. Poolings round up, so 28 pixels (MNIST) also reach one pixel; larger images are
    averaged. Input (b, channels, size, size), output (b, classes).

    width: factor on all channels and hidden units. norm: "batch", "group" or "none" (as in the paper) after each
    convolution. dropout: in the head; the paper has 0.5.
    """

    def __init__(
        self,
        plan: tuple[tuple[int, ...], ...],
        /,
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        norm: str = "batch",
        hidden: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = channels
        for stage in plan:
            for size in (scaled(number, width) for number in stage):
                layers += [nn.Conv2d(last, size, 3, padding=1, bias=norm == "none"), norm_layer(norm, size), nn.ReLU()]
                last = size
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        units = scaled(hidden, width)
        self.classifier = nn.Sequential(
            nn.Linear(last, units), nn.ReLU(), nn.Dropout(dropout), nn.Linear(units, units), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(units, classes),
        )  # fmt: skip
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


MODELS = {name: partial(VGG, plan) for name, plan in PLANS.items()}
