"""From the records of topic `zeroth` to figures, tables and verdicts: pieces that its four parts use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.experiments.zeroth._common import NAMES
from dlopt.lab import figures, palette
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Answer = tuple[str, str]
NOTHING: Answer = (OPEN, "所依据的运行不齐全，按规则记为未定。")


def title(name: str) -> str:
    """How a series is written in the report."""
    return NAMES.get(name, palette.title(name))


def judged(holds: bool, contradicted: bool) -> str:
    """A prediction holds, its opposite holds, or neither."""
    return CONFIRMED if holds else CONTRADICTED if contradicted else OPEN


def answers(shown: Presentation, questions: Mapping[int, Answer]) -> None:
    """Put verdicts and answers among the values, as verdict.qN and answer.qN."""
    for n, (verdict, answer) in questions.items():
        shown.values |= {f"verdict.q{n}": verdict, f"answer.q{n}": answer}


def drawn(
    lines: Sequence[Record], x: str, y: str | Sequence[str], names: Mapping[str, str] = {}, **options: Any
) -> Figure | None:
    """Curves of made-up records; None where nothing can be drawn."""
    wanted = [y] if isinstance(y, str) else list(y)
    there = {c for r in lines for c, values in r.curve.items() if any(v is not None for v in values)}
    if not {x, *wanted} <= there:
        return None
    return figures.curves(lines, x, wanted, names={**NAMES, **names}, **options)


def panels(
    records: Iterable[Record], x: str, y: str, panel: Callable[[Record], str], by: Callable[[Record], str], **more: Any
) -> Figure | None:
    """Curves of y with one panel for each panel(record); None without curves."""
    kept = [r for r in records if any(v is not None for v in r.curve.get(y, []))]
    order = list(dict.fromkeys(panel(r) for r in kept))
    if not kept:
        return None
    made = [replace(r, curve={"step": r.curve["step"], x: r.curve.get(x, []), panel(r): r.curve[y]}) for r in kept]
    return figures.curves(made, x, order, by=by, names=NAMES, **more)


def row_of(record: Record, column: str, value: float) -> dict[str, Any]:
    """The row of a curve at which a column has a value; {} if there is none."""
    places = [i for i, v in enumerate(record.curve.get(column, [])) if v == value]
    return {name: values[places[0]] for name, values in record.curve.items()} if places else {}


def number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None else f"{value:.{digits}g}"


def lost(records: Iterable[Record], series: Callable[[Record], str]) -> list[str]:
    """A line that counts the runs of a reporting stage that did not end well."""
    counts: dict[str, int] = {}
    for r in records:
        if r.status != "done":
            name = f"{title(series(r))}{palette.STATUSES.get(r.status, r.status)}"
            counts[name] = counts.get(name, 0) + 1
    return ["未正常结束的报告运行：" + "，".join(f"{k} {n} 次" for k, n in counts.items()) + "。"] if counts else []
