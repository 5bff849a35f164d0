"""Curves of runs against what they cost: mean over seeds, its interval, the seeds, and runs that diverged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlopt.lab import canvas, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dlopt.lab.record import Record

# what a run has used up: 0 before the first step, where a curve has no value yet
COUNTED = ("step", "examples", "tokens", "forwards", "bytes_sent", "seconds")
GRID = 200  # points of a mean curve whose seeds share no grid
Array = NDArray[np.float64]
Points = tuple[Array, Array]


def method_of(record: Record) -> str:
    """The name that a record's method was asked for by."""
    return str(record.config.get("method", record.experiment))


def curves(
    records: Iterable[Record],
    x: str = "step",
    y: str | Sequence[str] = "val_loss",
    *,
    by: Callable[[Record], str] = method_of,
    log_x: bool = False,
    log_y: bool = False,
    target: float | None = None,
    names: Mapping[str, str] | None = None,
    height: float = 2.5,
) -> Figure:
    """Curves against step, examples, tokens, forwards, bytes_sent or seconds; one panel per column in `y`.

    Per series (`by`): the mean over seeds (thick, with markers; on a logarithmic axis the geometric mean), its 95%
    interval (band, from three seeds on) and the seeds (thin). A run that diverged is dashed up to its last finite
    value and ends in a cross; it has no part in the mean, and the legend counts it, as it counts runs that failed or
    were skipped. log_y: for panels that are not in percent. target: a dotted line in the last panel. names: {series:
    how it is written}. height: inches.
    """
    columns = [y] if isinstance(y, str) else list(y)
    groups = grouped(records, by)
    for column in (x, *columns):
        _require(column, [r for group in groups.values() for r in group])
    with canvas.style():
        figure, panels = canvas.panels(len(columns), height)
        for axes, column in zip(panels, columns):
            canvas.axis(axes, "x", x, log_x)
            canvas.axis(axes, "y", column, log_y and not palette.is_share(column))
            log = axes.get_yscale() == "log"
            done = {
                name: [p for r in group if r.status == "done" and (p := points(r, x, column, log_x, log))[0].size]
                for name, group in groups.items()
            }
            means = {name: mean_curve(seeds, log) for name, seeds in done.items() if seeds}
            for name, (grid, mean, _, _) in means.items():
                _draw_line(axes, (grid, mean), done[name], palette.look(name))
            if target is not None and axes is panels[-1]:
                axes.axhline(target, color=palette.GREY, linewidth=0.9, linestyle=":")
            if means:
                # the limits are those of finished runs: neither a wide band nor a run that blew up may flatten them
                axes.autoscale_view()
                axes.autoscale(enable=False)
            for name, (grid, _, low, high) in means.items():
                axes.fill_between(grid, low, high, color=palette.look(name).colour, alpha=0.15, linewidth=0)
            for name, group in groups.items():
                for record in group:
                    if record.status == "diverged":
                        _draw_diverged(axes, points(record, x, column, log_x, log), palette.look(name).colour)
        series_legend(figure, groups, names)
        return canvas.finish(figure)


def grouped(records: Iterable[Record], by: Callable[[Record], str] = method_of) -> dict[str, list[Record]]:
    """Records by series, in the order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(by(record), []).append(record)
    if not groups:
        raise ValueError("a figure needs at least one record")
    return groups


def points(record: Record, x: str, y: str, log_x: bool = False, log_y: bool = False) -> Points:
    """The pairs of a record's curve where both columns have a finite value, which a logarithmic axis can show."""
    steps = record.curve.get("step", [])
    pairs = []
    for i, (a, b) in enumerate(zip(record.curve.get(x, []), record.curve.get(y, []))):
        if a is None and x in COUNTED and i < len(steps) and steps[i] == 0:
            a = 0
        known = a is not None and b is not None and np.isfinite(a) and np.isfinite(b)
        if known and (a > 0 or not log_x) and (b > 0 or not log_y):
            pairs.append((float(a), float(b)))
    both = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def mean_curve(seeds: Sequence[Points], log: bool = False) -> tuple[Array, Array, Array, Array]:
    """(x, mean, low, high): the mean and Student's 95% interval of it, over the range that all seeds cover.

    log: of the logarithms, so mean is the geometric one and low stays positive. With fewer than three seeds low and
    high are the mean. Seeds with a common x are averaged point by point; others (against seconds, say) by linear
    interpolation.
    """
    first = seeds[0][0]
    if all(len(a) == len(first) and np.array_equal(a, first) for a, _ in seeds):
        grid, values = first, np.stack([b for _, b in seeds])
    else:
        left, right = max(a[0] for a, _ in seeds), min(a[-1] for a, _ in seeds)
        grid = np.linspace(left, right, GRID)
        values = np.stack([np.interp(grid, a, b) for a, b in seeds])
    values = np.log(values) if log else values
    mean, half = values.mean(axis=0), np.zeros(len(grid))
    if len(seeds) >= 3:
        from scipy.stats import t

        half = t.ppf(0.975, len(seeds) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(seeds))
    back = np.exp if log else np.asarray
    return grid, back(mean), back(mean - half), back(mean + half)


def series_legend(
    figure: Figure,
    groups: Mapping[str, Sequence[Record]],
    names: Mapping[str, str] | None = None,
    lines: bool = True,
) -> None:
    """The legend of a figure of runs: what is not a finished run is counted beside the name."""
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for name, group in groups.items():
        look = palette.look(name)
        lost = [
            f"{palette.STATUSES[status]} {count}/{len(group)}"
            for status in ("diverged", "failed", "skipped")
            if (count := sum(r.status == status for r in group))
        ]
        dash: Any = look.dash if lines else "none"
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, linestyle=dash, markersize=5))
        labels.append((names or {}).get(name, palette.title(name)) + (f"（{'，'.join(lost)}）" if lost else ""))
    canvas.legend(figure, handles, labels)


def _draw_line(axes: Axes, mean: Points, seeds: Sequence[Points], look: palette.Look) -> None:
    if len(seeds) > 1:
        for a, b in seeds:
            axes.plot(a, b, color=look.colour, linewidth=0.5, alpha=0.3)
    dash: Any = look.dash
    # markers at equal distances on the page, whatever the scale
    axes.plot(*mean, color=look.colour, linestyle=dash, marker=look.marker, markersize=4, markevery=0.1)


def _draw_diverged(axes: Axes, seed: Points, colour: str) -> None:
    x, y = seed
    if not x.size:
        return
    low, high = axes.get_ylim()
    axes.plot(x, y, color=colour, linewidth=0.9, linestyle="--")
    axes.plot(x[-1], min(max(y[-1], low), high), "x", color=colour, markersize=7, markeredgewidth=1.6, clip_on=False)


def _require(column: str, records: Sequence[Record]) -> None:
    filled = {name for r in records for name, values in r.curve.items() if any(v is not None for v in values)}
    if column not in filled:
        raise ValueError(f"no record has the curve column {column!r}; they have {', '.join(sorted(filled)) or 'none'}")
