"""What the optimizers written here share: ranges, state in float32, exact resume, and passes that stay in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from dlopt.memory import Bytes, tensor_bytes

# A pass over several arrays is bound by memory unless it is cut so that the pieces stay in cache. 1 MiB of float32 each
# was the best of 2^14 ... 2^22 elements on cores with 1 MiB of L2 each and 32 MiB of shared L3.
CHUNK = 1 << 18


def state_dtype(p: Tensor) -> torch.dtype:
    """float32 for float16 and bfloat16 weights, else the weights' own."""
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def with_gradients(group: dict[str, Any]) -> list[Tensor]:
    """The tensors of a group that have a gradient."""
    found = [p for p in group["params"] if p.grad is not None]
    for p in found:
        if p.grad.is_sparse or p.is_complex():
            raise RuntimeError(
                f"a tensor of shape {tuple(p.shape)} has a sparse or complex gradient; give it to another optimizer"
            )
    return found


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same pieces of tensors of one shape: flat and small on a CPU, whole elsewhere or if one has gaps."""
    first = tensors[0]
    if first.device.type == "cpu" and first.numel() > CHUNK and all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(CHUNK) for t in tensors))
    else:
        yield tensors


def apply(kernel: Callable[..., None], w: Tensor, g: Tensor, *states: Tensor, maximize: bool) -> None:
    """kernel(w, g, *states) with w and g in the dtype of the states; low-precision weights are rounded once."""
    full = w.to(states[0].dtype)
    g = g.to(states[0].dtype)
    kernel(full, -g if maximize else g, *states)
    if full is not w:
        w.copy_(full)


def full_precision(params: list[Tensor], maximize: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and gradients for foreach kernels, in the dtype of the state; `write_back` ends the step."""
    gs = [p.grad.to(state_dtype(p)) for p in params]
    return [p.to(state_dtype(p)) for p in params], torch._foreach_neg(gs) if maximize else gs


def write_back(params: list[Tensor], full: list[Tensor]) -> None:
    for p, w in zip(params, full):
        if w is not p:
            p.copy_(w)


def use_foreach(group: dict[str, Any], params: list[Tensor]) -> bool:
    """As asked; by default on accelerators only, since on a CPU passes that stay in cache are faster."""
    if group["foreach"] is None:
        return all(p.device.type != "cpu" for p in params)
    return group["foreach"]


def zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, dtype=state_dtype(p), memory_format=torch.preserve_format)


def require(group: dict[str, Any], **allowed: tuple[str, Callable[[Any], bool]]) -> None:
    """Raise ValueError for the first hyper-parameter outside its range: name=(range in words, test)."""
    for name, (words, inside) in allowed.items():
        value = group[name]
        try:
            good = bool(inside(value))
        except (TypeError, ValueError, RuntimeError):
            good = False
        if not good:
            raise ValueError(f"{name}={value} is out of range: it must be {words}")


NOT_NEGATIVE = ("at least 0", lambda x: 0 <= x < math.inf)
POSITIVE = ("above 0", lambda x: 0 < x < math.inf)
BETAS = ("two numbers in [0, 1)", lambda x: len(x) == 2 and all(0 <= b < 1 for b in x))


def restore(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Put saved tensors back in the state's own dtype, after torch cast them to that of the weights."""
    keys = [i for group in state_dict["param_groups"] for i in group["params"]]
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    for key, p in zip(keys, tensors, strict=True):
        for name, value in state_dict["state"].get(key, {}).items():
            if isinstance(value, Tensor):
                # a copy: torch would share the tensors of the dictionary, and steps write in place
                optimizer.state[p][name] = value.detach().to(p.device, state_dtype(p), copy=True)


def match(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], **shapes: Callable[[Tensor], Any]) -> None:
    """Raise ValueError, before anything is loaded, if a saved tensor has not the shape that it would have here."""
    keys = [i for group in state_dict["param_groups"] for i in group["params"]]
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    for key, p in zip(keys, tensors):
        saved = state_dict["state"].get(key, {})
        for name, shape in shapes.items():
            if name in saved and tuple(saved[name].shape) != tuple(shape(p)):
                raise ValueError(
                    f"the saved {name} of a tensor of shape {tuple(p.shape)} has shape {tuple(saved[name].shape)}, but "
                    f"here it is {tuple(shape(p))}: it was saved with other settings"
                )


def plain(params: Iterable[Any]) -> list[Tensor]:
    """Distinct tensors of an iterable of tensors or of (name, tensor) pairs."""
    tensors = [p[1] if isinstance(p, tuple) else p for p in params]
    return list({id(p): p for p in tensors}.values())


def training_bytes(params: list[Tensor], state: int, temporaries: int) -> Bytes:
    """weights, gradients, the given state, and `temporaries` arrays of one piece of the largest tensor as scratch."""
    piece = max((min(p.numel(), CHUNK) * state_dtype(p).itemsize for p in params), default=0)
    gradients = sum(p.numel() * p.element_size() for p in params)
    return Bytes(weights=tensor_bytes(params), gradients=gradients, state=state, scratch=temporaries * piece)
