"""MeZO: fine-tuning with forward passes only, at the memory of inference (Malladi et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.catalog import method
from dlopt.memory import Bytes
from dlopt.zeroth import _common as common
from dlopt.zeroth._forwards import Forwards, probe
from dlopt.zeroth.directions import DIRECTIONS, Directions, descend, mix, scratch
from dlopt.zeroth.log import Log, numbers
from dlopt.zeroth.perturb import Trained

RUN = ("steps", "forwards", "skipped", "misses", "seed", "eps", "direction", "n_directions", "one_sided", "train_mode")
OPTIONS = ("seed", "eps", "direction", "n_directions", "one_sided")
REPLAYED = ("seed", "direction", "n_directions")  # what a log's header must hold


@method(
    "mezo",
    topic="zeroth",
    kind="zeroth",
    cite="malladi2023mezo",
    summary="two forward passes along a random direction that is drawn again from its seed",
    search={"lr": (1e-8, 1e-2, "log")},
)
class MeZO(torch.optim.Optimizer):
    r"""MeZO (arXiv 2305.17333, algorithm 1; with several directions, algorithm 2 of its appendix).

    One step, with directions z_k over all n trained weights W that only their integer seeds stand for::

        c_k = (L(W + eps z_k) - L(W - eps z_k)) / (2 eps)             two forward passes, same batch
        c_k = (L(W + eps z_k) - L(W)) / eps                           one_sided: n_directions + 1 passes in all
        W   = W - lr (mean over k of c_k z_k + weight_decay W)

    The official code walks W + eps z - 2 eps z + eps z and so drifts (in bfloat16 by 0.03 per weight in 1000 steps
    at lr = 0). Here they come back bit for bit, and the update is rounded once. Given a **model**, no weight is
    written before the update: forward hooks let a module's own parameters point to a shifted copy while it runs, so
    the copies held at once are those of one module (and of modules around it that own weights themselves). Given
    **parameters** or groups, they are shifted in place, and one copy of all of them is held during the step. Both
    compute the same numbers.

    Args:
        model_or_params: a model, whose parameters with requires_grad are trained, or tensors, (name, tensor) pairs
            or groups as for every torch optimizer (frozen ones are passed over). A model is put in evaluation mode
            during the step, its modes and buffers come back as they were, and `weight_decay` spares biases
            and the weights of normalization layers, as the paper does; with parameters all of that is the
            caller's to arrange. MultiheadAttention reads `out_proj.weight` without calling `out_proj`; it
            is shifted with its parent. Compiled models need the second form.
        lr: at least 0. The paper: 1e-7 to 1e-6 for all weights of a language model, 1e-4 for LoRA, 1e-2 for prefixes.
        eps: size of the shift, above 0 (1e-3; 1e-2 for LoRA, 1e-1 for prefixes).
        seed: an integer; with the step and the tensor's place it determines every direction.
        direction: "gaussian" N(0, I), as in the paper; "rademacher" signs; "sphere", uniform on norm(z) = sqrt(n).
        n_directions: at least 1; every one costs two forward passes.
        one_sided: measure against L(W), which all directions share: n_directions + 1 forward passes instead of
            2 n_directions. Off by O(eps) instead of O(eps^2), and rounding counts twice as much.
        weight_decay: at least 0, decoupled.
        train_mode: leave a model's modes alone (dropout stays on, with the same masks in all forwards of a step).
        patience: how many steps in a row may meet a loss that is not finite. Each is skipped and counted in
            `skipped`; the one that reaches `patience` raises.
        log: keep `opt.log`, from which `dlopt.zeroth.log.replay` rebuilds the run. Grows by a row a step.
        hold: names of parameters or modules of a model that are used outside their module's forward (a head that
            reads the embedding's weight). They are shifted during the whole forward pass, from one copy.
        row_chunk: 0, or with a model a number of rows: of a plain `nn.Embedding` or `nn.Linear` with more rows than
            that, no whole copy is made. The embedding copies the rows that its input looks up, and gives the same
            numbers. The linear layer is computed in pieces of so many outputs, one shifted copy of their rows after
            the other: the same weights, but BLAS may round a product in pieces differently from a whole one, so
            losses may differ in the last digits from those at row_chunk=0. Hooks of such a module must
            not read its weight: they would find it unshifted.

    `loss = opt.step(closure)`: the closure runs the forward pass on one batch and returns the loss, a scalar tensor
    (in float32: its differences count) or a float, also one without derivatives such as an error rate. It runs 2
    n_directions times, without gradients, always from the same state of torch's global generators. The result is
    the mean of these losses (one_sided: L(W)), in float64. `forwards` counts forward passes, `steps` steps. Under
    data parallelism return the mean loss over all processes. Low precision: an update below half a unit in the last
    place of a bfloat16 weight is lost, so keep float32 weights (autocast in the closure) where lr is small.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range. RuntimeError: in `step`, naming a
            trained parameter that no hook reached or that was used outside its module's forward (looked for at the
            first pass). FloatingPointError: `patience` losses in a row are not finite.

    Example:
        >>> import torch
        >>> from dlopt.zeroth import MeZO
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = MeZO(model, lr=0.1)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: model(torch.eye(4)).square().mean())
        >>> bool(loss < 1e-3), optimizer.forwards, model.weight.grad
        (True, 200, None)
    """

    def __init__(
        self,
        model_or_params: nn.Module | Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        direction: str = "gaussian",
        n_directions: int = 1,
        weight_decay: float = 0.0,
        *,
        one_sided: bool = False,
        train_mode: bool = False,
        patience: int = 10,
        log: bool = False,
        hold: Sequence[str] = (),
        row_chunk: int = 0,
    ) -> None:
        common.positive(eps=eps)
        common.one_of(DIRECTIONS, direction=direction)
        common.counts(n_directions=n_directions, patience=patience)
        common.integer(seed=seed)
        self.eps, self.seed, self.direction, self.n_directions = eps, seed, direction, n_directions
        self.one_sided, self.patience = bool(one_sided), patience
        self.steps = self.forwards = self.skipped = self.misses = 0
        self.log = Log() if log else None
        self._forwards = Forwards(model_or_params, hold, train_mode, row_chunk)
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
            common.describe_run(self, "mezo", trained, OPTIONS)
        step_seed = mix(self.seed, self.steps)
        directions = Directions(self.direction, self.n_directions, step_seed, [(t.index, t.tensor) for t in trained])
        losses, scalars, mean = probe(self, closure, trained, directions.shift)
        self.steps += 1
        loss = torch.tensor(mean, dtype=torch.float64)
        if not all(map(math.isfinite, scalars)):
            common.skip(self, losses)
            return loss
        self.misses = 0
        row = {"step": self.steps - 1, "skipped": self.skipped, "scalars": scalars}
        row |= {name: [float(g[name]) for g in self.param_groups] for name in ("lr", "weight_decay")}
        for t in trained:
            terms = directions.mean(scalars)
            descend(self.direction, terms, t.index, t.tensor, row["lr"][t.group], row["weight_decay"][t.group])
        if self.log is not None:
            self.log.rows.append(row)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the run's counters and options (plain Python values) under "mezo"."""
        return {**super().state_dict(), "mezo": common.run_state(self, RUN)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over counters, seed, eps and directions as well as groups; a log only where this object keeps one."""
        common.take_over(self, state_dict, "mezo", RUN, super().load_state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("_forwards", "patience", "log", *RUN)}
        return {**super().__getstate__(), **own}

    @staticmethod
    def memory(
        params: nn.Module | Iterable[Tensor],
        *,
        n_directions: int = 1,
        weight_decay: float = 0.0,
        hold: Sequence[str] = (),
        row_chunk: int = 0,
        tokens: int = 0,
        **options: Any,
    ) -> Bytes:
        """Bytes for training `params` (a model, or tensors; meta too) with these options of the constructor.

        No state, no gradients. scratch: the copies of shifted weights and of a model's buffers, and the pieces of
        directions that torch's threads work on (on the CPU; 128 KiB each in float32, twice that in an update with
        several terms).
        tokens: with row_chunk, how many rows an embedding looks up at most in one batch. Activations of the
        forward pass are not in it.
        """
        tensors, weights, copies = common.sizes(params, hold, row_chunk, tokens)
        update = scratch(tensors, n_directions, weight_decay)
        return Bytes(weights=weights, scratch=max(copies + scratch(tensors), update))


def replayer(options: dict[str, Any], trained: Sequence[Trained]) -> Callable[[dict[str, Any]], None]:
    """A function that makes the update of one row of a log."""
    pairs = [(t.index, t.tensor) for t in trained]

    def apply(row: dict[str, Any]) -> None:
        step_seed = row["seed"] if "seed" in row else mix(options["seed"], row["step"])
        directions = Directions(options["direction"], options["n_directions"], step_seed, pairs)
        terms = directions.mean(row["scalars"])
        for t in trained:
            lr, decay = row["lr"][t.group], row["weight_decay"][t.group]
            descend(options["direction"], terms, t.index, t.tensor, lr, decay)

    return apply


def check_row(options: dict[str, Any], row: dict[str, Any]) -> None:
    """Raise ValueError where a row of a log is not one that `step` writes (earlier versions wrote its seed)."""
    if "step" not in row and type(row.get("seed")) is not int:
        raise ValueError("it has neither a step nor a seed")
    if not numbers(row.get("scalars")) or len(row["scalars"]) != options["n_directions"]:
        raise ValueError(f"its scalars must be {options['n_directions']} finite numbers")
