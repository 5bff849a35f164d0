"""From records to what a report shows: pieces that several topics use."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dlopt.lab import canvas, figures, palette
from dlopt.lab.record import Record
from dlopt.lab.stats import Comparison, Interval, compare, mean_interval, steps_to_target
from dlopt.lab.study import Results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CONFIRMED, CONTRADICTED, OPEN = "证实", "推翻", "未定"
VERDICTS = {"better": "更好", "worse": "更差", "undecided": "未能区分"}


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """{method: its records}, in order of first appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.method, []).append(record)
    return found


def interval(records: Iterable[Record], figure: str) -> Interval | None:
    """Mean and 95% interval of a summary figure over the runs that ended well; None if there are none."""
    values = [r.summary[figure] for r in records if r.status == "done" and r.summary.get(figure) is not None]
    return mean_interval(values) if values else None


def seeds(records: Iterable[Record], figure: str) -> dict[int, float]:
    """{seed: figure}; NaN for a run that did not end well, so that a test can see it."""
    found = {}
    for r in records:
        value = r.summary.get(figure) if r.status == "done" else None
        found[int(r.config["seed"])] = math.nan if value is None else float(value)
    return found


def tests(records: Mapping[str, Sequence[Record]], baseline: str, figure: str, higher: bool) -> list[Comparison]:
    """Every method against the baseline over matched seeds, corrected by Holm."""
    table = {name: seeds(group, figure) for name, group in records.items()}
    return compare(table, baseline, higher) if baseline in table else []


def tests_table(rows: Sequence[Comparison]) -> pd.DataFrame:
    """The comparisons as a table of the report."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "method": [r.method for r in rows],
            "差值": pd.Series([r.interval for r in rows], dtype=object),
            "效应量": [r.effect for r in rows],
            "p": [r.p for r in rows],
            "p_holm": [r.p_holm for r in rows],
            "种子": [r.n for r in rows],
            "结论": [VERDICTS[r.verdict] for r in rows],
        }
    )
    frame.attrs["styles"] = {"差值": "percent", "效应量": "fixed"}
    return frame


def runs_table(results: Results, about: Mapping[str, str], varied: Callable[[Record], str]) -> pd.DataFrame:
    """Stages x methods: how many runs, what each was, how they ended, how long they took."""
    import pandas as pd

    rows = []
    for stage, records in results.stages.items():
        for method, group in by_method(records).items():
            good = sum(r.status == "done" for r in group)
            kinds = ", ".join(dict.fromkeys(varied(r) for r in group))
            minutes = sum(r.summary.get("seconds", 0.0) for r in group) / 60
            chosen = sorted({int(r.config["seed"]) for r in group})
            numbers = f"{chosen[0]}–{chosen[-1]}" if len(chosen) > 1 else str(chosen[0])
            rows.append((about.get(stage, stage), method, len(group), numbers, kinds, len(group) - good, minutes))
    frame = pd.DataFrame(rows, columns=["阶段", "method", "运行数", "种子", "每次运行", "未完成", "合计分钟"])
    frame.attrs["styles"] = {"合计分钟": "fixed:2"}
    return frame


def stages_table(
    results: Results, about: Mapping[str, str], series: Callable[[Record], str] | None = None
) -> pd.DataFrame:
    """One row a stage: what it was, how many runs are there and are missing, how they ended, how long they took.

    series: the method of a run, to count methods; None where a run holds several.
    """
    import pandas as pd

    rows = []
    for stage, records in results.stages.items():
        lost = sum(r.status == "diverged" for r in records)
        failed = sum(r.status not in ("done", "diverged") for r in records)
        missing = sum(m.startswith(f"{stage}:") for m in results.missing)
        minutes = sum(r.summary.get("seconds", 0.0) for r in records) / 60
        chosen = sorted({int(r.config["seed"]) for r in records if "seed" in r.config})
        numbers = f"{chosen[0]}–{chosen[-1]}" if len(chosen) > 2 else "、".join(map(str, chosen)) or "—"
        methods = len(set(map(series, records))) if series else 0
        rows.append((about.get(stage, stage), methods, numbers, len(records), missing, lost, failed, minutes))
    columns = ["阶段", "方法数", "种子", "运行数", "缺", "发散", "失败或跳过", "合计分钟"]
    frame = pd.DataFrame(rows, columns=columns)
    if series is None:
        frame = frame.drop(columns="方法数")
    frame.attrs["styles"] = {"合计分钟": "fixed:1"}
    return frame


def verdict(parts: Sequence[bool | None]) -> str:
    """Confirmed if every part of a prediction holds, contradicted if one fails, open if one is not known."""
    if any(p is False for p in parts):
        return CONTRADICTED
    return OPEN if any(p is None for p in parts) or not parts else CONFIRMED


def mean_steps_to(
    records: Iterable[Record], column: str, target: float, x: str = "step", higher: bool = True
) -> float | None:
    """Mean over seeds of where a curve first reaches a target; None if some seed never does.

    higher: whether larger values are better, as of an accuracy; False for a loss.
    """
    found = []
    for record in records:
        reached = first_reaching(record, column, target, x, higher)
        if reached is None:
            return None
        found.append(reached)
    return sum(found) / len(found) if found else None


def first_reaching(record: Record, column: str, target: float, x: str = "step", higher: bool = True) -> float | None:
    """Where one curve first reaches a target, linear between its points; None if it never does, or has no curve."""
    values = zip(record.curve.get(x, []), record.curve.get(column, []))
    pairs = [(a, b) for a, b in values if a is not None and b is not None]
    return steps_to_target([a for a, _ in pairs], [b for _, b in pairs], target, higher_is_better=higher)


def at(record: Record, x: str, place: float, column: str) -> float | None:
    """A column's value where x reaches `place`, linear between the points of the curve; None beyond its end."""
    values = zip(record.curve.get(x, []), record.curve.get(column, []))
    pairs = [(a or 0, b) for a, b in values if b is not None and math.isfinite(b)]
    for (a0, b0), (a1, b1) in pairwise(pairs):
        if a0 <= place <= a1:
            return b0 if a1 == a0 else b0 + (b1 - b0) * (place - a0) / (a1 - a0)
    return None


def median(records: Iterable[Record], figure: str) -> float | None:
    """Median of a summary figure over the runs that ended well; None if there are none. For times."""
    values = [float(r.summary[figure]) for r in records if r.status == "done" and r.summary.get(figure) is not None]
    return statistics.median(values) if values else None


def blank(text: str = "尚无记录") -> Figure:
    """A figure that says that there is nothing to draw yet: a report of a partial grid still compiles."""
    with canvas.style():
        figure, (axes,) = canvas.panels(1, 0.7)
        axes.axis("off")
        axes.text(0.5, 0.5, text, ha="center", va="center", color=palette.GREY)
        return canvas.finish(figure)


def curves_or_blank(records: Iterable[Record], x: str, y: Sequence[str], **options: Any) -> Figure:
    """`figures.curves` of the runs that have such a curve; a blank figure if there are none."""
    there = [r for r in records if all(any(v is not None for v in r.curve.get(c, ())) for c in (x, *y))]
    return figures.curves(there, x, y, **options) if there else blank()


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"


def p_text(p: float) -> str:
    return "p 不可得" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def partial_note(results: Results) -> list[str]:
    """A warning for the report's first page if the grid is not complete."""
    if results.complete:
        return []
    return [f"本报告由不完整的实验网格生成：缺少 {len(results.missing)} 次运行（例如 {results.missing[0]}）。"]


def lost_note(records: Iterable[Record]) -> list[str]:
    """A line that names runs that diverged, failed or were skipped."""
    lost = [
        f"{palette.title(r.method)}（种子 {r.config.get('seed')}）{palette.STATUSES.get(r.status, r.status)}"
        for r in records
        if r.status != "done"
    ]
    return [f"未正常结束的运行：{'；'.join(lost[:6])}{'等' if len(lost) > 6 else ''}。"] if lost else []


def edges(best: Mapping[str, Mapping[str, Any]], box: Callable[[str], Mapping[str, tuple[Any, ...]]]) -> list[str]:
    """A line for each tuned hyper-parameter that sits on the edge of its search box."""
    from dlopt.lab.search import edge_warnings

    found = []
    for method, params in best.items():
        inside = {name: bounds for name, bounds in box(method).items() if name in params}
        found += [
            f"{method} 的 {e.name} = {e.value:.3g} 位于搜索范围 [{e.low:g}, {e.high:g}] 的"
            f"{'下' if e.side == 'lower' else '上'}缘，更好的取值可能在范围之外。"
            for e in edge_warnings(params, inside)
        ]
    return found
