"""The problem whose curvature is known exactly, and a round of curvature on it."""

import torch
from torch import nn

from dlopt.adam import SophiaG, SophiaH

BOTH = [SophiaG, SophiaH]


def regression(rows=12, classes=4, inputs=3, dtype=torch.float64, seed=0):
    """(weight, inputs, labels) of a softmax regression."""
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(classes, inputs, generator=generator, dtype=torch.float64).to(dtype))
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64).to(dtype)
    return weight, x, torch.randint(0, classes, (rows,), generator=generator)


def curvature(optimizer, weight):
    return optimizer.state[weight]["curvature"]


def round_of(optimizer, weight, x, parts=1):
    """One round of curvature on the rows of x, in some micro-batches."""
    for part in x.chunk(parts):
        logits = part @ weight.T
        if isinstance(optimizer, SophiaG):
            optimizer.accumulate_curvature(logits)
        else:  # the Hessian of softmax regression does not depend on the labels
            loss = nn.functional.cross_entropy(logits, torch.zeros(len(part), dtype=torch.long))
            optimizer.accumulate_curvature(loss, count=len(part))
    optimizer.update_curvature()
