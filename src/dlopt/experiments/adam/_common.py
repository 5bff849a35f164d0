"""What the parts of topic `adam` share: the methods, what of them is fixed, and where their learning rate is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlopt import catalog
from dlopt.lab.search import sobol

NAMED = ("adam", "adamw", "adafactor", "sophia-g", "adam-mini")  # those of the course sheet
METHODS = (*NAMED, "lion", "muon", "sgd")
TRIALS, TUNING_SEED, SEEDS = 4, 1000, (0, 1, 2)
Box = Mapping[str, tuple[float, float, str]]


def methods() -> list[str]:
    """The eight of the report, then optimizers of this topic that other packages have added."""
    return [*METHODS, *(m.name for m in catalog.methods("adam", "optimizer").values() if m.origin != "dlopt")]


def box(boxes: Mapping[str, Box], method: str) -> Box:
    """Two decades of the learning rate around the papers' defaults; the method's own box where none is given."""
    return boxes.get(method, {"lr": catalog.find(method).search["lr"]})


def trials(boxes: Mapping[str, Box], fixed: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(method, hyper-parameters) of the tuning stage: the same number of Sobol points for every method."""
    return [(m, {**fixed.get(m, {}), **point}) for m in methods() for point in sobol(box(boxes, m), TRIALS, seed=11)]
