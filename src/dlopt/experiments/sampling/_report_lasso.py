"""What the report shows of `sampling/lasso`, and how its four questions are judged: by rules fixed before the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlopt.experiments._present import (
    CONFIRMED,
    CONTRADICTED,
    OPEN,
    blank,
    first_reaching,
    partial_note,
    stages_table,
    verdict,
)
from dlopt.experiments._series import grouped
from dlopt.experiments.sampling._common import NAMES, VARIANTS, series
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
    setting_table,
    title,
)
from dlopt.experiments.sampling.lasso import BOX, DATA, EPOCHS, GAP, SEEDS, TRIALS
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.search import edge_warnings
from dlopt.lab.study import Results

STAGES = {"tune": "调步长", "report": "报告"}
ROWS = (*VARIANTS, "saga", "coordinate descent")
PERMUTATIONS = ("fixed-order", "shuffle-once", "random-reshuffling", "class-blocks", "class-balanced", "grab")
# not SAGA: where it converges, its range would flatten the differences between the others
MAIN = ("with-replacement", "importance", "fixed-order", "random-reshuffling", "class-blocks", "grab")
TIMED = ("abalone", "housing", "wide")
SKEWED = 10.0  # max L / mean L from which importance sampling is predicted to help
TARGET = 1e-2
FIGURE = "log_suboptimality"
Sets = Mapping[str, Groups]


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    final = results.stages["report"]
    shown = Presentation(notes=partial_note(results) + lost(final))
    sets: dict[str, Groups] = {d: grouped(g, series) for d, g in grouped(final, lambda r: r.config["data"]).items()}
    order = [d for d in DATA if d in sets] + [d for d in sets if d not in DATA]
    sets = {d: sets[d] for d in order}
    shown.values |= {"epochs": EPOCHS, "trials": TRIALS, "seeds": len(SEEDS), "box.low": BOX["step"][0],
                     "box.high": BOX["step"][1], "gap": GAP, "target": TARGET, "skewed": SKEWED}  # fmt: skip
    shown.values |= {
        "told.best": _told_best(sets),
        "told.steps": _told_steps(sets),
        "told.support": _told_support(sets),
    }
    shown.tables["sets"] = _set_table(final, order)
    shown.tables["main"] = figure_table(sets, ROWS, FIGURE, "fixed:2")
    shown.tables["distance"] = figure_table(sets, ROWS, "log_distance", "fixed:2")
    shown.tables["support"] = figure_table(sets, ROWS, "support_share", "percent:0")
    shown.tables["steps"] = setting_table(sets, ROWS[:-1], "step")
    shown.tables["tests"] = _tests(sets)
    shown.tables["passes"] = _passes(sets)
    shown.tables["runs"] = stages_table(results, STAGES, series)
    _figures(shown, results, final)
    for name in ("curves_a", "curves_b", "time", "tuning"):
        shown.figures.setdefault(name, blank())
    shown.notes += _edges(sets)
    answers = (_reshuffled(sets), _importance(sets), _sorted(sets), _reduced(sets))
    for n, (judged, answer) in enumerate(answers, start=1):
        shown.values |= {f"verdict.q{n}": judged, f"answer.q{n}": answer}
    return shown


def _figures(shown: Presentation, results: Results, final: Sequence[Record]) -> None:
    final = drawable(final, "suboptimality")
    panel = _with_skew(final)
    chosen = [r for r in final if series(r) in MAIN]
    for name, wanted in (("curves_a", DATA[:3]), ("curves_b", DATA[3:])):
        mine = [r for r in chosen if r.config["data"] in wanted or (r.config["data"] not in DATA and name[-1] == "a")]
        if mine:
            shown.figures[name] = panels(mine, ("epoch", "数据遍数"), "suboptimality", panel, log_y=True, height=2.9)
    timed = [
        replace(r, curve={**r.curve, "seconds": r.curve["solver_seconds"]})
        for r in final
        if series(r) in ("with-replacement", "importance", "random-reshuffling", "saga", "coordinate descent")
        and r.config["data"] in (*TIMED, *(set(map(_set_of, final)) - set(DATA)))
    ]
    if timed:
        shown.figures["time"] = panels(
            timed, ("seconds", "求解时间（秒）"), "suboptimality", panel, log_x=True, log_y=True, height=2.7
        )
    tuned = [r for r in results.stages["tune"] if r.config["data"] == DATA[0] and series(r) in MAIN]
    tuned = tuned or [r for r in results.stages["tune"] if series(r) in MAIN]
    tuned = [r for r in tuned if r.config["data"] == tuned[0].config["data"]]
    if any(r.status == "done" for r in tuned):
        renamed = [
            replace(r, config={**r.config, "步长 × max L": r.config["step"]},
                    summary={**r.summary, "lg 相对次优性": r.summary.get(FIGURE)})
            for r in tuned
        ]  # fmt: skip
        shown.figures["tuning"] = figures.scatter(
            renamed, "步长 × max L", "lg 相对次优性", by=series, log_x=True, best="min", names=NAMES
        )
        shown.values["tuning.set"] = tuned[0].config["data"]
    shown.values.setdefault("tuning.set", None)


def _set_of(record: Record) -> str:
    return str(record.config["data"])


def _with_skew(records: Sequence[Record]) -> Callable[[Record], str]:
    """A set's name and its skew max L / mean L, which stands beside every curve."""
    known = {_set_of(r): f"（偏斜 {r.summary['skew']:.3g}）" for r in records if r.summary.get("skew")}
    return lambda record: _set_of(record) + known.get(_set_of(record), "")


def _set_table(final: Sequence[Record], order: Sequence[str]) -> Any:
    import pandas as pd

    rows = []
    for d in order:
        some = next((r.summary for r in final if r.config["data"] == d and r.status == "done"), None)
        if some:
            rows.append((d, *(some[k] for k in ("n", "d", "lam", "optimal_support", "skew", "gap"))))
    frame = pd.DataFrame(rows, columns=["数据", "n", "d", "λ", "最优支撑", "max L / mean L", "对偶间隙"])
    frame.attrs["styles"] = {"max L / mean L": "fixed:1", "对偶间隙": "sci"}
    return frame


def _tests(sets: Sets) -> Any:
    import pandas as pd

    rows: dict[str, list[Any]] = {
        s: [] for s in ROWS if s != "with-replacement" and any(g.get(s) for g in sets.values())
    }
    for groups in sets.values():
        found = compared(groups, "with-replacement", FIGURE, SEEDS, higher=False)
        for s, row in rows.items():
            row.append(cell(found.get(s)))
    return pd.DataFrame([(title(s), *row) for s, row in rows.items()], columns=["采样", *sets])


def _passes(sets: Sets) -> Any:
    """Mean number of passes until the target is reached; none where some seed never does."""
    import pandas as pd

    kept = [s for s in ROWS if any(g.get(s) for g in sets.values())]
    data: dict[str, Any] = {"采样": [title(s) for s in kept]}
    for d, groups in sets.items():
        data[d] = pd.Series([_reached(groups.get(s, [])) for s in kept], dtype=object)
    frame = pd.DataFrame(data)
    frame.attrs["styles"] = dict.fromkeys(sets, "fixed:1")
    return frame


def _reached(records: Sequence[Record]) -> Any:
    found = []
    for r in records:
        reached = first_reaching(r, "suboptimality", TARGET, "epoch", higher=False)
        if reached is None or r.status != "done":
            return "未达到"
        found.append(reached)
    return statistics.fmean(found) if found else None


def _told_best(sets: Sets) -> str:
    told = []
    for d, groups in sets.items():
        means = {s: v for s in VARIANTS if (v := _mean(groups.get(s, []))) is not None and math.isfinite(v)}
        if means:
            first, *others = sorted(means, key=lambda s: means[s])
            other = f"，其次{title(others[0])} {means[others[0]]:.2f}" if others else ""
            told.append(f"{d} 为{title(first)}（{means[first]:.2f}{other}）")
    return f"各数据集上最好的采样：{'；'.join(told)}。" if told else "尚无可比的运行。"


def _told_steps(sets: Sets) -> str:
    told = []
    for d, groups in sets.items():
        steps = [groups[s][0].config["step"] for s in ("importance", "with-replacement") if groups.get(s)]
        if len(steps) == 2:
            told.append(f"{d} {steps[0] / steps[1]:.2g}")
    return f"按 L 的重要性采样与有放回选出的步长之比：{'，'.join(told)}。" if told else "尚无可比的运行。"


def _told_support(sets: Sets) -> str:
    """The mean over the sets of the similarity of supports."""
    told = []
    for s in ("with-replacement", "random-reshuffling", "saga", "coordinate descent"):
        found = [r.summary["support_share"] for g in sets.values() for r in g.get(s, []) if r.status == "done"]
        if found:
            told.append(f"{title(s)} {100 * statistics.fmean(found):.0f}%")
    return f"所有数据集平均，支撑的相似度为{'，'.join(told)}。" if told else "尚无可比的运行。"


def _edges(sets: Sets) -> list[str]:
    names = [
        f"{d} 上的{title(s)}"
        for d, groups in sets.items()
        for s in ROWS[:-1]
        if groups.get(s) and edge_warnings({"step": groups[s][0].config["step"]}, BOX)
    ]
    return [f"选中的步长位于搜索范围边缘：{'，'.join(names)}。"] if names else []


def _reshuffled(sets: Sets) -> Answer:
    rows = {d: pair(g, "random-reshuffling", "with-replacement", FIGURE, SEEDS, False) for d, g in sets.items()}
    known = {d: row for d, row in rows.items() if row is not None and row.n}
    if not known:
        return NOTHING
    better = [d for d, row in known.items() if row.verdict == "better"]
    worse = [d for d, row in known.items() if row.verdict == "worse"]
    judged = CONTRADICTED if worse else CONFIRMED if len(better) == len(rows) == len(DATA) else OPEN
    told = "，".join(f"{d} {row.difference:+.2f}" for d, row in known.items())
    rule = "规则：五个数据集上都显著更好为证实，有一个显著更差为推翻。"
    return judged, f"每幕重排与有放回的 lg 次优性之差：{told}；显著更好 {len(better)} 个，更差 {len(worse)} 个。{rule}"


def _importance(sets: Sets) -> Answer:
    told, parts = [], []
    for d, groups in sets.items():
        row = pair(groups, "importance", "with-replacement", FIGURE, SEEDS, False)
        some = next((r.summary["skew"] for g in groups.values() for r in g if r.status == "done"), 0.0)
        if row is not None and row.n and some > SKEWED:
            parts.append({"better": True, "worse": False}.get(row.verdict))
            told.append(f"{d}（偏斜 {some:.0f}）{row.difference:+.2f}")
    if not parts:
        return NOTHING
    rule = f"规则：偏斜大于 {SKEWED:.0f} 的每个数据集上都显著更好为证实，有一个显著更差为推翻。"
    return verdict(parts), f"按 L 的重要性采样与有放回的 lg 次优性之差：{'，'.join(told)}。{rule}"


def _sorted(sets: Sets) -> Answer:
    parts, told = [], []
    for d, groups in sets.items():
        means = {s: _mean(groups.get(s, [])) for s in PERMUTATIONS}
        if any(v is None for v in means.values()):
            continue
        worst = max(means, key=lambda s: means[s] or 0.0)
        parts.append(worst == "class-blocks")
        told.append(f"{d}：{title(worst)}")
    if not parts:
        return NOTHING
    rule = "规则：在每个数据集上，按目标排序的逐类顺序都是各种无放回顺序中最差的，为证实。"
    return verdict(parts), f"均值最差的无放回顺序：{'，'.join(told)}。{rule}"


def _mean(records: Sequence[Record]) -> float | None:
    """Of the final figure; infinite if a run diverged, none if there are no runs."""
    if not records:
        return None
    values = [r.summary.get(FIGURE) if r.status == "done" else math.inf for r in records]
    return statistics.fmean(math.inf if v is None else v for v in values)


def _reduced(sets: Sets) -> Answer:
    told, parts = [], []
    for d, groups in sets.items():
        row = pair(groups, "saga", "random-reshuffling", FIGURE, SEEDS, False)
        if row is not None and row.n:
            parts.append({"better": True, "worse": False}.get(row.verdict))
            told.append(f"{d} {row.difference:+.2f}")
    if not parts:
        return NOTHING
    rule = "规则：在每个数据集上都显著更好为证实，有一个显著更差为推翻。"
    return verdict(parts), f"SAGA 与每幕重排的 lg 次优性之差：{'，'.join(told)}。{rule}"
