"""Experiments: each file (or each file of a topic's folder) joins methods, a task and the lab, as `experiment`.

They are found by their files: `adam.py` is "adam", `sampling/lasso.py` is "sampling/lasso". Files that begin with
an underscore are shared helpers. Nothing is imported until an experiment is loaded.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from dlopt import catalog

if TYPE_CHECKING:
    from dlopt.lab.experiment import Experiment


def names(topic: str | None = None) -> list[str]:
    """The names of all experiments, or of one topic's."""
    here = Path(__file__).parent
    found = []
    for path in sorted(here.rglob("*.py")):
        parts = path.relative_to(here).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            found.append("/".join(parts))
    return [name for name in found if topic in (None, name, name.split("/")[0])]


def load(name: str) -> Experiment:
    """Import one experiment by its name."""
    if name not in names():
        raise catalog.CatalogError(
            f"no experiment is called {name!r}{catalog.suggest(name, names())}; there are {', '.join(names())}"
        )
    experiment: Experiment = importlib.import_module("dlopt.experiments." + name.replace("/", ".")).experiment
    return experiment
