"""LOZO and LOZO-M: zeroth-order fine-tuning along directions of low rank (Chen et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.catalog import method
from dlopt.memory import Bytes
from dlopt.zeroth import _common as common
from dlopt.zeroth import _lowrank as lowrank
from dlopt.zeroth._forwards import Forwards, probe
from dlopt.zeroth.directions import DIRECTIONS, Directions, descend, mix, noise_dtype, scratch
from dlopt.zeroth.log import Log, numbers
from dlopt.zeroth.perturb import Trained

RUN = ("steps", "forwards", "skipped", "misses", "seed", "eps", "rank", "interval", "momentum", "scale",
       "direction", "n_directions", "one_sided", "train_mode")  # fmt: skip
OPTIONS = ("seed", "eps", "rank", "interval", "momentum", "scale", "direction", "n_directions", "one_sided")
REPLAYED = ("seed", "rank", "interval", "momentum", "scale")  # what a log's header must hold
ONE = {"direction": "gaussian", "n_directions": 1, "one_sided": False}  # what earlier versions did, without saying so
SCALES = ("paper", "official")


@method(
    "lozo",
    topic="zeroth",
    kind="zeroth",
    cite="chen2025lozo",
    summary="MeZO along directions U V^T of low rank, with V kept for many steps; with momentum in that space",
    search={"lr": (1e-8, 1e-1, "log")},
)
class LOZO(torch.optim.Optimizer):
    r"""LOZO, and with momentum LOZO-M (arXiv 2410.07698, algorithms 1 and 2).

    For every weight W (m x n), with U (m x r) new in every step and V (n x r) new in every `interval` steps, both
    N(0, 1) numbers that only their integer seeds stand for::

        c = (L(W + eps U V^T) - L(W - eps U V^T)) / (2 eps)      all weights shifted together; two forward passes
        W = W - lr (c U V^T / r + weight_decay W)                the expectation over U and V is the gradient

    With momentum beta (LOZO-M), where N (m x r) is the only state::

        N = beta N + (1 - beta) c U,    W = W - lr (N V^T / r + weight_decay W)
        N = N V_old^T V_new / n         first, in a step whose V is a new one: the old N V^T projected to it

    (V_new^T V_new is about n I, so this is nearly the least-squares N. It keeps a share r / n of N V^T in expectation:
    what does not lie in the new plane is lost.) With several directions each has a U_k of its own and the same V, and
    the mean over k of c_k U_k stands for c U.

    Weights with more than two dimensions are taken as a matrix of shape[0] rows; biases, norms and other vectors
    move along MeZO's direction, without momentum. The step moves along exactly what the loss was measured
    along. (In the official code the update draws U where the perturbation drew V, in every step with a new V, and so
    moves along another direction there.)

    Args:
        model_or_params, eps, seed, weight_decay, train_mode, patience, log, hold: as for `MeZO`, with the same
            guarantee that weights come back bit for bit.
        direction, n_directions, one_sided: as for `MeZO`; the paper has "gaussian", 1 and False. U and V are both
            drawn from `direction` (a sphere for each of them), so the estimate stays unbiased.
        lr: at least 0. The paper: 1e-7 to 1e-6 for all weights of a language model.
        rank: r, at least 1 (the paper: 1 to 8, mostly 2 or 4). It may exceed the smaller side of a small matrix.
        interval: at least 1, how many steps share V (the paper: 50 or 100).
        momentum: None (LOZO) or beta in [0, 1) (LOZO-M; the official scripts: 0.7).
        scale: "paper", as above, or "official", as the published code does it: without 1/r, so that the estimate
            has r times the gradient as its expectation, and with N = c U in a weight's first step.

    `loss = opt.step(closure)` as for `MeZO`. Two forward passes a step and direction, counted in `forwards`.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range. RuntimeError, FloatingPointError: as
            MeZO; RuntimeError also where a log begins when momentum is there already.

    Example:
        >>> import torch
        >>> from dlopt.zeroth import LOZO
        >>> model, target = torch.nn.Linear(6, 4, bias=False), torch.ones(4, 6)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> optimizer = LOZO(model, lr=0.02, rank=2, interval=10)
        >>> for _ in range(400):
        ...     loss = optimizer.step(lambda: (model(torch.eye(6)) - 1).square().sum())
        >>> bool(loss < 1e-2), optimizer.forwards, len(optimizer.state)
        (True, 800, 0)
    """

    def __init__(
        self,
        model_or_params: nn.Module | Iterable[Any],
        lr: float = 1e-6,
        rank: int = 2,
        interval: int = 50,
        momentum: float | None = None,
        eps: float = 1e-3,
        seed: int = 0,
        scale: str = "paper",
        weight_decay: float = 0.0,
        *,
        direction: str = "gaussian",
        n_directions: int = 1,
        one_sided: bool = False,
        train_mode: bool = False,
        patience: int = 10,
        log: bool = False,
        hold: Sequence[str] = (),
    ) -> None:
        common.positive(eps=eps)
        common.counts(rank=rank, interval=interval, n_directions=n_directions, patience=patience)
        common.integer(seed=seed)
        common.one_of(SCALES, scale=scale)
        common.one_of(DIRECTIONS, direction=direction)
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} is out of range: it must be None or in [0, 1)")
        self.rank, self.interval, self.momentum, self.scale = rank, interval, momentum, scale
        self.eps, self.seed, self.patience = eps, seed, patience
        self.direction, self.n_directions, self.one_sided = direction, n_directions, bool(one_sided)
        self.steps = self.forwards = self.skipped = self.misses = 0
        self.log = Log() if log else None
        self._forwards = Forwards(model_or_params, hold, train_mode)
        super().__init__(self._forwards.groups(model_or_params), {"lr": lr, "weight_decay": weight_decay})

    @property
    def train_mode(self) -> bool:
        """Whether a model's modes are left alone during a step."""
        return self._forwards.train_mode

    @train_mode.setter
    def train_mode(self, value: bool) -> None:
        self._forwards.train_mode = value

    @property
    def held(self) -> int:
        """Most bytes of copied weights that were held at once so far."""
        return self._forwards.held

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; also checks values and dtypes, and gives every tensor the index that seeds its directions."""
        common.rates(self, param_group, "lr", "weight_decay")
        super().add_param_group(param_group)
        common.place(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Tensor:
        """Two forward passes per direction and one update; returns the mean loss (float64, on the CPU)."""
        trained = common.begin(self, closure)
        if self.log is not None:
            if not self.log.rows and self.state:
                raise RuntimeError(
                    "a log of LOZO-M must begin with the run: here momentum is there already and could not be replayed"
                )
            common.describe_run(self, "lozo", trained, OPTIONS)
        options = {name: getattr(self, name) for name in OPTIONS}
        plane, vectors = lowrank.Plane(options, self.steps), _vectors(options, self.steps, trained)

        def shift(k: int, eps: float, index: int, w: Tensor, source: Tensor) -> None:
            if w.dim() < 2:
                vectors.shift(k, eps, index, w, source)
            else:
                lowrank.add(w, plane.u(index, w, k), plane.v(index, w), eps, source=source)

        losses, scalars, mean = probe(self, closure, trained, shift)
        self.steps += 1
        loss = torch.tensor(mean, dtype=torch.float64)
        if not all(map(math.isfinite, scalars)):
            common.skip(self, losses)
            return loss
        self.misses = 0
        row = {"step": self.steps - 1, "skipped": self.skipped, "scalars": scalars}
        row |= {name: [float(g[name]) for g in self.param_groups] for name in ("lr", "weight_decay")}
        _descend(options, row, trained, self.state)
        if self.log is not None:
            self.log.rows.append(row)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's (N, and which V it belongs to), with the run's counters and options under "lozo"."""
        return {**super().state_dict(), "lozo": common.run_state(self, RUN)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over momentum, counters, seed and options; a log only where this object keeps one."""

        def shapes(run: dict[str, Any]) -> dict[str, common.Shape]:
            return {"momentum": lambda p: (lowrank.sides(p)[0], run["rank"]) if p.dim() > 1 else None}

        common.take_over(self, state_dict, "lozo", RUN, super().load_state_dict, shapes, ONE)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("_forwards", "patience", "log", *RUN)}
        return {**super().__getstate__(), **own}

    @staticmethod
    def memory(
        params: nn.Module | Iterable[Tensor],
        *,
        rank: int = 2,
        momentum: float | None = None,
        n_directions: int = 1,
        hold: Sequence[str] = (),
        **options: Any,
    ) -> Bytes:
        """Bytes for training `params` with these options of the constructor, on the CPU.

        state: nothing, with momentum m r numbers per matrix (float32 for half-precision weights). scratch: the
        copies of shifted weights and of a model's buffers, and one weight's U and V (two U, where several directions
        are averaged and that is more); in half precision also a piece of their product.
        """
        tensors, weights, copies = common.sizes(params, hold)
        matrices = [p for p in tensors if p.dim() > 1]
        state = sum(lowrank.sides(p)[0] * rank * noise_dtype(p.dtype).itemsize for p in matrices)
        factors = max((lowrank.scratch(p, rank, n_directions) for p in matrices), default=0)
        vectors = scratch((p for p in tensors if p.dim() < 2), n_directions)
        return Bytes(weights=weights, state=0 if momentum is None else state, scratch=copies + max(factors, vectors))


def _vectors(options: dict[str, Any], step: int, trained: Sequence[Trained]) -> Directions:
    """The directions of vectors and scalars: those of MeZO with the same seed."""
    found = [(t.index, t.tensor) for t in trained if t.tensor.dim() < 2]
    return Directions(options["direction"], options["n_directions"], mix(options["seed"], step), found)


def _descend(options: dict[str, Any], row: dict[str, Any], trained: Sequence[Trained], state: Any) -> None:
    """The update of one step; its momentum stands in `state`, per tensor."""
    plane, vectors = lowrank.Plane(options, row["step"]), _vectors(options, row["step"], trained)
    scalars = _scalars(row)
    for t in trained:
        p, lr, decay = t.tensor, row["lr"][t.group], row["weight_decay"][t.group]
        if p.dim() < 2:
            descend(options["direction"], vectors.mean(scalars), t.index, p, lr, decay)
        elif options["momentum"] is None:
            plane.descend(t.index, p, *plane.mean(t.index, p, scalars), lr, decay)
        else:
            n = plane.carry(t.index, p, scalars, state[p])
            plane.descend(t.index, p, n, 1.0, lr, decay)


def _scalars(row: dict[str, Any]) -> Any:
    return row["scalars"] if "scalars" in row else [row.get("scalar")]  # earlier versions had one direction


def replayer(options: dict[str, Any], trained: Sequence[Trained]) -> Callable[[dict[str, Any]], None]:
    """A function that makes the update of one row of a log; it keeps the momentum between rows."""
    state: dict[Tensor, dict[str, Any]] = {t.tensor: {} for t in trained}
    return lambda row: _descend(ONE | options, row, trained, state)


def check_row(options: dict[str, Any], row: dict[str, Any]) -> None:
    """Raise ValueError where a row of a log is not one that `step` writes."""
    n = (ONE | options)["n_directions"]
    if "step" not in row or not numbers(_scalars(row)) or len(_scalars(row)) != n:
        raise ValueError(f"it lacks its step or one finite scalar per direction ({n})")
