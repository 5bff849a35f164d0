"""What most people use: torch's own Adam, AdamW and SGD, unchanged, with the bytes they need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlopt.adam._shared import plain
from dlopt.catalog import method
from dlopt.memory import Bytes, tensor_bytes


@method(
    "adam",
    topic="adam",
    kind="optimizer",
    cite="kingma2015adam",
    summary="torch's Adam: running means of the gradient and of its square",
    search={"lr": (1e-5, 1e-1, "log")},
)
class Adam(torch.optim.Adam):
    """torch.optim.Adam (arXiv 1412.6980): same arguments, same results, plus `memory`.

    Per element, at step t::

        G = G + weight_decay W;  M = b1 M + (1 - b1) G;  V = b2 V + (1 - b2) G^2
        W = W - lr (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)

    Moments have the dtype of the weights, also in bfloat16. Errors are torch's: ValueError for wrong hyper-parameters.

    Example:
        >>> import torch
        >>> from dlopt.adam import Adam
        >>> Adam.memory([torch.empty(3, 2)]).state  # two moments of 24 bytes and torch's step counter of 4
        52
    """

    @staticmethod
    def memory(params: Iterable[Tensor], *, amsgrad: bool = False, **options: Any) -> Bytes:
        """Bytes for training `params` (meta tensors too) with these options of the constructor; state is exact."""
        return _bytes(params, moments=3 if amsgrad else 2, counters=1)


@method(
    "adamw",
    topic="adam",
    kind="optimizer",
    cite="loshchilov2019adamw",
    summary="torch's AdamW: Adam with decoupled weight decay",
    search={"lr": (1e-5, 1e-1, "log"), "weight_decay": (1e-3, 1e-1, "log")},
)
class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW (arXiv 1711.05101): same arguments, same results, plus `memory`.

    As `Adam`, but the decay leaves the gradient alone: W = (1 - lr weight_decay) W first, then Adam's step.

    Example:
        >>> import torch
        >>> from dlopt.adam import AdamW
        >>> AdamW.memory([torch.empty(3, 2)], amsgrad=True).state  # three moments and the step counter
        76
    """

    @staticmethod
    def memory(params: Iterable[Tensor], *, amsgrad: bool = False, **options: Any) -> Bytes:
        """Bytes for training `params` (meta tensors too) with these options of the constructor; state is exact."""
        return _bytes(params, moments=3 if amsgrad else 2, counters=1)


@method(
    "sgd",
    topic="adam",
    kind="optimizer",
    cite="robbins1951sgd",
    summary="torch's SGD, with momentum if asked",
    search={"lr": (1e-3, 1.0, "log"), "momentum": (0.0, 0.95, "linear")},
)
class SGD(torch.optim.SGD):
    """torch.optim.SGD (Robbins & Monro 1951; momentum: Polyak 1964): same arguments, same results, plus `memory`.

    Per element: G = G + weight_decay W;  B = momentum B + (1 - dampening) G (B = G at the first step);  W = W - lr B.

    Example:
        >>> import torch
        >>> from dlopt.adam import SGD
        >>> [SGD.memory([torch.empty(3, 2)], momentum=b).state for b in (0, 0.9)]
        [0, 24]
    """

    @staticmethod
    def memory(params: Iterable[Tensor], *, momentum: float = 0, **options: Any) -> Bytes:
        """Bytes for training `params` (meta tensors too) with these options of the constructor; state is exact."""
        return _bytes(params, moments=1 if momentum else 0, counters=0)


def _bytes(params: Iterable[Tensor], moments: int, counters: int) -> Bytes:
    """Moments are like the weights; a counter is a 0-dim tensor of torch's scalar type. scratch depends on
    torch's choice between its loop, foreach and fused versions, so it is left at 0."""
    params = plain(params)
    each = sum(p.numel() * p.element_size() for p in params)
    counter = 8 if torch.get_default_dtype() == torch.float64 else 4
    return Bytes(weights=tensor_bytes(params), gradients=each, state=moments * each + counters * counter * len(params))
