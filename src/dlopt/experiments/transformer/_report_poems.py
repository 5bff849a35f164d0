"""What the report shows of `transformer/poems`; questions 11 and 12 are judged by rules fixed before the runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlopt.experiments._present import blank, partial_note
from dlopt.experiments._series import line
from dlopt.experiments.transformer._common import split
from dlopt.experiments.transformer._shown import (
    NOTHING,
    Answer,
    clopper,
    difference,
    done,
    frame,
    judged,
    lost,
    mean_bootstrap,
    ratio_interval,
    runs_table,
    span,
)
from dlopt.experiments.transformer.poems import WHOLE, Config
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.samples import Interval
from dlopt.lab.study import Results
from dlopt.poetry.checker import KINDS
from dlopt.poetry.patterns import FORMS

STAGES = {"rates": "合律率与代价", "samples": "样例"}
HOW = {"original": "原作", "free": "自由", "masked": "受限"}
TWICE = 2.0  # what a rhyme was predicted to cost, over other places; the report's text takes it from here
TOGETHER = 1 - 0.05 / len(WHOLE)  # the level of each of the forms' intervals, so that all hold together at 95%


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    shown = Presentation(notes=partial_note(results) + lost(results))
    forms = {r.config["form"]: r for r in done(results, "rates")}
    forms = {f: forms[f] for f in WHOLE if f in forms}
    sampled = done(results, "samples")
    usual = Config()
    shown.values |= {"free": usual.free, "masked": usual.masked, "each": usual.each, "twice": TWICE}
    shown.values["weights"] = next(
        (r.identity["weights"][:16] for r in forms.values() if "weights" in r.identity), "尚无记录"
    )
    shown.tables["conformity"] = _conformity(forms)
    shown.tables["faults"] = _faults(forms)
    shown.tables["cost"] = _cost(forms)
    shown.tables["identity"] = _identity(forms)
    shown.tables["samples"] = _samples(sampled[0] if sampled else None)
    shown.tables["runs"] = runs_table(results, STAGES)
    shown.figures["cost"] = _cost_figure(forms)
    whole = len(forms) == len(WHOLE)
    for n, (verdict, answer) in ((11, _keeps(forms)), (12, _foretells(forms))):
        shown.values[f"verdict.q{n}"] = verdict if whole else NOTHING[0]
        shown.values[f"answer.q{n}"] = answer if whole else f"网格不完整，暂不判定。{answer}"
    return shown


def _conformity(forms: Mapping[str, Record]) -> Any:
    rows = []
    for form, r in forms.items():
        for how in HOW:
            right = clopper(int(r.summary[f"{how}.right"]), int(r.summary[f"{how}.count"]))
            cells = [r.summary[f"{how}.{n}"] for n in ("strict", "unlike")]
            rows.append((form, HOW[how], r.summary[f"{how}.count"], right, *cells, r.summary.get(f"either.{how}")))
    columns = ("体裁", "解码", "首数", "合律（宽）", "合律（严）", "无重字", "多读字")
    return frame(rows, columns, **dict.fromkeys(columns[3:], "percent:1"))


def _faults(forms: Mapping[str, Record]) -> Any:
    kinds = [k for k in KINDS if any(r.summary.get(f"{h}.fault.{k}") for r in forms.values() for h in HOW)]
    rows = [
        (form, HOW[how], *(r.summary[f"{how}.fault.{k}"] for k in kinds))
        for form, r in forms.items()
        for how in ("original", "free")
    ]
    columns = ("体裁", "解码", *kinds)
    return frame(rows, columns, **dict.fromkeys(kinds, "percent:1"))


def _rhymes(r: Record) -> tuple[Interval, Interval, Interval]:
    """Cost of a rhyme, of another place, and the former less twice the latter, in nats; bootstrap over poems."""
    rhymes, others = (np.array(split(r.summary[f"cost_{n}"])) for n in ("rhymes", "others"))
    return mean_bootstrap(rhymes), mean_bootstrap(others), mean_bootstrap(rhymes - others)


def _allowed(r: Record, level: float = 0.95) -> Interval:
    """P(C) from the poems under the rules: the mean of the products of Z."""
    return mean_bootstrap(np.exp(split(r.summary["log_allowed"])), level)


def _cost(forms: Mapping[str, Record]) -> Any:
    rows = []
    for form, r in forms.items():
        rhymes, others, _ = _rhymes(r)
        logs = np.array(split(r.summary["log_allowed"]))
        bound = -math.log(_allowed(r).mean) / FORMS[form].size
        rows.append((form, r.summary["cost"], bound, rhymes, others, rhymes.mean / others.mean, float(logs.std())))
    columns = ("体裁", "κ（nat/字）", "下界", "韵脚", "其余", "倍数", "ln ΠZ 的标准差")
    return frame(rows, columns, **dict.fromkeys(columns[1:5], "fixed:3"), 倍数="fixed:2", **{columns[6]: "fixed:2"})


def _identity(forms: Mapping[str, Record]) -> Any:
    rows = []
    for form, r in forms.items():
        free = clopper(int(r.summary["free.inside"]), int(r.summary["free.count"]))
        allowed = _allowed(r)
        z = np.exp(split(r.summary["log_allowed"]))
        effective = float(z.sum() ** 2 / (z**2).sum()) if z.any() else 0.0
        rarity = -math.log(allowed.mean) if allowed.mean else math.inf  # percents hide how rare whole poems are
        rows.append((form, allowed, free, difference(*_both(r)), effective, rarity))
    columns = ("体裁", "E[ΠZ]（受限）", "掩码之内（自由）", "差（同时 95%）", "有效样本", "−ln E[ΠZ]")
    formats = {"有效样本": "fixed:0", "−ln E[ΠZ]": "fixed:1"}
    return frame(rows, columns, **dict.fromkeys(columns[1:4], "percent:2"), **formats)


def _both(r: Record) -> tuple[Interval, Interval]:
    free = clopper(int(r.summary["free.inside"]), int(r.summary["free.count"]), TOGETHER)
    return _allowed(r, TOGETHER), free


def _samples(record: Record | None) -> Any:
    rows = []
    for row in json.loads(record.summary["samples"]) if record else []:
        rows += [(row["form"], row["index"], HOW[how], row[how], row[f"{how}_faults"]) for how in ("free", "masked")]
    return frame(rows, ("体裁", "序号", "解码", "诗", "检查"))


def _cost_figure(forms: Mapping[str, Record]) -> Any:
    lines = []
    for form, r in forms.items():
        values = split(r.summary["cost_places"])
        step = FORMS[form].length + 1
        kept = [v for i, v in enumerate(values[: FORMS[form].lines * step]) if i % step != FORMS[form].length]
        lines.append(line(form, {"第几字": list(range(1, len(kept) + 1)), "−ln Z（nat）": kept}))
    return figures.curves(lines, "第几字", "−ln Z（nat）", height=2.8) if lines else blank()


# ------------------------------------------------------------------------------------------------ questions


def _pooled(forms: Mapping[str, Record], names: tuple[str, ...], how: str) -> Interval:
    mine = [forms[f].summary for f in names]
    return clopper(sum(int(s[f"{how}.right"]) for s in mine), sum(int(s[f"{how}.count"]) for s in mine))


def _keeps(forms: Mapping[str, Record]) -> Answer:
    if len(forms) < len(WHOLE):
        return NOTHING
    short, long = _pooled(forms, ("五绝", "七绝"), "free"), _pooled(forms, ("五律", "七律"), "free")
    gap = difference(long, short)
    perfect = all(r.summary["masked.right"] == r.summary["masked.count"] for r in forms.values())
    rhymes, others = [], []
    for r in forms.values():
        rhymes += split(r.summary["cost_rhymes"])
        others += split(r.summary["cost_others"])
    times = ratio_interval(rhymes, others)
    confirmed = gap.high < 0 and perfect and times.low >= TWICE
    contradicted = gap.mean >= 0 or times.high <= 1
    told = (
        f"自由生成的合律率：律诗 {100 * long.mean:.1f}%，绝句 {100 * short.mean:.1f}%，"
        f"差 {span(gap, 1, 100)} 个百分点；"
        f"受限生成{'全部合律' if perfect else '有不合律的'}；韵脚的代价是其余位置的 {span(times, 2, sign=False)} 倍。"
    )
    rule = (
        f"规则：差的区间在零以下、受限全部合律且倍数的区间不低于 {TWICE:g} 为证实；"
        "律诗不低于绝句，或倍数的区间不高于 1 为推翻。"
    )
    return judged(confirmed, contradicted), told + rule


def _foretells(forms: Mapping[str, Record]) -> Answer:
    if len(forms) < len(WHOLE):
        return NOTHING
    gaps = {f: difference(*_both(r)) for f, r in forms.items()}
    within = {f: g.low <= 0 <= g.high for f, g in gaps.items()}
    told = "，".join(f"{f} {span(g, 2, 100)}" for f, g in gaps.items())
    rule = "规则：四种体裁的区间同时以 95% 的水平（Bonferroni）都含零为证实，任一不含零为推翻。"
    return judged(all(within.values()), not all(within.values())), f"两种估计之差（百分点）：{told}。{rule}"
