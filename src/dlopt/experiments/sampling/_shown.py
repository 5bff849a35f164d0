"""From the records of topic `sampling` to figures, tables and verdicts: pieces that its four parts use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlopt.experiments._present import OPEN, VERDICTS, interval, p_text
from dlopt.experiments.sampling._common import DETERMINISTIC, NAMES, series
from dlopt.lab import figures, palette
from dlopt.lab.record import Record
from dlopt.lab.stats import Comparison, compare

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Answer = tuple[str, str]
Groups = Mapping[str, Sequence[Record]]
NOTHING: Answer = (OPEN, "缺少可比的运行。")


def title(name: str) -> str:
    """How a series is written in the report."""
    return NAMES.get(name, palette.title(name))


def panels(
    records: Iterable[Record], x: tuple[str, str], y: str, panel: Callable[[Record], str], **options: Any
) -> Figure:
    """Curves of y with one panel for each panel(record), whose name stands at the axis. x: (column, axis' name)."""
    column, name = x
    made = [replace(r, curve={name: r.curve.get(column, []), panel(r): r.curve.get(y, [])}) for r in records if r.curve]
    order = list(dict.fromkeys(panel(r) for r in records if r.curve and _has(r, y)))
    return figures.curves(made, name, order, by=series, names=NAMES, **options)


def _has(record: Record, column: str) -> bool:
    return any(v is not None for v in record.curve.get(column, []))


def drawable(records: Iterable[Record], y: str) -> list[Record]:
    """Those whose curve has the column."""
    return [r for r in records if _has(r, y)]


def seed_table(groups: Groups, figure: str, seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    """{series: {seed: figure}}; what no seed changes counts for every seed. NaN for a run that did not end well."""
    found: dict[str, dict[int, float]] = {}
    for name, records in groups.items():
        values = {
            int(r.config["seed"]): float(r.summary[figure])
            if r.status == "done" and r.summary.get(figure) is not None
            else math.nan
            for r in records
        }
        if name in DETERMINISTIC and len(values) == 1:
            values = dict.fromkeys(seeds, next(iter(values.values())))
        found[name] = values
    return found


def compared(groups: Groups, baseline: str, figure: str, seeds: Sequence[int], higher: bool) -> dict[str, Comparison]:
    """{series: comparison with the baseline}, corrected by Holm over the series; {} without a baseline."""
    table = seed_table(groups, figure, seeds)
    return {row.method: row for row in compare(table, baseline, higher)} if baseline in table else {}


def pair(
    groups: Groups, method: str, baseline: str, figure: str, seeds: Sequence[int], higher: bool
) -> Comparison | None:
    """One comparison that was planned before the runs, without correction for others."""
    if not (groups.get(method) and groups.get(baseline)):
        return None
    only = {name: groups[name] for name in (method, baseline)}
    return compared(only, baseline, figure, seeds, higher).get(method)


def cell(row: Comparison | None, digits: int = 2, scale: float = 1.0) -> str | None:
    """A comparison in a table: the difference and the verdict; with a single seed there is no test."""
    if row is None or not row.n:
        return None
    return f"{scale * row.difference:+.{digits}f}（{VERDICTS[row.verdict] if row.n > 1 else '一个种子，不检验'}）"


def sentence(row: Comparison, unit: str = "", digits: int = 2, scale: float = 1.0) -> str:
    low, high = scale * row.interval.low, scale * row.interval.high
    bounds = f"，95% 区间 [{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) else ""
    return f"{scale * row.difference:+.{digits}f}{unit}{bounds}，{p_text(row.p_holm)}"


def figure_table(
    groups: Mapping[str, Groups], rows: Sequence[str], figure: str, style: str, first: str = "采样"
) -> pd.DataFrame:
    """Series x columns of a summary figure with its interval over seeds. groups: {column: {series: records}}."""
    import pandas as pd

    kept = [s for s in rows if any(g.get(s) for g in groups.values())]
    data: dict[str, Any] = {first: [title(s) for s in kept]}
    for column, group in groups.items():
        data[column] = pd.Series([_value(group.get(s, []), figure) for s in kept], dtype=object)
    frame = pd.DataFrame(data)
    frame.attrs["styles"] = dict.fromkeys(groups, style)
    return frame


def _value(records: Sequence[Record], figure: str) -> Any:
    found = interval(records, figure)
    return found if found is not None else "发散" if any(r.status == "diverged" for r in records) else None


def setting_table(groups: Mapping[str, Groups], rows: Sequence[str], name: str, first: str = "采样") -> pd.DataFrame:
    """Series x columns of a setting, the same in all runs of a cell."""
    import pandas as pd

    kept = [s for s in rows if any(g.get(s) for g in groups.values())]
    data: dict[str, Any] = {first: [title(s) for s in kept]}
    for column, group in groups.items():
        cells = [group[s][0].config[name] if group.get(s) else None for s in kept]
        data[column] = pd.Series(cells, dtype=object)
    return pd.DataFrame(data)


def lost(records: Iterable[Record]) -> list[str]:
    """A line that counts the runs of a reporting stage that did not end well."""
    counts: dict[str, int] = {}
    for r in records:
        if r.status != "done":
            name = f"{title(series(r))}{palette.STATUSES.get(r.status, r.status)}"
            counts[name] = counts.get(name, 0) + 1
    return ["未正常结束的报告运行：" + "，".join(f"{k} {n} 次" for k, n in counts.items()) + "。"] if counts else []


def number(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}"
