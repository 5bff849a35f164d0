"""The closure, run at shifted weights: what every zeroth-order method does with a model or with bare parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.zeroth._quiet import quiet
from dlopt.zeroth.perturb import Held, Hooked, Shift, Trained, owners

Run = Callable[..., float]


class Forwards:
    """Shifts a model's weights by hooks or bare parameters from one copy, and runs closures in between.

    model_or_params: what the optimizer was given. hold, train_mode: as `MeZO` explains them. rows: `row_chunk` there.
    held: most bytes of copied weights that were held at once so far.
    """

    def __init__(self, model_or_params: Any, hold: Sequence[str] = (), train_mode: bool = False, rows: int = 0) -> None:
        self.model = model_or_params if isinstance(model_or_params, nn.Module) else None
        self.hold, self.train_mode, self.rows = tuple(hold), train_mode, rows
        self.held = 0
        self.watched = False
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
            raise ValueError(f"row_chunk={rows!r} is out of range: it must be an integer, at least 0")
        if self.model is not None:
            owners(self.model, self.hold)  # an unknown name in hold raises here
        elif self.hold:
            raise ValueError("hold needs a model; given parameters, a copy of all of them is held anyway")
        elif rows:
            raise ValueError("row_chunk needs a model; given parameters, a copy of all of them is held anyway")

    def groups(self, model_or_params: Any) -> Iterable[Any]:
        """What `torch.optim.Optimizer` takes: of a model two groups, with decay and without."""
        return model_or_params if self.model is None else model_groups(self.model)

    @contextmanager
    def around(self, trained: Sequence[Trained]) -> Iterator[Run]:
        """Around the forwards of one step: yields run(closure, shift) -> loss; without shift at the weights as they
        are. All weights come back bit for bit after every run, modes and buffers of the model at the end."""
        if self.model is None:
            around: Held | Hooked = Held(trained)
        else:
            around = Hooked(self.model, trained, self.hold, watch=not self.watched, rows=self.rows)

        def run(closure: Callable[[], Any], shift: Shift | None = None) -> float:
            restart()
            if shift is None:
                return number(closure())
            value = around.run(closure, shift)
            if isinstance(around, Hooked):
                around.watch, self.watched = False, True
            return number(value)

        with quiet(self.model, {t.tensor.device for t in trained}, self.train_mode) as restart:
            try:
                yield run
            finally:
                around.restore()  # again, in case that Ctrl-C fell into the first time
        self.held = max(self.held, around.peak)


def probe(
    optimizer: Any, closure: Callable[[], Any], trained: Sequence[Trained], shift: Callable[..., None]
) -> tuple[list[float], list[float], float]:
    """Measure the slope along every direction of a step; all weights are back as they were.

    shift(k, eps, index, w, source, ...): w = source + eps times direction k. Returns (losses in the order in which
    they were computed, [c_k], the step's loss: L(W) where it is one-sided, else their mean).
    """
    eps, one_sided = optimizer.eps, optimizer.one_sided
    losses = []
    with optimizer._forwards.around(trained) as run:
        if one_sided:
            losses.append(run(closure))
            optimizer.forwards += 1
        for k in range(optimizer.n_directions):
            for signed in (eps,) if one_sided else (eps, -eps):
                losses.append(run(closure, partial(shift, k, signed)))
                optimizer.forwards += 1
    if one_sided:
        return losses, [(up - losses[0]) / eps for up in losses[1:]], losses[0]
    slopes = [(up - down) / (2 * eps) for up, down in zip(losses[::2], losses[1::2], strict=True)]
    return losses, slopes, float(torch.tensor(losses, dtype=torch.float64).mean())


def model_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, with decay and without; indices follow the model's order, as those of model.parameters() do."""
    spared = set()
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            spared |= {id(p) for p in module.parameters(recurse=False)}
    groups: list[dict[str, Any]] = [{"params": [], "indices": []}, {"params": [], "indices": [], "weight_decay": 0.0}]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for index, (name, p) in enumerate(trained):
        group = groups[id(p) in spared or name.split(".")[-1].endswith("bias")]
        group["params"].append((name, p))
        group["indices"].append(index)
    return [group for group in groups if group["params"]]


def number(loss: Any) -> float:
    """The loss as a Python float; an error that says what the closure must return."""
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the closure must return one number, but it returned a tensor of shape {tuple(loss.shape)}")
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except TypeError:
        raise TypeError(f"the closure must return the loss, a scalar tensor or a float, not {loss!r}") from None


def parts(full: Callable[[], Any] | Iterable[Any]) -> list[tuple[Callable[[], Any], float]]:
    """[(closure, weight)] of what `step` was given for the whole training set."""
    if callable(full):
        return [(full, 1.0)]
    parts = [part if isinstance(part, tuple) else (part, 1.0) for part in full]
    if not parts:
        raise ValueError("full holds no closure; it must be a closure or an iterable of at least one")
    for closure, weight in parts:
        if not callable(closure) or not 0 < weight < math.inf:
            raise ValueError("full must hold closures or pairs (closure, number of examples above 0)")
    return parts
