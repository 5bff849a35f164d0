"""Residual networks for small images: ResNet-8 and 20 (16-32-64 channels), ResNet-18 with the CIFAR stem."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dlopt.tasks.models.layers import kaiming, norm_layer, scaled


class Block(nn.Module):
    """relu(x' + norm(conv(relu(norm(conv(x)))))), two 3x3 convolutions (He et al. 2016, arXiv:1512.03385).

    x' is x where the shape stays. Else, projection=True takes a 1x1 convolution with norm (option B of the paper), and
    False takes every second pixel and fills the new channels with zeros (option A, without parameters).
    """

    def __init__(self, size_in: int, size_out: int, stride: int, norm: str, projection: bool) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(size_in, size_out, 3, stride, 1, bias=bias)
        self.norm1 = norm_layer(norm, size_out)
        self.conv2 = nn.Conv2d(size_out, size_out, 3, 1, 1, bias=bias)
        self.norm2 = norm_layer(norm, size_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or size_in != size_out:
            if projection:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(size_in, size_out, 1, stride, bias=bias), norm_layer(norm, size_out)
                )
            else:
                self.shortcut = PadShortcut(stride, size_out - size_in)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, and `new` channels of zeros after the old ones."""

    def __init__(self, stride: int, new: int) -> None:
        super().__init__()
        self.stride, self.new = stride, new

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks (the first block of each later stage halves the image), average, linear output.

    Input (b, channels, size, size), output (b, classes). ResNet-20 has 269,722 parameters, ResNet-18 11,173,962.

    width: factor on all channels. norm: "batch", "group", or "none" (then the convolutions have a bias, and the last
    one of each block starts at zero, as in Fixup, since the sum would grow with depth).
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        sizes: tuple[int, ...],
        projection: bool,
        /,
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        last = scaled(sizes[0], width)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, last, 3, 1, 1, bias=norm == "none"), norm_layer(norm, last), nn.ReLU()
        )
        blocks = []
        for stage, (depth, size) in enumerate(zip(depths, (scaled(size, width) for size in sizes), strict=True)):
            for place in range(depth):
                blocks.append(Block(last, size, 2 if stage and not place else 1, norm, projection))
                last = size
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(last, classes)
        kaiming(self)
        if norm == "none":
            for block in blocks:
                nn.init.zeros_(block.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


CIFAR = (16, 32, 64)

MODELS = {
    "resnet8": partial(ResNet, (1, 1, 1), CIFAR, False),
    "resnet20": partial(ResNet, (3, 3, 3), CIFAR, False),
    "resnet18": partial(ResNet, (2, 2, 2, 2), (64, 128, 256, 512), True),
}
