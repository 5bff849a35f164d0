"""What the parts of topic `zeroth` share: names of series, a model in another precision, estimates as vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlopt import catalog

SVRG = "mezo-svrg"
TUNING_SEED = 1000
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = {
    "sgd": "SGD",
    "adamw": "AdamW",
    "mezo": "MeZO",
    "mezo:q=4": "MeZO，q = 4",
    "mezo:q=16": "MeZO，q = 16",
    "rge:q=16": "RGE，q = 16，动量",
    "deepzero": "DeepZero",
    "lozo": "LOZO",
    "lozo-m": "LOZO-M",
    SVRG: "MeZO-SVRG",
}


class Cast(nn.Module):
    """A model with weights of another precision: inputs are cast on the way in, low-precision outputs to float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x.to(self.dtype))
        return out.float() if self.dtype.itemsize < 4 else out


class Estimator:
    """Estimates of the gradient by a method of the library, as vectors: what a step with lr = 1 takes away.

    params: float64 tensors, so that the difference of weights before and after keeps 1e-16 of them. A method is given
    them as bare parameters and moves them; they come back after every estimate.
    """

    def __init__(self, method: str, settings: Mapping[str, Any], params: Sequence[Tensor], seed: int) -> None:
        given = {"lr": 1.0, "seed": seed, **settings}
        self.params = list(params)
        self.start = [p.detach().clone() for p in self.params]
        self.optimizer: Any = catalog.find(method).load()(self.params, **given)

    @torch.no_grad()
    def draw(self, closure: Callable[[], Any], **more: Any) -> Tensor:
        """One estimate (d,). more: what `step` takes beside the closure."""
        self.optimizer.step(closure, **more)
        moved = flat([w - p for w, p in zip(self.start, self.params)])
        for p, w in zip(self.params, self.start):
            p.copy_(w)
        return moved


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Several tensors as one vector."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two vectors; NaN if one of them is zero."""
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else math.nan


def positive(**values: float) -> None:
    """Raise ValueError for the first number that is not above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0, got {value}")


def one_of(known: Sequence[str], **values: str) -> None:
    """Raise ValueError for the first value that is not among the known ones."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name} takes {', '.join(known)}, not {value!r}")


def check_params(method: str, params: Mapping[str, Any]) -> None:
    """Build a zeroth-order method on two numbers, so that a setting out of range is refused before anything runs."""
    if wrong := {"seed", "lr"} & set(params):
        raise ValueError(f"lr and seed belong to the run here: params.{min(wrong)} cannot be set")
    catalog.find(method).load()([torch.zeros(2, 2, requires_grad=True)], **params)
