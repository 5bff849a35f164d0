"""Statistics of curves and of points with several costs: steps to a target, areas, Pareto fronts, profiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def steps_to_target(
    x: Iterable[float], y: Iterable[float], target: float, higher_is_better: bool, interpolate: bool = True
) -> float | None:
    """The x (steps, seconds, bytes) at which the curve y first reaches `target`; None if it never does.

    The first point with y >= target (y <= target if lower is better) is the crossing. Its x is returned if it is
    the first point, with `interpolate=False`, or if the point before is not finite; otherwise the x on the
    straight line between the point before and it. A later relapse does not count; a nan never reaches.
    `ValueError` for unequal lengths, x that is not finite or decreases, or a target that is not finite.
    """
    xs, ys = _curve(x, y)
    if not math.isfinite(target):
        raise ValueError(f"target={target} must be a finite number")
    reached = np.flatnonzero(ys >= target if higher_is_better else ys <= target)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0 or not interpolate or not (math.isfinite(ys[i - 1]) and math.isfinite(ys[i])):
        return float(xs[i])
    part = (target - ys[i - 1]) / (ys[i] - ys[i - 1])
    return float(xs[i - 1] + part * (xs[i] - xs[i - 1]))


def area_under_curve(x: Iterable[float], y: Iterable[float], normalise: bool = False) -> float:
    """∫ y dx by the trapezoidal rule, in units of x times y; `normalise=True` divides by the range of x: a mean y.

    `ValueError` for fewer than 2 points, x that decreases, values that are not finite, or (to normalise) no range.
    """
    xs, ys = _curve(x, y)
    if len(xs) < 2 or not np.isfinite(ys).all():
        raise ValueError(f"an area needs at least 2 points and finite values; there are {len(xs)}, y = {ys.tolist()}")
    area = float((np.diff(xs) * (ys[1:] + ys[:-1]) / 2).sum())
    if not normalise:
        return area
    if xs[-1] == xs[0]:
        raise ValueError(f"all points have x = {xs[0]}, so there is no range to divide the area by")
    return area / float(xs[-1] - xs[0])


def pareto(points: Sequence[Sequence[float]], minimise: Sequence[bool] | None = None) -> list[int]:
    """Indices, in ascending order, of the points that no other point dominates.

    points: n rows of d numbers. minimise: for each column whether less is better; None minimises all. A point
    dominates another if it is at least as good in every column and better in one, so equal points stay together.
    ±inf is allowed (out of memory); nan is not comparable and raises `ValueError`.
    """
    table = np.asarray(points, dtype=np.float64)
    if not len(table):
        return []
    if table.ndim != 2 or np.isnan(table).any():
        raise ValueError("points must be rows of equal length without nan: leave out runs that have no value")
    smaller = [True] * table.shape[1] if minimise is None else list(minimise)
    if len(smaller) != table.shape[1]:
        raise ValueError(f"minimise has {len(smaller)} entries for points with {table.shape[1]} columns")
    costs = np.where(smaller, table, -table)
    return [i for i, p in enumerate(costs) if not ((costs <= p).all(axis=1) & (costs < p).any(axis=1)).any()]


@dataclass(frozen=True)
class Profile:
    """Dolan and Moré's performance profile. share[method][k]: the part of the problems that the method solves
    within taus[k] times the best method's time. problems: how many there are."""

    taus: list[float]
    share: dict[str, list[float]]
    problems: int


def performance_profile(
    times: Mapping[str, Mapping[str, float | None]], taus: Iterable[float] | None = None
) -> Profile:
    """rho_m(tau) = |{p : t_mp / min_m' t_m'p <= tau}| / |problems|, from {method: {problem: time}}.

    A time that is missing, None, nan or inf is a failure: it is never within any tau, and its problem still counts.
    taus: where to evaluate, at least 1; by default every distinct ratio, where the curves have their steps.
    Source: Dolan and Moré, Mathematical Programming 91 (2002), 201-213.
    `ValueError` for a time that is not positive, a tau below 1, or no problem at all.
    """
    problems = list(dict.fromkeys(problem for row in times.values() for problem in row))
    if not problems:
        raise ValueError("a performance profile needs at least one method with one problem")
    clean = {m: [_time(m, problem, row.get(problem)) for problem in problems] for m, row in times.items()}
    best = [min(row[k] for row in clean.values()) for k in range(len(problems))]
    ratios = {
        method: [t / best[k] if math.isfinite(t) else math.inf for k, t in enumerate(row)]
        for method, row in clean.items()
    }
    finite = {r for row in ratios.values() for r in row if math.isfinite(r)}
    at = sorted({1.0} | finite) if taus is None else [float(tau) for tau in taus]
    if any(not tau >= 1 for tau in at):
        raise ValueError(f"taus are ratios to the best time and start at 1, given are {at}")
    share = {
        method: [sum(math.isfinite(r) and r <= tau for r in row) / len(problems) for tau in at]
        for method, row in ratios.items()
    }
    return Profile(at, share, len(problems))


def _time(method: str, problem: str, time: float | None) -> float:
    if time is None or math.isnan(time):
        return math.inf
    if time <= 0:
        raise ValueError(f"{method} has the time {time} on {problem}: times must be positive")
    return float(time)


def _curve(x: Iterable[float], y: Iterable[float]) -> tuple[Array, Array]:
    xs, ys = np.asarray(list(x), dtype=np.float64), np.asarray(list(y), dtype=np.float64)
    if xs.shape != ys.shape or xs.ndim != 1:
        raise ValueError(f"a curve needs as many x as y, there are {xs.size} and {ys.size}")
    if not np.isfinite(xs).all() or (np.diff(xs) < 0).any():
        raise ValueError("x must be finite and must not decrease along the curve")
    return xs, ys
