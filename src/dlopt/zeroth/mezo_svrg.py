"""MeZO-SVRG: MeZO with a full-batch gradient at an anchor as control variate (Gautam et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.catalog import method
from dlopt.memory import Bytes
from dlopt.zeroth import _common as common
from dlopt.zeroth._forwards import Forwards, Run, parts
from dlopt.zeroth.directions import DIRECTIONS, Directions, descend, mix, scratch
from dlopt.zeroth.log import Log, numbers
from dlopt.zeroth.perturb import Trained

RUN = ("steps", "forwards", "skipped", "misses", "due", "whole", "gradient", "seed", "eps", "interval", "shared_z",
       "direction", "n_directions", "train_mode")  # fmt: skip
OPTIONS = ("seed", "eps", "interval", "shared_z", "direction", "n_directions")
REPLAYED = ("direction",)  # what a log's header must hold
Closure = Callable[[], Any]


@method(
    "mezo-svrg",
    topic="zeroth",
    kind="zeroth",
    cite="gautam2024mezosvrg",
    summary="MeZO corrected by a full-batch estimate at an anchor, which costs one copy of the weights",
    search={"lr": (1e-8, 1e-2, "log"), "anchor_lr": (1e-8, 1e-2, "log")},
)
class MeZOSVRG(torch.optim.Optimizer):
    r"""MeZO-SVRG (arXiv 2404.08080, algorithm 2).

    Every `interval` steps the anchor A is renewed, from the loss F on the whole training set::

        A = W,    g = mean over k of c_k z_k,    c_k = (F(W + eps z_k) - F(W - eps z_k)) / (2 eps)
        W = W - anchor_lr (g + weight_decay W)

    and in the steps between, with the loss L on one batch::

        W = W - lr (mean over k of (c_k(W) z_k - c_k(A) z'_k) + g + weight_decay W)

    where c_k(W) and c_k(A) are L's differences around W and around A. Both are taken along the **same** direction,
    z' = z, unless shared_z=False: only then do they cancel where W is near A. The anchor is a real copy. g is kept
    as seeds and scalars, so the state is one copy of the weights. (The official code keeps an alias of the live
    weights as its anchor and draws two different directions; results from it are not those of this algorithm. It
    also divides lr where the loss rises by 5%; that is left to a scheduler.)

    Args:
        model_or_params, eps, seed, direction, n_directions, weight_decay, train_mode, patience, log, hold, row_chunk:
            as for `MeZO`, with the same guarantee that weights come back bit for bit.
        lr: of the steps between anchors, at least 0. The paper: about 1e-6.
        anchor_lr: of the step at an anchor, at least 0 (the paper: larger, 1e-5 to 1e-3), or None: the same as lr.
            It is an option of each group of its own, which schedulers of lr leave alone.
        interval: at least 1; steps from one anchor to the next (the paper: 2).
        shared_z: one direction for both differences of a step.

    `loss = opt.step(closure, full)`: closure computes the loss of one batch. full: a closure for the loss on the
    whole training set, or an iterable of closures, one per batch of it, whose mean is that loss (give pairs
    (closure, number of examples) where batches differ in size). It is used in steps at an anchor only (`opt.renews`
    tells whether the next step is one: also a tensor that is trained from now on makes it one). A run that **never
    gets it counts the closure itself as the whole set**, so MeZO-SVRG on batches alone is not the paper's; once it was
    given, a step at an anchor without it is refused. The result is the mean of the losses around W, in
    float64: F's or L's.

    Forward passes, counted in `forwards`: 2 n_directions per closure of `full` at an anchor, 4 n_directions in
    other steps. A step whose losses are not finite is skipped and counted; at an anchor, the next step tries again.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range; in `step` for an empty `full`, or for
            none where the anchor is renewed and earlier renewals had one. RuntimeError, FloatingPointError: as MeZO.

    Example:
        >>> import torch
        >>> from dlopt.zeroth import MeZOSVRG
        >>> model, data = torch.nn.Linear(4, 1, bias=False), torch.eye(4)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = MeZOSVRG(model, lr=0.05)
        >>> for t in range(200):
        ...     one = data[t % 4 : t % 4 + 1]
        ...     loss = optimizer.step(lambda: model(one).square().mean(), full=lambda: model(data).square().mean())
        >>> optimizer.forwards, bool(model.weight.abs().max() < 0.1)
        (600, True)
    """

    def __init__(
        self,
        model_or_params: nn.Module | Iterable[Any],
        lr: float = 1e-6,
        anchor_lr: float | None = None,
        interval: int = 2,
        eps: float = 1e-3,
        seed: int = 0,
        shared_z: bool = True,
        direction: str = "gaussian",
        n_directions: int = 1,
        weight_decay: float = 0.0,
        *,
        train_mode: bool = False,
        patience: int = 10,
        log: bool = False,
        hold: Sequence[str] = (),
        row_chunk: int = 0,
    ) -> None:
        common.positive(eps=eps)
        common.one_of(DIRECTIONS, direction=direction)
        common.counts(interval=interval, n_directions=n_directions, patience=patience)
        common.integer(seed=seed)
        self.interval, self.eps, self.seed, self.shared_z = interval, eps, seed, bool(shared_z)
        self.direction, self.n_directions, self.patience = direction, n_directions, patience
        self.steps = self.forwards = self.skipped = self.misses = 0
        self.due = True  # no anchor yet, or the last attempt at one was skipped
        self.whole = False  # whether `full` was given before
        self.gradient: list[list[Any]] = []  # g as [seed, scale] terms
        self.log = Log() if log else None
        self._forwards = Forwards(model_or_params, hold, train_mode, row_chunk)
        defaults = {"lr": lr, "anchor_lr": anchor_lr, "weight_decay": weight_decay}
        super().__init__(self._forwards.groups(model_or_params), defaults)

    @property
    def train_mode(self) -> bool:
        """Whether a model's modes are left alone during a step."""
        return self._forwards.train_mode

    @train_mode.setter
    def train_mode(self, value: bool) -> None:
        self._forwards.train_mode = value

    @property
    def held(self) -> int:
        """Most bytes of copied weights that were held at once so far, the anchor not among them."""
        return self._forwards.held

    @property
    def renews(self) -> bool:
        """Whether the next step renews the anchor, and so needs `full`."""
        trained = (p for group in self.param_groups for p in group["params"] if p.requires_grad)
        lacking = any("anchor" not in self.state.get(p, {}) for p in trained)
        return self.due or self.steps % self.interval == 0 or lacking

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; also checks values and dtypes. Tensors that come later have an anchor from the next renewal."""
        common.rates(self, param_group, "lr", "anchor_lr", "weight_decay")
        super().add_param_group(param_group)
        common.place(self)
        self.due = True

    @torch.no_grad()
    def step(self, closure: Closure, full: Closure | Iterable[Any] | None = None) -> Tensor:
        """One step of the algorithm; returns the mean loss around W (float64, on the CPU)."""
        trained = common.begin(self, closure)
        renew = self.renews
        if renew and full is None and self.whole:
            raise ValueError(
                "this step renews the anchor and needs full, the loss on the whole training set, as earlier ones had "
                "it; opt.renews tells when"
            )
        if self.log is not None:
            common.describe_run(self, "mezo_svrg", trained, OPTIONS)
        # with directions of their own, the differences around the anchor come after those around W
        n = self.n_directions if renew or self.shared_z else 2 * self.n_directions
        step_seed = mix(self.seed, self.steps)
        directions = Directions(self.direction, n, step_seed, [(t.index, t.tensor) for t in trained])
        with self._forwards.around(trained) as run:
            if renew:
                self.whole = full is not None
                losses, terms = self._full(run, parts(closure if full is None else full), directions)
            else:
                losses, terms = self._corrected(run, closure, directions, trained)
        self.steps += 1
        loss = torch.tensor(losses[: 2 * self.n_directions], dtype=torch.float64).mean()
        if not all(math.isfinite(scale) for _, scale in terms):
            self.due = self.due or renew
            common.skip(self, losses)
            return loss
        self.misses = 0
        if renew:
            self.state.clear()  # a tensor that is frozen now would thaw with an anchor older than the others'
            for t in trained:
                self.state[t.tensor]["anchor"] = t.tensor.detach().clone()
            self.due, self.gradient = False, [list(term) for term in terms]
        else:
            terms = [*((seed, scale) for seed, scale in self.gradient), *terms]
        rates = [g["lr"] if g["anchor_lr"] is None or not renew else g["anchor_lr"] for g in self.param_groups]
        row = {
            "step": self.steps - 1,
            "skipped": self.skipped,
            "terms": [list(term) for term in terms],
            "lr": [float(rate) for rate in rates],
            "weight_decay": [float(g["weight_decay"]) for g in self.param_groups],
        }
        for t in trained:
            descend(self.direction, terms, t.index, t.tensor, row["lr"][t.group], row["weight_decay"][t.group])
        if self.log is not None:
            self.log.rows.append(row)
        return loss

    def _full(
        self, run: Run, parts: Sequence[tuple[Closure, float]], directions: Directions
    ) -> tuple[list[float], list[tuple[int, float]]]:
        total = math.fsum(weight for _, weight in parts)
        losses = []
        for k in range(self.n_directions):
            for eps in (self.eps, -self.eps):
                values = []
                for closure, weight in parts:
                    values.append(weight * run(closure, partial(directions.shift, k, eps)))
                    self.forwards += 1
                losses.append(sum(values) / total)
        return losses, directions.mean(self._differences(losses))

    def _corrected(
        self, run: Run, closure: Closure, directions: Directions, trained: Sequence[Trained]
    ) -> tuple[list[float], list[tuple[int, float]]]:
        anchors = {t.index: self.state[t.tensor]["anchor"] for t in trained}

        def around_anchor(
            k: int, eps: float, index: int, w: Tensor, source: Tensor, start: int = 0, size: int | None = None
        ) -> None:
            part = anchors[index].reshape(-1)[start : start + w.numel()].view(w.shape)
            directions.shift(k, eps, index, w, part, start, size)

        losses: list[float] = []
        for shift, first in ((directions.shift, 0), (around_anchor, 0 if self.shared_z else self.n_directions)):
            for k in range(first, first + self.n_directions):
                for eps in (self.eps, -self.eps):
                    losses.append(run(closure, partial(shift, k, eps)))
                    self.forwards += 1
        here, there = (self._differences(x) for x in (losses[: len(losses) // 2], losses[len(losses) // 2 :]))
        if self.shared_z:
            return losses, directions.mean([a - b for a, b in zip(here, there, strict=True)])
        terms = directions.mean([*here, *(-b for b in there)])  # a mean over twice as many
        return losses, [(seed, 2 * scale) for seed, scale in terms]

    def _differences(self, losses: Sequence[float]) -> list[float]:
        return [(up - down) / (2 * self.eps) for up, down in zip(losses[::2], losses[1::2], strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """As torch's (the anchors), with the run's counters, options and g under "mezo_svrg"."""
        run = common.run_state(self, RUN)
        return {**super().state_dict(), "mezo_svrg": run | {"gradient": [list(term) for term in self.gradient]}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over anchors, g, counters, seed and options; a log only where this object keeps one."""
        load = super().load_state_dict
        shapes = {"anchor": lambda p: p.shape}
        common.take_over(self, state_dict, "mezo_svrg", RUN, load, lambda run: shapes, {"whole": False})

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("_forwards", "patience", "log", *RUN)}
        return {**super().__getstate__(), **own}

    @staticmethod
    def memory(
        params: nn.Module | Iterable[Tensor],
        *,
        hold: Sequence[str] = (),
        row_chunk: int = 0,
        tokens: int = 0,
        **options: Any,
    ) -> Bytes:
        """Bytes for training `params` with these options. state: the anchor, one copy of the trained weights.

        scratch as for `MeZO.memory`; an update has at least two terms, those of g and of the step.
        """
        tensors, weights, copies = common.sizes(params, hold, row_chunk, tokens)
        anchor = sum(p.numel() * p.element_size() for p in tensors)
        scratched = max(copies + scratch(tensors), scratch(tensors, 2))
        return Bytes(weights=weights, state=anchor, scratch=scratched)


def replayer(options: dict[str, Any], trained: Sequence[Trained]) -> Callable[[dict[str, Any]], None]:
    """A function that makes the update of one row of a log."""

    def apply(row: dict[str, Any]) -> None:
        for t in trained:
            lr, decay = row["lr"][t.group], row["weight_decay"][t.group]
            descend(options["direction"], row["terms"], t.index, t.tensor, lr, decay)

    return apply


def check_row(options: dict[str, Any], row: dict[str, Any]) -> None:
    """Raise ValueError where a row of a log is not one that `step` writes."""
    terms = row.get("terms")
    if not isinstance(terms, list) or not terms:
        raise ValueError("its terms must be a list")
    for term in terms:
        if not numbers(term) or len(term) != 2 or type(term[0]) is not int:
            raise ValueError(f"its terms must be pairs of a seed and a finite number, not {term!r}")
