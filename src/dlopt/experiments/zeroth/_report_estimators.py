"""What the report shows of `zeroth/estimators`, and how questions 1 to 3 are judged: by rules fixed before the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dlopt.experiments._present import blank, partial_note, percent, stages_table
from dlopt.experiments._series import line
from dlopt.experiments.zeroth._estimates import LEVELS
from dlopt.experiments.zeroth._shown import NOTHING, Answer, answers, drawn, judged, lost, number, row_of
from dlopt.experiments.zeroth.estimators import RANKS
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.stats import Interval
from dlopt.lab.study import Results

STAGES = {"law": "方向数", "rank": "秩", "dimension": "维数", "eps": "光滑半径"}
KINDS = {"gaussian": "高斯", "rademacher": "符号", "sphere": "球面"}
TASKS = {"quadratic": "二次函数", "mnist-lenet": "LeNet", "cifar10-resnet8": "ResNet-8", "digits": "MLP（digits）"}
LOOKS = {"quadratic": "adamw", "mnist-lenet": "mezo", "cifar10-resnet8": "lozo", "digits": "mezo"}
CLOSE, FAR = 0.1, 0.2  # questions 1 and 2: within CLOSE holds, beyond FAR contradicts
USABLE, WIDE, SOME = 0.1, 2.0, 1.0  # question 3: error of c, decades of float32 and of bfloat16


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    everything = [r for records in results.stages.values() for r in records]
    done = {name: [r for r in records if r.status == "done"] for name, records in results.stages.items()}
    shown = Presentation(notes=partial_note(results) + lost(everything, lambda r: r.method))
    law = {r.config["params"]["direction"]: r for r in done["law"]}
    some = law.get("gaussian")
    spans = {r.config["dtype"]: _span(r) for r in done["eps"]}
    matrix = next(iter(done["rank"]), None)
    shown.values |= {
        "rule.close": CLOSE, "rule.far": FAR, "rule.usable": USABLE, "rule.wide": WIDE, "rule.some": SOME,
        "law.d": some.summary["d"] if some else None,
        "law.error": some.summary["mean_error"] if some else None,
        "law.error_predicted": some.summary["mean_error_predicted"] if some else None,
        "law.draws": max((r.config["draws"] for r in done["law"]), default=None),
        "rank.m": matrix.summary["m"] if matrix else None, "rank.n": matrix.summary["n"] if matrix else None,
        "rank.draws": matrix.config["draws"] if matrix else None,
        "rank.stable": matrix.summary["stable_rank"] if matrix else None,
        "span.float32": spans.get("float32"), "span.bfloat16": spans.get("bfloat16"),
        "best.float32": _best(done["eps"], "float32"), "best.bfloat16": _best(done["eps"], "bfloat16"),
    }  # fmt: skip
    shown.tables["law"] = _law_table(law)
    shown.tables["rank"] = _rank_table(done["rank"])
    shown.tables["runs"] = stages_table(results, STAGES, lambda r: r.method)
    made = {"dimension": _dimension(done["dimension"]), "rank": _rank_figure(done["rank"]), "eps": _eps(done["eps"])}
    shown.figures |= {name: figure if figure is not None else blank() for name, figure in made.items()}
    answers(shown, {1: _q1(law.get("gaussian")), 2: _q2(done["rank"]), 3: _q3(done["eps"])})
    return shown


def _interval(mean: float, error: float) -> Interval:
    """A mean with its normal 95% bounds, of many draws."""
    return Interval(mean, mean - 1.96 * error, mean + 1.96 * error, 0, math.nan)


def _law_table(law: dict[str, Record]) -> Any:
    import pandas as pd

    rows = []
    for kind, record in law.items():
        for q in LEVELS:
            row = row_of(record, "step", q)
            if row:
                rows.append((KINDS.get(kind, kind), q, row["cosine2"], row["cosine2_predicted"], row["mse"],
                             row["mse_predicted"], _interval(row["ratio"], row["ratio_error"])))  # fmt: skip
    columns = ["方向", "q", "余弦平方", "公式", "相对均方误差", "公式 ", "后者之比"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"余弦平方": "sci", "公式": "sci"}
    return frame


def _rank_of(record: Record) -> int:
    return int(record.config["params"]["rank"]) if record.method == "lozo" else 0


def _rank_table(records: Sequence[Record]) -> Any:
    import pandas as pd

    rows = [
        (str(_rank_of(r) or "满秩"), _interval(r.summary["scaled_cosine2"], r.summary["scaled_cosine2_error"]),
         _interval(r.summary["second"], r.summary["second_error"]), r.summary["second_predicted"])
        for r in records
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["秩", "mn × 余弦平方", "相对二阶矩", "公式"])
    frame.attrs["styles"] = {"mn × 余弦平方": "fixed:3", "公式": "fixed:0"}
    return frame


def _dimension(records: Sequence[Record]) -> Any:
    points: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        points.setdefault(r.config["task"], []).append((r.summary["d"], r.summary["scaled_cosine2"] / r.summary["d"]))
    every = sorted(d for group in points.values() for d, _ in group)
    lines = [line(LOOKS[t], {"维数": [d for d, _ in sorted(g)], "余弦平方": [c for _, c in sorted(g)]})
             for t, g in points.items()]  # fmt: skip
    if every:
        lines.append(line("公式", {"维数": every, "余弦平方": [1 / d for d in every]}))
    names = {LOOKS[t]: TASKS[t] for t in points} | {"公式": "1/d"}
    return drawn(lines, "维数", "余弦平方", names, log_x=True, log_y=True, height=2.1)


def _rank_figure(records: Sequence[Record]) -> Any:
    ranked = sorted((r for r in records if r.method == "lozo"), key=_rank_of)
    full = next((r for r in records if r.method == "mezo"), None)
    if len(ranked) < 2 or full is None:
        return None
    x = [_rank_of(r) for r in ranked]
    first, second = "mn × 余弦平方", "相对二阶矩"
    lines = [
        line("lozo", {"秩": x, first: [r.summary["scaled_cosine2"] for r in ranked],
                      second: [r.summary["second"] for r in ranked]}),
        line("公式", {"秩": x, first: [1.0] * len(x), second: [r.summary["second_predicted"] for r in ranked]}),
        line("mezo", {"秩": x, first: [full.summary["scaled_cosine2"]] * len(x),
                      second: [full.summary["second"]] * len(x)}),
    ]  # fmt: skip
    names = {"lozo": "低秩方向", "mezo": "满秩方向"}
    return drawn(lines, "秩", [first, second], names, height=2.1)


def _eps(records: Sequence[Record]) -> Any:
    looks = {"float32": "mezo", "bfloat16": "lozo", "float64": "adamw"}
    lines = [line(looks[r.config["dtype"]], {"eps": r.curve["eps"], "c 的相对误差": r.curve["error"]}) for r in records]
    names = {look: dtype for dtype, look in looks.items()}
    return drawn(lines, "eps", "c 的相对误差", names, log_x=True, log_y=True, height=2.1)


def _span(record: Record) -> float:
    """Decades from the smallest to the largest eps with a median error below USABLE; -1 if there is none."""
    good = [e for e, v in zip(record.curve["eps"], record.curve["error"]) if v is not None and v < USABLE]
    return math.log10(max(good) / min(good)) if good else -1.0


def _best(records: Sequence[Record], dtype: str) -> float | None:
    return next((r.summary["best_error"] for r in records if r.config["dtype"] == dtype), None)


def _q1(record: Record | None) -> Answer:
    if record is None:
        return NOTHING
    rows = {q: row_of(record, "step", q) for q in LEVELS}
    if not all(rows.values()):
        return NOTHING
    off = {q: abs(row["ratio"] - 1) for q, row in rows.items()}
    told = "，".join(f"q = {q} 时 {row['ratio']:.3f} ± {1.96 * row['ratio_error']:.3f}" for q, row in rows.items())
    verdict = judged(max(off.values()) < CLOSE, max(off.values()) >= FAR)
    return verdict, f"测得的相对均方误差与公式之比：{told}。"


def _q2(records: Sequence[Record]) -> Answer:
    found = {_rank_of(r): r.summary["scaled_cosine2"] for r in records}
    if not set(RANKS) | {0} <= set(found):
        return NOTHING
    verdict = judged(all(abs(v - 1) <= CLOSE for v in found.values()), any(found[r] > 1 + FAR for r in RANKS))
    told = "，".join(f"秩 {r} 为 {found[r]:.3f}" for r in RANKS)
    stable = next(r.summary["stable_rank"] for r in records)
    return verdict, f"余弦平方乘以 mn：{told}，满秩为 {found[0]:.3f}；该梯度的稳定秩只有 {stable:.2f}。"


def _q3(records: Sequence[Record]) -> Answer:
    spans = {r.config["dtype"]: _span(r) for r in records}
    if not {"float32", "bfloat16"} <= set(spans):
        return NOTHING
    wide, some = spans["float32"], spans["bfloat16"]
    verdict = judged(wide >= WIDE and some < 0, some > SOME)
    told = f"bfloat16 中跨 {some:.1f} 个数量级" if some >= 0 else "bfloat16 中一个也没有"
    low = percent(_best(records, "bfloat16") or 0.0)
    return verdict, (
        f"误差低于 {percent(USABLE, 0)} 的 ε 在 float32 中跨 {number(max(wide, 0.0))} 个数量级，{told}"
        f"（那里误差最小为 {low}）。"
    )
