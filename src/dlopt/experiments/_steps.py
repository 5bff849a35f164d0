"""The few lines that turn a method into a `step(batch)` for the lab's training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dlopt import catalog
from dlopt.lab.counters import Meter

Loss = Callable[[nn.Module, Any], torch.Tensor]
Step = Callable[[Any], dict[str, Any]]


class Schedule:
    """Learning-rate factors over a run of `steps` steps: "constant", or "cosine" down to 0 after a linear warm-up.

    Multiplies each group's own rate; a group whose lr is None (a method that sets its own rate) is left alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, kind: str, steps: int, warmup: int = 0):
        if kind not in ("constant", "cosine"):
            raise ValueError(f"schedule takes constant or cosine, not {kind!r}")
        if not 0 <= warmup <= steps:
            raise ValueError(f"warmup must be between 0 and the {steps} steps, got {warmup}")
        self.optimizer, self.kind, self.steps, self.warmup, self.t = optimizer, kind, steps, warmup, 0
        self._rates = [group["lr"] for group in optimizer.param_groups]

    def factor(self, t: int) -> float:
        if t < self.warmup:
            return (t + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (t - self.warmup) / max(1, self.steps - self.warmup)))

    def apply(self) -> None:
        """Set the rates for the step that comes, and move on."""
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            if rate is not None:
                group["lr"] = rate * self.factor(self.t)
        self.t += 1

    def state_dict(self) -> dict[str, int]:
        return {"t": self.t}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.t = state["t"]


def make_optimizer(method: str, params: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """A method of kind "optimizer" or "zeroth" on a model. Methods that look at modules get the model by name."""
    entry = catalog.find(method)
    target = entry.load()
    if entry.kind == "zeroth":
        return target(model, **params)
    if "model" in entry.parameters():
        return target(model.named_parameters(), model=model, **params)
    return target(model.parameters(), **params)


def first_order(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, meter: Meter,
                schedule: Schedule, clip: float = math.inf) -> Step:  # fmt: skip
    """Forward, backward, clip, step; one forward pass."""

    def step(batch: Any) -> dict[str, Any]:
        schedule.apply()
        optimizer.zero_grad(set_to_none=True)
        with meter.phase("forward"):
            value = loss(model, batch)
        with meter.phase("backward"):
            value.backward()
            if math.isfinite(clip):
                nn.utils.clip_grad_norm_(model.parameters(), clip)
        with meter.phase("optimizer"):
            optimizer.step()
        return {"loss": float(value.detach()), "forwards": 1, "examples": len(batch[0])}

    return step


def zeroth_order(model: nn.Module, optimizer: Any, loss: Loss, meter: Meter, schedule: Schedule) -> Step:
    """One call of the optimizer with a closure that only runs the forward pass; it counts its own passes."""

    def step(batch: Any) -> dict[str, Any]:
        schedule.apply()
        before = optimizer.forwards
        with meter.phase("optimizer"):
            value = optimizer.step(lambda: loss(model, batch))
        return {"loss": float(value), "forwards": optimizer.forwards - before, "examples": len(batch[0])}

    return step


def make_step(method: str, model: nn.Module, optimizer: Any, loss: Loss, meter: Meter,
              schedule: Schedule, clip: float = math.inf) -> Step:  # fmt: skip
    """The step that fits the method's kind."""
    if catalog.find(method).kind == "zeroth":
        return zeroth_order(model, optimizer, loss, meter, schedule)
    return first_order(model, optimizer, loss, meter, schedule, clip)


def check_method(method: str, params: Mapping[str, Any]) -> None:
    """Build the method on a tiny model, so that a hyper-parameter out of range is refused before anything runs."""
    if not catalog.find(method).missing():
        make_optimizer(method, params, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
