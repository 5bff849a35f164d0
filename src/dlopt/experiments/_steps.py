"""The few lines that turn a method into a `step(batch)` for the lab's training loop, and a task into a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from dlopt import catalog
from dlopt.lab.counters import Meter
from dlopt.lab.log import Log
from dlopt.lab.meter import measure_step
from dlopt.lab.train import train
from dlopt.memory import Bytes

Step = Callable[[Any], dict[str, Any]]


class Built(Protocol):
    """What a task builds for one seed: see `tasks.classification` and `tasks.language`."""

    model: nn.Module
    batches: Any

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor: ...
    def criterion(self, logits: torch.Tensor, batch: Any) -> torch.Tensor: ...
    def consumed(self, batch: Any) -> dict[str, int]: ...
    def evaluate(self) -> dict[str, float]: ...
    def test(self) -> dict[str, Any]: ...


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
    """A method of kind "optimizer" or "zeroth" on a model.

    Methods that look at modules get the model by name. Weight decay spares biases and the weights of norms, for every
    method alike: zeroth-order methods, Adam-mini and Muon see to it themselves, the others get two groups.
    """
    entry = catalog.find(method)
    target = entry.load()
    if entry.kind == "zeroth":
        return target(model, **params)
    if "model" in entry.parameters():
        return target(model.named_parameters(), model=model, **params)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [(name, p) for name, p in named if p.ndim >= 2]},
        {"params": [(name, p) for name, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    if "weight_decay" not in entry.parameters():
        return target([p for _, p in named], **params)
    return target([group for group in groups if group["params"]], **params)


def gradients(built: Built, optimizer: Any, batch: Any, meter: Meter, clip: float = math.inf) -> torch.Tensor:
    """Fresh gradients of one batch, clipped to the norm `clip`; returns the loss.

    A method with a `curvature_due` (Sophia) gets its round of curvature from the same batch: from the logits if it
    draws labels (Sophia-G), from the loss if it needs Hessian-vector products (Sophia-H).
    """
    optimizer.zero_grad(set_to_none=True)
    due = getattr(optimizer, "curvature_due", False)
    with meter.phase("forward"):
        logits = built.forward(built.model, batch)
        loss = built.criterion(logits, batch)
    with meter.phase("backward"):
        loss.backward(retain_graph=due)
        if math.isfinite(clip):
            nn.utils.clip_grad_norm_(built.model.parameters(), clip)
    if due:
        with meter.phase("curvature"):
            optimizer.accumulate_curvature(logits if isinstance(optimizer, _sophia_g()) else loss)
            optimizer.update_curvature()
    return loss.detach()


def _sophia_g() -> type:
    return catalog.find("sophia-g").load()


def first_order(built: Built, optimizer: Any, meter: Meter, schedule: Schedule, clip: float = math.inf) -> Step:
    """Forward, backward, clip, step; one forward pass."""

    def step(batch: Any) -> dict[str, Any]:
        schedule.apply()
        loss = gradients(built, optimizer, batch, meter, clip)
        with meter.phase("optimizer"):
            optimizer.step()
        return {"loss": float(loss), "forwards": 1, **built.consumed(batch)}

    return step


def zeroth_order(built: Built, optimizer: Any, meter: Meter, schedule: Schedule) -> Step:
    """One call of the optimizer with a closure that only runs the forward pass; it counts its own passes."""

    def step(batch: Any) -> dict[str, Any]:
        schedule.apply()
        before = optimizer.forwards
        with meter.phase("optimizer"):
            loss = optimizer.step(lambda: built.criterion(built.forward(built.model, batch), batch))
        return {"loss": float(loss), "forwards": optimizer.forwards - before, **built.consumed(batch)}

    return step


def train_method(
    method: str, params: Mapping[str, Any], build: Callable[[], Built], log: Log, *, seed: int, steps: int,
    schedule: str, warmup: int = 0, clip: float = math.inf, eval_every: int = 0, diverge_above: float = math.inf,
) -> dict[str, Any]:  # fmt: skip
    """Train one model by one method, and return the summary that all topics share.

    build() makes the task: once for the run, and once for the bytes, which are counted before the run on a copy of its
    own, so that measuring disturbs nothing. A method with a `seed` gets the run's.
    """
    given = dict(params)
    if "seed" in catalog.find(method).parameters():
        given.setdefault("seed", seed)
    if not log.rows and not log.bytes.total:
        log.bytes = step_bytes(method, given, build())
    built = build()
    optimizer = make_optimizer(method, given, built.model)
    rates = Schedule(optimizer, schedule, steps, warmup)
    if catalog.find(method).kind == "zeroth":
        step = zeroth_order(built, optimizer, log.meter, rates)
    else:
        step = first_order(built, optimizer, log.meter, rates, clip)
    state = {"model": built.model, "optimizer": optimizer, "schedule": rates}
    train(step, built.batches, state, steps=steps, log=log, evaluate=built.evaluate, eval_every=eval_every,
          diverge_above=diverge_above)  # fmt: skip
    found: dict[str, Any] = built.evaluate() | built.test()
    found |= {f"seconds_{phase}": spent / steps for phase, spent in log.meter.seconds.items()}
    found |= {"seconds_per_step": sum(log.meter.seconds.values()) / steps, "forwards": log.meter.forwards}
    if hasattr(optimizer, "share_unclipped"):
        found["share_unclipped"] = optimizer.share_unclipped
    found["parameters"] = sum(p.numel() for p in built.model.parameters())
    return found


def step_bytes(method: str, params: Mapping[str, Any], built: Built) -> Bytes:
    """Bytes by kind of one training step between two rounds of curvature."""
    optimizer: Any = make_optimizer(method, params, built.model)
    batch = next(iter(built.batches))

    def closure() -> torch.Tensor:
        if catalog.find(method).kind == "zeroth":
            return built.criterion(built.forward(built.model, batch), batch)
        return gradients(built, optimizer, batch, Meter())

    return measure_step(built.model, optimizer, closure)


def at_least(name: str, value: float, least: float) -> None:
    """Raise ValueError unless value >= least."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_method(method: str, params: Mapping[str, Any]) -> None:
    """Build the method on a tiny model, so that a hyper-parameter out of range is refused before anything runs."""
    if "seed" in params:  # one equal to the method's default would not even enter the key
        raise ValueError("a method draws from the seed of its run: set seed, not params.seed")
    if not catalog.find(method).missing():
        make_optimizer(method, params, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
