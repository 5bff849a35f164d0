"""What a training step or a decode costs: bytes by kind as `dlopt.memory.Bytes`, and the counters of a run.

`weights_bytes`, `gradient_bytes`, `state_bytes` look at what is there; `saved_for_backward`, `peak_live`
(`dlopt.lab.peak`) watch a call; `measure_step` fills all of `Bytes` from one step. `Meter`, `count_forwards`
(`dlopt.lab.counters`) are what a run carries; `environment`, `source_state`, `code_hash`
(`dlopt.lab.environment`) say where it ran. All can be imported from here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.lab.counters import Meter, count_forwards
from dlopt.lab.environment import code_hash, environment, source_state
from dlopt.lab.peak import PeakReport, parts, peak_live, saved_for_backward, tensors_in
from dlopt.memory import Bytes, tensor_bytes

__all__ = [
    "Meter",
    "PeakReport",
    "code_hash",
    "count_forwards",
    "environment",
    "gradient_bytes",
    "measure_step",
    "peak_live",
    "saved_for_backward",
    "source_state",
    "state_bytes",
    "weights_bytes",
]


def weights_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters and buffers of some modules. Tied weights, also between modules, count once."""
    return tensor_bytes(list(tensors_in(modules)))


def gradient_bytes(source: nn.Module | Iterable[Tensor]) -> int:
    """Bytes of the `.grad` of a module's parameters, or of the given parameters; a `None` gradient is 0."""
    return tensor_bytes(_gradients(source))


def state_bytes(*stateful: Any) -> int:
    """Bytes of the tensors that optimizers (or other objects with `state_dict()`) keep between steps. Exact.

    Counted, each storage once over all objects: every tensor reachable in `.state`; in `.param_groups` but for
    the parameters (a tensor learning rate); and in the further entries of `state_dict()`, which is where an object
    declares what else it owns (an anchor, an inner optimizer). A tensor that shares the parameters' storage takes
    no memory of its own and is left out. NumPy arrays and Python numbers are not tensors and are not counted.
    `TypeError` if an object has neither `.state` nor `state_dict()`.
    """
    return tensor_bytes(_state_tensors(stateful))


def measure_step(
    model: nn.Module, optimizer: Any, closure: Callable[[], Any], *, state: Iterable[Any] = (), warmup: int = 1
) -> Bytes:
    """The cost of one typical `optimizer.step(closure)`, by kind. The step is real: weights and state move on.

    closure: what the optimizer expects: for a first-order one it clears the gradients, computes the loss, calls
    backward and returns the loss; for a zeroth-order one it only returns the loss. state: further stateful objects
    that belong to the step, such as a `GradScaler`. warmup: steps taken before, so that lazy state exists.

    weights, state: before and after, whichever is more. gradients: the most seen after a closure call or the step.
    saved: the most that autograd holds at once. scratch = max(0, peak - weights - gradients - state - saved), with
    the peak of `peak_live`; it holds the input batch too. The kinds are not all at their largest at the same
    moment, so `Bytes.total` is at least the peak, and equals it where scratch is not 0.
    On CUDA the peak is the allocator's, of all tensors in the process. `ValueError` for a negative warmup.
    """
    if warmup < 0:
        raise ValueError(f"warmup={warmup} must be 0 or more steps")
    for _ in range(warmup):
        optimizer.step(closure)
    owners = [optimizer, *state]
    gradients = saved = 0

    def watched() -> Any:
        nonlocal gradients
        loss = closure()
        gradients = max(gradients, gradient_bytes(model))
        return loss

    def step() -> None:
        nonlocal saved
        saved = saved_for_backward(lambda: optimizer.step(watched), weights=model)

    def held() -> Iterator[Tensor]:  # a generator, so that nothing here keeps a gradient or a state tensor alive
        yield from tensors_in(model)
        yield from _gradients(model)
        yield from _state_tensors(owners)

    first = next(iter(tensors_in(model)), torch.empty(0))
    weights, kept = weights_bytes(model), state_bytes(*owners)
    peak = peak_live(step, held(), first.device).peak
    weights, kept = max(weights, weights_bytes(model)), max(kept, state_bytes(*owners))
    gradients = max(gradients, gradient_bytes(model))
    scratch = max(0, peak - weights - gradients - kept - saved)
    return Bytes(weights=weights, gradients=gradients, state=kept, scratch=scratch, saved=saved)


def _gradients(source: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    params = source.parameters() if isinstance(source, nn.Module) else source
    return [part for p in params if p.grad is not None for part in parts(p.grad)]


def _state_tensors(stateful: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    params: set[int] = set()
    visited: dict[int, Any] = {}
    for owner in stateful:
        live = getattr(owner, "state", None)
        has_dict = callable(getattr(owner, "state_dict", None))
        if not has_dict and live is None:
            raise TypeError(f"{type(owner).__name__} has neither .state nor state_dict(), so its state cannot be seen")
        groups = getattr(owner, "param_groups", [])
        params |= {part.untyped_storage()._cdata for g in groups for p in g["params"] for part in parts(p)}
        declared = owner.state_dict() if has_dict else {}
        if live is not None:  # the live tensors count; those in a state_dict may be copies
            declared = {name: value for name, value in declared.items() if name not in ("state", "param_groups")}
            found += _reachable(live, visited)
        found += _reachable([{k: v for k, v in g.items() if k != "params"} for g in groups], visited)
        found += _reachable(declared, visited)
    return [tensor for tensor in found if tensor.untyped_storage()._cdata not in params]


# values that hold no tensors, or (functions, modules of code) lead out of the state
_PLAIN = (
    *(str, bytes, int, float, complex, type(None), torch.Generator, torch.dtype, torch.device),
    *(type, types.FunctionType, types.MethodType, types.ModuleType),
)


def _reachable(value: Any, visited: dict[int, Any]) -> Iterator[Tensor]:
    """The plain tensors in mappings (values only: keys are parameters), sequences, sets and objects' attributes."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            yield from parts(item)
        elif isinstance(item, _PLAIN):
            continue
        elif id(item) not in visited:
            visited[id(item)] = item  # kept, since an id is only its own while the object lives
            if isinstance(item, nn.Module):
                yield from tensors_in(item)
            elif isinstance(item, Mapping):
                stack += item.values()
            elif isinstance(item, list | tuple | set | frozenset):
                stack += item
            else:
                stack += [getattr(item, name) for name in _attributes(item)]


def _attributes(item: Any) -> list[str]:
    slots = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
    return [name for name in [*getattr(item, "__dict__", ()), *slots] if hasattr(item, name)]
