"""What the report shows of `transformer/ablation`; questions 5 to 7 are judged by rules fixed before the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from dlopt.experiments._present import curves_or_blank, interval, p_text, partial_note
from dlopt.experiments.transformer._common import WARMUP
from dlopt.experiments.transformer._shown import (
    NOTHING,
    Answer,
    done,
    frame,
    judged,
    lost,
    runs_table,
    span,
    stages_of,
)
from dlopt.experiments.transformer.ablation import (
    BASE,
    BOX,
    GATED,
    PATTERNS,
    PLACES,
    PLAIN,
    POSITIONS,
    SEEDS,
    SHAPES,
    TRIALS,
    Config,
)
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.search import edge_warnings
from dlopt.lab.stats import compare, holm, mean_interval, paired_test
from dlopt.lab.study import Results

STAGES = {"tune": "调学习率", "norm": "归一化", "feedforward": "前馈", "positions": "位置", "attention": "注意力",
          "shape": "深与宽"}  # fmt: skip
KINDS = {"relu": "ReLU", "gelu": "GELU", "swish": "Swish", "glu": "GLU", "bilinear": "Bilinear", "reglu": "ReGLU",
         "geglu": "GEGLU", "swiglu": "SwiGLU"}  # fmt: skip
PLACE = {"pre": "前置", "post": "后置", "sandwich": "夹心"}
POSITION = {"sinusoid": "正弦", "learned": "可学习", "shaw": "Shaw", "rope": "RoPE", "alibi": "ALiBi", "none": "无"}
PATTERN = {"full": "全", "local": "局部", "strided": "跨步", "fixed": "固定"}
# the thresholds of the predictions, in nats per token; the report's text takes them from here
SMALL, COLD, ALIKE = 0.03, 0.05, 0.03
LOSS = "val_loss"


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    shown = Presentation(notes=partial_note(results) + lost(results))
    usual = Config()
    kinds = {k: _fits(results, "feedforward", feedforward=k) for k in KINDS}
    norms = {(p, w): _fits(results, "norm", warmup=w, norm_position=p, norm="layer")
             for p in PLACES for w in (WARMUP, 0.0)}  # fmt: skip
    places = {p: _fits(results, "positions", positions=p) for p in POSITIONS}
    patterns = {p: _fits(results, "attention", attention=p) for p in PATTERNS}
    some = next(iter(done(results, "norm", "feedforward", "positions")), None)
    shown.values |= {
        "width": BASE["width"], "layers": BASE["layers"], "steps": usual.steps, "batch": usual.batch,
        "seeds": len(SEEDS),
        "trials": TRIALS, "box.low": BOX["lr"][0], "box.high": BOX["lr"][1], "lr": some.config["lr"] if some else None,
        "small": SMALL, "cold": COLD, "alike": ALIKE, "seed_deviation": _deviation(norms, kinds),
        "parameters": some.summary.get("parameters") if some else None,
    }  # fmt: skip
    shown.values |= _poems(patterns)
    shown.tables["feedforward"] = _feedforward(kinds)
    shown.tables["norm"] = _norm(norms, _fits(results, "norm", norm="rms", warmup=WARMUP))
    shown.tables["positions"] = _single(places, POSITION, "位置")
    shown.tables["attention"] = _single(patterns, PATTERN, "模式")
    shown.tables["shape"] = _shape(results)
    shown.tables["runs"] = runs_table(results, STAGES)
    early = stages_of(results, "norm")
    names = {f"{p}/{w:g}": f"{PLACE[p]}，{'预热' if w else '无预热'}" for p, w in norms}
    shown.figures["warmup"] = curves_or_blank(
        [r for r in early if r.config["params"]["norm"] == "layer"], "step", ["loss", LOSS], names=names,
        by=lambda r: f"{r.config['params']['norm_position']}/{r.config['warmup']:g}",
    )  # fmt: skip
    if some and edge_warnings({"lr": some.config["lr"]}, BOX):
        shown.notes.append(f"选中的学习率 {some.config['lr']:.2g} 位于搜索范围边缘。")
    fine = {s: not any(m.startswith(s) for m in results.missing) for s in STAGES}
    answers = (
        (fine["feedforward"], _gates(kinds)),
        (fine["norm"], _warmup(norms)),
        (fine["positions"] and fine["norm"], _relative(places)),
    )
    for n, (complete, (verdict, answer)) in enumerate(answers, start=5):
        shown.values[f"verdict.q{n}"] = verdict if complete else NOTHING[0]
        shown.values[f"answer.q{n}"] = answer if complete else f"网格不完整，暂不判定。{answer}"
    return shown


def _fits(results: Results, stage: str, warmup: float | None = None, **params: Any) -> list[Record]:
    """The runs of a stage with these fields."""
    return [
        r
        for r in results.stages.get(stage, ())
        if all(r.config["params"].get(k) == v for k, v in params.items()) and warmup in (None, r.config["warmup"])
    ]


def _losses(group: Sequence[Record]) -> dict[int, float]:
    """{seed: loss}; NaN for a run that did not end well."""
    return {int(r.config["seed"]): r.summary[LOSS] if r.status == "done" else math.nan for r in group}


def _deviation(*groups: Any) -> float | None:
    """The typical standard deviation between seeds: the ruler where there is one seed."""
    found = []
    for group in groups:
        for records in group.values():
            values = [v for v in _losses(records).values() if math.isfinite(v)]
            if len(values) > 1:
                found.append(stdev(values) ** 2)
    return math.sqrt(fmean(found)) if found else None


def _feedforward(kinds: dict[str, list[Record]]) -> Any:
    table = {k: _losses(g) for k, g in kinds.items() if g}
    tests = {t.method: t for t in compare(table, "gelu", False)} if "gelu" in table else {}
    rows = []
    for k, group in kinds.items():
        t = tests.get(k)
        speed = interval(group, "seconds_per_step")
        size = next((r.summary["parameters"] for r in group if r.status == "done"), None)
        rows.append((KINDS[k], size, interval(group, LOSS), t.interval if t else None, t.p_holm if t else None,
                     speed.mean if speed else None))  # fmt: skip
    columns = ("前馈", "参数", "验证损失", "减 GELU", "p_holm", "每步秒")
    return frame(rows, columns, 验证损失="fixed:3", 每步秒="fixed:3", **{"减 GELU": "fixed:3", "p_holm": "p"})


def _norm(norms: dict[tuple[str, float], list[Record]], rms: Sequence[Record]) -> Any:
    rows = []
    for (p, w), group in norms.items():
        bad = sum(r.status == "diverged" for r in group)
        rows.append((PLACE[p], "LayerNorm", "有" if w else "无", interval(group, LOSS), _last_train(group), bad))
    rows.append((PLACE["pre"], "RMSNorm", "有", interval(rms, LOSS), _last_train(rms), 0))
    columns = ("位置", "归一化", "预热", "验证损失", "训练损失", "发散")
    return frame(rows, columns, 验证损失="fixed:3", 训练损失="fixed:3")


def _last_train(group: Sequence[Record]) -> Any:
    values = [
        v[-1] for r in group if r.status == "done" and (v := [x for x in r.curve.get("loss", []) if x is not None])
    ]
    return mean_interval(values) if values else None


def _single(groups: dict[str, list[Record]], names: dict[str, str], title: str) -> Any:
    rows = []
    for k, group in groups.items():
        cells = [interval(group, n) for n in (LOSS, "test_loss", "opposite", "length", "seconds_per_step")]
        rows.append((names[k], *cells))
    columns = (title, "验证损失", "测试损失", "对", "字数正确", "每步秒")
    styles = {
        "验证损失": "fixed:3",
        "测试损失": "fixed:3",
        "对": "percent:1",
        "字数正确": "percent:1",
        "每步秒": "fixed:3",
    }
    return frame(rows, columns, **styles)


def _shape(results: Results) -> Any:
    rows = []
    for layers, width in SHAPES:
        group = _fits(results, "shape", layers=layers, width=width)
        size = next((r.summary["parameters"] for r in group if r.status == "done"), None)
        cells = [interval(group, n) for n in (LOSS, "test_loss", "seconds_per_step")]
        rows.append((f"{layers} + {layers}", width, size, *cells))
    columns = ("层数", "宽度", "参数", "验证损失", "测试损失", "每步秒")
    return frame(rows, columns, 验证损失="fixed:3", 测试损失="fixed:3", 每步秒="fixed:3")


def _poems(patterns: dict[str, list[Record]]) -> dict[str, str]:
    """The part of question 9 that is about poems: whether a sparse pattern costs anything there."""
    loss = {p: next((r.summary[LOSS] for r in g if r.status == "done"), None) for p, g in patterns.items()}
    if any(v is None for v in loss.values()):
        return {"attention_alike": "未知", "attention_told": "诗上的比较尚缺运行。"}
    gaps = {p: loss[p] - loss["full"] for p in patterns if p != "full"}  # type: ignore[operator]
    widest = max(gaps, key=lambda p: abs(gaps[p]))
    alike = abs(gaps[widest]) <= ALIKE
    where = f"在 ±{ALIKE:g} 之内" if alike else f"超出 ±{ALIKE:g}"
    told = f"诗上与全注意力相差最大的是{PATTERN[widest]}，{gaps[widest]:+.3f} nat/字，{where}。"
    return {"attention_alike": "是" if alike else "否", "attention_told": told}


# ------------------------------------------------------------------------------------------------ questions


def _gates(kinds: dict[str, list[Record]]) -> Answer:
    table = {k: _losses(g) for k, g in kinds.items()}
    seeds = sorted(set.intersection(*(set(v) for v in table.values()))) if all(table.values()) else []
    if len(seeds) < 2 or any(not math.isfinite(table[k][s]) for k in table for s in seeds):
        return NOTHING
    gaps = [fmean(table[k][s] for k in GATED) - fmean(table[k][s] for k in PLAIN) for s in seeds]
    gap = mean_interval(gaps)
    pairs = [(a, b) for i, a in enumerate(GATED) for b in GATED[i + 1 :]]
    ps = [paired_test([table[a][s] for s in seeds], [table[b][s] for s in seeds]).p for a, b in pairs]
    least = min((p for p in holm(ps) if not math.isnan(p)), default=math.nan)
    alike = not least < 0.05
    confirmed = gap.high < 0 and gap.mean >= -SMALL and alike
    told = f"门控的平均减不门控的平均为 {span(gap)} nat/字；门控之间校正后最小的 {p_text(least)}。"
    rule = f"规则：区间在零以下、均值在 −{SMALL:g} 以上且门控之间无一对显著为证实；区间在零以上为推翻。"
    return judged(confirmed, gap.low > 0), told + rule


def _warmup(norms: dict[tuple[str, float], list[Record]]) -> Answer:
    table = {k: _losses(g) for k, g in norms.items()}
    if any(not v for v in table.values()):
        return NOTHING
    cold = table["post", 0.0]
    lost_ = [s for s, v in cold.items() if not math.isfinite(v)]
    seeds = sorted(set(cold) & set(table["pre", 0.0]))
    if any(not math.isfinite(table["pre", 0.0][s]) for s in seeds) or len(seeds) < 2:
        return NOTHING
    gaps = [cold[s] - table["pre", 0.0][s] for s in seeds if s not in lost_]
    gap = mean_interval(gaps) if gaps else None
    warm = {p: table[p, WARMUP] for p in PLACES}
    if any(not math.isfinite(v) for values in warm.values() for v in values.values()):
        return NOTHING
    others = [(a, b) for i, a in enumerate(PLACES) for b in PLACES[i + 1 :]]
    between = [mean_interval([warm[a][s] - warm[b][s] for s in seeds]) for a, b in others]
    needs = bool(lost_) or (gap is not None and gap.low > 0 and gap.mean >= COLD)
    alike = all(abs(x.mean) <= ALIKE for x in between)
    told = f"无预热时后置减前置为 {span(gap)} nat/字" + (f"，{len(lost_)} 个种子发散" if lost_ else "")
    widest = max(zip(others, between), key=lambda pair: abs(pair[1].mean))
    (a, b), x = widest
    told += f"；有预热时差别最大的是{PLACE[a]}减{PLACE[b]}，{span(x)}。"
    rule = (
        f"规则：无预热时发散，或区间在零以上且均值不小于 {COLD:g}，并且有预热时两两均值之差在 ±{ALIKE:g} 之内为证实；"
        "无预热时后置的均值不高于前置为推翻。"
    )
    return judged(needs and alike, not lost_ and gap is not None and gap.mean <= 0), told + rule


def _relative(places: dict[str, list[Record]]) -> Answer:
    values = {k: next((r.summary[LOSS] for r in g if r.status == "done"), None) for k, g in places.items()}
    if any(v is None for v in values.values()):
        return NOTHING
    loss: dict[str, float] = {k: v for k, v in values.items() if v is not None}
    four = [loss[k] for k in ("sinusoid", "learned", "shaw", "rope")]
    spread = max(four) - min(four)
    worst, best = max(loss, key=lambda k: loss[k]), min(loss, key=lambda k: loss[k])
    without = loss["none"] - loss[best]
    absolute = min(loss["sinusoid"], loss["learned"])
    gain = absolute - min(loss[k] for k in ("shaw", "rope", "alibi"))
    confirmed = spread <= ALIKE and worst == "none" and without > ALIKE
    told = (
        f"四种方案相差至多 {spread:.3f} nat/字；最差的是{POSITION[worst]}，最好的是{POSITION[best]}，"
        f"无位置比最好的高 {without:.3f}；最好的绝对方案减最好的相对方案为 {gain:+.3f}。"
    )
    rule = (
        f"规则：四者相差不超过 {ALIKE:g}、无位置最差且高出 {ALIKE:g} 以上为证实；"
        f"无位置不是最差，或相对方案低 {ALIKE:g} 以上为推翻。"
    )
    return judged(confirmed, worst != "none" or gain >= ALIKE), told + rule
