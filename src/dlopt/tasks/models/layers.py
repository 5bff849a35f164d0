"""What the convolutional families share."""

from __future__ import annotations

import math

from torch import nn

NORMS = ("batch", "group", "none")


def norm_layer(norm: str, channels: int) -> nn.Module:
    """ "batch": BatchNorm. "group": GroupNorm of at most 8 groups, which does not mix examples. "none": nothing."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(8, channels), channels) if norm == "group" else nn.Identity()


def scaled(channels: int, width: float) -> int:
    """The number of channels times the width factor, at least 1."""
    if not width > 0:
        raise ValueError(f"width must be a positive factor, got {width}")
    return max(1, round(channels * width))


def kaiming(model: nn.Module) -> None:
    """He et al. (2015) normal weights for convolutions, by fan-out; zero biases. The usual start of ReLU networks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
