"""MeZO: fine-tuning with forward passes only, at the memory of inference (Malladi et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.catalog import method
from dlopt.memory import Bytes, tensor_bytes
from dlopt.zeroth.directions import DIRECTIONS, Directions, mix, noise_dtype
from dlopt.zeroth.log import Log, describe
from dlopt.zeroth.perturb import Held, Hooked, Trained, largest_chain, owners, quiet

RUN = ("steps", "forwards", "skipped", "misses", "seed", "eps", "direction", "n_directions", "train_mode")


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
        W   = W - lr (mean over k of c_k z_k + weight_decay W)

    The official code walks W + eps z - 2 eps z + eps z and so drifts (in bfloat16 by 0.03 per weight in 1000 steps
    at lr = 0). Here weights are put back from copies, bit for bit, and the update is rounded once. Given a
    **model**, forward hooks shift a module's own weights just before it runs and put them back after it: the copies
    held at once are those of one module (and of modules around it that own weights themselves). Given
    **parameters** or groups, one copy of all of them is held during the step. Both compute the same numbers.

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
        weight_decay: at least 0, decoupled.
        train_mode: leave a model's modes alone (dropout stays on, with the same masks in all forwards of a step).
        patience: how many steps in a row may meet a loss that is not finite. Each is skipped and counted in
            `skipped`; the one that reaches `patience` raises.
        log: keep `opt.log`, from which `dlopt.zeroth.log.replay` rebuilds the run. Grows by a row a step.
        hold: names of parameters or modules of a model that are used outside their module's forward (a head that
            reads the embedding's weight). They are shifted during the whole forward pass, from one copy.

    `loss = opt.step(closure)`: the closure runs the forward pass on one batch and returns the loss, a scalar tensor
    (in float32: its differences count) or a float, also one without derivatives such as an error rate. It runs 2
    n_directions times, without gradients, always from the same state of torch's global generators. The result is
    the mean of these losses, in float64. `forwards` counts forward passes, `steps` steps. Under data parallelism
    return the mean loss over all processes. Low precision: an update below half a unit in the last place of a
    bfloat16 weight is lost, so keep float32 weights (autocast in the closure) where lr is small.

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
        train_mode: bool = False,
        patience: int = 10,
        log: bool = False,
        hold: Sequence[str] = (),
    ) -> None:
        if not 0 < eps < math.inf:
            raise ValueError(f"eps={eps} is out of range: it must be above 0")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r} is unknown: it must be one of {', '.join(DIRECTIONS)}")
        for name, value in (("n_directions", n_directions), ("patience", patience)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is out of range: it must be an integer, at least 1")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed={seed!r} must be an integer")
        self.eps, self.seed, self.direction, self.n_directions = eps, seed, direction, n_directions
        self.train_mode, self.patience, self.hold = train_mode, patience, tuple(hold)
        self.steps = self.forwards = self.skipped = self.misses = 0
        self.log = Log() if log else None
        self.held = 0  # most bytes of copied weights that were held at once so far
        self._watched = False
        self._model = model_or_params if isinstance(model_or_params, nn.Module) else None
        if self._model is not None:
            owners(self._model, self.hold)  # an unknown name in hold raises here
            model_or_params = _model_groups(self._model)
        elif self.hold:
            raise ValueError("hold needs a model; given parameters, a copy of all of them is held anyway")
        super().__init__(model_or_params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; also checks values and dtypes, and gives every tensor the index that seeds its directions."""
        for name in ("lr", "weight_decay"):
            value = param_group.get(name, self.defaults[name])
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is out of range: it must be at least 0")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        taken = sum(len(g["params"]) for g in self.param_groups[:-1])
        group.setdefault("indices", list(range(taken, taken + len(group["params"]))))
        addresses: dict[int, Tensor] = {}
        for p in (p for g in self.param_groups for p in g["params"]):
            if not p.is_floating_point():
                raise ValueError(f"MeZO trains real floating-point tensors, not {p.dtype}")
            if p.numel() and p.device.type != "meta" and addresses.setdefault(p.data_ptr(), p) is not p:
                raise ValueError("two of the parameters share their memory; tie weights by using the same Parameter")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Tensor:
        """Two forward passes per direction and one update; returns the mean loss (float64, on the CPU)."""
        if closure is None:
            raise TypeError("MeZO.step needs a closure that runs the forward pass and returns the loss")
        trained = self._trained()
        if not trained:
            raise ValueError("none of the parameters has requires_grad=True, so there is nothing to train")
        if self.log is not None:
            self._describe(trained)
        step_seed = mix(self.seed, self.steps)
        directions = Directions(self.direction, self.n_directions, step_seed, [(t.index, t.tensor) for t in trained])
        losses, scalars = self._probe(closure, trained, directions)
        self.steps += 1
        loss = torch.tensor(losses, dtype=torch.float64).mean()
        if not all(map(math.isfinite, scalars)):
            self._skip(losses)
            return loss
        self.misses = 0
        rates = {name: [float(g[name]) for g in self.param_groups] for name in ("lr", "weight_decay")}
        for t in trained:
            directions.descend(t.index, t.tensor, scalars, rates["lr"][t.group], rates["weight_decay"][t.group])
        if self.log is not None:
            self.log.rows.append({"seed": step_seed, "scalars": scalars, **rates})
        return loss

    def _probe(
        self, closure: Callable[[], Any], trained: Sequence[Trained], directions: Directions
    ) -> tuple[list[float], list[float]]:
        """([L+, L-, L+, ...], [c_k]); all weights are back as they were."""
        if self._model is None:
            around: Held | Hooked = Held(trained)
        else:
            around = Hooked(self._model, trained, self.hold, watch=not self._watched)
        losses = []
        with quiet(self._model, {t.tensor.device for t in trained}, self.train_mode) as restart:
            for k in range(self.n_directions):
                for eps in (self.eps, -self.eps):
                    restart()
                    value = around.run(closure, lambda index, w, k=k, eps=eps: directions.z(k, index, w, eps))
                    self.forwards += 1
                    losses.append(_number(value))
                    if isinstance(around, Hooked):
                        around.watch, self._watched = False, True
        self.held = max(self.held, around.peak)
        return losses, [(up - down) / (2 * self.eps) for up, down in zip(losses[::2], losses[1::2], strict=True)]

    def _skip(self, losses: Sequence[float]) -> None:
        self.skipped += 1
        self.misses += 1
        if self.misses >= self.patience:
            raise FloatingPointError(
                f"the loss was not finite in {self.misses} steps in a row (the last: {', '.join(map(str, losses))}). "
                f"The weights are those before these steps; lower lr or eps={self.eps:g} or compute the loss in float32"
            )

    def _trained(self) -> list[Trained]:
        found = []
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [str(i) for i in group["indices"]]
            for name, index, p in zip(names, group["indices"], group["params"], strict=True):
                if p.requires_grad:
                    found.append(Trained(name, index, p, number))
        return sorted(found, key=lambda t: t.index)

    def _describe(self, trained: Sequence[Trained]) -> None:
        assert self.log is not None
        if not self.log.rows:
            options = {name: getattr(self, name) for name in ("seed", "eps", "direction", "n_directions")}
            self.log.header = describe(trained, options)
        elif self.log.header["names"] != [t.name for t in trained]:
            raise RuntimeError(
                "the set of trained parameters changed while a log was kept, so the log could not be replayed; "
                "save opt.log and start a new one with opt.log = Log()"
            )

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the run's counters and options (plain Python values) under "mezo"."""
        run = {name: getattr(self, name) for name in RUN}
        if self.log is not None:
            run["log"] = {"header": dict(self.log.header), "rows": list(self.log.rows)}
        return {**super().state_dict(), "mezo": run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over counters, seed, eps and directions as well as groups; a log only where this object keeps one."""
        if "mezo" not in state_dict:
            raise ValueError("this is not a state of MeZO: it has no entry 'mezo'")
        super().load_state_dict(state_dict)
        run = state_dict["mezo"]
        for name in RUN:
            setattr(self, name, run[name])
        if self.log is not None:
            log = run.get("log", {"header": {}, "rows": []})
            self.log = Log(dict(log["header"]), list(log["rows"]))

    def __getstate__(self) -> dict[str, Any]:
        own = (*RUN, "patience", "hold", "log", "held", "_watched", "_model")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    @staticmethod
    def memory(
        params: nn.Module | Iterable[Tensor],
        *,
        n_directions: int = 1,
        weight_decay: float = 0.0,
        hold: Sequence[str] = (),
        **options: Any,
    ) -> Bytes:
        """Bytes for training `params` (a model, or tensors; meta too) with these options of the constructor.

        No state, no gradients. scratch: the copies of shifted weights and one direction of the largest tensor, or
        what the update of that tensor needs. Activations of the forward pass are not in it.
        """
        if isinstance(params, nn.Module):
            tensors = [p for p in params.parameters() if p.requires_grad]
            weights = tensor_bytes([*params.parameters(), *params.buffers()])
            copies = largest_chain(params, tensors, hold)
        else:
            tensors = [p[1] if isinstance(p, tuple) else p for p in params]
            tensors = list({id(p): p for p in tensors}.values())
            weights = tensor_bytes(tensors)
            copies = sum(p.numel() * p.element_size() for p in tensors)
        noise = max((p.numel() * noise_dtype(p.dtype).itemsize for p in tensors), default=0)
        update = noise * (2 if n_directions > 1 or weight_decay else 1)
        return Bytes(weights=weights, scratch=max(copies + noise, update))


def _model_groups(model: nn.Module) -> list[dict[str, Any]]:
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


def _number(loss: Any) -> float:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the closure must return one number, but it returned a tensor of shape {tuple(loss.shape)}")
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except TypeError:
        raise TypeError(f"the closure must return the loss, a scalar tensor or a float, not {loss!r}") from None
