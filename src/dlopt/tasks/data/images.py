"""Labelled images, their normalisation, and the usual augmentation: random crop and horizontal flip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images for classification.

    x_train, x_test: uint8 (n, channels, height, width), from 0 to `scale`. y_train, y_test: int64 (n,), 0 to
    len(classes) - 1. mean, std: per channel, of the training images divided by `scale`. classes: their names.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    scale: float = 255.0

    def normalise(self, x: Tensor) -> Tensor:
        """(x / scale - mean) / std per channel: uint8 (b, c, h, w) to float32 of the same shape.

        The result lies channels-last in memory, which makes convolutions on a CPU about a tenth faster.
        """
        mean = torch.tensor(self.mean, device=x.device).view(1, -1, 1, 1) * self.scale
        std = torch.tensor(self.std, device=x.device).view(1, -1, 1, 1) * self.scale
        return ((x.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def crop_flip(x: Tensor, generator: torch.Generator, pad: int = 4, flip: bool = True) -> Tensor:
    """Pad with zeros, cut out a random window of the old size, and mirror half of the images; each image on its own.

    x: (b, c, h, w) of any type; on raw pixels the border is black, as in He et al. (2016), section 4.2. generator: a
    CPU generator, the only source of chance. pad: pixels on each side, 0 for no crop. Returns a tensor like x.
    """
    if pad < 0:
        raise ValueError(f"pad must be at least 0 pixels, got {pad}")
    b, c, h, w = x.shape
    draw = torch.randint(2 * pad + 1, (2, b), generator=generator)
    mirrored = torch.rand(b, generator=generator) < (0.5 if flip else 0.0)
    columns = torch.arange(w).expand(b, w)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + draw[1, :, None]
    rows = torch.arange(h) + draw[0, :, None]
    rows, columns = rows.to(x.device), columns.to(x.device)
    image = torch.arange(b, device=x.device)[:, None, None, None]
    channel = torch.arange(c, device=x.device)[:, None, None]
    return F.pad(x, (pad,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def training_transform(
    images: Images, pad: int = 4, flip: bool = True
) -> Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]:
    """A transform for `Batches` of (x, y): augment the raw pixels, then normalise. pad=0, flip=False only normalises.

    Digits must not be mirrored: use flip=False there.
    """

    def transform(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        x, *rest = batch
        if pad or flip:
            x = crop_flip(x, generator, pad, flip)
        return (images.normalise(x), *rest)

    return transform
