"""What the report shows of `sampling/theory`, and how its four questions are judged: by rules fixed before the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dlopt.experiments._present import blank, interval, partial_note, stages_table, verdict
from dlopt.experiments._series import grouped, line, slope
from dlopt.experiments.sampling._common import NAMES, series
from dlopt.experiments.sampling._shown import NOTHING, Answer, lost, number, title
from dlopt.experiments.sampling.theory import CHAINS, ORDERS, PASSES, SPREADS, STEPS
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

STAGES = {"floor": "误差平台", "epochs": "误差与遍数", "formula": "稳态公式", "skew": "方差与偏斜"}
KINDS = {"smoothness": "p ∝ L", "root": "p ∝ √L", "mixed": "一半 L、一半均匀", "gradient": "p ∝ 梯度模"}
LOOKS = {"smoothness": "importance", "root": "importance:row norms", "mixed": "weighted", "gradient": "grab"}
# intervals of the slopes, from the theory: (low, high)
FLOOR = {"with-replacement": (0.8, 1.2), "fixed-order": (1.7, 2.3), "shuffle-once": (1.7, 2.3),
         "random-reshuffling": (2.4, 9.0)}  # fmt: skip
RATES = {"with-replacement": (-1.2, -0.8), "shuffle-once": (-2.3, -1.7), "random-reshuffling": (-9.0, -2.4)}
Points = Mapping[float, float]


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    done = {name: [r for r in records if r.status == "done"] for name, records in results.stages.items()}
    everything = [r for records in results.stages.values() for r in records]
    shown = Presentation(notes=partial_note(results) + lost(everything))
    floors = {m: _means(done["floor"], m, "step") for m in ORDERS}
    rates = {m: _means(done["epochs"], m, "epochs") for m in ORDERS}
    shown.values |= {
        "steps": "、".join(f"{s:g}" for s in STEPS),
        "passes": "、".join(map(str, PASSES)),
        "chains": CHAINS["floor"],
        "chains.formula": CHAINS["formula"],
    }
    for m in ORDERS:
        shown.values[f"{m}.floor_slope"] = slope(list(floors[m]), list(floors[m].values()))
        if m != "fixed-order":  # not part of that picture
            shown.values[f"{m}.rate"] = slope(list(rates[m]), list(rates[m].values()))
    shown.tables["slopes"] = _slopes(shown.values)
    shown.tables["formula"] = _formula_table(done["formula"])
    shown.tables["skew"] = _skew_table(done["skew"])
    shown.tables["runs"] = stages_table(results, STAGES, series)
    _figures(shown, floors, rates, done["skew"])
    for name in ("floor", "rates", "skew"):
        shown.figures.setdefault(name, blank())
    answers = (_floor(shown.values), _rate(shown.values), _formula(done["formula"]), _skew(done["skew"]))
    for n, (judged, answer) in enumerate(answers, start=1):
        shown.values |= {f"verdict.q{n}": judged, f"answer.q{n}": answer}
    return shown


def _means(records: Sequence[Record], method: str, setting: str) -> dict[float, float]:
    """{step or passes: mean squared distance over problems}, ascending."""
    groups = grouped([r for r in records if r.method == method], lambda r: r.config[setting])
    return {k: statistics.fmean(r.summary["distance"] for r in groups[k]) for k in sorted(groups)}


def _figures(shown: Presentation, floors: Mapping[str, Points], rates: Mapping[str, Points], skews: Any) -> None:
    for name, points, x in (("floor", floors, "步长"), ("rates", rates, "遍数")):
        lines = [line(m, {x: list(p), "与最优解的距离平方": list(p.values())}) for m, p in points.items() if p]
        if lines:
            shown.figures[name] = figures.curves(lines, x, "与最优解的距离平方", log_x=True, log_y=True, names=NAMES)
    lines = []
    for kind in KINDS:
        for at, column in (("start", "方差比（起点）"), ("optimum", "方差比（最优点）")):
            ratios = _skew_points(skews, kind, at)
            if ratios:
                lines.append(line(LOOKS[kind], {"max L / mean L": list(ratios), column: list(ratios.values())}))
    if lines:
        columns = list(dict.fromkeys(c for r in lines for c in r.curve if c.startswith("方差")))
        names = {LOOKS[k]: text for k, text in KINDS.items()}
        shown.figures["skew"] = figures.curves(lines, "max L / mean L", columns, log_x=True, log_y=True, names=names)


def _slopes(values: Mapping[str, Any]) -> Any:
    import pandas as pd

    expected = {"with-replacement": ("1", "−1"), "fixed-order": ("2", "—"), "shuffle-once": ("2", "−2"),
                "random-reshuffling": ("≥ 2.4", "≤ −2.4"), "grab": ("≥ 2", "−2")}  # fmt: skip
    frame = pd.DataFrame(
        {
            "采样": [title(m) for m in ORDERS],
            "对步长的斜率": pd.Series([values[f"{m}.floor_slope"] for m in ORDERS], dtype=object),
            "理论": [expected[m][0] for m in ORDERS],
            "对遍数的斜率": pd.Series([values.get(f"{m}.rate") for m in ORDERS], dtype=object),
            "理论 ": [expected[m][1] for m in ORDERS],
        }
    )
    frame.attrs["styles"] = {"对步长的斜率": "fixed:2", "对遍数的斜率": "fixed:2"}
    return frame


def _kind(record: Record) -> str:
    if record.config["by"] == "smoothness" and record.config["params"].get("mix") != 1.0:
        return "mixed"
    return str(record.config["by"])


def _formula_table(records: Sequence[Record]) -> Any:
    import pandas as pd

    names = {"": "有放回均匀", **KINDS}
    rows = []
    for kind, group in grouped(records, _kind).items():
        figures_ = ("msd_predicted", "msd", "msd_ratio", "risk_predicted", "risk", "risk_ratio")
        rows.append([names[kind], *(statistics.fmean(r.summary[name] for r in group) for name in figures_)])
    columns = ["概率", "均方偏差（公式）", "（测得）", "比值", "超额风险（公式）", "（测得） ", "比值 "]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"比值": "fixed:3", "比值 ": "fixed:3"}
    return frame


def _skew_points(records: Sequence[Record], kind: str, at: str, normalised: bool = False) -> dict[float, float]:
    """{mean skew: mean variance ratio over problems}, by ascending spread."""
    mine = [
        r for r in records if _kind(r) == kind and r.config["at"] == at and bool(r.config["normalised"]) == normalised
    ]
    groups = grouped(mine, lambda r: r.config["spread"])
    return {
        statistics.fmean(r.summary["skew"] for r in groups[s]): statistics.fmean(
            r.summary["variance_ratio"] for r in groups[s]
        )
        for s in sorted(groups)
    }


def _skew_table(records: Sequence[Record]) -> Any:
    import pandas as pd

    rows = []
    cases = [(f"σ = {s:g}", "start", s, False) for s in SPREADS] + [("归一化", "start", None, True)]
    cases += [(f"最优点，σ = {s:g}", "optimum", s, False) for s in SPREADS[2::2]]
    for text, at, spread, normalised in cases:
        mine = [
            r
            for r in records
            if r.config["at"] == at
            and bool(r.config["normalised"]) == normalised
            and (spread is None or r.config["spread"] == spread)
        ]
        if not mine:
            continue
        row: list[Any] = [text, statistics.fmean(r.summary["skew"] for r in mine)]
        row += [interval([r for r in mine if _kind(r) == kind], "variance_ratio") for kind in KINDS]
        rows.append(row)
    return pd.DataFrame(rows, columns=["行范数", "max L / mean L", *KINDS.values()])


def _inside(value: float | None, bounds: tuple[float, float]) -> bool | None:
    return None if value is None else bounds[0] <= value <= bounds[1]


def _floor(values: Mapping[str, Any]) -> Answer:
    parts = [_inside(values[f"{m}.floor_slope"], FLOOR[m]) for m in FLOOR]
    told = "，".join(f"{title(m)} {number(values[f'{m}.floor_slope'])}" for m in FLOOR)
    rule = "规则：有放回 1 ± 0.2，固定与打乱一次 2 ± 0.3，重排不小于 2.4，全部满足为证实。"
    return verdict(parts), f"平台误差对步长的对数斜率：{told}。{rule}"


def _rate(values: Mapping[str, Any]) -> Answer:
    parts = [_inside(values[f"{m}.rate"], RATES[m]) for m in RATES]
    told = "，".join(f"{title(m)} {number(values[f'{m}.rate'])}" for m in (*RATES, "grab"))
    rule = "规则：有放回 −1 ± 0.2，打乱一次 −2 ± 0.3，重排不大于 −2.4，全部满足为证实；GraB 只列出。"
    return verdict(parts), f"误差对遍数的对数斜率：{told}。{rule}"


def _formula(records: Sequence[Record]) -> Answer:
    if len({_kind(r) for r in records}) < 3:
        return NOTHING
    ratios = [r.summary[name] for r in records for name in ("msd_ratio", "risk_ratio")]
    parts = [abs(ratio - 1) <= 0.1 for ratio in ratios]
    rule = "规则：每个问题、每种概率的两个比值都在 10% 以内为证实。"
    return verdict(parts), f"{len(ratios)} 个比值在 {min(ratios):.3f} 与 {max(ratios):.3f} 之间。{rule}"


def _skew(records: Sequence[Record]) -> Answer:
    start = list(_skew_points(records, "smoothness", "start").values())
    optimum = list(_skew_points(records, "smoothness", "optimum").values())
    flat = list(_skew_points(records, "smoothness", "start", normalised=True).values())
    if len(start) < 2 or not flat or not optimum:
        return NOTHING
    parts = [
        all(b < a for a, b in pairwise(start)) and start[-1] < 0.15,
        all(abs(v - 1) < 0.02 for v in flat),
        0.7 < optimum[-1] < 1.6,
    ]
    rule = "规则：逐级下降且末级小于 0.15，归一化时偏离 1 不到 0.02，最优点末级在 0.7 与 1.6 之间，全部满足为证实。"
    return verdict(parts), (
        f"p ∝ L 的方差比在起点由 {start[0]:.2f} 降到 {start[-1]:.3f}，行归一化后为 {flat[-1]:.3f}，"
        f"在最优点（偏斜最大时）为 {optimum[-1]:.2f}。{rule}"
    )
