"""The training loop. It knows no method: it iterates, evaluates, logs, checkpoints, resumes, detects divergence.

`step(batch)` does whatever one step of the method is and returns a dict with `loss` and what it consumed
(`forwards`, `examples`, `tokens`, `bytes_sent`). Everything with a memory stands in `state`, an ordered dict of
objects with `state_dict` and `load_state_dict`: the loop saves and restores them, the data position and the
random generators, so that a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dlopt.lab.log import Diverged, Log, Paused
from dlopt.lab.record import RecordUnwritable, set_aside


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Data(Protocol):
    """An endless stream of batches. `consumed` is the number of batches that steps have really used:
    only the loop knows it, since workers may have fetched more."""

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self, consumed: int) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


COUNTED = ("forwards", "examples", "tokens", "bytes_sent")


def train(
    step: Callable[[Any], Mapping[str, Any]],
    data: Data,
    state: Mapping[str, Stateful],
    *,
    steps: int,
    log: Log,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    eval_every: int = 0,
    log_every: int = 0,
    diverge_above: float = math.inf,
) -> None:
    """Run `steps` steps, from the log's checkpoint if there is one.

    evaluate() -> {"val_loss": ..., ...} runs before the first step, every `eval_every` steps (0: only at the ends)
    and at the end, without moving the random generators. Between, every `log_every` steps (0: about 100 in all),
    a row holds the mean training loss since the last row. Raises `Diverged` when a loss, evaluated or of a step, is
    not finite or above `diverge_above`, `Paused` at the log's deadline, after a checkpoint.
    """
    log_every = log_every or max(1, steps // 100)
    resumed = _resume(log, data, state)
    done, window, windowed = resumed or (0, 0.0, 0)
    with _undisturbed(log.device) if resumed else nullcontext():
        batches = iter(data)  # what this draws from the generators was drawn when the run began
    saved_at = time.monotonic()

    def add_row(done: int, loss: float | None, with_evaluation: bool) -> None:
        values: dict[str, Any] = {name: getattr(log.meter, name) for name in COUNTED if getattr(log.meter, name)}
        if loss is not None:
            values["loss"] = loss
        if with_evaluation and evaluate is not None:
            with _undisturbed(log.device):
                found = dict(evaluate())
            values |= found
            bad = {k: v for k, v in found.items() if not math.isfinite(v) or ("loss" in k and v > diverge_above)}
            if bad:
                log.row(done, **values)
                raise Diverged(f"{', '.join(f'{k} is {v:.4g}' for k, v in bad.items())} at step {done} of {steps}")
        log.row(done, **values)

    if resumed is None:
        add_row(0, None, with_evaluation=True)
    while done < steps:
        if log.deadline is not None and time.time() >= log.deadline:
            _save(log, data, state, done, window, windowed)
            raise Paused(f"paused at step {done} of {steps}")
        out = step(next(batches))
        done += 1
        loss = float(out["loss"])
        log.meter.add(**{name: int(out[name]) for name in COUNTED if name in out})
        if not math.isfinite(loss) or loss > diverge_above:
            log.row(done, loss=loss)
            raise Diverged(f"the training loss is {loss:.4g} at step {done} of {steps}")
        window, windowed = window + loss, windowed + 1
        evaluating = done == steps or bool(eval_every and done % eval_every == 0)
        if evaluating or done % log_every == 0:
            add_row(done, window / windowed, evaluating)
            window, windowed = 0.0, 0
        log.progress(done, steps)
        if time.monotonic() - saved_at >= log.checkpoint_seconds and done < steps:
            _save(log, data, state, done, window, windowed)
            saved_at = time.monotonic()


def _save(log: Log, data: Data, state: Mapping[str, Stateful], done: int, window: float, windowed: int) -> None:
    if log.work is None:
        return
    content = {
        "key": log.key,
        "done": done,
        "window": [window, windowed],
        "data": data.state_dict(done),
        "state": {name: part.state_dict() for name, part in state.items()},
        "random": random_state(log.device),
        "log": log.state_dict(),
    }
    path = log.work / "checkpoint.pt"
    temporary = path.with_suffix(".tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        message = f"cannot write the checkpoint {path}: {' '.join(str(error).split())[:200]}; the last one is kept"
        raise RecordUnwritable(getattr(error, "errno", None) or 28, message) from error


def _resume(log: Log, data: Data, state: Mapping[str, Stateful]) -> tuple[int, float, int] | None:
    path = log.work / "checkpoint.pt" if log.work else None
    if path is None or not path.exists():
        return None
    content = _load(path, log, state)
    if content is None:
        return None
    for name, part in state.items():
        part.load_state_dict(content["state"][name])
    data.load_state_dict(content["data"])
    log.load_state_dict(content["log"])
    # last, since loading may draw random numbers
    restore_random_state(content["random"])
    window, windowed = content["window"]
    return int(content["done"]), float(window), int(windowed)


def _load(path: Path, log: Log, state: Mapping[str, Stateful]) -> dict[str, Any] | None:
    try:
        # each tensor goes where it was: optimizers and generators keep some on the CPU, also on a GPU
        content: Any = torch.load(path, weights_only=True)
    except Exception as error:
        # torch raises many types for a truncated or foreign file: zip, pickle and runtime errors
        print(f"{path} cannot be read ({type(error).__name__}); it is kept as {set_aside(path)}, the run starts anew")
        return None
    wrong = ""
    if not isinstance(content, dict) or content.get("key") != log.key:
        wrong = "belongs to another run"
    elif list(content["state"]) != list(state):
        wrong = f"holds the states of {', '.join(content['state'])}, where the run has {', '.join(state)} today"
    if wrong:
        print(f"{path} {wrong}; it is kept as {set_aside(path)}, the run starts anew")
        return None
    found: dict[str, Any] = content
    return found


@contextmanager
def _undisturbed(device: str) -> Iterator[None]:
    """Leave the global generators as they were before the body."""
    before = random_state(device)
    yield
    restore_random_state(before)


def random_state(device: str = "cpu") -> dict[str, Any]:
    """The states of the global generators of torch, NumPy and Python, as plain numbers and tensors.

    Those of the GPUs only for a run on one: a run on the CPU may go on where there is none.
    """
    _, words, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (the generator that others may use)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.device(device).type == "cuda" else [],
        "numpy": [[int(w) for w in words], int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    words, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
