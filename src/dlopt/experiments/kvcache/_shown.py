"""From the records of topic `kvcache` to tables, figures and verdicts: pieces that its six parts use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlopt.experiments._present import OPEN, blank, verdict
from dlopt.experiments.kvcache._common import NAMES, budget_of, series
from dlopt.lab import canvas, palette
from dlopt.lab.record import Record
from dlopt.lab.stats import Interval, mean_interval
from dlopt.lab.study import Results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Answer = tuple[str, str]
NOTHING: Answer = (OPEN, "缺少可比的运行。")


def title(name: str) -> str:
    """How a series is written in the report."""
    return NAMES.get(name, palette.title(name))


def done(records: Iterable[Record]) -> list[Record]:
    """Those that ended well."""
    return [r for r in records if r.status == "done"]


def find(records: Iterable[Record], name: str, budget: int | None = None, **where: Any) -> Record | None:
    """The first finished run of a series, at a budget, with these settings."""
    for r in done(records):
        fits = all(r.config.get(key) == value for key, value in where.items())
        if series(r) == name and fits and (budget is None or budget_of(r.config) == budget):
            return r
    return None


def figure_of(record: Record | None, name: str) -> float | None:
    """A summary figure, None where there is no run."""
    found = None if record is None else record.summary.get(name)
    return None if found is None else float(found)


def paired(ours: Record | None, theirs: Record | None, figure: str) -> Interval | None:
    """Mean difference of a figure that both runs hold for each question, with its 95% interval."""
    if ours is None or theirs is None:
        return None
    a, b = ours.summary.get(figure, []), theirs.summary.get(figure, [])
    return mean_interval([x - y for x, y in zip(a, b)]) if len(a) == len(b) > 1 else None


def each_interval(record: Record, figure: str) -> Any:
    """Mean over questions with its 95% interval."""
    values = record.summary.get(figure) or []
    return mean_interval(values) if len(values) > 1 else (values[0] if values else None)


def table(
    records: Iterable[Record],
    first: Mapping[str, Callable[[Record], Any]],
    columns: Mapping[str, str],
    styles: Mapping[str, str],
) -> pd.DataFrame:
    """One row a run: what names it, then summary figures. columns: {heading: figure}; *_each becomes an interval."""
    import pandas as pd

    rows = done(records)
    data: dict[str, Any] = {name: pd.Series([of(r) for r in rows], dtype=object) for name, of in first.items()}
    for heading, name in columns.items():
        cells = [each_interval(r, name) if name.endswith("_each") else r.summary.get(name) for r in rows]
        data[heading] = pd.Series(cells, dtype=object)
    frame = pd.DataFrame(data)
    frame.attrs["styles"] = dict(styles)
    return frame


def prefix_name(prefix: str) -> str:
    """What stands before the questions: "shots:24" or "book:2000"."""
    kind, _, count = prefix.partition(":")
    return f"{count} {'例' if kind == 'shots' else '词元'}"


def named(record: Record) -> str:
    """Series and budget in one cell."""
    budget = budget_of(record.config)
    return f"{title(series(record))}{'' if budget is None else f'（{budget}）'}"


def lost(results: Results) -> list[str]:
    """A line that names the runs that did not end well."""
    bad = [r for records in results.stages.values() for r in records if r.status != "done"]
    told = "；".join(f"{named(r)}{palette.STATUSES.get(r.status, r.status)}" for r in bad[:6])
    return [f"未正常结束的运行 {len(bad)} 次：{told}{'等' if len(bad) > 6 else ''}。"] if bad else []


def lines(
    points: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    mark: float | None = None,
    names: Mapping[str, str] | None = None,
    height: float = 3.2,
) -> Figure:
    """One line a series through its points. x, y: names of the axes, or of columns of bytes. mark: a dotted x."""
    from matplotlib.lines import Line2D

    known = {name: sorted(p for p in pairs) for name, pairs in points.items() if pairs}
    if not known:
        return blank()
    with canvas.style():
        figure, (axes,) = canvas.panels(1, height)
        canvas.axis(axes, "x", x, log_x, title={"bytes": "缓存字节（16 位）"}.get(x, ""))
        canvas.axis(axes, "y", y, log_y)
        handles = []
        for name, pairs in known.items():
            look = palette.look(name)
            style: dict[str, Any] = {
                "color": look.colour,
                "marker": look.marker,
                "linestyle": look.dash,
                "markersize": 5,
            }
            axes.plot(*zip(*pairs), linewidth=1.2, **style)
            handles.append(Line2D([], [], linewidth=1.2, **style))
        if mark is not None:
            axes.axvline(mark, color=palette.GREY, linewidth=0.9, linestyle=":")
        axes.margins(0.06)
        canvas.legend(figure, handles, [(names or {}).get(name, title(name)) for name in known])
        return canvas.finish(figure)


def cells(values: Mapping[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str], label: str) -> Figure:
    """A heat map of shares between 0 and 1, rows from top to bottom; a pair that was not run stays empty."""
    import numpy as np

    if not values:
        return blank()
    grid = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in values.items():
        grid[rows.index(row), columns.index(column)] = value
    with canvas.style():
        figure, (axes,) = canvas.panels(1, 0.9 + 0.3 * len(rows))
        image = axes.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        for i in range(len(rows)):
            for j in range(len(columns)):
                if np.isfinite(grid[i, j]):
                    colour = "white" if grid[i, j] < 0.5 else "black"
                    axes.text(j, i, f"{100 * grid[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(columns)), list(columns), rotation=60 if len(columns) > 8 else 0, fontsize=7.5)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, label=label, pad=0.02)
        return canvas.finish(figure)


def judged(parts: Sequence[bool | None], told: Sequence[str], rule: str) -> Answer:
    """Confirmed if every part of a prediction holds, contradicted if one fails, open if one is not known."""
    if not told:
        return NOTHING
    return verdict(parts), f"{'；'.join(told)}。规则：{rule}"


def answers(found: Sequence[Answer]) -> dict[str, str]:
    """The values verdict.q1, answer.q1, ..."""
    return {
        f"{name}.q{n}": text
        for n, pair in enumerate(found, start=1)
        for name, text in zip(("verdict", "answer"), pair)
    }  # fmt: skip
