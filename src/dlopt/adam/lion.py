"""Lion: the sign of an interpolation between momentum and gradient (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlopt.adam import _shared as shared
from dlopt.catalog import method
from dlopt.memory import Bytes


@method(
    "lion",
    topic="adam",
    kind="optimizer",
    cite="chen2023lion",
    summary="sign of interpolated momentum; one moment, and no second one",
    search={"lr": (1e-6, 1e-2, "log"), "weight_decay": (1e-2, 1.0, "log")},
)
class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675, algorithm 2). For each element::

        U = sign(b1 M + (1 - b1) G)
        W = (1 - lr weight_decay) W - lr U
        M = b2 M + (1 - b2) G

    Every element moves by lr, so a sane lr is 3 to 10 times smaller than AdamW's, and weight_decay larger by as much.

    Args:
        params: tensors, (name, tensor) pairs or groups, as for every torch optimizer.
        lr: length of each element's step, at least 0.
        betas: (b1, b2) in [0, 1): weight of the momentum in the sign, and its memory.
        weight_decay: decoupled, at least 0.
        maximize: ascend instead of descend.
        foreach: one kernel over many tensors. Default: on accelerators; on a CPU a loop that stays in cache is faster.

    The momentum of float16 and bfloat16 weights is kept in float32.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range. RuntimeError: in `step`, for complex
            or sparse gradients.

    Example:
        >>> import torch
        >>> from dlopt.adam import Lion
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
        >>> (weight * torch.tensor([5.0, -0.1, 0.0])).sum().backward()
        >>> Lion([weight], lr=0.25).step()
        >>> weight.tolist()
        [0.75, 1.25, 1.0]
        >>> Lion.memory([weight]).state  # one momentum of 4 bytes an element
        12
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks the group's hyper-parameters."""
        shared.require(
            {**self.defaults, **param_group},
            lr=shared.NOT_NEGATIVE,
            betas=shared.BETAS,
            weight_decay=shared.NOT_NEGATIVE,
        )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = shared.with_gradients(group)
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = shared.zeros(p)
            ms = [self.state[p]["momentum"] for p in params]
            lr = float(group["lr"])
            options = {"lr": lr, "decay": 1 - lr * group["weight_decay"], "betas": group["betas"]}
            if params and shared.use_foreach(group, params):
                ws, gs = shared.full_precision(params, group["maximize"])
                _foreach(ws, gs, ms, **options)
                shared.write_back(params, ws)
            else:
                kernel = partial(_loop, **options)
                for p, m in zip(params, ms):
                    for piece in shared.chunks(p, p.grad, m):
                        shared.apply(kernel, *piece, maximize=group["maximize"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the momentum keeps float32 where torch would cast it to the weights' low precision."""
        super().load_state_dict(state_dict)
        shared.restore(self, state_dict)

    @staticmethod
    def memory(params: Iterable[Tensor], **options: Any) -> Bytes:
        """Bytes for training `params` (meta tensors too): state is exact, scratch is that of the loop on a CPU."""
        params = shared.plain(params)
        return shared.training_bytes(
            params, sum(p.numel() * shared.state_dtype(p).itemsize for p in params), temporaries=1
        )


def _loop(w: Tensor, g: Tensor, m: Tensor, *, lr: float, decay: float, betas: tuple[float, float]) -> None:
    update = torch.lerp(m, g, 1 - betas[0]).sign_()
    if decay != 1:
        w.mul_(decay)
    w.add_(update, alpha=-lr)
    m.lerp_(g, 1 - betas[1])


def _foreach(ws: list[Tensor], gs: list[Tensor], ms: list[Tensor], *, lr: float, decay: float, betas: Any) -> None:
    updates = torch._foreach_lerp(ms, gs, 1 - betas[0])
    torch._foreach_sign_(updates)
    if decay != 1:
        torch._foreach_mul_(ws, decay)
    torch._foreach_add_(ws, updates, alpha=-lr)
    torch._foreach_lerp_(ms, gs, 1 - betas[1])
