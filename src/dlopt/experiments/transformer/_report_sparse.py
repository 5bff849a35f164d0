"""What the report shows of `transformer/sparse`; questions 9 and 10 are judged by rules fixed before the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from dlopt.experiments._present import blank, interval, partial_note
from dlopt.experiments._series import line
from dlopt.experiments.transformer._sequences import KEYS, VALUES
from dlopt.experiments.transformer._shown import NOTHING, Answer, clopper, done, frame, judged, lost, runs_table
from dlopt.experiments.transformer._timings import HEAD_WIDTH, HEADS, LAYERS, PATTERNS, STRIDE, SUMMARY
from dlopt.experiments.transformer.sparse import BOOKS, DISTANCES, RECALL, RECALL_STRIDE
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.samples import Interval
from dlopt.lab.study import Results

STAGES = {"time": "计时与字节", "recall": "联想回忆", "copy": "复制", "books": "书籍"}
X = "长度 T 的对数（以 2 为底）"
NAMES = {
    "full": "全",
    "local": "局部",
    "strided": "跨步",
    "fixed": "固定",
    "masked": "跨步，稠密掩码",
    "plain": "全，逐式写出",
}
WAYS = (*PATTERNS, "masked")
FIELD = RECALL["layers"] * RECALL_STRIDE + 1  # positions that reach the last one under the local pattern
# the thresholds of the predictions; the report's text takes them from here
LONG, FASTER, NOT_FASTER, CROSSES, KNOWS, GUESSES, HALF = 4096, 4.0, 2.0, 1024, 0.9, 2.0, 0.5


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    shown = Presentation(notes=partial_note(results) + lost(results))
    times = {int(r.config["length"]): r for r in done(results, "time")}
    times = dict(sorted(times.items()))
    recall, copy, books = (done(results, name) for name in ("recall", "copy", "books"))
    some = next(iter([*recall, *copy]), None)
    book = next(iter(books), None)
    shown.values |= {
        "stride": STRIDE, "summary": SUMMARY, "heads": HEADS, "head_width": HEAD_WIDTH, "layers": LAYERS,
        "field": FIELD, "recall.stride": RECALL_STRIDE, "recall.width": RECALL["width"],
        "recall.layers": RECALL["layers"],
        "distances": "、".join(map(str, DISTANCES)), "recall.length": some.config["length"] if some else None,
        "recall.steps": recall[0].config["steps"] if recall else None, "chance": 1 / VALUES,
        "copy.chance": 1 / KEYS,
        "books.length": book.config["length"] if book else None, "books.steps": book.config["steps"] if book else None,
        "books.width": BOOKS["width"], "books.layers": BOOKS["layers"], "long": LONG, "faster": FASTER,
        "not_faster": NOT_FASTER, "crosses": CROSSES, "knows": 100 * KNOWS, "guesses": GUESSES, "half": 100 * HALF,
    }  # fmt: skip
    shown.values["least"] = _least(times)
    shown.tables["speed"] = _speed(times)
    shown.tables["bytes"] = _bytes(times)
    shown.tables["recall"] = _recall_table(recall, copy)
    shown.tables["books"] = _books(books)
    shown.tables["runs"] = runs_table(results, STAGES)
    shown.figures["time"] = _time_figure(times)
    shown.figures["recall"] = _recall_figure(recall)
    fine = {s: not any(m.startswith(s) for m in results.missing) for s in STAGES}
    for n, complete, (verdict, answer) in ((9, fine["time"], _pays(times)), (10, fine["recall"], _reaches(recall))):
        shown.values[f"verdict.q{n}"] = verdict if complete else NOTHING[0]
        shown.values[f"answer.q{n}"] = answer if complete else f"网格不完整，暂不判定。{answer}"
    return shown


def pattern_of(record: Record) -> str:
    return str(record.config["params"]["attention"])


def _faster(record: Record, way: str, prefix: str = "seconds") -> float | None:
    full, own = (record.summary.get(f"{prefix}.{name}") for name in ("full", way))
    return full / own if full and own else None


def _least(times: dict[int, Record]) -> str:
    """The way that saves least for the backward pass at the greatest length."""
    if not times:
        return "尚无记录"
    last = times[max(times)].summary
    return NAMES[min(WAYS, key=lambda w: last[f"saved.{w}"])]


def _speed(times: dict[int, Record]) -> Any:
    rows = []
    for t, r in times.items():
        cells = [_faster(r, w) for w in WAYS[1:]]
        steps = [_faster(r, w, "step_seconds") for w in PATTERNS[1:]]
        rows.append((t, r.summary["seconds.full"], *cells, *steps, 1 + t / (12 * HEADS * HEAD_WIDTH)))
    columns = (
        "T",
        "全（CPU 秒）",
        *(NAMES[w] for w in WAYS[1:]),
        *(f"{NAMES[w]}，整步" for w in PATTERNS[1:]),
        "整步上限",
    )
    return frame(rows, columns, **{"全（CPU 秒）": "fixed:3"}, **dict.fromkeys(columns[2:], "fixed:2"))


def _bytes(times: dict[int, Record]) -> Any:
    ways = ("plain", *WAYS)
    rows = [(t, *(r.summary.get(f"saved.{w}") for w in ways)) for t, r in times.items()]
    columns = ("T", *(NAMES[w] for w in ways))
    return frame(rows, columns, **dict.fromkeys(columns[1:], "bytes"))


def _recall_table(recall: Sequence[Record], copy: Sequence[Record]) -> Any:
    rows = []
    for p in PATTERNS:
        group = [r for r in recall if pattern_of(r) == p]
        near = [_mean(group, [d for d in DISTANCES if (d < FIELD) == inside]) for inside in (True, False)]
        word = [r for r in copy if pattern_of(r) == p]
        rows.append((NAMES[p], *near, interval(group, "accuracy"), interval(word, "accuracy"), len(group)))
    columns = ("模式", f"距离 < {FIELD}", f"距离 > {FIELD}", "全部", "复制", "种子")
    return frame(rows, columns, **dict.fromkeys(columns[1:5], "percent:1"))


def _mean(group: Sequence[Record], distances: Sequence[int]) -> float | None:
    values = [v for r in group for d in distances if (v := r.summary.get(f"accuracy.{d}")) is not None]
    return fmean(values) if values else None


def _books(books: Sequence[Record]) -> Any:
    rows = []
    for p in PATTERNS:
        group = [r for r in books if pattern_of(r) == p]
        rows.append(
            (NAMES[p], *(interval(group, n) for n in ("parameters", "val_loss", "test_loss", "seconds_per_step")))
        )
    columns = ("模式", "参数", "验证损失（nat/字节）", "测试损失", "每步秒")
    return frame(rows, columns, 测试损失="fixed:3", 每步秒="fixed:2", **{"验证损失（nat/字节）": "fixed:3"})


def _time_figure(times: dict[int, Record]) -> Any:
    if not times:
        return blank()
    lines = [
        line(w, {X: [math.log2(t) for t in times],
                 "前向加反向（CPU 秒）": [r.summary[f"seconds.{w}"] for r in times.values()],
                 "整步（CPU 秒）": [r.summary.get(f"step_seconds.{w}") for r in times.values()]})
        for w in WAYS
    ]  # fmt: skip
    both = ["前向加反向（CPU 秒）", "整步（CPU 秒）"]
    return figures.curves(lines, X, both, log_y=True, names=NAMES, height=2.8)


def _recall_figure(recall: Sequence[Record]) -> Any:
    lines = []
    for p in PATTERNS:
        group = [r for r in recall if pattern_of(r) == p]
        points = {d: _mean(group, [d]) for d in DISTANCES}
        known = {d: v for d, v in points.items() if v is not None}
        if known:
            lines.append(line(p, {"距离": list(known), "正确率": list(known.values())}))
    if not lines:
        return blank()
    # what lies beyond this line of points cannot reach the local pattern
    lines.append(line("局部模式的感受野", {"距离": [FIELD, FIELD], "正确率": [0.0, 1.0]}))
    return figures.curves(lines, "距离", "正确率", names=NAMES)


# ------------------------------------------------------------------------------------------------ questions


def _pays(times: dict[int, Record]) -> Answer:
    if LONG not in times or CROSSES not in times:
        return NOTHING
    speed, early = _faster(times[LONG], "strided"), _faster(times[CROSSES], "strided")
    if speed is None or early is None:
        return NOTHING
    # keys that a query of full, causal attention sees over those of blocks: half the heads local, half strided
    bound = LONG / 2 / ((2 * STRIDE + LONG / STRIDE) / 2)
    ahead = next((t for t, r in times.items() if (_faster(r, "strided") or 0) > 1), None)
    confirmed = speed >= FASTER and speed < bound and ahead is not None and ahead <= CROSSES
    told = (
        f"T = {LONG} 时跨步模式的前向加反向快 {speed:.1f} 倍（按键数算为 {bound:.1f} 倍），稠密掩码为 "
        f"{_faster(times[LONG], 'masked') or 0:.2f} 倍；首个快于全注意力的长度是 {ahead or '——'}，"
        f"T = {CROSSES} 时为 {early:.2f} 倍。"
    )
    rule = (
        f"规则：不低于 {FASTER:g} 倍、低于算得的倍数且交叉点不超过 {CROSSES} 为证实；不到 {NOT_FASTER:g} 倍为推翻；"
        "诗上的损失见消融的注意力表。"
    )
    return judged(confirmed, speed < NOT_FASTER), told + rule


def _share(records: Sequence[Record], pattern: str, distances: Sequence[int]) -> Interval | None:
    group = [r for r in records if pattern_of(r) == pattern]
    right = n = 0
    for r in group:
        for d in distances:
            if (v := r.summary.get(f"accuracy.{d}")) is not None:
                count = int(r.summary["tested"])
                right, n = right + round(v * count), n + count
    return clopper(right, n) if n else None


def _reaches(recall: Sequence[Record]) -> Answer:
    far = [d for d in DISTANCES if d >= FIELD]
    local = _share(recall, "local", far)
    others = {p: _share(recall, p, DISTANCES) for p in ("full", "strided", "fixed")}
    known = {p: x for p, x in others.items() if x is not None}
    if local is None or len(known) < len(others):
        return NOTHING
    chance = 1 / VALUES
    confirmed = local.high <= GUESSES * chance and all(x.mean >= KNOWS for x in known.values())
    contradicted = local.mean > HALF or all(known[p].mean < HALF for p in ("strided", "fixed"))
    told = "，".join(f"{NAMES[p]} {100 * x.mean:.1f}%" for p, x in known.items())
    told = (
        f"感受野（{FIELD}）之外局部模式的正确率为 {100 * local.mean:.1f}%（随机 {100 * chance:.1f}%，"
        f"区间上限 {100 * local.high:.1f}%）；全部距离上：{told}。"
    )
    rule = (
        f"规则：区间上限不超过随机的 {GUESSES:g} 倍且其余三者都不低于 {100 * KNOWS:g}% 为证实；"
        f"局部高于 {100 * HALF:g}%，或跨步与固定都低于 {100 * HALF:g}% 为推翻。"
    )
    return judged(confirmed, contradicted), told + rule
