"""Which example comes next: samplers for any `DataLoader`. Import by name: `from dlopt.sampling import Importance`.

Beside the samplers and the solvers of `prox` stand three helpers: `Weighted` and `weighted_mean` carry importance
weights from a sampler to the loss, `per_example_norms` (and `per_example_gradients`) measure what to sample by.
"""

from __future__ import annotations

import importlib
from typing import Any

from dlopt.catalog import exports

_HELPERS = {
    "Weighted": "weighted",
    "weighted_mean": "weighted",
    "per_example_gradients": "gradients",
    "per_example_norms": "gradients",
    "FiniteSum": "problems",
}
_method, _names = exports("sampling")


def __getattr__(name: str) -> Any:
    if name in _HELPERS:
        return getattr(importlib.import_module(f"dlopt.sampling.{_HELPERS[name]}"), name)
    return _method(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_HELPERS])
