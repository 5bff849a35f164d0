"""What the report shows of `kvcache/openbookqa`, and how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlopt.experiments._present import blank, partial_note, stages_table
from dlopt.experiments.kvcache._common import EVICTING, budget_of, series
from dlopt.experiments.kvcache._shown import (
    Answer,
    answers,
    done,
    figure_of,
    find,
    judged,
    lines,
    lost,
    named,
    paired,
    prefix_name,
    table,
    title,
)
from dlopt.experiments.kvcache.openbookqa import BOOK, BUDGETS, LONG, SHOTS, STEPWISE
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.stats import Interval
from dlopt.lab.study import Results

STAGES = {"zero": "零样本", "bounds": "24 例，逐步", "ranked": "24 例与 2000 词元", "between": "1024 词元"}
BOUNDS = {"kivi-2": 0.12, "kivi-4": 0.01, "sinks": 0.2}  # of the divergence behind 24 shots
WITHOUT = 1.0  # that the window without sinks exceeds
COLUMNS = {"金答案 NLL": "gold_nll_each", "KL": "divergence_each", "词元 KL": "token_divergence", "一致": "agreement",
           "acc": "accuracy", "acc_norm": "accuracy_norm", "倍数": "smaller"}  # fmt: skip
STYLES = {"金答案 NLL": "fixed:2", "KL": "fixed:4", "词元 KL": "fixed:3", "一致": "percent", "acc": "percent",
          "acc_norm": "percent", "倍数": "fixed:1"}  # fmt: skip
COVERED = {"有据 NLL": "covered_nll"}  # of the questions whose fact stands in the prefix


def present(results: Results) -> Presentation:
    """Values, tables and figures."""
    stages = results.stages
    bounds, zero = done(stages.get("bounds", ())), done(stages.get("zero", ()))
    ranked = [*done(stages.get("ranked", ())), *done(stages.get("between", ()))]
    behind = {name: [r for r in ranked if r.config["prefix"] == name] for name in (SHOTS, BOOK, LONG)}
    shown = Presentation(notes=partial_note(results) + lost(results))
    first = zero[0] if zero else None
    for figure in ("accuracy", "accuracy_norm"):
        value = figure_of(first, figure)
        shown.values[f"zero.{figure}"] = None if value is None or first is None else share(value, first)
    shown.values |= {"zero.questions": figure_of(first, "questions"), "stepwise": STEPWISE}
    for name, short in ((SHOTS, "shots"), (BOOK, "book"), (LONG, "long")):
        some = behind[name][0] if behind[name] else None
        shown.values[f"{short}.tokens"] = None if some is None else some.summary["prefix_tokens"]
        shown.tables[short] = _main(behind[name], name != SHOTS)
        if name != SHOTS:
            shown.values[f"{short}.covered"] = None if some is None else some.summary["covered"]
    shown.tables["bounds"] = table(bounds, {"缓存": _exact}, COLUMNS, STYLES)
    shown.tables["cost"] = table(
        behind[LONG],
        {"缓存": named},
        {"字节（16 位）": "bytes_16bit", "预填充（秒）": "prefill_seconds", "每步（秒）": "decode_seconds"},
        {"字节（16 位）": "bytes", "预填充（秒）": "fixed:2", "每步（秒）": "fixed:3"},
    )
    shown.tables["runs"] = stages_table(results, STAGES, series)
    shown.figures = {"pareto": _pareto(behind[LONG]), "pareto_shots": _pareto(behind[SHOTS])}
    shown.values |= answers([_bounds(bounds), _equal_bytes(behind[LONG]), _chosen(behind[LONG]), _sinks(ranked)])
    return shown


def share(value: float, record: Record) -> Interval:
    """A share of questions with its Wilson 95% interval."""
    n, z = int(record.summary["questions"]), 1.96
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return Interval(value, centre - half, centre + half, n, (value * (1 - value)) ** 0.5)


def _exact(record: Record) -> str:
    params = record.config["params"]
    if record.method == "kivi":
        return f"{title(series(record))}，R = {params['residual']}"
    return named(record)


def _main(records: Sequence[Record], covered: bool) -> Any:
    order = {"full": 0, "int8": 1, "kivi-4": 2, "int4": 3, "kivi-2": 4}
    kept = sorted(records, key=lambda r: (order.get(series(r), 9), -(budget_of(r.config) or 0)))
    columns, styles = (COVERED | COLUMNS, dict.fromkeys(COVERED, "fixed:2") | STYLES) if covered else (COLUMNS, STYLES)
    return table(kept, {"缓存": named}, columns, styles)


def _pareto(records: Sequence[Record]) -> Any:
    points: dict[str, list[tuple[float, float]]] = {}
    whole = next((r for r in records if series(r) == "full"), None)
    for r in records:
        if series(r) != "full" and r.summary["divergence"] > 0:
            points.setdefault(series(r), []).append((r.summary["bytes_16bit"], r.summary["divergence"]))
    mark = None if whole is None else float(whole.summary["bytes_16bit"])
    return lines(points, "bytes", "与完整缓存的 KL", log_x=True, log_y=True, mark=mark) if points else blank()


def _bounds(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for name, bound in BOUNDS.items():
        budget = 64 if name == "sinks" else None
        found = next((r for r in records if series(r) == name and budget_of(r.config) == budget
                      and r.config["params"].get("residual") in (None, 32)), None)  # fmt: skip
        value = figure_of(found, "divergence")
        parts.append(None if value is None else value <= bound)
        if value is not None:
            told.append(f"{title(name)} {value:.4f}（界限 {bound:g}）")
    value = figure_of(find(records, "window", 64), "divergence")
    parts.append(None if value is None else value > WITHOUT)
    if value is not None:
        told.append(f"滑动窗口 {value:.3f}（应超过 {WITHOUT:g}）")
    return judged(parts, told, "四项都成立为证实，一项不成立为推翻。")


def _equal_bytes(records: Sequence[Record]) -> Answer:
    ours = find(records, "kivi-2")
    parts: list[bool | None] = []
    told = []
    for name in EVICTING:
        theirs = find(records, name, max(BUDGETS[LONG]))
        gap = paired(ours, theirs, "divergence_each")
        parts.append(None if gap is None else gap.high < 0)
        if gap is not None:
            told.append(f"减{title(name)} {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]")
    return judged(
        parts, told, "KIVI-2 的 KL 与字节相近的每种淘汰法（预算最大一档）配对相减，95% 区间都在零以下为证实。"
    )


def _chosen(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for name in ("h2o", "snapkv", "tova"):
        for budget in BUDGETS[LONG]:
            gap = paired(find(records, name, budget), find(records, "sinks", budget), "divergence_each")
            parts.append(None if gap is None else gap.high < 0)
            if gap is not None:
                told.append(f"{title(name)}（{budget}）{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]")
    return judged(
        parts, told, "三种按注意力淘汰的方法在三档预算上的 KL 都显著低于 StreamingLLM（配对差的区间在零以下）为证实。"
    )


def _sinks(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for prefix, budgets in BUDGETS.items():
        for budget in budgets:
            mine = [r for r in records if r.config["prefix"] == prefix]
            a, b = (figure_of(find(mine, s, budget), "divergence") for s in ("window", "sinks"))
            if a is not None and b is not None:
                parts.append(a > 3 * b)
                told.append(f"{prefix_name(prefix)} 预算 {budget}：{a:.3f} 对 {b:.3f}")
    return judged(parts, told, "每个前缀与预算上，窗口的 KL 都大于同预算 StreamingLLM 的三倍为证实。")
