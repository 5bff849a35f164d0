"""Adafactor: the second moment kept as row and column means, m + n numbers for m n (Shazeer & Stern 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dlopt.adam import _factored
from dlopt.adam._shared import NOT_NEGATIVE, plain, require, restore, state_dtype
from dlopt.catalog import method
from dlopt.memory import Bytes, tensor_bytes

RELATIVE_CAP = 1e-2  # the paper's largest relative step
WARMUP_SLOPE = 1e-4  # of the cap, per step: 1e-2 * 1e-4 * t is the paper's 1e-6 t


@method(
    "adafactor",
    topic="adam",
    kind="optimizer",
    cite="shazeer2018adafactor",
    summary="second moments factored into row and column means",
    search={"lr": (1e-4, 1e-1, "log")},
)
class Adafactor(torch.optim.Optimizer):
    r"""Adafactor (arXiv 1804.04235, algorithms 4 to 6).

    For a tensor W of shape (..., m, n) with gradient G at its step t = 1, 2, ...::

        b2  = 1 - t ** beta2_decay                                  0 at t = 1: no bias correction is needed
        R   = b2 R + (1 - b2) mean over columns of (G^2 + eps1)     shape (..., m)
        C   = b2 C + (1 - b2) mean over rows    of (G^2 + eps1)     shape (..., n)
        V   = R C^T / mean(R)                                       never formed
        U   = G / sqrt(V)
        U   = U / max(1, RMS(U) / clip_threshold)                   RMS(x) = norm(x) / sqrt(number of elements)
        M   = beta1 M + (1 - beta1) U                               only with beta1; else M = U
        rho = lr, or min(lr, 1 / sqrt(t)) with relative_step
        W   = (1 - lr weight_decay) W - rho max(eps2, RMS(W)) M     RMS(W) taken before the decay

    Scalars and vectors, and everything with ``factored=False``, keep V = b2 V + (1 - b2) (G^2 + eps1) whole.

    Args:
        params: tensors, (name, tensor) pairs or groups, as for every torch optimizer.
        lr: step relative to the size of the weights (absolute with ``scale_parameter=False``), at least 0.
            None is the paper's relative step: the same as ``lr=1e-2, relative_step=True``. `group["lr"]` then
            holds 1e-2, so every scheduler works: it moves the cap, which 1 / sqrt(t) still bounds. This optimizer
            itself never writes `group["lr"]`.
        relative_step: whether rho is also bounded by 1 / sqrt(t). Default: only where lr is None.
        warmup_init: let the cap grow as 1e-4 t lr, which is the paper's 1e-6 t; needs the relative step.
        scale_parameter: multiply by max(eps2, RMS(W)). False takes plain steps of RMS at most rho clip_threshold.
        clip_threshold: d, the largest RMS of an update, above 0.
        beta2_decay: exponent of the schedule of b2, from -1 to 0.
        eps1: added to the squared gradient, at least 0; small, since it only keeps V from being 0.
        eps2: least RMS that a weight tensor is taken to have, at least 0; lets zero weights move.
        beta1: None, or momentum in [0, 1) on the clipped update, at one more number per weight. (tensor2tensor
            averages rho max(eps2, RMS(W)) U instead: the same where that factor is constant.)
        weight_decay: decoupled, at least 0, per unit of lr (of the cap, under a relative step).
        factored: False keeps V whole everywhere, to see what factoring costs.
        maximize: ascend instead of descend.
        eps_floor: use eps1 as torch.optim.Adafactor does: not added to G^2, but mean(R) >= eps1 and V >= eps1^2.

    Moments of float16 and bfloat16 weights are kept, loaded and used in float32; `step` is a Python int per tensor.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range. RuntimeError: in `step`, for complex
            or sparse gradients.

    `torch.optim.Adafactor(params)` is ``Adafactor(params, lr=1e-2, relative_step=True, eps_floor=True,
    eps1=torch.finfo(dtype).eps)``; Hugging Face's with ``lr=None`` is ``Adafactor(params)``.

    Example:
        >>> import torch
        >>> from dlopt.adam import Adafactor
        >>> weight = torch.nn.Parameter(torch.ones(3, 2))
        >>> optimizer = Adafactor([weight], lr=0.1)
        >>> (weight * torch.tensor([1.0, -2.0])).sum().backward()
        >>> optimizer.step()
        >>> weight[0].tolist()
        [0.8999999761581421, 1.100000023841858]
        >>> Adafactor.memory([weight]).state  # 3 row means and 2 column means of 4 bytes
        20
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor | None = None,
        *,
        relative_step: bool | None = None,
        warmup_init: bool = False,
        scale_parameter: bool = True,
        clip_threshold: float = 1.0,
        beta2_decay: float = -0.8,
        eps1: float = 1e-30,
        eps2: float = 1e-3,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        factored: bool = True,
        maximize: bool = False,
        eps_floor: bool = False,
    ) -> None:
        defaults = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks the group's hyper-parameters; a group with an lr of its own takes it as it is."""
        group = {**self.defaults, **param_group}
        if group["relative_step"] is None:
            group["relative_step"] = group["lr"] is None
        if group["lr"] is None:
            group["lr"] = RELATIVE_CAP
        _check(group)
        super().add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        if p.grad.is_sparse or p.is_complex():
            raise RuntimeError(
                "Adafactor needs dense, real gradients; give sparse or complex tensors to another optimizer"
            )
        state = self.state[p]
        if not state:
            state["step"] = 0
            for key, shape in _moments(p, group["factored"], group["beta1"]).items():
                state[key] = torch.zeros(shape, dtype=state_dtype(p), device=p.device)
        state["step"] += 1
        cap = float(group["lr"]) * (WARMUP_SLOPE * state["step"] if group["warmup_init"] else 1)
        rho = min(cap, 1 / math.sqrt(state["step"])) if group["relative_step"] else cap
        rate = state["step"] ** group["beta2_decay"]  # 1 - b2
        keep = 1 - cap * group["weight_decay"]
        if _factored.takes(p, group):
            least = group["eps2"] if group["scale_parameter"] else None
            rho = -rho if group["maximize"] else rho
            _factored.update(p, state, rate, rho, keep, least, group["clip_threshold"], group["eps1"])
            return
        g = p.grad.to(state_dtype(p))
        if group["maximize"]:
            g = -g

        u = self._direction(g, state, group, rate)
        u /= (_rms(u) / group["clip_threshold"]).clamp_(min=1)
        del g  # before the temporary of a low-precision write
        if group["beta1"] is not None:
            u = state["momentum"].lerp_(u, 1 - group["beta1"])

        # 0-dim tensors on the weights' device: no number has to come back from a GPU
        size = _rms(p).clamp_(min=group["eps2"]) if group["scale_parameter"] else u.new_ones(())
        w = p.to(u.dtype)  # p itself, unless p has low precision: then one rounding, at the end
        w.mul_(keep).addcmul_(u, size, value=-rho)
        if w is not p:
            p.copy_(w)

    def _direction(self, g: Tensor, state: dict[str, Any], group: dict[str, Any], rate: float) -> Tensor:
        """G / sqrt(V), after the moments took in G."""
        eps1, floor = group["eps1"], group["eps_floor"]
        squared = g * g
        if not floor:
            squared += eps1
        if "variance" in state:
            v = state["variance"].lerp_(squared, rate)
            del squared
            u = v.clamp(min=eps1 * eps1).rsqrt_() if floor else v.rsqrt()
            return u.mul_(g)
        row = state["row"].lerp_(squared.mean(dim=-1), rate)
        col = state["col"].lerp_(squared.mean(dim=-2), rate)
        del squared
        mean = row.mean(dim=-1, keepdim=True)
        if floor:
            v = (row / mean.clamp_(min=eps1)).unsqueeze(-1) * col.unsqueeze(-2)
            return v.clamp_(min=eps1 * eps1).rsqrt_().mul_(g)
        # two roots, since R C^T itself would underflow in float32 where a gradient is 0
        return (g * (row / mean).rsqrt_().unsqueeze(-1)).mul_(col.rsqrt().unsqueeze(-2))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but moments keep float32 where torch would cast them to the weights' low precision."""
        super().load_state_dict(state_dict)
        restore(self, state_dict)

    @staticmethod
    def memory(params: Iterable[Tensor], *, factored: bool = True, beta1: float | None = None, **options: Any) -> Bytes:
        """Bytes for training `params` (meta tensors too) with these options of the constructor.

        state is exact. scratch is what one tensor's update holds in arrays of that tensor's shape, for the largest
        one: the update, and a float32 copy of a low-precision tensor or a negated gradient. Matrices on a CPU are
        updated a piece at a time, so there it is that of a piece.
        """
        params = plain(params)
        state = scratch = 0
        group = {"factored": factored, "beta1": beta1, "eps_floor": options.get("eps_floor", False)}
        for p in params:
            size = state_dtype(p).itemsize
            state += size * sum(math.prod(shape) for shape in _moments(p, factored, beta1).values())
            if _factored.takes(p, group):
                scratch = max(scratch, _factored.scratch(p))
                continue
            copies = 2 if p.dtype != state_dtype(p) or options.get("maximize") else 1
            scratch = max(scratch, copies * size * p.numel())
        gradients = sum(p.numel() * p.element_size() for p in params)
        return Bytes(weights=tensor_bytes(params), gradients=gradients, state=state, scratch=scratch)


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=state_dtype(x)) / math.sqrt(max(x.numel(), 1))


def _moments(p: Tensor, factored: bool, beta1: float | None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what is kept for one tensor."""
    shape = tuple(p.shape)
    if factored and p.dim() >= 2:
        kept = {"row": shape[:-1], "col": shape[:-2] + shape[-1:]}
    else:
        kept = {"variance": shape}
    return kept if beta1 is None else {**kept, "momentum": shape}


def _check(group: dict[str, Any]) -> None:
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr has {lr.numel()} elements; it must be one number, at least 0")
    require(
        group,
        lr=("at least 0, or None for the relative step", lambda x: 0 <= x < math.inf),
        clip_threshold=("above 0", lambda x: x > 0),
        beta2_decay=("from -1 to 0", lambda x: -1 <= x <= 0),
        eps1=NOT_NEGATIVE,
        eps2=NOT_NEGATIVE,
        beta1=("None or in [0, 1)", lambda x: x is None or 0 <= x < 1),
        weight_decay=NOT_NEGATIVE,
    )
    if group["warmup_init"] and not group["relative_step"]:
        raise ValueError("warmup_init=True needs the relative step: leave lr as None, or add relative_step=True")
