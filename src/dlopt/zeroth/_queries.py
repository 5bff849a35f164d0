"""One batch's losses at changed weights: with the model as it is, or by its traced graph where that is the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.zeroth._reuse import Graph, Pass
from dlopt.zeroth.estimators import loss_at, number, places, stepped, values

MODES = ("batched", "restart", "plain")
CHECKED = 8  # examples on which a traced graph is compared with the model
TOLERANCE = {8: 1e-9, 4: 1e-4, 2: 0.1}  # by bytes of a weight or of the loss, relative to the loss


class Plain:
    """Passes of the whole model that all start from the same buffers and the same state of torch's generators."""

    def __init__(
        self, model: nn.Module, loss_fn: Callable[[Any, Any], Any], inputs: tuple[Any, ...], targets: Any
    ) -> None:
        self.model, self.loss_fn, self.inputs, self.targets = model, loss_fn, inputs, targets
        self.buffers = list(model.buffers())
        self.before = [b.clone() for b in self.buffers]
        self.generators = _generators(model)
        self.counted = False  # whether the buffers shall end as after one pass
        try:
            first = self.run()
            self.base = number(first)
        except BaseException:
            _write(self.buffers, self.before)
            raise
        self.bytes = first.element_size() if isinstance(first, Tensor) else 8  # of a loss: how exact it can be
        self.after = [b.clone() for b in self.buffers]
        self.generators_after = _generators(model)
        self.random = not all(map(torch.equal, self.generators, self.generators_after))
        self.moved = not all(map(_same, self.before, self.after))

    def run(self) -> Any:
        return self.loss_fn(self.model(*self.inputs), self.targets)

    def loss(self) -> Any:
        """At the weights as they are now, from where the first pass started."""
        if self.random:
            _restart(self.model, self.generators)
        if self.moved:
            _write(self.buffers, self.before)
        return self.run()

    def settle(self) -> None:
        """Leave generators as the first pass did, and buffers too if `counted`, else as they were before it."""
        _write(self.buffers, self.after if self.counted else self.before)
        if self.random:
            _restart(self.model, self.generators_after)


@contextmanager
def opened(
    model: nn.Module, loss_fn: Callable[[Any, Any], Any], inputs: Any, targets: Any, train_mode: bool
) -> Iterator[Plain]:
    """One batch's passes, in evaluation mode unless `train_mode`; modes, generators and buffers are settled after."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        if not train_mode:
            for module, _ in modes:
                module.training = False  # not eval(): some adapters merge their weights there
        batch = Plain(model, loss_fn, inputs if isinstance(inputs, tuple) else (inputs,), targets)
        try:
            yield batch
        finally:
            batch.settle()
    finally:
        for module, training in modes:
            module.training = training


class Evaluation:
    """How losses are computed. mode: the one of MODES in use; reason: why it is not the one asked for, else "".

    A traced graph is used only after it has given the same losses as the model: to the bit at the weights as they are
    (at every step), and within TOLERANCE with single weights of every tensor moved by 1, on a few examples, when it is
    new. `checks` counts the passes on these few examples, `work` all passes of a step in passes of the whole model.
    """

    def __init__(self, wanted: str, batch_bytes: int) -> None:
        self.wanted, self.batch_bytes = wanted, batch_bytes
        self.mode, self.reason = wanted, ""
        self.checks, self.work = 0, 0.0
        self._graphs: dict[tuple[str | bool, ...], tuple[Graph | None, str, str]] = {}

    def __reduce__(self) -> Any:  # graphs belong to one model object and are traced again
        return Evaluation, (self.wanted, self.batch_bytes)

    def differences(
        self, plain: Plain, tensors: Mapping[str, Tensor], coordinates: Mapping[str, Tensor], mu: float
    ) -> dict[str, Tensor]:
        """{name: (L(W + mu e_i) - L(W)) / mu for its coordinates i, float64}, steps as in `coordinate_gradient`."""
        traced = self.choose(plain, tensors)
        return {name: self.estimate(plain, traced, tensors[name], indices, mu) for name, indices in coordinates.items()}

    def estimate(self, plain: Plain, traced: Pass | None, p: Tensor, indices: Tensor, mu: float) -> Tensor:
        """The differences of one tensor; traced: what `choose` returned for this batch."""
        new, steps = stepped(values(p, indices), mu)
        before = traced.work if traced is not None else 0
        losses = self._losses(self.mode, plain, traced, p, indices, new, steps)
        self.work += traced.work - before if traced is not None else 0
        return (torch.tensor(losses, dtype=torch.float64).to(steps.device) - plain.base) / steps

    def _losses(
        self, mode: str, plain: Plain, traced: Pass | None, p: Tensor, indices: Tensor, new: Tensor, steps: Tensor
    ) -> list[float]:
        if traced is not None and mode == "batched":
            return traced.stacked(p, indices, new, steps)
        if traced is not None and mode == "restart":
            return [loss_at(lambda: traced.restart(p), p, place, v) for place, v in zip(places(p, indices), new)]
        self.work += len(indices)
        return [loss_at(plain.loss, p, place, v) for place, v in zip(places(p, indices), new)]

    def choose(self, plain: Plain, tensors: Mapping[str, Tensor]) -> Pass | None:
        """Set `mode` for a batch; returns its stored values, or None in mode "plain"."""
        if self.wanted == "plain":
            return None
        if plain.random:
            return self._settle(None, "plain", "the forward pass draws random numbers (dropout)")
        key = (*tensors, *(module.training for module in plain.model.modules()))
        if key not in self._graphs:
            self._graphs[key] = self._trace(plain, tensors)
        graph, mode, reason = self._graphs[key]
        if graph is None:
            return self._settle(None, mode, reason)
        traced = Pass(graph, plain.loss_fn, plain.inputs, plain.targets, self.batch_bytes)
        if traced.loss() != plain.base:
            return self._settle(None, "plain", "the traced graph does not give the model's loss for this batch")
        return self._settle(traced, mode, reason)

    def _settle(self, traced: Pass | None, mode: str, reason: str) -> Pass | None:
        if reason and reason != self.reason:
            warnings.warn(f"DeepZero evaluates in mode {mode!r}, not {self.wanted!r}: {reason}", stacklevel=5)
        self.mode, self.reason = mode, reason
        return traced

    def _trace(self, plain: Plain, tensors: Mapping[str, Tensor]) -> tuple[Graph | None, str, str]:
        """(the graph or None, the mode that passed the comparison with the model, why not the one asked for)."""
        try:
            graph = Graph(plain.model)
        except Exception as error:  # torch.fx runs the model's own code and lets all its errors through
            return None, "plain", f"the model cannot be traced ({_first_line(error)})"
        for name, p in tensors.items():
            if id(p) not in graph.sources:
                return None, "plain", f"the traced graph does not read {name}"
        inputs, targets = _few(plain.inputs, plain.targets)
        few = Plain(plain.model, plain.loss_fn, inputs, targets)
        few.settle()
        try:
            traced = Pass(graph, few.loss_fn, inputs, targets, self.batch_bytes)
        except Exception as error:
            return None, "plain", f"the traced graph does not run ({_first_line(error)})"
        self.checks += 2
        if traced.loss() != few.base or not all(map(_same, few.buffers, few.before)):
            few.settle()
            return None, "plain", "the traced graph does not give the model's loss or changes its buffers"
        reason = ""
        for mode in MODES[MODES.index(self.wanted) : 2]:
            fault = self._compare(mode, few, traced, tensors)
            if not fault:
                return graph, mode, reason
            reason = fault
        return None, "plain", reason

    def _compare(self, mode: str, few: Plain, traced: Pass, tensors: Mapping[str, Tensor]) -> str:
        """A sentence on the first tensor for which a mode and the model disagree, or "" if there is none."""
        before, fault = self.work, ""
        for name, p in tensors.items():
            indices = torch.tensor([0, p.numel() - 1][: p.numel()], device=p.device)
            new, steps = stepped(values(p, indices), 1.0)  # so far that a change left out is seen
            slow = self._losses("plain", few, None, p, indices, new, steps)
            few.settle()
            try:
                fast = self._losses(mode, few, traced, p, indices, new, steps)
            except Exception as error:
                fault = f"{name} cannot be evaluated in mode {mode!r} ({_first_line(error)})"
                break
            self.checks += 2 * len(indices)
            within = TOLERANCE[min(p.element_size(), few.bytes)] * (1 if p.device.type == "cpu" else 10)  # TF32
            if not all(math.isclose(a, b, rel_tol=within, abs_tol=within) for a, b in zip(fast, slow, strict=True)):
                fault = f"the losses in mode {mode!r} are not the model's where {name} is moved"
                break
        self.work, traced.work = before, 0.0
        return fault


def _few(inputs: tuple[Any, ...], targets: Any) -> tuple[tuple[Any, ...], Any]:
    """The first examples of a batch, where all that is in it are tensors with one row per example."""
    everything = (*inputs, targets)
    if all(isinstance(t, Tensor) and t.dim() for t in everything) and len({len(t) for t in everything}) == 1:
        return tuple(t[:CHECKED] for t in inputs), targets[:CHECKED]
    return inputs, targets


def _generators(model: nn.Module) -> list[Tensor]:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]


def _restart(model: nn.Module, states: list[Tensor]) -> None:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, where NaN equals NaN."""
    return a is b or bool(((a == b) | ((a != a) & (b != b))).all())


def _write(buffers: list[Tensor], saved: list[Tensor]) -> None:
    for buffer, old in zip(buffers, saved, strict=True):
        if not _same(buffer, old):
            buffer.copy_(old)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
