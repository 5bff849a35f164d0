"""The search for hyper-parameters: Sobol points in a box, the best trial, and whether it sits on the box's edge.

A box is {parameter: (low, high, scale)}, as in the catalogue's `search=`, with scale "linear", "log" (uniform in the
logarithm) or "int" (integers from low to high, both included).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import torch

SCALES = ("linear", "log", "int")
EDGE = 0.05
P = TypeVar("P")


def sobol(box: Mapping[str, tuple[Any, ...]], n: int, seed: int) -> list[dict[str, float | int]]:
    """n points of a scrambled Sobol sequence in the box, the same for the same names, bounds and seed.

    Dimensions go to the names in alphabetical order, so the order in which a box is written does not matter. The
    first k of n points are `sobol(box, k, seed)`: trials can be added later. The global random state is not touched.
    An empty box gives n empty points. `ValueError` for a wrong box or a negative n.
    """
    if n < 0:
        raise ValueError(f"n={n} must not be negative")
    names = sorted(_checked(box))
    if not names or not n:
        return [{} for _ in range(n)]
    # float64: float32 would round the last of the unit interval up to 1
    unit = torch.quasirandom.SobolEngine(len(names), scramble=True, seed=seed).draw(n, dtype=torch.float64).tolist()
    points = [dict(zip(names, row)) for row in unit]
    return [{name: _from_unit(point[name], *box[name]) for name in box} for point in points]


def best(trials: Iterable[tuple[P, float]], higher_is_better: bool) -> P:
    """The params with the best score. Equal params (`==`), as from several seeds, count with their mean score.

    Of equal scores the params that come first in the list win. A score that is not finite is a run that diverged,
    and its params cannot win, whatever they reached on other seeds. `ValueError` if no params are left.
    """
    scores: list[tuple[P, list[float]]] = []
    for params, score in trials:
        for known, values in scores:
            if known == params:
                values.append(score)
                break
        else:
            scores.append((params, [score]))
    finite = [(params, fmean(values)) for params, values in scores if all(map(math.isfinite, values))]
    if not finite:
        raise ValueError(f"none of {len(scores)} trials has a finite score, so there is no best: widen the search box")
    # max and min both return the first of equals
    return (max if higher_is_better else min)(finite, key=lambda trial: trial[1])[0]


@dataclass(frozen=True)
class Edge:
    """A tuned hyper-parameter that sits on the edge of its search box, where a better one may lie beyond."""

    name: str
    value: float
    low: float
    high: float
    side: str

    def __str__(self) -> str:
        return (
            f"{self.name}={self.value:g} sits on the {self.side} edge of its search box [{self.low:g}, {self.high:g}]"
        )


def edge_warnings(best: Mapping[str, Any], box: Mapping[str, tuple[Any, ...]]) -> list[Edge]:
    """The parameters of `best` within 5% of the range from a bound of their box, both ends included.

    The range is that of the logarithm for "log". Entries of `best` that are not in the box were not tuned and are
    passed over; `ValueError` for a parameter of the box that `best` lacks or that lies outside its bounds.
    """
    found = []
    for name, (low, high, scale) in _checked(box).items():
        if name not in best:
            raise ValueError(f"the search box has {name!r}, but the best point has only {', '.join(best) or 'nothing'}")
        value = best[name]
        if not low <= value <= high:
            raise ValueError(f"{name}={value} lies outside its search box [{low}, {high}]")
        if scale == "log":
            place = math.log(value / low) / math.log(high / low)
        else:
            place = (value - low) / (high - low)
        # a hair more than 5%, so that a value at exactly 5% counts whatever the rounding
        side = "lower" if place <= EDGE + 1e-9 else "upper" if place >= 1 - EDGE - 1e-9 else ""
        if side:
            found.append(Edge(name, value, low, high, side))
    return found


def _from_unit(u: float, low: Any, high: Any, scale: str) -> float | int:
    """u in [0, 1) -> a value in [low, high] of that scale."""
    if scale == "int":
        return min(int(high), int(low) + math.floor(u * (high - low + 1)))
    value = low * (high / low) ** u if scale == "log" else low + u * (high - low)
    return float(min(max(value, low), high))  # rounding may step over a bound by one ulp


def _checked(box: Mapping[str, tuple[Any, ...]]) -> Mapping[str, tuple[Any, ...]]:
    for name, entry in box.items():
        if len(entry) != 3 or entry[2] not in SCALES:
            raise ValueError(f"the box of {name!r} must be (low, high, 'linear', 'log' or 'int'), not {entry!r}")
        low, high, scale = entry
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"the box of {name!r} needs finite bounds with low < high, not {low} and {high}")
        if scale == "log" and low <= 0:
            raise ValueError(f"the box of {name!r} is logarithmic, so its lower bound {low} must be above 0")
        if scale == "int":
            try:
                operator.index(low), operator.index(high)
            except TypeError as error:
                raise ValueError(f"the box of {name!r} has integers, but its bounds are {low} and {high}") from error
    return box
