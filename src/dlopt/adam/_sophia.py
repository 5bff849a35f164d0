"""The step that Sophia-G and Sophia-H share, and the buffers of a round of curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlopt.adam import _shared as shared
from dlopt.memory import Bytes

FLOOR = 1e-12  # the paper's least denominator
OFFICIAL_EPS = 1e-15  # what the official code adds instead
DRAWS = 1_000_003  # the random numbers of a round are those of the seed: seed + DRAWS * round
# kept in each group, so that they are saved and loaded with it: steps done, rounds done, how many of
# them were dropped, targets counted in this round
COUNTERS = {"steps": 0, "rounds": 0, "rounds_skipped": 0, "targets": 0}


def check(group: dict[str, Any]) -> None:
    shared.require(
        group,
        lr=shared.NOT_NEGATIVE,
        betas=shared.BETAS,
        rho=shared.POSITIVE,
        weight_decay=shared.NOT_NEGATIVE,
        interval=("a whole number, at least 1", lambda x: x == int(x) and x >= 1),
        seed=("a whole number, at least 0", lambda x: x == int(x) and x >= 0),
    )


def tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def state_of(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    state = optimizer.state[p]
    if "momentum" not in state:
        state["momentum"], state["curvature"] = shared.zeros(p), shared.zeros(p)
    return state


def rank(process_group: Any) -> int:
    """This process's number among the ranks; 0 where `torch.distributed` is not in use."""
    return dist.get_rank(process_group) if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_round(optimizer: torch.optim.Optimizer, name: str, process_group: Any) -> int:
    """The targets of this round on all ranks; the sums state[p][name] become those over all ranks.

    A tensor that no rank has a sum of stays without one: its curvature must not decay.
    """
    targets = int(optimizer.param_groups[0]["targets"])
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(process_group) == 1:
        return targets
    params = tensors(optimizer)
    counted = [targets, *(name in optimizer.state.get(p, {}) for p in params)]
    counts = torch.tensor(counted, dtype=torch.int64, device=params[0].device)
    dist.all_reduce(counts, group=process_group)
    targets, *ranks = counts.tolist()
    # every rank joins in every sum, in the order of the groups, or they would wait for one another
    for p in (p for p, n in zip(params, ranks) if n):
        state = state_of(optimizer, p)
        if name not in state:
            state[name] = torch.zeros_like(state["momentum"])
        dist.all_reduce(state[name], group=process_group)
    return targets


@torch.no_grad()
def take_sums(optimizer: torch.optim.Optimizer, name: str) -> dict[Tensor, Tensor]:
    """End the round: the sums state[p][name], taken out of the state; none of them if any number is not finite.

    One batch that overflows would stay in H for good, also where a `GradScaler` leaves out the step that comes after.
    All ranks hold the same sums, so all decide alike. A round that is dropped counts as a round, and has its draws.
    """
    sums = {p: state.pop(name) for p, state in optimizer.state.items() if name in state}
    finite = [torch.linalg.vector_norm(t, torch.inf).isfinite() for t in sums.values() if t.numel()]
    # in one number, so that an accelerator is waited for once
    good = not finite or bool(torch.stack([x.to(finite[0].device) for x in finite]).all())
    for group in optimizer.param_groups:
        group["rounds"] += 1
        group["rounds_skipped"] = group.get("rounds_skipped", 0) + (not good)  # states saved earlier have no such count
        group["targets"] = 0
    return sums if good else {}


def step(optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None) -> Any:
    """Momentum, decoupled decay and the clipped step, for every tensor that has a gradient."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in optimizer.param_groups:
        params = shared.with_gradients(group)
        states = [state_of(optimizer, p) for p in params]
        ms, hs = [s["momentum"] for s in states], [s["curvature"] for s in states]
        lr, (bound, floor, add) = float(group["lr"]), rule_of(group)
        options = {"rate": -lr / bound, "decay": 1 - lr * group["weight_decay"], "b1": group["betas"][0]}
        options |= {"bound": bound, "floor": floor, "add": add}
        if params and group["compile"]:
            kernel = partial(_compiled(), **options)
            for p, m, h in zip(params, ms, hs):
                shared.apply(kernel, p, p.grad, m, h, maximize=group["maximize"])
        elif params and shared.use_foreach(group, params):
            ws, gs = shared.full_precision(params, group["maximize"])
            _foreach(ws, gs, ms, hs, **options)
            shared.write_back(params, ws)
        else:
            kernel = partial(_loop, **options)
            for p, m, h in zip(params, ms, hs):
                for piece in shared.chunks(p, p.grad, m, h):
                    shared.apply(kernel, *piece, maximize=group["maximize"])
        group["steps"] += 1
    return loss


def rule_of(group: dict[str, Any]) -> tuple[float, float, float]:
    """(bound, floor, add): the step is clip(M / (max(H, floor) + add), bound) / bound.

    That is the paper's clip(M / max(rho H, FLOOR), 1), or the official clip(M / (rho batch H + OFFICIAL_EPS), 1).
    """
    if group.get("rule") == "official":
        bound = group["rho"] * group["batch"]
        return bound, -torch.inf, OFFICIAL_EPS / bound
    return group["rho"], FLOOR / group["rho"], 0.0


def share_unclipped(optimizer: torch.optim.Optimizer) -> float:
    counts, total = [], 0
    for group in optimizer.param_groups:
        bound, floor, add = rule_of(group)
        for p in group["params"]:
            state = optimizer.state.get(p) or {}
            if "momentum" in state:
                reach = state["curvature"].clamp(min=floor).add_(add).mul_(bound)
                counts.append((state["momentum"].abs() < reach).sum())
                total += p.numel()
    return sum(map(int, counts)) / total if total else 0.0


def _loop(
    w: Tensor, g: Tensor, m: Tensor, h: Tensor,
    *, rate: float, decay: float, b1: float, bound: float, floor: float, add: float,
) -> None:  # fmt: skip
    m.lerp_(g, 1 - b1)
    u = h + add if add else h.clamp(min=floor)
    torch.div(m, u, out=u)
    u.clamp_(-bound, bound)
    if decay != 1:
        w.mul_(decay)
    w.add_(u, alpha=rate)


def _foreach(
    ws: list[Tensor], gs: list[Tensor], ms: list[Tensor], hs: list[Tensor],
    *, rate: float, decay: float, b1: float, bound: float, floor: float, add: float,
) -> None:  # fmt: skip
    torch._foreach_lerp_(ms, gs, 1 - b1)
    us = torch._foreach_div(ms, torch._foreach_add(hs, add) if add else torch._foreach_clamp_min(hs, floor))
    torch._foreach_clamp_min_(us, -bound)
    torch._foreach_clamp_max_(us, bound)
    if decay != 1:
        torch._foreach_mul_(ws, decay)
    torch._foreach_add_(ws, us, alpha=rate)


def _fusable(
    w: Tensor, g: Tensor, m: Tensor, h: Tensor,
    *, rate: Any, decay: Any, b1: float, bound: float, floor: float, add: float,
) -> None:  # fmt: skip
    m.lerp_(g, 1 - b1)
    u = (m / (h + add if add else h.clamp(min=floor))).clamp(-bound, bound)
    w.copy_(w * decay + u * rate)


@cache
def _compiled() -> Callable[..., None]:
    kernel = torch.compile(_fusable, dynamic=True)

    def run(w: Tensor, g: Tensor, m: Tensor, h: Tensor, *, rate: float, decay: float, **fixed: float) -> None:
        # numbers that a schedule changes go in as tensors, or each new value would be compiled anew
        flat = all(t.is_contiguous() for t in (w, g, m, h))
        w, g, m, h = (t.view(-1) if flat else t for t in (w, g, m, h))
        as_tensor = partial(torch.tensor, dtype=m.dtype, device=m.device)
        kernel(w, g, m, h, rate=as_tensor(rate), decay=as_tensor(decay), **fixed)

    return run


def memory(params: Iterable[Tensor], lists: int) -> Bytes:
    """State of two numbers an element. scratch is what a round holds, or a step's piece if that is more.

    A round holds its sums, and at once `lists` lists with a tensor for each weight, in the weights' precision.
    """
    params = shared.plain(params)
    one = sum(p.numel() * shared.state_dtype(p).itemsize for p in params)
    bytes_ = shared.training_bytes(params, 2 * one, 1)
    return replace(bytes_, scratch=max(bytes_.scratch, one + lists * bytes_.gradients))
