"""What the report shows of `transformer/gradient`, and how question 8 is judged: by a rule fixed before the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from dlopt.experiments._present import blank, partial_note
from dlopt.experiments._series import line
from dlopt.experiments.transformer._shown import NOTHING, Answer, done, frame, judged, lost, runs_table, span
from dlopt.experiments.transformer.gradient import DEPTHS, PLACES, SEEDS, SETTING, Config
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.samples import Interval, mean_interval
from dlopt.lab.study import Results

STAGES = {"depth": "不共享嵌入（定理的条件）", "tied": "共享嵌入"}
PLACE = {"pre": "前置", "post": "后置", "sandwich": "夹心"}
# what the ratio of the depths 16 and 2 was predicted to be; the report's text takes the bounds from here
BOUNDS = {"post": (0.8, 1.2), "pre": (0.3, 0.5), "sandwich": (0.33, 0.45)}
X, Y = "层数的对数（以 2 为底）", "梯度范数"
THEORY = {"post": "1", "pre": "0.35 至 0.47", "sandwich": "0.39"}


def present(results: Results) -> Presentation:
    """Values, tables and figures; the question is judged here."""
    shown = Presentation(notes=partial_note(results) + lost(results))
    free, tied = done(results, "depth"), done(results, "tied")
    usual = Config()
    shown.values |= {
        "width": SETTING["width"], "vocabulary": usual.vocabulary, "batch": usual.batch, "length": usual.length,
        "seeds": len(SEEDS), "depths": "、".join(map(str, DEPTHS)),
    }  # fmt: skip
    for place, (low, high) in BOUNDS.items():
        shown.values |= {f"{place}.low": low, f"{place}.high": high}
    shown.tables["ratio"] = _table(free, tied)
    shown.values["tied_told"] = _tied(ratio(free, "pre"), ratio(tied, "pre"))
    shown.tables["runs"] = runs_table(results, STAGES)
    shown.figures["depth"] = _figure(free)
    verdict, answer = _xiong(free)
    whole = results.complete
    shown.values["verdict.q8"] = verdict if whole else NOTHING[0]
    shown.values["answer.q8"] = answer if whole else f"网格不完整，暂不判定。{answer}"
    return shown


def _of(records: Sequence[Record], place: str, depth: int) -> dict[int, Record]:
    return {
        int(r.config["seed"]): r
        for r in records
        if r.config["params"]["norm_position"] == place and r.config["params"]["layers"] == depth
    }


def ratio(records: Sequence[Record], place: str) -> Interval | None:
    """Deepest over shallowest, seed by seed, as a geometric mean with Student's interval of the logarithms."""
    few, many = _of(records, place, DEPTHS[0]), _of(records, place, DEPTHS[-1])
    logs = [math.log(many[s].summary["last_gradient"] / few[s].summary["last_gradient"]) for s in few if s in many]
    if not logs:
        return None
    x = mean_interval(logs)
    return Interval(math.exp(x.mean), math.exp(x.low), math.exp(x.high), x.n, x.std)


def _from_stream(records: Sequence[Record], place: str) -> float | None:
    """What the norms of the residual stream predict: 1 / |x| is the size of the last norm's Jacobian."""
    few, many = _of(records, place, DEPTHS[0]), _of(records, place, DEPTHS[-1])
    if not few or not many or place == "post":
        return 1.0 if few and many else None
    return math.sqrt(_stream(few) / _stream(many))


def _stream(group: dict[int, Record]) -> float:
    return fmean(r.summary["stream_last"] for r in group.values())


def _constant(records: Sequence[Record], place: str) -> float | None:
    """c: by how much a layer lets |x|^2 / d grow, between the first and the last layer of the deepest model."""
    many = _of(records, place, DEPTHS[-1])
    if not many or place == "post":
        return None
    grown = fmean(r.summary["stream_last"] - r.summary["stream_first"] for r in many.values())
    return grown / (DEPTHS[-1] * fmean(r.summary["stream_first"] for r in many.values()))


def _table(free: Sequence[Record], tied: Sequence[Record]) -> Any:
    rows = [
        (PLACE[p], THEORY[p], _constant(free, p), _from_stream(free, p), ratio(free, p), ratio(tied, p)) for p in PLACES
    ]
    columns = ("归一化位置", "理论", "实测 c", "由残差流预言", "实测之比", "共享嵌入时")
    styles = dict.fromkeys(("实测 c", "由残差流预言", "实测之比", "共享嵌入时"), "fixed:2")
    return frame(rows, columns, **styles)


def _tied(free: Interval | None, tied: Interval | None) -> str:
    """What one table for input and output does to the ratio."""
    if free is None or tied is None:
        return "共享嵌入的对照尚缺运行。"
    told = f"共享嵌入时，前置之比为 {span(tied, 2, sign=False)}，不共享时为 {span(free, 2, sign=False)}。"
    if tied.high < free.low:
        return told + (
            "差别可以这样理解：残差流里还留着输入字自己的嵌入，浅的前置模型给“原字”很高的 logit，"
            "浅处的损失与梯度偏大，比值随之变小。这是输出层与输入相关造成的，与归一化无关。"
        )
    return told + "两者的区间相接，输出层与输入的相关在这里没有造成看得出的差别。"


def _figure(records: Sequence[Record]) -> Any:
    lines = []
    for p in PLACES:
        points = {d: g for d in DEPTHS if (g := _of(records, p, d))}
        if points:
            means = [fmean(r.summary["last_gradient"] for r in g.values()) for g in points.values()]
            lines.append(line(PLACE[p], {X: [math.log2(d) for d in points], Y: means}))
            if p == "pre":
                first = means[0]
                streams = [_stream(g) for g in points.values()]
                theory = [first * math.sqrt(streams[0] / s) for s in streams]
                lines.append(line("前置，由残差流预言", {X: [math.log2(d) for d in points], Y: theory}))
    if not lines:
        return blank()
    return figures.curves(lines, X, Y, log_y=True)


def _xiong(records: Sequence[Record]) -> Answer:
    found = {p: ratio(records, p) for p in PLACES}
    if any(x is None for x in found.values()):
        return NOTHING
    known = {p: x for p, x in found.items() if x is not None}
    inside = {p: BOUNDS[p][0] <= x.mean <= BOUNDS[p][1] for p, x in known.items()}
    # outside, and the interval does not reach the nearer bound
    outside = {p: x.high < BOUNDS[p][0] or x.low > BOUNDS[p][1] for p, x in known.items()}
    told = "，".join(f"{PLACE[p]} {span(x, 2, sign=False)}" for p, x in known.items())
    rule = "规则：三者的均值都在预言的区间之内为证实；任何一个在区间之外且其 95% 区间不含端点为推翻。"
    return judged(
        all(inside.values()), any(outside.values())
    ), f"梯度范数之比（{DEPTHS[-1]} 层比 {DEPTHS[0]} 层）：{told}。{rule}"
