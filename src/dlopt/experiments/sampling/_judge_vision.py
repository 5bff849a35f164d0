"""The four questions on image networks, judged by rules that were written before the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN, interval, percent, verdict
from dlopt.experiments.sampling._shown import NOTHING, Answer, Groups, pair, title
from dlopt.experiments.sampling.vision import NORMS, SEEDS
from dlopt.lab.stats import compare_examples

TASKS = {"mnist-vgg8-half": "VGG-8 / MNIST", "cifar10-resnet8": "ResNet-8 / CIFAR-10", "digits-vgg8": "VGG-8 / digits",
         "cifar10-resnet18-half": "ResNet-18 / CIFAR-10"}  # fmt: skip
CLOSE = ("fixed-order", "shuffle-once", "class-balanced", "with-replacement")  # predicted to differ little
MARGIN = {"mnist-vgg8-half": 0.005, "cifar10-resnet8": 0.02}
ACCURACY = "test_accuracy"
Sets = Mapping[str, Groups]


def questions(sets: Sets, other: Sets) -> tuple[Answer, ...]:
    """Verdicts and their numbers. sets: {task: {sampler: records}}; other: the same with GroupNorm."""
    return _close(sets), _blocks(sets), _forgetting(sets, other), _importance(sets)


def mean_of(groups: Groups, name: str, figure: str = ACCURACY) -> float | None:
    """Over the seeds of a sampler; None without a run."""
    found = interval(groups.get(name, []), figure)
    return found.mean if found is not None else None


def _close(sets: Sets) -> Answer:
    parts: list[bool | None] = []
    told = []
    for t, margin in MARGIN.items():
        base = mean_of(sets.get(t, {}), "random-reshuffling")
        others = {s: mean_of(sets.get(t, {}), s) for s in CLOSE}
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
        base, blocks = mean_of(sets.get(t, {}), "random-reshuffling"), mean_of(sets.get(t, {}), "class-blocks")
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
            for a, b in ((mean_of(g, NORMS[0]), mean_of(g, NORMS[1])) for g in (with_norm, without))
        ]
        if losses[0] is None or losses[1] is None:
            parts.append(None)
            continue
        parts.append(losses[1] >= losses[0] / 2)
        again = mean_of(with_norm, "class-blocks", "recalibrated_test_accuracy")
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
