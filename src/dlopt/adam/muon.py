"""Muon for the hidden matrices, AdamW for the rest: what people run under the name of Muon (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.adam import _shared as shared
from dlopt.adam.partition import partition
from dlopt.catalog import method
from dlopt.memory import Bytes

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen by Jordan for a steep slope at 0
NORM_EPS = 1e-7


@method(
    "muon",
    topic="adam",
    kind="optimizer",
    cite="jordan2024muon",
    summary="orthogonalized momentum for hidden matrices, AdamW for the rest",
    search={"lr": (1e-5, 1e-1, "log")},
)
class Muon(torch.optim.Optimizer):
    """Muon (kellerjordan.github.io/posts/muon). For a hidden matrix W of m x n with gradient G::

        M = mu M + (1 - mu) G
        U = (1 - mu) G + mu M                     with nesterov; else U = M
        O = about U (U^T U)^(-1/2)                by `ns_steps` Newton-Schulz iterations on U / norm(U)
        W = (1 - lr weight_decay) W - lr s O      s = 0.2 sqrt(max(m, n)), or sqrt(max(1, m / n)) if "original"

    and for all other tensors AdamW's step, with the same lr and weight_decay. Convolutions count as matrices of output
    channels x everything else. For matrices this equals `torch.optim.Muon` (where it exists, torch 2.9 on).

    Args:
        params: tensors, (name, tensor) pairs or groups, as for every torch optimizer.
        lr: step size of both, at least 0. With the default `adjust`, what is good for AdamW.
        momentum: mu, in [0, 1).
        weight_decay: decoupled, of both, at least 0.
        model: the module whose parameters these are. Its embeddings, its language-model head, norms and biases go to
            AdamW. Without it, every tensor of at least two dimensions is taken for a hidden matrix.
        nesterov: look ahead.
        ns_steps: Newton-Schulz iterations, from 1 to 99.
        adjust: "match_rms_adamw" (Moonshot, arXiv 2502.16982: steps as long as AdamW's, so that one lr serves both),
            or "original" (Jordan: lr about 0.02 for the matrices; give the rest a group with an lr of its own).
        ns_dtype: of the iterations. Default: bfloat16 on accelerators, as in the original; on a CPU the state's.
        betas, eps: AdamW's.
        maximize: ascend instead of descend.

    A group may say "muon": True or False for all its tensors: False for the classifier's last layer, for example, which
    the module structure cannot tell from a hidden one. State of low-precision weights is kept in float32.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range, or "muon": True for a vector.
            RuntimeError: in `step`, for complex or sparse gradients.

    Example:
        >>> import torch
        >>> from dlopt.adam import Muon
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 3))
        >>> optimizer = Muon(model.parameters(), model=model, lr=1e-3)
        >>> Muon.memory(model.parameters(), model=model).state  # 4 bytes: 1 number for 12 elements, 2 for 40 + 3
        392
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        *,
        model: nn.Module | None = None,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust: str = "match_rms_adamw",
        ns_dtype: torch.dtype | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        apart = ("self", "params", "model", "__class__")
        defaults = {k: v for k, v in locals().items() if k not in apart}
        self._aside = _aside(model)
        super().__init__(params, {**defaults, "muon": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks the group's hyper-parameters."""
        shared.require(
            {**self.defaults, **param_group},
            lr=shared.NOT_NEGATIVE,
            momentum=("in [0, 1)", lambda x: 0 <= x < 1),
            weight_decay=shared.NOT_NEGATIVE,
            ns_steps=("a whole number from 1 to 99", lambda x: x == int(x) and 1 <= x <= 99),
            adjust=("match_rms_adamw or original", lambda x: x in ("match_rms_adamw", "original")),
            ns_dtype=("None or a floating dtype", lambda x: x is None or x.is_floating_point),
            betas=shared.BETAS,
            eps=shared.NOT_NEGATIVE,
            muon=("None, True or False", lambda x: x in (None, True, False)),
        )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            if group["muon"] and p.dim() < 2:
                self.param_groups.pop()  # a group that is refused is taken out again
                raise ValueError(f"muon=True is for matrices, but the group has a tensor of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in shared.with_gradients(group):
                state = self.state[p]
                hidden = _hidden(p, self._aside) if group["muon"] is None else group["muon"]
                if not state:
                    state["momentum"] = shared.zeros(p)
                    if not hidden:
                        state["variance"] = shared.zeros(p)
                        state["step"] = 0
                if hidden:
                    shared.apply(
                        lambda w, g, m, group=group: _muon(w, g, m, group),
                        p, p.grad, state["momentum"], maximize=group["maximize"],
                    )  # fmt: skip
                    continue
                state["step"] += 1
                for w, g, m, v in shared.chunks(p, p.grad, state["momentum"], state["variance"]):
                    shared.apply(
                        lambda w, g, m, v, t=state["step"], group=group: _adamw(w, g, m, v, t, group),
                        w, g, m, v, maximize=group["maximize"],
                    )  # fmt: skip
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps float32 where torch would cast it to the weights' low precision."""
        super().load_state_dict(state_dict)
        shared.restore(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_aside": self._aside}  # for deepcopy

    @staticmethod
    def memory(params: Iterable[Tensor], *, model: nn.Module | None = None, **options: Any) -> Bytes:
        """Bytes for training `params` (meta tensors too): state is exact for groups without "muon".

        scratch is what the iterations hold in float32: twice the largest hidden matrix and three products.
        """
        params, aside = shared.plain(params), _aside(model)
        state = scratch = 0
        for p in params:
            hidden, size = _hidden(p, aside), shared.state_dtype(p).itemsize
            state += p.numel() * size * (1 if hidden else 2)
            if hidden and p.numel():
                least = min(p.shape[0], p.numel() // p.shape[0])
                scratch = max(scratch, (2 * p.numel() + 3 * least * least) * size)
        return shared.training_bytes(params, state, 0) + Bytes(scratch=scratch)


def _muon(w: Tensor, g: Tensor, m: Tensor, group: dict[str, Any]) -> None:
    mu, lr = group["momentum"], float(group["lr"])
    m.lerp_(g, 1 - mu)
    u = (g.lerp(m, mu) if group["nesterov"] else m).flatten(1)
    if u.numel() == 0:
        return
    dtype = group["ns_dtype"] or (u.dtype if u.device.type == "cpu" else torch.bfloat16)
    o = orthogonalize(u.to(dtype), group["ns_steps"])
    rows, cols = u.shape
    s = math.sqrt(max(1, rows / cols)) if group["adjust"] == "original" else 0.2 * math.sqrt(max(rows, cols))
    w.mul_(1 - lr * group["weight_decay"]).add_(o.view(w.shape), alpha=-lr * s)


def orthogonalize(u: Tensor, steps: int) -> Tensor:
    """About U (U^T U)^(-1/2): the singular vectors of a matrix, with all singular values between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = u.mT if u.shape[0] > u.shape[1] else u
    x = x / x.norm().clamp(min=NORM_EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if u.shape[0] > u.shape[1] else x).contiguous()


def _adamw(w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, group: dict[str, Any]) -> None:
    (b1, b2), lr = group["betas"], float(group["lr"])
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    root = (v / (1 - b2**t)).sqrt_().add_(group["eps"])
    w.mul_(1 - lr * group["weight_decay"]).addcdiv_(m, root, value=-lr / (1 - b1**t))


def _aside(model: nn.Module | None) -> dict[Tensor, None]:
    """Tensors of a model that are matrices, but not hidden ones."""
    if model is None:
        return {}
    table = partition(model, "tensor")  # any scheme tells the roles of embeddings, head and norms
    roles = ((p, table.find(p)) for p in model.parameters())
    return {p: None for p, row in roles if row and row.role in ("embedding", "head", "norm", "bias")}


def _hidden(p: Tensor, aside: dict[Tensor, None]) -> bool:
    return p.dim() >= 2 and p not in aside
