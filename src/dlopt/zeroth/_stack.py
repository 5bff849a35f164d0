"""Outputs of a layer for many of its weights changed one at a time, from its output for none changed.

A linear or convolutional layer is linear in its weights: moving one of them by s adds s times a part of the input to
one channel of the output. So the layer itself is not run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dlopt.zeroth.directions import noise_dtype


def has_linear_step(module: nn.Module, name: str, values: Mapping[fx.Node, Any], node: fx.Node) -> bool:
    """Whether `linear_step` knows this layer as it stands: exactly torch's own, without hooks."""
    if module._forward_hooks or module._forward_pre_hooks or node.kwargs or len(node.args) != 1:
        return False
    x = values[node.all_input_nodes[0]]
    if type(module) is nn.Linear:
        return isinstance(x, Tensor) and name in ("weight", "bias")
    if type(module) is nn.Conv2d:
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return isinstance(x, Tensor) and x.dim() == 4 and plain and name in ("weight", "bias")
    return False


def linear_step(module: nn.Module, name: str, x: Tensor, y: Tensor, indices: Tensor, steps: Tensor) -> Tensor:
    """(K, *y.shape): the layer's output with element indices[k] of its `name` moved by steps[k].

    x, y: the layer's input and its output with nothing moved. Products and sums are taken in `noise_dtype` and rounded
    once, so that they differ from a run of the layer by rounding only.
    """
    k = torch.arange(len(indices), device=y.device)
    stack = y.expand(len(indices), *y.shape).clone(memory_format=torch.contiguous_format)
    channels = stack.movedim(-1 if isinstance(module, nn.Linear) else 2, 1)  # (K, channels, ...)
    wide = noise_dtype(y.dtype)
    steps = steps.to(wide).view(-1, *[1] * (y.dim() - 1))
    if name == "bias":
        channels[k, indices] = (channels[k, indices].to(wide) + steps).to(y.dtype)
        return stack
    if isinstance(module, nn.Linear):
        out, into = indices // module.in_features, indices % module.in_features
        moved = steps * x.movedim(-1, 0)[into].to(wide)
        channels[k, out] = (channels[k, out].to(wide) + moved).to(y.dtype)
        return stack
    assert isinstance(module, nn.Conv2d)
    height, width = module.kernel_size
    out, rest = indices // module.weight[0].numel(), indices % module.weight[0].numel()
    into, place = rest // (height * width), rest % (height * width)
    into = into + out // (module.out_channels // module.groups) * module.weight.shape[1]
    top, left = (int(n) for n in module.padding)
    padded = F.pad(x, (left, left, top, top))
    for offset in place.unique().tolist():
        row, column = offset // width * module.dilation[0], offset % width * module.dilation[1]
        seen = padded[:, :, row :: module.stride[0], column :: module.stride[1]][:, :, : y.shape[2], : y.shape[3]]
        here = (place == offset).nonzero()[:, 0]
        moved = steps[here] * seen[:, into[here]].transpose(0, 1).to(wide)
        channels[here, out[here]] = (channels[here, out[here]].to(wide) + moved).to(y.dtype)
    return stack
