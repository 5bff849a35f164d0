"""A model without some of its attention and MLP sub-layers, made of the same weights; the model is not touched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ATTENTION = ("self_attn", "attn", "attention")
MLP = ("mlp", "feed_forward", "ffn")


class Sublayers(NamedTuple):
    """path: of the list of decoder layers in the model. attention, mlp: what its sub-layers are called in a layer."""

    path: str
    attention: str
    mlp: str
    count: int


def sublayers(model: Any) -> Sublayers:
    """Where the sub-layers of a causal language model are. ValueError, with its class, if they are not found."""
    wanted = getattr(model.config, "num_hidden_layers", 0)
    for path, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == wanted:
            names = [_child(part, kinds) for kinds in (ATTENTION, MLP)]
            if all(names) and all(hasattr(getattr(layer, names[0]), "layer_idx") for layer in part):
                return Sublayers(path, names[0], names[1], wanted)
    raise ValueError(
        f"{type(model).__name__} has no list of layers with an attention ({', '.join(ATTENTION)}) and an MLP "
        f"({', '.join(MLP)}) each, so no sub-layers can be skipped"
    )


def checked(model: Any, attention: Sequence[int], mlp: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both sets, sorted. ValueError for numbers that are not layers, and if no attention is left."""
    count = sublayers(model).count
    found = []
    for name, numbers in (("attention", attention), ("mlp", mlp)):
        own = sorted(int(number) for number in numbers)
        if len({*own}) < len(own) or (own and not 0 <= own[0] <= own[-1] < count):
            raise ValueError(f"{name} must be different numbers of layers from 0 to {count - 1}, got {list(numbers)}")
        found.append(tuple(own))
    if len(found[0]) == count:
        raise ValueError(f"attention must leave at least one of the {count} attention sub-layers")
    return found[0], found[1]


def skipping(model: Any, attention: Sequence[int], mlp: Sequence[int]) -> Any:
    """A model that adds nothing to the residual stream where a sub-layer is skipped.

    It shares all weights and leaf modules with `model`; only the containers on the way to the skipped ones are copies.
    So nothing has to be put back, after an exception neither, and other threads use `model` meanwhile. The attention
    sub-layers that stay are numbered 0, 1, ... for its caches, which have one layer for each of them.
    """
    attention, mlp = checked(model, attention, mlp)
    where = sublayers(model)
    view = part = _shell(model)
    for name in where.path.split("."):
        part._modules[name] = _shell(part._modules[name])
        part = part._modules[name]
    kept = 0
    for number, layer in enumerate(list(part)):
        layer = part._modules[str(number)] = _shell(layer)
        if number in attention:
            layer._modules[where.attention] = SkippedAttention()
        else:
            own = layer._modules[where.attention] = _shell(layer._modules[where.attention])
            own.layer_idx = kept
            kept += 1
        if number in mlp:
            layer._modules[where.mlp] = SkippedMLP()
    return view


class SkippedAttention(nn.Module):
    """Adds nothing, and writes nothing into a cache."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class SkippedMLP(nn.Module):
    """Adds nothing."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


def _shell(module: Any) -> Any:
    """A copy with the same children, in a dictionary of its own."""
    shell = copy.copy(module)
    shell.__dict__["_modules"] = dict(module._modules)
    return shell


def _child(layers: nn.ModuleList, names: Sequence[str]) -> str:
    return next((name for name in names if all(hasattr(layer, name) for layer in layers)), "")
