"""`Meter`: what a run has used so far, carried by the run, saved with its checkpoints, resumed exactly."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

COUNTERS = ("forwards", "examples", "tokens", "bytes_sent")


class Meter:
    """Counters of a run and its seconds by phase.

    forwards: forward passes of the model. examples, tokens: what it was trained on. bytes_sent: traffic to other
    nodes. seconds: {phase: seconds}. Counters are exact integers; seconds add up over resumed pieces.

    device: on a CUDA device each phase begins and ends with a synchronisation, so that work counts where it was
    asked for. clock: returns seconds; a test can give its own.

    >>> meter = Meter()
    >>> with meter.phase("forward"):
    ...     meter.add(forwards=1, examples=32)
    >>> meter.forwards, meter.examples, list(meter.seconds)
    (1, 32, ['forward'])
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self.device = torch.device(device)
        self.forwards = self.examples = self.tokens = self.bytes_sent = 0
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    def add(self, *, forwards: int = 0, examples: int = 0, tokens: int = 0, bytes_sent: int = 0) -> None:
        """Add to the counters. `TypeError` for what is not an integer, `ValueError` for a negative number."""
        given = dict(zip(COUNTERS, (forwards, examples, tokens, bytes_sent)))
        for name, count in given.items():
            given[name] = _count(name, count)
        for name, count in given.items():
            setattr(self, name, getattr(self, name) + count)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body as phase `name`: "forward", "backward", "optimizer", or any other word.

        Phases may be nested (`optimizer.step(closure)` runs the closure's phases): time belongs to the innermost,
        so that all seconds add up to the time spent in phases. An exception closes the phase.
        """
        self._charge()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def as_dict(self) -> dict[str, Any]:
        """All counters and seconds as plain numbers, a phase that is open included up to now."""
        self._charge()
        return {**{name: getattr(self, name) for name in COUNTERS}, "seconds": dict(self.seconds)}

    def state_dict(self) -> dict[str, Any]:
        """The same as `as_dict()`: ints, floats and strings only, safe for `torch.load(weights_only=True)`."""
        return self.as_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`. `ValueError` for missing or unknown entries, or while a phase is open."""
        if self._open:
            raise ValueError(f"cannot load the meter's state while its phase {self._open[-1]!r} is open")
        expected = {*COUNTERS, "seconds"}
        if set(state) != expected:
            raise ValueError(f"a meter's state has the entries {sorted(expected)}, this one has {sorted(state)}")
        counts = {name: _count(name, state[name]) for name in COUNTERS}
        seconds = {str(name): float(spent) for name, spent in state["seconds"].items()}
        for name, count in counts.items():
            setattr(self, name, count)
        self.seconds = seconds

    def _charge(self) -> None:
        """Give the time since the last border to the innermost open phase."""
        if self.device.type == "cuda":  # pragma: no cover - needs a GPU
            torch.cuda.synchronize(self.device)
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def count_forwards(module: nn.Module, meter: Meter | None = None) -> Iterator[Meter]:
    """Count the calls of `module` in the body, in `meter.forwards` (a new `Meter` if none is given).

    A forward pre-hook counts, so a call that fails counts too, and `module.forward(...)` called directly does not.

    >>> layer = nn.Linear(2, 2)
    >>> with count_forwards(layer) as meter:
    ...     _ = layer(layer(torch.ones(1, 2)))
    >>> meter.forwards
    2
    """
    counting = meter if meter is not None else Meter()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        counting.add(forwards=1)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield counting
    finally:
        handle.remove()


def _count(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}={value!r} must be an integer, since counters are exact") from error
    if count < 0:
        raise ValueError(f"{name}={count} must not be negative")
    return count
