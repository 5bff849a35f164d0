"""Small networks by name: `build("resnet20", width=0.5, seed=1)`.

Every module of this package may declare `MODELS`, {name: constructor}, so a new family is one new file. `names()`
lists them; `options(name)` shows what can be set.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from dlopt.tasks import suggest


def build(name: str, *, seed: int = 0, device: str | torch.device = "cpu", **options: Any) -> nn.Module:
    """A new model with weights drawn from `seed`; the global random state is neither used nor changed.

    The weights are drawn on the CPU and then moved, so they are the same on each device; "meta" gives shapes only.
    Raises ValueError for an unknown name or option, or an option out of range.
    """
    constructor = _find(name)
    known = _options(constructor)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{suggest(option, known)}; it has {', '.join(known)}")
    draws_on = device if torch.device(device).type == "meta" else "cpu"
    # not torch.manual_seed: it would also seed the accelerators, which fork_rng then does not restore
    with torch.random.fork_rng(devices=[]), torch.device(draws_on):
        torch.default_generator.manual_seed(seed)
        model = constructor(**options)
    return model.to(device)


def names() -> list[str]:
    """All model names, sorted."""
    return sorted(_all())


def options(name: str) -> dict[str, Any]:
    """{option: default} of a model; `inspect.Parameter.empty` where it must be given."""
    return _options(_find(name))


def _options(constructor: Callable[..., nn.Module]) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(constructor).parameters.values()}


def _find(name: str) -> Callable[..., nn.Module]:
    if name not in _all():
        raise ValueError(f"no model is called {name!r}{suggest(name, _all())}; there are {', '.join(names())}")
    return _all()[name]


@cache
def _all() -> dict[str, Callable[..., nn.Module]]:
    found: dict[str, Callable[..., nn.Module]] = {}
    for module in pkgutil.iter_modules(__path__):
        for name, constructor in getattr(importlib.import_module(f"{__name__}.{module.name}"), "MODELS", {}).items():
            if name in found:
                raise ValueError(f"two models are called {name!r}; the second is in {module.name}.py")
            found[name] = constructor
    return found
