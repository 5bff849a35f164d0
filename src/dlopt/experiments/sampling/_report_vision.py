"""What the report shows of `sampling/vision`, and how its four questions are judged: by rules fixed before the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._present import (
    CONFIRMED,
    CONTRADICTED,
    OPEN,
    blank,
    interval,
    partial_note,
    percent,
    stages_table,
    verdict,
)
from dlopt.experiments._series import grouped
from dlopt.experiments.sampling._common import series
from dlopt.experiments.sampling._shown import (
    NOTHING,
    Answer,
    Groups,
    cell,
    compared,
    drawable,
    lost,
    pair,
    panels,
    title,
)
from dlopt.experiments.sampling.vision import BOX, NORMS, SEEDS, SERIES, TRIALS
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.search import edge_warnings
from dlopt.lab.stats import Interval, compare_examples
from dlopt.lab.study import Results

STAGES = {"tune": "调学习率", "report": "报告", "norms": "归一化", "resnet18": "ResNet-18", "seeds": "VGG 的其余种子"}
TASKS = {"mnist-vgg8-half": "VGG-8 / MNIST", "cifar10-resnet8": "ResNet-8 / CIFAR-10", "digits-vgg8": "VGG-8 / digits",
         "cifar10-resnet18-half": "ResNet-18 / CIFAR-10"}  # fmt: skip
CLOSE = ("fixed-order", "shuffle-once", "class-balanced", "with-replacement")  # predicted to differ little
MARGIN = {"mnist-vgg8-half": 0.005, "cifar10-resnet8": 0.02}
ACCURACY = "test_accuracy"
Sets = Mapping[str, Groups]


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    more = list(results.stages.get("seeds", ()))
    final = [*results.stages["report"], *(r for r in more if not _task(r).endswith("-group"))]
    other = [*results.stages["norms"], *(r for r in more if _task(r).endswith("-group"))]
    deeper = list(results.stages.get("resnet18", ()))
    shown = Presentation(notes=partial_note(results) + lost([*final, *other, *deeper]))
    sets: dict[str, Groups] = {t: grouped(g, series) for t, g in grouped(final, _task).items()}
    groups: dict[str, Groups] = {t: grouped(g, series) for t, g in grouped(other, _task).items()}
    shown.values |= {"trials": TRIALS, "box.low": BOX["lr"][0], "box.high": BOX["lr"][1]}
    for t in ("mnist-vgg8-half", "cifar10-resnet8", "cifar10-resnet18-half"):
        some = next((r.summary for r in [*final, *deeper] if _task(r) == t and r.status == "done"), {})
        shown.values[f"{t}.parameters"] = some.get("parameters")
    for t in MARGIN:
        shown.values[f"{t}.seeds"] = _seeds(sets.get(t, {}))
    for t in list(sets) or ["mnist-vgg8-half", "cifar10-resnet8"]:
        shown.tables[_short(t)] = _main(sets.get(t, {}))
    for t in MARGIN:
        shown.tables.setdefault(_short(t), _main(sets.get(t, {})))
    shown.tables["tests"] = _tests(sets)
    shown.tables["norms"] = _norm_table(sets, groups)
    shown.tables["resnet18"] = _deeper_table(deeper)
    shown.tables["runs"] = stages_table(results, STAGES, series)
    shown.values |= _costs(final) | {"told.range": _range(sets)}
    curves = drawable(final, "val_accuracy")
    if curves:
        shown.figures["curves"] = panels(
            curves, ("examples", "样本数"), "val_loss", lambda r: TASKS.get(_task(r), _task(r)), log_y=True, height=2.9
        )
    bars = _bars(sets, groups)
    if bars:
        shown.figures["norms"] = figures.bars(bars, ACCURACY)
    for name in ("curves", "norms"):
        shown.figures.setdefault(name, blank())
    shown.notes += _edges(sets)
    answers = (_close(sets), _blocks(sets), _forgetting(sets, groups), _importance(sets))
    for n, (judged, answer) in enumerate(answers, start=1):
        shown.values |= {f"verdict.q{n}": judged, f"answer.q{n}": answer}
    return shown


def _task(record: Record) -> str:
    return str(record.config["task"])


def _seeds(groups: Groups) -> int | str:
    """How many seeds each sampler has; where they differ, the least and the most."""
    counts = sorted({len({r.config["seed"] for r in group}) for group in groups.values()}) or [0]
    return counts[0] if len(counts) == 1 else f"{counts[0]} 至 {counts[-1]}"


def _short(task: str) -> str:
    return {"mnist-vgg8-half": "mnist", "cifar10-resnet8": "cifar"}.get(task, task)


def _main(groups: Groups) -> Any:
    import pandas as pd

    kept = [s for s in SERIES if groups.get(s)]
    columns = {"测试准确率": ACCURACY, "测试损失": "test_loss", "最差类": "worst_class_accuracy",
               "最好类": "best_class_accuracy", "重估统计量后": "recalibrated_test_accuracy"}  # fmt: skip
    data: dict[str, Any] = {"采样": [title(s) for s in kept]}
    data["学习率"] = [groups[s][0].config["lr"] for s in kept]
    for name, figure in columns.items():
        data[name] = pd.Series([interval(groups[s], figure) for s in kept], dtype=object)
    frame = pd.DataFrame(data)
    shares = dict.fromkeys(("测试准确率", "最差类", "最好类", "重估统计量后"), "percent:2")
    frame.attrs["styles"] = shares | {"学习率": "fixed:4", "测试损失": "fixed:3"}
    return frame


def _tests(sets: Sets) -> Any:
    import pandas as pd

    rows: dict[str, list[Any]] = {s: [] for s in SERIES if s != "random-reshuffling"}
    for groups in sets.values():
        found = compared(groups, "random-reshuffling", ACCURACY, SEEDS, higher=True)
        for s, row in rows.items():
            row.append(cell(found.get(s), scale=100))
    columns = ["采样", *(TASKS.get(t, t) for t in sets)]
    return pd.DataFrame([(title(s), *row) for s, row in rows.items()], columns=columns)


def _norm_table(sets: Sets, other: Sets) -> Any:
    import pandas as pd

    rows = [
        (
            TASKS.get(t, t),
            title(s),
            interval(groups.get(s, []), ACCURACY),
            interval(groups.get(s, []), "recalibrated_test_accuracy"),
            interval(other.get(f"{t}-group", {}).get(s, []), ACCURACY),
        )
        for t, groups in sets.items()
        for s in NORMS
    ]
    frame = pd.DataFrame(rows, columns=["任务", "采样", "BatchNorm", "BatchNorm，重估统计量", "GroupNorm"])
    frame.attrs["styles"] = dict.fromkeys(frame.columns[2:], "percent")
    return frame


def _deeper_table(records: Sequence[Record]) -> Any:
    import pandas as pd

    groups = grouped(records, series)
    rows = [
        (title(s), g[0].config["lr"], *(g[0].summary.get(k) for k in (ACCURACY, "test_loss", "worst_class_accuracy",
         "recalibrated_test_accuracy")))
        for s, g in groups.items()
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["采样", "学习率", "测试准确率", "测试损失", "最差类", "重估统计量后"])
    frame.attrs["styles"] = dict.fromkeys(("测试准确率", "最差类", "重估统计量后"), "percent")
    return frame


def _bars(sets: Sets, other: Sets) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for t, groups in sets.items():
        blocks = groups.get("class-blocks", [])
        cases = {
            "BatchNorm": interval(blocks, ACCURACY),
            "BatchNorm，重估": interval(blocks, "recalibrated_test_accuracy"),
            "GroupNorm": interval(other.get(f"{t}-group", {}).get("class-blocks", []), ACCURACY),
            "对照：每幕重排": interval(groups.get("random-reshuffling", []), ACCURACY),
        }
        found |= {f"{TASKS.get(t, t)}：{k}": v for k, v in cases.items() if v is not None}
    return found


def _costs(final: Sequence[Record]) -> dict[str, Any]:
    """Seconds a step, and the share of it that the running norms take."""
    found: dict[str, Any] = {}
    for t in MARGIN:
        mine = [r.summary for r in final if _task(r) == t and r.status == "done"]
        whole = [sum(v for k, v in s.items() if k.startswith("seconds_")) for s in mine]
        online = [s["seconds_sampling"] / w for s, w in zip(mine, whole) if s.get("seconds_sampling") and w]
        found[f"{t}.seconds_per_step"] = statistics.median(whole) if whole else None
        found[f"{t}.sampling_share"] = statistics.median(online) if online else None
    return found


def _range(sets: Sets) -> str:
    """Between which accuracies the samplers lie that do not keep classes together."""
    told = []
    for t in MARGIN:
        means = {s: _mean(sets.get(t, {}), s) for s in SERIES if s != "class-blocks"}
        known = {s: v for s, v in means.items() if v is not None}
        if known:
            low, high = min(known, key=lambda s: known[s]), max(known, key=lambda s: known[s])
            ends = [f"{percent(known[s], 2)}（{title(s)}）" for s in (low, high)]
            told.append(f"{TASKS[t]} 在 {ends[0]}与 {ends[1]}之间")
    return f"除逐类外，平均测试准确率 {'；'.join(told)}。" if told else "尚无可比的运行。"


def _edges(sets: Sets) -> list[str]:
    names = [
        f"{TASKS.get(t, t)} 上的{title(s)}"
        for t, groups in sets.items()
        for s in SERIES
        if groups.get(s) and edge_warnings({"lr": groups[s][0].config["lr"]}, BOX)
    ]
    return [f"选中的学习率位于搜索范围边缘：{'，'.join(names)}。"] if names else []


def _mean(groups: Groups, name: str, figure: str = ACCURACY) -> float | None:
    found = interval(groups.get(name, []), figure)
    return found.mean if found is not None else None


def _close(sets: Sets) -> Answer:
    parts: list[bool | None] = []
    told = []
    for t, margin in MARGIN.items():
        base = _mean(sets.get(t, {}), "random-reshuffling")
        others = {s: _mean(sets.get(t, {}), s) for s in CLOSE}
        if base is None or any(v is None for v in others.values()):
            parts.append(None)
            continue
        widest = max(others, key=lambda s: abs((others[s] or 0) - base))
        gap = (others[widest] or 0) - base
        parts.append(abs(gap) <= margin)
        told.append(f"{TASKS[t]} 差别最大的是{title(widest)}，{100 * gap:+.2f} 个百分点（界限 {100 * margin:g}）")
    if not told:
        return NOTHING
    rule = "规则：有放回、固定、打乱一次、类均衡与每幕重排的平均测试准确率之差都在界限之内为证实。"
    return verdict(parts), f"{'；'.join(told)}。{rule}"


def _blocks(sets: Sets) -> Answer:
    parts: list[bool | None] = []
    told = []
    for t in MARGIN:
        base, blocks = _mean(sets.get(t, {}), "random-reshuffling"), _mean(sets.get(t, {}), "class-blocks")
        if base is None or blocks is None:
            parts.append(None)
            continue
        parts.append(base - blocks > 0.2)
        told.append(f"{TASKS[t]} {percent(blocks)}（每幕重排 {percent(base)}）")
    if not told:
        return NOTHING
    return verdict(parts), f"逐类顺序的测试准确率：{'，'.join(told)}。规则：两个任务上都低 20 个百分点以上为证实。"


def _forgetting(sets: Sets, other: Sets) -> Answer:
    parts: list[bool | None] = []
    told = []
    for t in MARGIN:
        with_norm, without = sets.get(t, {}), other.get(f"{t}-group", {})
        losses = [
            None if a is None or b is None else a - b
            for a, b in ((_mean(g, NORMS[0]), _mean(g, NORMS[1])) for g in (with_norm, without))
        ]
        if losses[0] is None or losses[1] is None:
            parts.append(None)
            continue
        parts.append(losses[1] >= losses[0] / 2)
        again = _mean(with_norm, "class-blocks", "recalibrated_test_accuracy")
        told.append(
            f"{TASKS[t]}：逐类顺序的跌幅在 BatchNorm 下 {100 * losses[0]:.1f}、"
            f"GroupNorm 下 {100 * losses[1]:.1f} 个百分点，"
            f"重估统计量后准确率 {percent(again) if again is not None else '—'}"
        )
    if not told:
        return NOTHING
    rule = "规则：两个任务上，没有批统计量时的跌幅都不小于有时的一半为证实。"
    return verdict(parts), f"{'；'.join(told)}。{rule}"


def _importance(sets: Sets) -> Answer:
    rows = {t: pair(sets.get(t, {}), "importance:online", "random-reshuffling", ACCURACY, SEEDS, True) for t in MARGIN}
    known = {t: row for t, row in rows.items() if row is not None and row.n > 1 and math.isfinite(row.p)}
    if not known:
        return NOTHING
    better = any(row.verdict == "better" for row in known.values())
    judged = CONTRADICTED if better else CONFIRMED if len(known) == len(rows) else OPEN
    told = "，".join(f"{TASKS[t]} {100 * row.difference:+.2f} 个百分点" for t, row in known.items())
    examples = _examples(sets)
    rule = "规则：两个任务上都不显著更好为证实，有一个显著更好为推翻。"
    return judged, f"动态重要性采样与每幕重排的测试准确率之差：{told}。{examples}{rule}"


def _examples(sets: Sets) -> str:
    """McNemar's test on the examples, for the first common seed."""
    told = []
    for t in MARGIN:
        found = {}
        for s in ("importance:online", "random-reshuffling"):
            for r in sets.get(t, {}).get(s, []):
                if r.status == "done" and r.config["seed"] == SEEDS[0] and r.summary.get("test_correct"):
                    found[s] = [c == "1" for c in r.summary["test_correct"]]
        if len(found) == 2:
            result = compare_examples(*found.values())
            told.append(f"{TASKS[t]} p = {result.p:.3f}")
    return f"种子 {SEEDS[0]} 的逐样本 McNemar 检验：{'，'.join(told)}。" if told else ""
