"""What the report shows of `sampling/logistic`, and how its question is judged: by a rule fixed before the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlopt.experiments._present import blank, partial_note, stages_table, verdict
from dlopt.experiments._series import grouped
from dlopt.experiments.sampling._common import series
from dlopt.experiments.sampling._shown import (
    NOTHING,
    Answer,
    Groups,
    cell,
    compared,
    drawable,
    figure_table,
    lost,
    pair,
    panels,
    title,
)
from dlopt.experiments.sampling.logistic import BATCH, EPOCHS, GAP, METHODS, SEEDS
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

FIGURE = "log_suboptimality"
SETS = ("w8a", "mushrooms")


def present(results: Results) -> Presentation:
    """Values, tables and figures; the question is judged here."""
    final = results.stages["report"]
    shown = Presentation(notes=partial_note(results) + lost(final))
    sets: dict[str, Groups] = {d: grouped(g, series) for d, g in grouped(final, lambda r: r.config["data"]).items()}
    shown.values |= {"epochs": EPOCHS, "batch": BATCH, "seeds": len(SEEDS), "gap": GAP}
    for d in SETS:
        some = next((r.summary for r in final if r.config["data"] == d and r.status == "done"), {})
        for name in ("n", "d", "condition", "skew"):
            shown.values[f"{d}.{name}"] = some.get(name)
    columns = {f"{d}：lg 次优性": sets[d] for d in sets}
    shown.tables["main"] = figure_table(columns, METHODS, FIGURE, "fixed:2")
    distances = figure_table({f"{d}：lg 距离平方": sets[d] for d in sets}, METHODS, "log_distance", "fixed:2")
    for name in distances.columns[1:]:
        shown.tables["main"][name] = distances[name]
        shown.tables["main"].attrs["styles"][name] = "fixed:2"
    shown.tables["tests"] = _tests(sets)
    shown.tables["runs"] = stages_table(results, {"report": "报告"}, series)
    mine = drawable(final, "suboptimality")
    if mine:
        both = {"suboptimality": "curves", "distance": "distances"}
        for column, name in both.items():
            shown.figures[name] = panels(
                mine, ("epoch", "数据遍数"), column, lambda r: str(r.config["data"]), log_y=True, height=2.7
            )
    for name in ("curves", "distances"):
        shown.figures.setdefault(name, blank())
    judged, answer = _orders(sets)
    shown.values |= {"verdict.q1": judged, "answer.q1": answer}
    return shown


def _tests(sets: Mapping[str, Groups]) -> Any:
    import pandas as pd

    rows: dict[str, list[Any]] = {m: [] for m in METHODS[1:]}
    for groups in sets.values():
        found = compared(groups, "with-replacement", FIGURE, SEEDS, higher=False)
        for m, row in rows.items():
            row.append(cell(found.get(m)))
    return pd.DataFrame([(title(m), *row) for m, row in rows.items()], columns=["采样", *sets])


def _orders(sets: Mapping[str, Groups]) -> Answer:
    parts, told = [], []
    for d, groups in sets.items():
        for better, worse in (("random-reshuffling", "with-replacement"), ("random-reshuffling", "fixed-order")):
            row = pair(groups, better, worse, FIGURE, SEEDS, False)
            if row is not None and row.n:
                parts.append({"better": True, "worse": False}.get(row.verdict))
                told.append(f"{d} 上重排减{title(worse)} {row.difference:+.2f}")
    if not parts:
        return NOTHING
    rule = "规则：重排在两个数据集上都显著优于有放回与固定顺序为证实，有一处显著更差为推翻。"
    return verdict(parts), f"lg 次优性之差：{'；'.join(told)}。{rule}"
