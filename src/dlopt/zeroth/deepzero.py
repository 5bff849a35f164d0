"""DeepZero: training from scratch with forward passes, one sparse set of coordinates at a time (Chen et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.catalog import method
from dlopt.memory import Bytes
from dlopt.zeroth._common import counts, integer, match, one_of, positive, rates, sizes, skip
from dlopt.zeroth._grasp import RANKS, allocate, mask
from dlopt.zeroth._queries import MODES, Evaluation, Plain, opened
from dlopt.zeroth.directions import mix, noise_dtype
from dlopt.zeroth.estimators import number

OPTIONS = ("seed", "mu", "sparsity", "refresh", "q_pruning", "rank", "train_mode")
RUN = ("steps", "forwards", "skipped", "misses", "counts", *OPTIONS)
PRUNING, MASKS = 0, 1  # streams of random numbers


@method(
    "deepzero",
    topic="zeroth",
    kind="zeroth-model",
    cite="chen2024deepzero",
    summary="coordinate-wise differences on random sparse masks, with features reused between forward passes",
    search={"lr": (1e-3, 1.0, "log")},
)
class DeepZero(torch.optim.Optimizer):
    r"""DeepZero (arXiv 2310.02025, algorithm 1).

    One step on a batch, for the coordinates i of the current mask S::

        g_i = (L(W + mu e_i) - L(W)) / mu       |S| + 1 forward passes; g_i = 0 outside S
        M   = momentum M + g + weight_decay W   M = g + weight_decay W at the first step
        W   = W - lr M

    Tensors of two and more dimensions share (1 - sparsity) of their elements; biases and the weights of
    normalization layers are always estimated whole. ZO-GraSP, at the first step or by `prepare`, decides how many
    coordinates each tensor gets: with g0 = RGE(W) from `q_pruning` directions, Hg = (RGE(W + mu g0) - g0) / mu, score
    -W Hg, the largest scores are dropped over all tensors together. Only the numbers are kept: every `refresh` steps a
    new random mask with these numbers is drawn. A tensor that would get none gets 1.

    Most of a pass is the same for all coordinates. The model is traced (torch.fx) and only what depends on the
    moved weight is computed, from stored values; in a linear or convolutional layer moving one weight adds a part of
    the input to one channel; many coordinates of a tensor share one vectorised pass (`reuse="batched"`). The losses
    are those of plain passes up to rounding: g agrees to 1e-10 in float64, and in float32 to about
    1e-6 max(1, L) / mu. Where the model cannot be traced, draws random numbers (dropout) or the traced graph disagrees
    with it, plain passes are made and a warning says why (`describe()`).

    Args:
        model: the network; its parameters with requires_grad are trained. It takes `inputs`, and is always given
            whole batches.
        loss_fn: loss_fn(outputs, targets) returns one number, such as torch.nn.functional.cross_entropy.
        lr: at least 0. The paper: 0.1 with cosine decay (any torch scheduler).
        mu: size of the step along a coordinate, above 0.
        momentum: in [0, 1). weight_decay: at least 0, added to the gradient of every weight, in the mask or not.
        sparsity: share of the elements of matrices and convolutions that are left out, in [0, 1).
        refresh: steps between new masks, at least 1 (the official code: 5 epochs).
        q_pruning: random directions of each of ZO-GraSP's two estimates, at least 1.
        seed: an integer; determines masks and directions.
        rank: "paper", as above; "official": the official code drops the smallest absolute scores; "uniform": every
            tensor gets the same share, and no passes are spent on scores.
        train_mode: leave the model's modes alone, so that BatchNorm uses the statistics of the batch, as in the
            official code. Its running statistics are updated by the first pass of a step only. False puts the
            model in evaluation mode during the step, and no buffer changes. Dropout that is active has the same masks
            in all passes of a step.
        reuse: "batched"; "restart": one coordinate at a time from stored values; "plain": whole passes.
        batch_bytes: stacked values of one layer take at most this, as long as one copy fits. Affects rounding only.
        patience: steps in a row that may meet a number that is not finite. Each is skipped and counted in
            `skipped`; the one that reaches `patience` raises.

    `loss = opt.step(inputs, targets)`: inputs is a tensor or a tuple of them. Returns L(W) before the update, float64.
    `forwards` counts losses asked for, whatever the evaluation saves; `work` counts the nodes of the graph that were
    computed, in passes of the whole model; `checks` the small passes that compared a new graph with the model.
    No `.grad`, no graph of derivatives. Momentum is dense, in float32 for half-precision weights (which lose updates
    below their own resolution: prefer float32 weights).

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range. FloatingPointError: see `patience`.

    Example:
        >>> import torch
        >>> from dlopt.zeroth import DeepZero
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(32, 4)
        >>> optimizer = DeepZero(model, torch.nn.functional.mse_loss, sparsity=0.5, refresh=5, rank="uniform")
        >>> losses = [float(optimizer.step(x, x[:, :1])) for _ in range(60)]
        >>> losses[-1] < 0.1 * losses[0], optimizer.forwards  # 20 of 40 weights, 9 biases, and the batch's own loss
        (True, 1800)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Any] = nn.functional.cross_entropy,
        lr: float = 0.1,
        mu: float = 5e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        sparsity: float = 0.9,
        refresh: int = 1000,
        q_pruning: int = 192,
        seed: int = 0,
        *,
        rank: str = "paper",
        train_mode: bool = True,
        reuse: str = "batched",
        batch_bytes: int = 2**22,
        patience: int = 10,
    ) -> None:
        positive(mu=mu)
        counts(refresh=refresh, q_pruning=q_pruning, batch_bytes=batch_bytes, patience=patience)
        integer(seed=seed)
        one_of(RANKS, rank=rank)
        one_of(MODES, reuse=reuse)
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity={sparsity} is out of range: it must be in [0, 1)")
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of outputs and targets, not {loss_fn!r}")
        self.model, self.loss_fn = model, loss_fn
        self.mu, self.sparsity, self.refresh, self.q_pruning, self.seed = mu, sparsity, refresh, q_pruning, seed
        self.rank, self.train_mode, self.patience = rank, train_mode, patience
        self.steps = self.forwards = self.skipped = self.misses = 0
        self.counts: dict[str, int] | None = None  # coordinates per tensor of two and more dimensions
        self._evaluation = Evaluation(reuse, batch_bytes)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        super().__init__(trained, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks values and dtypes; a group that is refused is taken out again."""
        rates(self, param_group, "lr", "weight_decay")
        momentum = param_group.get("momentum", self.defaults["momentum"])
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} is out of range: it must be in [0, 1)")
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                self.param_groups.pop()
                raise ValueError(f"DeepZero trains real floating-point tensors, not {p.dtype}")

    @torch.no_grad()
    def step(self, inputs: Any, targets: Any) -> Tensor:
        """|S| + 1 losses and one update; returns the batch's loss before it (float64, on the CPU)."""
        tensors = self._trained()
        with opened(self.model, self.loss_fn, inputs, targets, self.train_mode) as batch:
            good = math.isfinite(batch.base)
            self.forwards += 1
            if good and self.counts is None:
                good = self._prune(batch, tensors)
            if good:
                estimates = self._estimate(batch, tensors)
                good = all(bool(g.isfinite().all()) for g in estimates.values())
            batch.counted = good
        self.steps += 1
        if not good:
            skip(self, [batch.base], "the loss or an estimate", "mu")
        else:
            self.misses = 0
            for group in self.param_groups:
                for name, p in zip(group["param_names"], group["params"], strict=True):
                    if name in estimates:
                        self._update(p, estimates[name], self.coordinates(name, p, self.steps - 1), group)
        return torch.tensor(batch.base, dtype=torch.float64)

    @torch.no_grad()
    def prepare(self, inputs: Any, targets: Any) -> dict[str, int]:
        """Set how many coordinates each tensor gets, from this batch (the official code: 25 examples of each class).

        Without a call the first step does it with its own batch. Returns {tensor's name: coordinates}. Weights and
        buffers stay. Raises FloatingPointError if a loss is not finite.
        """
        tensors = self._trained()
        with opened(self.model, self.loss_fn, inputs, targets, self.train_mode) as batch:
            self.forwards += 1
            good = math.isfinite(batch.base) and self._prune(batch, tensors)
        if not good or self.counts is None:
            raise FloatingPointError(f"ZO-GraSP met losses that are not finite (the batch's own is {batch.base})")
        return dict(self.counts)

    def coordinates(self, name: str, p: Tensor, step: int) -> Tensor:
        """The flat (row-major) indices of a tensor that are estimated at a step, counted from 0."""
        if self.counts is None or name not in self.counts:
            return torch.arange(p.numel(), device=p.device)
        place = list(self.counts).index(name)
        return mask(self.counts[name], p.numel(), mix(self.seed, MASKS, step // self.refresh, place)).to(p.device)

    def describe(self) -> dict[str, Any]:
        """How losses are evaluated (`mode`, and the `reason` if it is not the one asked for), what was computed so far
        (`forwards`, `work`, `checks`) and {name: (coordinates, elements)} of the sparse tensors."""
        used = self._evaluation
        elements = {name: p.numel() for name, p in self._trained().items()}
        return {
            **{name: getattr(used, name) for name in ("mode", "reason", "work", "checks")},
            "forwards": self.forwards,
            "coordinates": {name: (n, elements[name]) for name, n in (self.counts or {}).items() if name in elements},
        }

    def _trained(self) -> dict[str, Tensor]:
        found = {
            name: p
            for group in self.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
            if p.requires_grad and p.numel()
        }
        if not found:
            raise ValueError("none of the parameters has requires_grad=True, so there is nothing to train")
        return found

    def _prune(self, batch: Plain, tensors: Mapping[str, Tensor]) -> bool:
        """Set `counts`; False, and nothing is set, where a loss is not finite."""
        sparse = {name: p for name, p in tensors.items() if p.dim() > 1}
        loss, seed = lambda: number(batch.loss()), mix(self.seed, PRUNING)
        found, forwards = allocate(loss, list(sparse.values()), self.sparsity, self.rank, self.q_pruning, self.mu, seed)
        self.forwards += forwards
        if found is None:
            return False
        self.counts = dict(zip(sparse, found, strict=True))
        return True

    def _estimate(self, batch: Plain, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        unknown = [name for name, p in tensors.items() if p.dim() > 1 and name not in (self.counts or {})]
        if unknown:
            raise RuntimeError(f"{unknown[0]} had no gradient required when coordinates were shared out; call prepare")
        chosen = {name: self.coordinates(name, p, self.steps) for name, p in tensors.items()}
        self.forwards += sum(map(len, chosen.values()))
        return self._evaluation.differences(batch, tensors, chosen, self.mu)

    def _update(self, p: Tensor, estimate: Tensor, indices: Tensor, group: Mapping[str, Any]) -> None:
        wide = noise_dtype(p.dtype)
        g = p.to(wide, copy=True).mul_(group["weight_decay"]).contiguous()
        g.view(-1)[indices] += estimate.to(wide)
        if group["momentum"]:
            state = self.state[p]
            if "momentum" in state:
                g = state["momentum"].mul_(group["momentum"]).add_(g)
            else:
                state["momentum"] = g
        if group["lr"]:  # not p - 0: that would turn -0.0 into 0.0
            p.copy_(g.mul(-group["lr"]).add_(p))

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the run's counters and options (plain Python values) under "deepzero"."""
        run = {name: getattr(self, name) for name in RUN}
        run["counts"] = None if self.counts is None else dict(self.counts)
        run |= {name: getattr(self._evaluation, name) for name in ("wanted", "batch_bytes", "work")}
        return {**super().state_dict(), "deepzero": run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over counters, masks, seed and options as well as groups and momentum."""
        if "deepzero" not in state_dict:
            raise ValueError("this is not a state of DeepZero: it has no entry 'deepzero'")
        run = state_dict["deepzero"]
        here = {
            name: p.numel() for group in self.param_groups for name, p in zip(group["param_names"], group["params"])
        }
        for name, n in (run["counts"] or {}).items():
            if n > here.get(name, 0):
                raise ValueError(
                    f"the saved state has {n} coordinates of {name}; here it has {here.get(name, 0)} elements"
                )
        match(self, state_dict, momentum=lambda p: p.shape)
        super().load_state_dict(state_dict)
        keys = [i for group in state_dict["param_groups"] for i in group["params"]]
        for key, p in zip(keys, (p for group in self.param_groups for p in group["params"]), strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                # torch cast it to the dtype of the weights; a copy, since steps write in place
                self.state[p][name] = value.detach().to(p.device, noise_dtype(p.dtype), copy=True)
        for name in RUN:
            setattr(self, name, run[name])
        self.counts = None if run["counts"] is None else dict(run["counts"])
        self._evaluation = Evaluation(run["wanted"], run["batch_bytes"])
        self._evaluation.work = run["work"]

    def __getstate__(self) -> dict[str, Any]:
        own = (*RUN, "patience", "model", "loss_fn", "_evaluation")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    @staticmethod
    def memory(params: nn.Module | Iterable[Any], *, momentum: float = 0.9, **options: Any) -> Bytes:
        """Bytes for training `params` (a model, or its tensors; meta too) with these options of the constructor.

        state: the momentum, dense. scratch: the gradient and the step of the largest tensor. The stored values of one
        forward pass and the stacked ones (`batch_bytes` for a layer's input and as much for its output) are not in it.
        """
        tensors, weights, _ = sizes(params)
        wide = [p.numel() * noise_dtype(p.dtype).itemsize for p in tensors]
        return Bytes(weights=weights, state=sum(wide) if momentum else 0, scratch=2 * max(wide, default=0))
