"""Records as series to be drawn and fitted: pieces that several topics use."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dlopt.lab.record import Record


def grouped(records: Iterable[Record], by: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """{by(record): records}, in order of first appearance."""
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(by(record), []).append(record)
    return found


def line(name: str, columns: Mapping[str, Sequence[Any]]) -> Record:
    """A made-up record that only carries a curve: points of several runs or rows, to be drawn as one line."""
    return Record("", "", 0, {"method": name}, {}, {}, "cpu", "done", curve={k: list(v) for k, v in columns.items()})


def slope(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Of the least-squares line through the logarithms; None for fewer than two points above 0."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys) if x and y and x > 0 and y > 0]
    if len(points) < 2:
        return None
    a, b = statistics.fmean(p for p, _ in points), statistics.fmean(q for _, q in points)
    return sum((p - a) * (q - b) for p, q in points) / sum((p - a) ** 2 for p, _ in points)
