"""What the report shows of `zeroth/official`; how questions 12 to 14 are judged: by rules fixed before the runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dlopt.experiments._present import blank, partial_note, stages_table
from dlopt.experiments._series import grouped, line, slope
from dlopt.experiments.zeroth._faults import DISTANCES
from dlopt.experiments.zeroth._shown import NOTHING, Answer, answers, drawn, judged, lost, number
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

STAGES = {"drift": "漂移", "change": "更换 V", "interval": "更换的间隔", "anchor": "锚点"}
WALK, STILL = (0.4, 0.6), 0.2  # question 12: exponent of a random walk; below STILL contradicts
NOISE, SAME = 0.05, 0.5  # question 13: |mean cosine| at a change of V; above SAME contradicts
UNMOVED, LEARNT = 0.95, 0.8  # question 13: losses over the first one, at interval 1
DOUBLE, SQUARE = (1.8, 2.2), (1.8, 2.2)  # question 14: ratio of variances; exponent against the distance
LOOKS = {"bfloat16": "lozo", "float16": "mezo", "float32": "adamw"}
RULES = {"ours": "mezo-svrg", "apart": "mezo", "official": "lozo-m"}
SMOOTH = "digits-softmax"
TASKS = {SMOOTH: "多类逻辑回归", "digits": "MLP（ReLU）"}


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    everything = [r for records in results.stages.values() for r in records]
    done = {name: [r for r in records if r.status == "done"] for name, records in results.stages.items()}
    kept = [r for r in everything if r.config["part"] != "interval"]  # there, divergence is a point of the picture
    shown = Presentation(notes=partial_note(results) + lost(kept, lambda r: r.method))
    shown.values |= {
        "rule.walk.low": WALK[0], "rule.walk.high": WALK[1], "rule.still": STILL, "rule.noise": NOISE,
        "rule.same": SAME, "rule.unmoved": UNMOVED, "rule.learnt": LEARNT, "rule.double.low": DOUBLE[0],
        "rule.double.high": DOUBLE[1], "rule.square.low": SQUARE[0], "rule.square.high": SQUARE[1],
        "steps": max((r.config["steps"] for r in done["drift"]), default=None),
        "changes": max((r.summary["changes"] for r in done["change"]), default=None),
        "draws": max((r.config["draws"] for r in done["anchor"]), default=None),
    }  # fmt: skip
    shown.tables["drift"] = _drift_table(done["drift"])
    shown.tables["runs"] = stages_table(results, STAGES, lambda r: r.config["rule"])
    made = {"drift": _drift(done["drift"]), "cosine": _cosine(done["change"]),
            "interval": _interval(results.stages["interval"]), "anchor": _anchor(done["anchor"])}  # fmt: skip
    shown.figures |= {name: figure if figure is not None else blank() for name, figure in made.items()}
    answers(shown, {12: _q12(done["drift"]), 13: _q13(done["change"], results.stages["interval"]),
                    14: _q14(done["anchor"])})  # fmt: skip
    return shown


def _exponent(record: Record) -> float | None:
    return slope(record.curve["step"], record.curve["rms"])


def _where(record: Record) -> tuple[str, float]:
    return record.config["dtype"], record.config["spread"]


def _drift_table(records: Sequence[Record]) -> Any:
    import pandas as pd

    ours = {_where(r): r.summary["largest_shift"] for r in records if r.config["rule"] == "ours"}
    rows = [
        (*_where(r), r.summary["rms_shift"], r.summary["largest_shift"], r.curve["moved_share"][-1], _exponent(r),
         ours.get(_where(r)))
        for r in records
        if r.config["rule"] == "official"
    ]  # fmt: skip
    columns = ["精度", "权重标准差", "均方根偏移", "最大偏移", "动过的份额", "指数", "本项目：最大偏移"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"动过的份额": "percent", "指数": "fixed:2", "权重标准差": "fixed:3"}
    return frame


def _drift(records: Sequence[Record]) -> Any:
    column = {True: "均方根偏移（标准差 1）", False: "均方根偏移（标准差 1/24）"}
    lines = [
        line(LOOKS[r.config["dtype"]], {"步数": r.curve["step"], column[r.config["spread"] == 1]: r.curve["rms"]})
        for r in records
        if r.config["rule"] == "official"
    ]
    columns = [c for c in column.values() if any(c in r.curve for r in lines)]
    return (
        drawn(lines, "步数", columns, {v: k for k, v in LOOKS.items()}, log_x=True, log_y=True, height=2.1)
        if columns
        else None
    )


def _cosine(records: Sequence[Record]) -> Any:
    lines = [line("lozo" if r.config["rule"] == "ours" else "lozo-m",
                  {"步": r.curve["step"], "更新与扰动的余弦": r.curve["cosine"]}) for r in records]  # fmt: skip
    return drawn(lines, "步", "更新与扰动的余弦", {"lozo": "本项目", "lozo-m": "官方规则"}, height=1.7)


def _end(record: Record) -> float:
    """The last validation loss over the first; infinite for a run that diverged."""
    if record.status != "done":
        return float("inf")
    return float(record.summary["val_loss"] / record.summary["first_val_loss"])


def _lowest(records: Sequence[Record]) -> dict[tuple[str, int], float]:
    """{(rule, interval): the least mean over seeds among the learning rates}."""
    found: dict[tuple[str, int], float] = {}
    cells = grouped(records, lambda r: (r.config["rule"], int(r.config["params"]["interval"]), r.config["lr"]))
    for (rule, interval, _), group in cells.items():
        mean = statistics.fmean(map(_end, group))
        found[rule, interval] = min(mean, found.get((rule, interval), float("inf")))
    return found


def _interval(records: Sequence[Record]) -> Any:
    lowest = _lowest(records)
    lines = []
    for rule, look in (("ours", "lozo"), ("official", "lozo-m")):
        points = sorted((n, v) for (r, n), v in lowest.items() if r == rule and v < float("inf"))
        if points:
            lines.append(line(look, {"间隔": [n for n, _ in points], "终点与起点的损失之比": [v for _, v in points]}))
    return drawn(
        lines, "间隔", "终点与起点的损失之比", {"lozo": "本项目", "lozo-m": "官方规则"}, log_x=True, height=2.1
    )


def _anchor(records: Sequence[Record]) -> Any:
    lines = []
    for r in records:
        x = [d for d in DISTANCES if d > 0]
        y = [v for d, v in zip(r.curve["distance"], r.curve["ratio"]) if d > 0]
        if r.config["rule"] == "official":  # the same at every distance
            y = r.curve["ratio"] * len(x)
        lines.append(line(RULES[r.config["rule"]], {"相对距离": x, TASKS[r.config["task"]]: y}))
    columns = [c for c in TASKS.values() if any(c in r.curve for r in lines)]
    names = {RULES["ours"]: "共用方向", RULES["apart"]: "各抽方向", RULES["official"]: "官方：锚点是别名"}
    return drawn(lines, "相对距离", columns, names, log_x=True, log_y=True, height=2.1) if columns else None


def _q12(records: Sequence[Record]) -> Answer:
    theirs = {r.config["spread"]: _exponent(r) for r in records
              if (r.config["dtype"], r.config["rule"]) == ("bfloat16", "official")}  # fmt: skip
    ours = [r.summary["largest_shift"] for r in records if r.config["rule"] == "ours"]
    if len(theirs) < 2 or not ours or any(v is None for v in theirs.values()):
        return NOTHING
    known = [v or 0.0 for v in theirs.values()]
    verdict = judged(all(WALK[0] <= v <= WALK[1] for v in known) and max(ours) == 0, min(known) < STILL)
    told = "，".join(f"权重标准差 {s:.2g} 时 {v or 0:.2f}" for s, v in theirs.items())
    mine = "本项目各种精度下都恒为零" if max(ours) == 0 else f"本项目最大偏移 {max(ours):.2g}"
    return verdict, f"bfloat16 中官方规则的漂移指数：{told}；{mine}。"


def _q13(change: Sequence[Record], interval: Sequence[Record]) -> Answer:
    by = {r.config["rule"]: r.summary for r in change}
    lowest = _lowest(interval)
    if not {"ours", "official"} <= set(by) or not {("ours", 1), ("official", 1)} <= set(lowest):
        return NOTHING
    at, theirs, mine = by["official"]["cosine_at_change"], lowest["official", 1], lowest["ours", 1]
    ours = min(by["ours"]["cosine_at_change"], by["ours"]["cosine_between"])
    still = theirs >= UNMOVED and mine <= LEARNT
    one = ours > 0.999 and by["official"]["cosine_between"] > 0.999
    verdict = judged(abs(at) < NOISE and one and still, at > SAME)
    ends = "发散" if theirs == float("inf") else f"是起点的 {theirs:.2f} 倍"
    return verdict, (
        f"官方规则在换 V 的 {by['official']['changes']} 步上平均余弦 {at:.3f}，其余各步不低于 "
        f"{by['official']['cosine_between']:.4f}；本项目最低 {ours:.4f}。ν = 1 时，各学习率中最好的终点损失："
        f"官方规则{ends}，本项目是起点的 {mine:.2f} 倍。"
    )


def _q14(records: Sequence[Record]) -> Answer:
    by = {r.config["rule"]: r for r in records if r.config["task"] == SMOOTH}
    if not {"ours", "official"} <= set(by):
        return NOTHING
    theirs, error = (by["official"].summary[k] for k in ("ratio_at_anchor", "ratio_at_anchor_error"))
    at = by["ours"].summary["ratio_at_anchor"]
    grows = slope(by["ours"].curve["distance"], by["ours"].curve["ratio"])
    if grows is None:
        return NOTHING
    holds = DOUBLE[0] <= theirs <= DOUBLE[1] and at == 0 and SQUARE[0] <= grows <= SQUARE[1]
    kinks = next((slope(r.curve["distance"], r.curve["ratio"]) for r in records
                  if r.config["task"] != SMOOTH and r.config["rule"] == "ours"), None)  # fmt: skip
    more = f"（有折点的 ReLU 网络上为 {number(kinks)}）" if kinks is not None else ""
    return judged(holds, theirs < 1), (
        f"官方规则的比值为 {theirs:.2f} ± {1.96 * error:.2f}；本项目在锚点处为 {number(at)}，随距离增长的指数 "
        f"{grows:.2f}{more}。"
    )
