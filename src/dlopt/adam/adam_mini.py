"""Adam-mini: one second moment for each head, output row or token instead of each element (Zhang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.adam import _shared as shared
from dlopt.adam.partition import Blocks, Partition, elements, whole
from dlopt.adam.partition import partition as partition_of
from dlopt.catalog import method
from dlopt.memory import Bytes


@method(
    "adam-mini",
    topic="adam",
    kind="optimizer",
    cite="zhang2024adammini",
    summary="Adam with one second moment for each head, output row or token",
    search={"lr": (1e-5, 1e-1, "log")},
)
class AdamMini(torch.optim.Optimizer):
    """Adam-mini (arXiv 2406.16793). For a block B of a tensor W with gradient G, at the tensor's step t = 1, 2, ...::

        M   = b1 M + (1 - b1) G                                      as in Adam
        v_B = b2 v_B + (1 - b2) mean of G^2 over B                   one number
        W_B = (1 - lr weight_decay) W_B - lr (M_B / (1 - b1^t)) / (sqrt(v_B / (1 - b2^t)) + eps)

    The blocks come from the modules of `model`: see `dlopt.adam.partition.partition`; `optimizer.partition()` is the
    table, to print. The official code (adam-mini 1.1.1) goes by names, and takes dim^2 / n_heads elements for a head.

    Args:
        params: tensors, (name, tensor) pairs or groups, as for every torch optimizer; parameters of `model`.
        lr: step size, at least 0; what is good for AdamW is good here.
        betas: (b1, b2), in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: decoupled, at least 0. Norms and biases have none unless told: `group["decay"]` is "matrices", or
            "all" in groups that state a weight_decay, or a decay, of their own.
        model: the module whose parameters these are. Only the schemes "tensor" and "element" can do without.
        partition: "paper"; for ablations "tensor", "row", "head", "element"; or a `Partition`.
        override: {pattern of parameter names: "tensor", "row", "element", ("head", width) or `Blocks`}.
        maximize: ascend instead of descend.

    Moments of float16 and bfloat16 weights are kept, loaded and used in float32; `step` is a Python int per tensor.

    Raises:
        ValueError: at construction, for a hyper-parameter outside its range, for attention of an unknown class, for a
            tensor that `model` does not have. RuntimeError: in `step`, for complex or sparse gradients.

    Example:
        >>> import torch
        >>> from dlopt.adam import AdamMini
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = AdamMini(model.parameters(), model=model, lr=0.1)
        >>> print(optimizer.partition())
        name    role    shape  blocks
        weight  matrix  3 x 2  3 of 1 along axis 0
        bias    bias    3      1 of 3 along axis 0
        2 tensors, 9 elements, 4 blocks
        >>> AdamMini.memory(model.parameters(), model=model).state  # 4 bytes for each element and each block
        52
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        model: nn.Module | None = None,
        partition: str | Partition = "paper",
        override: Mapping[str, Any] | None = None,
        maximize: bool = False,
    ) -> None:
        self._lookup = _lookup(model, partition, override)
        self._table = Partition()
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decay": "matrices"}
        super().__init__(params, {**defaults, "maximize": maximize})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, and checks the group's hyper-parameters and finds the blocks of its tensors."""
        if "weight_decay" in param_group and "decay" not in param_group:
            param_group = {**param_group, "decay": "all"}
        shared.require(
            {**self.defaults, **param_group},
            lr=shared.NOT_NEGATIVE,
            betas=shared.BETAS,
            eps=shared.NOT_NEGATIVE,
            weight_decay=shared.NOT_NEGATIVE,
            decay=("'matrices' or 'all'", lambda x: x in ("matrices", "all")),
        )
        super().add_param_group(param_group)
        params, number = self.param_groups[-1]["params"], len(self.param_groups) - 1
        try:
            rows = [_row(self._lookup, p, f"tensor {i} of group {number}") for i, p in enumerate(params)]
        except ValueError:
            self.param_groups.pop()  # a group that is refused is taken out again
            raise
        for p, row in zip(params, rows):
            self._table.add(p, *row)

    def partition(self) -> Partition:
        """The blocks of this optimizer's tensors, as a table to print."""
        return self._table

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every tensor that has a gradient; returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (b1, b2) = float(group["lr"]), group["betas"]
            for p in shared.with_gradients(group):
                row, state = self._table.find(p), self.state[p]
                if not state:
                    state["step"] = 0
                    state["momentum"] = shared.zeros(p)
                    state["variance"] = torch.zeros(row.blocks.total, dtype=shared.state_dtype(p), device=p.device)
                state["step"] += 1
                decays = group["decay"] == "all" or row.role not in ("norm", "bias")
                kernel = partial(
                    _update,
                    b1=b1,
                    b2=b2,
                    rate=-lr / (1 - b1 ** state["step"]),
                    correction=1 - b2 ** state["step"],
                    eps=group["eps"],
                    decay=1 - lr * group["weight_decay"] if decays else 1,
                )
                for w, g, m, v in _pieces(p, state["momentum"], state["variance"], row.blocks):
                    shared.apply(kernel, w, g, m, v, maximize=group["maximize"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but moments keep float32 where torch would cast them to the weights' low precision.

        Raises ValueError if the state was saved with other blocks.
        """
        shared.match(self, state_dict, variance=lambda p: (self._table.find(p).blocks.total,))
        super().load_state_dict(state_dict)
        shared.restore(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lookup": self._lookup, "_table": self._table}  # for deepcopy

    @staticmethod
    def memory(
        params: Iterable[Tensor],
        *,
        model: nn.Module | None = None,
        partition: str | Partition = "paper",
        override: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Bytes:
        """Bytes for training `params` (meta tensors too) with these options of the constructor.

        state is exact: for each tensor its elements and its blocks. scratch: copies of the piece at work, where
        weights have low precision or are maximized; a piece is a part of a large tensor, or a whole small one.
        """
        params, lookup = shared.plain(params), _lookup(model, partition, override)
        numbers = sum(
            (p.numel() + _row(lookup, p, "a tensor")[2].total) * shared.state_dtype(p).itemsize for p in params
        )
        copies = 2 * any(p.dtype != shared.state_dtype(p) for p in params) + bool(options.get("maximize"))
        return shared.training_bytes(params, numbers, copies)


def _update(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor,
    *, b1: float, b2: float, rate: float, correction: float, eps: float, decay: float,
) -> None:  # fmt: skip
    """One piece: the leading dimensions of v name the block, the further ones of w, g and m are inside of it."""
    inside = tuple(range(v.dim(), g.dim()))
    norm = torch.linalg.vector_norm(g, dim=inside) if inside else g
    v.mul_(b2).addcmul_(norm, norm, value=(1 - b2) * v.numel() / g.numel())
    m.lerp_(g, 1 - b1)
    # rate m / (sqrt(v / correction) + eps), with the correction moved out of the root
    root = math.sqrt(correction)
    inverse = v.sqrt().add_(eps * root).reciprocal_()
    if decay != 1:
        w.mul_(decay)
    w.addcmul_(m, inverse.view(*v.shape, *(1 for _ in inside)), value=rate * root)


def _pieces(p: Tensor, m: Tensor, v: Tensor, blocks: Blocks) -> Iterator[tuple[Tensor, ...]]:
    """Views of weights, gradient, momentum and variance, cut between blocks so that each piece stays in cache."""
    big = (p, p.grad, m)
    if p.numel() == 0:
        return
    flat = p.device.type == "cpu" and all(x.is_contiguous() for x in big)
    if flat and blocks.axis == 0 and len(blocks.runs) == 1 and blocks.repeat == 1:  # nearly all tensors: no need to cut
        yield from _rows(*big, v)
        return
    cut = [blocks.pieces(x) for x in big] + [blocks.numbers(v, p.shape)]
    for *part, number in zip(*cut):
        if number.numel() == 0:
            continue
        if flat and blocks.axis == 0 and blocks.repeat == 1:
            yield from _rows(*part, number.view(-1))
        else:
            yield *part, number


def _rows(w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """One block in each row, and few rows at a time."""
    count = len(v)
    many = max(1, shared.CHUNK * count // w.numel())
    w, g, m = w.view(count, -1), g.view(count, -1), m.view(count, -1)
    if many >= count:
        yield w, g, m, v
    else:
        yield from zip(w.split(many), g.split(many), m.split(many), v.split(many))


def _lookup(model: nn.Module | None, scheme: str | Partition, override: Mapping[str, Any] | None) -> Partition | str:
    """The table of the whole model; without a model, the scheme."""
    if isinstance(scheme, Partition):
        if override:
            raise ValueError("override= needs a scheme; give it to partition(model, override=...) instead")
        return scheme
    if model is not None:
        return partition_of(model, scheme, override)
    if scheme in ("tensor", "element") and not override:
        return scheme
    raise ValueError(
        f"partition={scheme!r} reads the roles of weights from their modules: pass model=; "
        "only 'tensor' and 'element' without override= can do without"
    )


def _row(lookup: Partition | str, p: Tensor, name: str) -> tuple[str, str, Blocks]:
    if isinstance(lookup, str):
        return name, "other", whole(p) if lookup == "tensor" else elements(p)
    row = lookup.find(p)
    if row is None:
        raise ValueError(f"{name}, of shape {tuple(p.shape)}, is not a parameter of the model that was given")
    return row.name, row.role, row.blocks
