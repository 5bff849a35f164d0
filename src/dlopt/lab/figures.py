"""Figures made from records and numbers: curves, bars, stacked bars, scatter, Pareto front, heat map.

Every function returns a matplotlib `Figure` of 16 cm width with Chinese labels. `svg` and `save` write it with text
as outlines (no reader needs the font) and without date or random ids: the same records give the same bytes.
A method keeps its colour and marker in all of them. Legends stand below the axes and never cover data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dlopt.lab import canvas, palette
from dlopt.lab.canvas import Interval, Number, save, spread, svg
from dlopt.lab.curves import curves, grouped, method_of, series_legend
from dlopt.lab.tradeoffs import pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dlopt.lab.record import Record

__all__ = [
    "Interval",
    "bars",
    "curves",
    "heatmap",
    "method_of",
    "pareto_plot",
    "save",
    "scatter",
    "stacked",
    "svg",
    "value_of",
]


def value_of(record: Record, name: str) -> Any:
    """A figure of a record by name: from summary, hyper-parameters, config or bytes, in this order; else None.

    "summary.accuracy", "params.lr", "config.batch", "bytes.state" and "bytes.total" say where to look.
    """
    places: dict[str, Mapping[str, Any]] = {
        "summary": record.summary,
        "params": record.config.get("params", {}),
        "config": record.config,
        "bytes": record.bytes | {"total": sum(v for k, v in record.bytes.items() if k != "wire")},
    }
    where, _, rest = name.partition(".")
    if where in places and rest:
        return places[where].get(rest)
    return next((found[name] for found in places.values() if name in found), None)


def bars(
    values: Mapping[str, Number],
    column: str,
    *,
    log: bool = False,
    names: Mapping[str, str] | None = None,
    series: Mapping[str, str] | None = None,
) -> Figure:
    """Horizontal bars, one per series, with the interval as a whisker and the number beside it.

    column: what the values are ("accuracy", "seconds", "state_bytes"); it decides the axis' name and unit. A value
    that is not finite is written as 发散 and has no bar. Bars begin at 0 unless `log`. series: {bar: the series whose
    colour it takes}, for figures with several bars of a series.
    """
    with canvas.style():
        figure, (axes,) = canvas.panels(1, 0.6 + 0.34 * len(values))
        canvas.axis(axes, "x", column, log)
        write = canvas.writer(column)
        for row, (name, value) in enumerate(values.items()):
            mean, low, high = spread(value)
            if not math.isfinite(mean):
                _beside(axes, "发散", axes.get_xlim()[0] if log else 0.0, row)
                continue
            axes.barh(row, mean, color=palette.look((series or {}).get(name, name)).colour, height=0.62, alpha=0.85)
            if high > low:
                ends = [[mean - low], [high - mean]]
                axes.errorbar(mean, row, xerr=ends, color="white", capsize=4, linewidth=3, capthick=3)  # a halo
                axes.errorbar(mean, row, xerr=ends, color="#444444", capsize=3, linewidth=1.1)
            _beside(axes, write(mean), high if high > mean else mean, row)  # one run has no interval
        _rows(axes, list(values), names)
        return canvas.finish(figure)


def stacked(values: Mapping[str, Mapping[str, float]], *, names: Mapping[str, str] | None = None) -> Figure:
    """Bytes by kind: one horizontal bar per series, its kinds in the order of `Bytes`, the total beside it."""
    kinds = [kind for kind in palette.KINDS if kind != "wire" and any(v.get(kind) for v in values.values())]
    with canvas.style():
        figure, (axes,) = canvas.panels(1, 0.9 + 0.34 * len(values))
        canvas.axis(axes, "x", "bytes", title="内存")
        start = np.zeros(len(values))
        for kind in kinds:
            text, colour = palette.KINDS[kind]
            width = np.array([float(v.get(kind, 0)) for v in values.values()])
            axes.barh(range(len(values)), width, left=start, color=colour, height=0.62, label=text)
            start = start + width
        for row, total in enumerate(start):
            _beside(axes, canvas.writer("bytes")(total), total, row)
        _rows(axes, list(values), names)
        canvas.legend(figure, *axes.get_legend_handles_labels())
        return canvas.finish(figure)


def scatter(
    records: Iterable[Record],
    x: str,
    y: str,
    *,
    by: Callable[[Record], str] = method_of,
    log_x: bool = False,
    log_y: bool = False,
    best: str = "",
    names: Mapping[str, str] | None = None,
    height: float = 2.6,
) -> Figure:
    """One point per run, `x` and `y` by the names that `value_of` takes: the picture of a search, for instance.

    Runs that diverged or failed stand as crosses on the lower edge. best: "max" or "min" rings each series' best.
    """
    groups = grouped(records, by)
    with canvas.style():
        figure, (axes,) = canvas.panels(1, height)
        canvas.axis(axes, "x", x, log_x)
        canvas.axis(axes, "y", y, log_y)
        axes.margins(0.06)
        edge = axes.get_xaxis_transform()
        for row, (name, group) in enumerate(groups.items()):
            look = palette.look(name)
            done = [(value_of(r, x), value_of(r, y)) for r in group if r.status == "done"]
            good = [(float(a), float(b)) for a, b in done if a is not None and b is not None and math.isfinite(b)]
            if good:
                xs, ys = zip(*good)
                axes.plot(xs, ys, look.marker, color=look.colour, markersize=5.5, alpha=0.85, markeredgewidth=0)
            if good and best:
                a, b = (max if best == "max" else min)(good, key=lambda pair: pair[1])
                axes.plot(a, b, "o", color=look.colour, fillstyle="none", markersize=11, markeredgewidth=1.1)
            for record in group:
                if record.status in ("diverged", "failed") and value_of(record, x) is not None:
                    height_of_cross = 0.03 + 0.05 * row
                    axes.plot(
                        value_of(record, x), height_of_cross, "x", color=look.colour, transform=edge, markersize=5
                    )
        series_legend(figure, groups, names, lines=False)
        return canvas.finish(figure)


def pareto_plot(
    points: Mapping[str, tuple[Number, Number]],
    x: str,
    y: str,
    *,
    x_better: str = "low",
    y_better: str = "high",
    log_x: bool = False,
    names: Mapping[str, str] | None = None,
    height: float = 2.6,
) -> Figure:
    """Two figures against each other. Filled: beaten by none in both, joined by the dashed front. Hollow: beaten.

    points: {series: (x, y)}, each a number or an interval (drawn as whiskers). x_better, y_better: "low" or "high".
    """
    from matplotlib.lines import Line2D

    centres = {name: (spread(a)[0], spread(b)[0]) for name, (a, b) in points.items()}
    known = [name for name, pair in centres.items() if all(map(math.isfinite, pair))]
    kept = pareto([centres[name] for name in known], [x_better == "low", y_better == "low"])
    front = sorted((known[i] for i in kept), key=lambda name: centres[name])
    with canvas.style():
        figure, (axes,) = canvas.panels(1, height)
        canvas.axis(axes, "x", x, log_x)
        canvas.axis(axes, "y", y)
        steps: Any = "steps-post" if x_better == "low" else "steps-pre"
        line = [centres[name] for name in front]
        axes.plot(
            [a for a, _ in line],
            [b for _, b in line],
            color=palette.GREY,
            linewidth=0.9,
            linestyle="--",
            drawstyle=steps,
            zorder=1,
        )
        handles = []
        for name, (a, b) in points.items():
            look = palette.look(name)
            fill = look.colour if name in front else "white"
            (xm, xl, xh), (ym, yl, yh) = spread(a), spread(b)
            axes.errorbar(
                xm, ym, xerr=[[xm - xl], [xh - xm]], yerr=[[ym - yl], [yh - ym]], color=look.colour, linewidth=1
            )
            axes.plot(xm, ym, look.marker, color=look.colour, markerfacecolor=fill, markersize=7, zorder=3)
            handles.append(
                Line2D([], [], color=look.colour, marker=look.marker, markerfacecolor=fill, linestyle="none")
            )
        axes.margins(0.08)
        canvas.legend(figure, handles, [(names or {}).get(name, palette.title(name)) for name in points])
        return canvas.finish(figure)


def heatmap(
    records: Iterable[Record], x: str, y: str, value: str, *, log: bool = False, height: float | None = None
) -> Figure:
    """The mean of `value` over seeds for each pair of settings, written into its cell.

    A cell where runs diverged or failed is hatched and says how many of them; a pair that was not run stays empty.
    x, y, value: names that `value_of` takes. log: colours by the logarithm.
    """
    from matplotlib.colors import LogNorm, Normalize

    cells: dict[tuple[Any, Any], list[Record]] = {}
    for r in records:
        cells.setdefault((value_of(r, y), value_of(r, x)), []).append(r)
    if not cells:
        raise ValueError("a heat map needs at least one record")
    rows, columns = ([*sorted({pair[i] for pair in cells}, key=_order)] for i in (0, 1))
    grid = np.full((len(rows), len(columns)), np.nan)
    for (a, b), group in cells.items():
        found = [value_of(r, value) for r in group if r.status == "done"]
        if kept := [float(v) for v in found if v is not None]:
            grid[rows.index(a), columns.index(b)] = np.mean(kept)
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    norm = LogNorm(low, high) if log and low > 0 else Normalize(low, high)
    with canvas.style():
        figure, (axes,) = canvas.panels(1, height or 0.9 + 0.42 * len(rows))
        image = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm=norm)
        for (a, b), group in cells.items():
            lost = sum(r.status in ("diverged", "failed") for r in group)
            place = rows.index(a), columns.index(b)
            _cell(axes, place, grid[place], lost, len(group), canvas.writer(value), float(norm(grid[place])))
        axes.set_xticks(range(len(columns)), [canvas.plain(v) for v in columns])
        axes.set_yticks(range(len(rows)), [canvas.plain(v) for v in rows])
        axes.set(xlabel=palette.label(x), ylabel=palette.label(y))
        axes.grid(visible=False)
        bar = figure.colorbar(image, ax=axes, label=palette.label(value), pad=0.02)
        if palette.is_share(value):
            write = canvas.writer(value)
            bar.ax.yaxis.set_major_formatter(lambda v, _: write(v))
        return canvas.finish(figure)


def _cell(
    axes: Axes, place: tuple[int, int], mean: float, lost: int, runs: int, write: Callable[[float], str], shade: float
) -> None:
    """The text of one cell of a heat map, and the hatching where runs were lost."""
    i, j = place
    known = math.isfinite(mean)
    if lost:
        ground = "none" if known else "#EEEEEE"
        axes.fill_between(
            [j - 0.5, j + 0.5], i - 0.5, i + 0.5, facecolor=ground, edgecolor="#8A8A8A", hatch="////", linewidth=0
        )
    text = "\n".join([*([write(mean)] if known else []), *([f"发散 {lost}/{runs}"] if lost else [])])
    light = known and shade < 0.5
    box = {"facecolor": "#333333" if light else "white", "alpha": 0.75, "pad": 1.2, "linewidth": 0} if lost else None
    axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if light else "black", bbox=box)


def _order(value: Any) -> tuple[int, Any]:
    """Numbers by size, before texts by letter."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _beside(axes: Axes, text: str, x: float, row: int) -> None:
    axes.annotate(text, (x, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)


def _rows(axes: Axes, series: list[str], names: Mapping[str, str] | None) -> None:
    axes.set_yticks(
        range(len(series)), [canvas.literal((names or {}).get(name, palette.title(name))) for name in series]
    )
    axes.set_ylim(len(series) - 0.45, -0.55)
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
