"""What the report shows of ResNet on CIFAR-10; its four questions are judged by rules set before the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
from torch import nn

from dlopt.experiments._present import (
    CONFIRMED,
    CONTRADICTED,
    OPEN,
    blank,
    by_method,
    curves_or_blank,
    interval,
    lost_note,
    median,
    partial_note,
    percent,
    tests,
    tests_table,
)
from dlopt.experiments.adam import _report as shared
from dlopt.experiments.adam._common import METHODS, NAMED, SEEDS, TRIALS
from dlopt.experiments.adam._report import LACKING, Answer, Groups, within
from dlopt.experiments.adam.resnet import BOXES, FIXED, Config
from dlopt.lab import figures, palette
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.stats import Comparison, compare_examples, holm
from dlopt.lab.study import Results
from dlopt.tasks import models
from dlopt.tasks.classification import TASKS
from dlopt.tasks.language import TASKS as LANGUAGE

MARGIN = 0.02  # of accuracy: what counts as no difference
SHARE = 0.05  # of the time of a step
ORDER = 0.7  # rank correlation
STAGES = {"tune": "调参：ResNet-8", "report": "主实验：ResNet-8", "resnet18": "加深：半宽 ResNet-18",
          "cost": "开销：完整 ResNet-18"}  # fmt: skip
SHAPES = {"ResNet-8": ("resnet8", {}), "ResNet-18": ("resnet18", {}),
          "5M 语言模型": ("lm", LANGUAGE["books-5m"].options),
          "124M 语言模型": ("lm", LANGUAGE["books-124m"].options)}  # fmt: skip


def present(results: Results) -> Presentation:
    """Values, tables and figures; the verdicts are computed here."""
    stage = {name: list(results.stages.get(name, ())) for name in STAGES}
    final, deep, cost = (by_method(stage[name]) for name in ("report", "resnet18", "cost"))
    methods, trials = shared.rows(final), shared.trials_of(stage["tune"])
    shown = Presentation(notes=partial_note(results) + lost_note([r for group in stage.values() for r in group]))
    shown.notes += shared.edge_notes(shared.chosen(trials), BOXES)
    target = TASKS[Config.task].target
    some = next((r.summary for r in shared.done(stage["report"])), {})
    shown.values |= {name: some.get(name) for name in ("train_size", "validation_size", "test_size")}
    shown.values |= {"trials": TRIALS, "seeds": len(SEEDS), "epochs": Config.epochs, "batch": Config.batch}
    shown.values |= {
        "warmup": Config.warmup,
        "target": target,
        "margin": round(100 * MARGIN),
        "share": SHARE,
        "order": ORDER,
    }
    for name, (kind, options) in SHAPES.items():
        shown.values[f"parameters.{name}"] = sum(p.numel() for p in _shape(kind, tuple(options.items())).parameters())
    for m in METHODS:
        shown.values[f"{m}.accuracy"] = interval(final.get(m, ()), "test_accuracy")
    comparisons = tests(final, "adamw", "test_accuracy", higher=True)
    shown.tables["settings"] = shared.settings_table(trials, BOXES, FIXED)
    shown.tables["runs"] = shared.stages_table(results, STAGES)
    shown.tables["formula"] = _formula()
    shown.tables["main"] = _main(final, methods, shared.chosen(trials), target)
    shown.tables["tests"] = _tests(comparisons, final)
    shown.tables["cost"] = shared.cost_table(final, _model, methods)
    shown.tables["full"] = shared.cost_table(cost, _model, list(dict.fromkeys([*NAMED, *cost])))
    shown.tables["order"], correlation = _order(final, deep)
    shown.values["correlation"] = correlation
    both = ["val_loss", "val_accuracy"]
    shown.figures["curves"] = curves_or_blank(stage["report"], "examples", both, target=target, height=3.0)
    shown.figures["seconds"] = curves_or_blank(stage["report"], "seconds", both, target=target, height=3.0)
    shown.figures["deeper"] = curves_or_blank(
        stage["resnet18"], "examples", both, target=TASKS["cifar10-resnet18-half"].target
    )
    memory = {m: group[0].bytes for m, group in cost.items() if group[0].bytes}
    shown.figures["memory"] = figures.stacked(memory) if memory else blank()
    shown.figures["phases"] = shared.phases(final, methods)
    shown.figures["tuning"] = shared.search(stage["tune"])
    for name, (verdict, answer) in answers(results).items():
        shown.values |= {f"verdict.{name}": verdict, f"answer.{name}": answer}
    return shown


def answers(results: Results) -> dict[str, Answer]:
    """{question: (verdict, sentence)}; undecided while runs that a question needs are missing."""
    final, deep, cost = (by_method(results.stages.get(name, ())) for name in ("report", "resnet18", "cost"))
    test = {row.method: row for row in tests(final, "adamw", "test_accuracy", higher=True)}
    return {
        "decay": shared.judged(results, ("tune", "report"), _decay(test, final)),
        "sgd": shared.judged(results, ("tune", "report"), _sgd(test.get("sgd"))),
        "order": shared.judged(results, ("tune", "report", "resnet18"), _carries(_order(final, deep)[1], final, deep)),
        "share": shared.judged(results, ("tune", "report", "cost"), _share(final, cost)),
    }


@cache
def _shape(kind: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    return models.build(kind, device="meta", **dict(options))


def _model(record: Record) -> nn.Module:
    task = TASKS[record.config["task"]]
    return _shape(task.model, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in task.options.items()))


def _ratio(method: str, kind: str, options: Mapping[str, Any] | None = None) -> float | None:
    """State over weights, by the method's formula, with the settings of this experiment."""
    model = _shape(kind, tuple((options or {}).items()))
    state = shared.predicted_state(method, FIXED.get(method, {}), model)
    return None if state is None else state / (4 * sum(p.numel() for p in model.parameters()))


def _formula() -> pd.DataFrame:
    """State over weights for each method and model: from formulas alone, no run is needed."""
    columns = {name: [_ratio(m, kind, options) for m in METHODS] for name, (kind, options) in SHAPES.items()}
    return shared.frame({"method": METHODS, **columns}, **dict.fromkeys(SHAPES, "fixed:3"))


def _main(final: Groups, methods: Sequence[str], rates: Mapping[str, float], target: float) -> pd.DataFrame:
    groups = [final.get(m, []) for m in methods]
    return shared.frame(
        {
            "method": methods,
            "lr": [rates.get(m) for m in methods],
            "test_accuracy": [interval(g, "test_accuracy") for g in groups],
            "test_loss": [interval(g, "test_loss") for g in groups],
            "steps_to_target": [shared.reach(g, "val_accuracy", target) for g in groups],
            "达标秒数": [shared.reach(g, "val_accuracy", target, "seconds") for g in groups],
            "seconds_per_step": [median(g, "seconds_per_step") for g in groups],
            "完成": [shared.ended(g) for g in groups],
        },
        steps_to_target="fixed:0",
        达标秒数="fixed:0",
    )


def _tests(comparisons: Sequence[Comparison], final: Groups) -> pd.DataFrame:
    """Paired tests over seeds, and McNemar's test of the first seed's two networks on the test images."""
    table = tests_table(comparisons)
    pairs = [_same_images(final, row.method) for row in comparisons]
    corrected = holm([math.nan if pair is None else pair.p for pair in pairs])
    table["仅此法对"] = pd.Series([pair and pair.only_a for pair in pairs], dtype=object)
    table["仅 AdamW 对"] = pd.Series([pair and pair.only_b for pair in pairs], dtype=object)
    table["McNemar p"] = pd.Series([None if math.isnan(p) else p for p in corrected], dtype=object)
    table.attrs["styles"] |= {"McNemar p": "p", "效应量": "fixed:1"}
    return table.drop(columns=["p"])


def _same_images(final: Groups, method: str) -> Any:
    def right(name: str) -> str:
        first = [r for r in shared.done(final.get(name, ())) if r.config["seed"] == SEEDS[0]]
        return str(first[0].summary.get("test_correct", "")) if first else ""

    ours, theirs = right(method), right("adamw")
    if not ours or len(ours) != len(theirs):
        return None
    return compare_examples([c == "1" for c in ours], [c == "1" for c in theirs])


def _order(final: Groups, deep: Groups) -> tuple[pd.DataFrame, float | None]:
    """Accuracies of the five on the small and on the deeper network, their ranks, and the rank correlation."""
    small = [(found.mean if (found := interval(final.get(m, ()), "test_accuracy")) else None) for m in NAMED]
    large = [median(deep.get(m, ()), "test_accuracy") for m in NAMED]

    def ranks(values: Sequence[float | None]) -> list[int | None]:
        known = sorted((v for v in values if v is not None), reverse=True)
        return [None if v is None else known.index(v) + 1 for v in values]

    table = shared.frame(
        {"method": NAMED, "ResNet-8": small, "名次": ranks(small), "半宽 ResNet-18": large, "名次 ": ranks(large)},
        **{"ResNet-8": "percent:2", "半宽 ResNet-18": "percent:2"},
    )
    if None in small or None in large:
        return table, None
    from scipy.stats import spearmanr

    correlation = float(spearmanr(small, large).statistic)
    return table, None if math.isnan(correlation) else correlation


def _points(row: Comparison) -> str:
    return shared.told(row, "个百分点", 100, 2)


def _decay(test: Mapping[str, Comparison], final: Groups) -> Answer:
    """AdamW and Adam within the margin: confirmed; apart by the test, and by more than the margin: contradicted."""
    row = test.get("adam")
    if row is None or not row.n:
        return OPEN, LACKING
    apart = row.verdict != "undecided" and abs(row.difference) > MARGIN
    verdict = CONFIRMED if within(row, MARGIN) else CONTRADICTED if apart else OPEN
    pair = _same_images(final, "adam")
    extra = "" if pair is None else (
        f"首个种子的两个网络在同一批测试图上：仅 Adam 答对 {pair.only_a} 张，仅 AdamW 答对 {pair.only_b} 张。"
    )  # fmt: skip
    return verdict, f"Adam 减 AdamW 的测试准确率之差为 {_points(row)}。{extra}"


def _sgd(row: Comparison | None) -> Answer:
    """SGD no more than the margin below AdamW: confirmed; significantly below, and by more: contradicted."""
    if row is None or not row.n:
        return OPEN, LACKING
    if row.interval.low > -MARGIN and not row.diverged:
        verdict = CONFIRMED
    else:
        verdict = CONTRADICTED if row.verdict == "worse" and row.difference < -MARGIN else OPEN
    return verdict, f"SGD 减 AdamW 的测试准确率之差为 {_points(row)}。"


def _carries(correlation: float | None, final: Groups, deep: Groups) -> Answer:
    if correlation is None:
        return OPEN, LACKING
    verdict = CONFIRMED if correlation >= ORDER else CONTRADICTED if correlation <= 0 else OPEN
    best = {name: max(NAMED, key=lambda m: median(group.get(m, ()), "test_accuracy") or 0.0)
            for name, group in (("ResNet-8", final), ("半宽 ResNet-18", deep))}  # fmt: skip
    winners = "，".join(f"{name} 上最好的是 {palette.title(m)}" for name, m in best.items())
    return verdict, (
        f"五种方法的 Spearman 秩相关为 {correlation:.2f}；{winners}。"
        "加深的网络只有一个种子，这一结论是描述性的，不附检验。"
    )


def _share(final: Groups, cost: Groups) -> Answer:
    """Every method below the limit on both networks: confirmed; one above it: contradicted."""
    small = {m: shared.share(final.get(m, ())) for m in METHODS}
    large = {m: shared.share(cost.get(m, ())) for m in NAMED}
    known = [(s, m, name) for name, group in (("ResNet-8", small), ("ResNet-18", large))
             for m, s in group.items() if s is not None]  # fmt: skip
    if not known:
        return OPEN, LACKING
    most, method, name = max(known)
    whole = None not in small.values() and None not in large.values()
    verdict = CONTRADICTED if most >= SHARE else CONFIRMED if whole else OPEN
    two = f"AdamW 在 ResNet-8 上为 {_percent(small['adamw'])}，在完整 ResNet-18 上为 {_percent(large['adamw'])}"
    return verdict, f"占比最大的是 {name} 上的 {palette.title(method)}，{percent(most, 2)}；{two}（各次运行的中位数）。"


def _percent(value: float | None) -> str:
    return "—" if value is None else percent(value, 2)
