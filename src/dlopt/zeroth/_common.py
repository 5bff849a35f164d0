"""What the zeroth-order optimizers share as `torch.optim.Optimizer`s: checks, counters, states, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.memory import tensor_bytes
from dlopt.zeroth.log import Log, describe
from dlopt.zeroth.perturb import Trained, largest_chain


def positive(**values: Any) -> None:
    """Raise ValueError for the first number that is not above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} is out of range: it must be above 0")


def counts(**values: Any) -> None:
    """Raise ValueError for the first value that is not an integer, at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is out of range: it must be an integer, at least 1")


def integer(**values: Any) -> None:
    """Raise ValueError for the first value that is not an integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name}={value!r} must be an integer")


def one_of(known: Sequence[str], **values: Any) -> None:
    """Raise ValueError for the first value that is not among the known ones."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown: it must be one of {', '.join(known)}")


def rates(optimizer: torch.optim.Optimizer, param_group: dict[str, Any], *names: str) -> None:
    """Raise ValueError for the first rate of a new group that is below 0."""
    for name in names:
        value = param_group.get(name, optimizer.defaults[name])
        if value is None and name == "anchor_lr":
            continue  # as lr
        if value is None or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is out of range: it must be at least 0")


def place(optimizer: torch.optim.Optimizer) -> None:
    """Check the tensors of the group that was added last, and give each the index that seeds its directions.

    A group that is refused is taken out again. A group is a copy: the caller's dictionary stays as it was.
    """
    try:
        _place(optimizer)
    except ValueError:
        optimizer.param_groups.pop()
        raise


def _place(optimizer: torch.optim.Optimizer) -> None:
    group = optimizer.param_groups[-1] = dict(optimizer.param_groups[-1])
    taken = sum(len(g["params"]) for g in optimizer.param_groups[:-1])
    group.setdefault("indices", list(range(taken, taken + len(group["params"]))))
    indices = [i for g in optimizer.param_groups for i in g["indices"]]
    if len(group["indices"]) != len(group["params"]) or len(set(indices)) != len(indices):
        raise ValueError(
            f"indices={group['indices']} must be one per tensor, each used once in all groups: tensors with the same "
            "index would move along the same direction"
        )
    addresses: dict[int, Tensor] = {}
    for p in (p for g in optimizer.param_groups for p in g["params"]):
        if not p.is_floating_point():
            raise ValueError(f"{type(optimizer).__name__} trains real floating-point tensors, not {p.dtype}")
        if p.numel() and p.device.type != "meta" and addresses.setdefault(p.data_ptr(), p) is not p:
            raise ValueError("two of the parameters share their memory; tie weights by using the same Parameter")


def begin(optimizer: Any, closure: Any) -> list[Trained]:
    """The trained tensors at the start of a step, in the order of their indices."""
    if closure is None:
        name = type(optimizer).__name__
        raise TypeError(f"{name}.step needs a closure that runs the forward pass and returns the loss")
    found = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [str(i) for i in group["indices"]]
        for name, index, p in zip(names, group["indices"], group["params"], strict=True):
            if p.requires_grad:
                found.append(Trained(name, index, p, number))
    if not found:
        raise ValueError("none of the parameters has requires_grad=True, so there is nothing to train")
    return sorted(found, key=lambda t: t.index)


def skip(optimizer: Any, losses: Sequence[float], what: str = "the loss", radius: str = "eps") -> None:
    """Count a step in which `what` is not finite; raise at the one that reaches `patience`, with the `radius`."""
    optimizer.skipped += 1
    optimizer.misses += 1
    if optimizer.misses >= optimizer.patience:
        bad = [loss for loss in losses if not math.isfinite(loss)] or losses
        raise FloatingPointError(
            f"{what} was not finite in {optimizer.misses} steps in a row (the last: "
            f"{', '.join(map(str, bad[:4]))}). The weights are those before these steps; lower lr or "
            f"{radius}={getattr(optimizer, radius):g} or compute the loss in float32"
        )


def describe_run(optimizer: Any, method: str, trained: Sequence[Trained], names: Sequence[str]) -> None:
    """Write the header of a log before its first row; later, refuse another set of trained tensors."""
    log, options = optimizer.log, {name: getattr(optimizer, name) for name in names}
    if not log.rows:
        # with the counters, a row that is missing is seen: rows are consecutive but for steps that were skipped
        counters = {"step": optimizer.steps, "skipped": optimizer.skipped}
        log.header = describe(method, trained, options) | counters
        return
    same = {name: value for name, value in options.items() if name != "eps"}  # rows hold all that depends on eps
    logged = {name: log.header["options"].get(name) for name in same}
    if log.header["names"] != [t.name for t in trained] or logged != same:
        what = "the set of trained parameters" if logged == same else "an option of the optimizer"
        raise RuntimeError(
            f"{what} changed while a log was kept, so the log could not be replayed; "
            "save opt.log and start a new one with opt.log = Log()"
        )


def run_state(optimizer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Counters and options of a run as plain values, with the log where one is kept."""
    run = {name: getattr(optimizer, name) for name in names}
    if optimizer.log is not None:
        run["log"] = {"header": dict(optimizer.log.header), "rows": list(optimizer.log.rows)}
    return run


Shape = Callable[[Tensor], Sequence[int] | None]


def match(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], **shapes: Shape) -> None:
    """Raise ValueError, before anything is loaded, where names (known on both sides) or shapes of a state differ.

    shapes: of each tensor that is kept for a weight; None where none is kept for it.
    """
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"]):
        for here, there in zip(group.get("param_names") or (), saved.get("param_names") or ()):
            if here != there:
                raise ValueError(
                    f"the saved state is of {there!r} where this optimizer has {here!r}: "
                    "give it the same parameters in the same order"
                )
    keys = [i for group in state_dict["param_groups"] for i in group["params"]]
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    for key, p in zip(keys, tensors):
        kept = state_dict["state"].get(key, {})
        for name, shape in shapes.items():
            wanted = shape(p)
            if name in kept and (wanted is None or tuple(kept[name].shape) != tuple(wanted)):
                raise ValueError(
                    f"the saved {name} of a tensor of shape {tuple(p.shape)} has shape {tuple(kept[name].shape)}, but "
                    f"here it is {wanted and tuple(wanted)}: it was saved with another model or other settings"
                )


def take_over(
    optimizer: Any,
    state_dict: dict[str, Any],
    key: str,
    names: Sequence[str],
    load: Any,
    shapes: Callable[[dict[str, Any]], Mapping[str, Shape]] = lambda run: {},
    absent: Mapping[str, Any] | None = None,
) -> None:
    """Load a state whose run stands under `key`; tensors of the state keep their dtype; a log only where one is kept.

    load: torch's own `load_state_dict`, which casts tensors of the state to the dtype of their weights. shapes: for
    `match`, given the run. absent: values for what states saved by earlier versions lack.
    """
    if key not in state_dict:
        raise ValueError(f"this is not a state of {type(optimizer).__name__}: it has no entry {key!r}")
    run = {**(absent or {}), **state_dict[key]}
    lacking = [name for name in names if name not in run]
    if lacking:
        raise ValueError(f"the saved state of {type(optimizer).__name__} is damaged: it lacks {', '.join(lacking)}")
    match(optimizer, state_dict, **shapes(run))
    load(state_dict)
    keys = [i for group in state_dict["param_groups"] for i in group["params"]]
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    for saved, p in zip(keys, tensors, strict=True):
        for name, value in state_dict["state"].get(saved, {}).items():
            if isinstance(value, Tensor):
                # a copy: torch would share the tensors of the dictionary, and steps write in place
                optimizer.state[p][name] = value.detach().to(p.device, copy=True)
    for name in names:
        setattr(optimizer, name, run[name])
    if optimizer.log is not None:
        log = run.get("log", {"header": {}, "rows": []})
        optimizer.log = Log(dict(log["header"]), list(log["rows"]))


def sizes(
    params: nn.Module | Iterable[Any], hold: Sequence[str] = (), rows: int = 0, tokens: int = 0
) -> tuple[list[Tensor], int, int]:
    """(trained tensors, bytes of all weights, bytes of the copies held at most) of what an optimizer is given.

    Of a model's buffers a copy is held as well: a forward may change any of them, and they have to come back.
    """
    if isinstance(params, nn.Module):
        tensors = [p for p in params.parameters() if p.requires_grad]
        weights = tensor_bytes([*params.parameters(), *params.buffers()])
        return tensors, weights, largest_chain(params, tensors, hold, rows, tokens) + tensor_bytes(params.buffers())
    tensors = [p[1] if isinstance(p, tuple) else p for p in params]
    tensors = list({id(p): p for p in tensors}.values())
    return tensors, tensor_bytes(tensors), sum(p.numel() * p.element_size() for p in tensors)
