"""What the report shows of the language model; `_lm_verdicts` judges its five questions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
from torch import nn

from dlopt.experiments._present import (
    blank,
    by_method,
    curves_or_blank,
    interval,
    lost_note,
    median,
    partial_note,
    tests,
    tests_table,
)
from dlopt.experiments.adam import _report as shared
from dlopt.experiments.adam._common import METHODS
from dlopt.experiments.adam._lm_verdicts import (
    CLAIM,
    FAR,
    LEAST,
    MARGIN,
    SMALL,
    SPREADS,
    Change,
    ablations,
    answers,
    faster,
)
from dlopt.experiments.adam._report import Groups
from dlopt.experiments.adam.lm import BOXES, FIXED, Config
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.memory import Bytes
from dlopt.tasks import models
from dlopt.tasks.language import TASKS

STAGES = {"tune": "调参", "report": "主实验", "ablations": "消融"}
WORDS = {"partition": "分块 = ", "clip_threshold": "不截断（d = ", "factored": "不分解",
         "interval": "曲率间隔 k = ", "rho": "ρ = ", "weight_decay": "权重衰减 λ = "}  # fmt: skip


def present(results: Results) -> Presentation:
    """Values, tables and figures; the verdicts are computed here."""
    stage = {name: list(results.stages.get(name, ())) for name in STAGES}
    final = by_method(stage["report"])
    methods, trials = shared.rows(final), shared.trials_of(stage["tune"])
    shown = Presentation(notes=partial_note(results) + lost_note([r for group in stage.values() for r in group]))
    shown.notes += shared.edge_notes(shared.chosen(trials), BOXES)
    task = TASKS[Config.task]
    model = _model(Config.task)
    shown.values |= {"steps": Config.steps, "batch": Config.batch}
    shown.values |= {
        "length": task.length,
        "windows": task.windows,
        "clip": Config.clip,
        "warmup": Config.warmup,
        "target": task.target,
    }
    shown.values |= {"tokens": Config.steps * Config.batch * task.length, "margin": MARGIN, "far": FAR, "small": SMALL}
    shown.values |= {"claim": CLAIM, "least": LEAST, "spreads": SPREADS, **{k: task.options[k] for k in task.options}}
    shown.values |= {"parameters": sum(p.numel() for p in model.parameters()), "muon.flops": _newton_schulz(model)}
    shown.values["muon.share"] = shared.share(final.get("muon", ()))
    shown.values["sophia.unclipped"] = interval(final.get("sophia-g", ()), "share_unclipped")
    for m in METHODS:
        shown.values[f"{m}.loss"] = interval(final.get(m, ()), "test_loss")
    comparisons = tests(final, "adamw", "test_loss", higher=False)
    table = tests_table(comparisons)
    table.attrs["styles"] |= {"差值": "auto", "效应量": "fixed:1"}
    changed = ablations(final, stage["ablations"])
    shown.tables["settings"] = shared.settings_table(trials, BOXES, FIXED)
    shown.tables["runs"] = shared.stages_table(results, STAGES)
    shown.tables["main"] = _main(final, methods, shared.chosen(trials), task.target)
    shown.tables["tests"] = table.drop(columns=["p"])
    shown.tables["cost"] = shared.cost_table(final, lambda r: _model(r.config["task"]), methods)
    shown.tables["ablations"] = _ablation_table(changed)
    options: dict[str, Any] = {"target": task.target, "height": 3.0}
    shown.figures["curves"] = curves_or_blank(stage["report"], "tokens", ["loss", "val_loss"], **options)
    shown.figures["seconds"] = curves_or_blank(stage["report"], "seconds", ["val_loss"], **options)
    memory = {m: g[0].bytes for m, g in final.items() if g[0].bytes}
    shown.figures["memory"] = figures.stacked(memory) if memory else blank()
    shown.figures["phases"] = shared.phases(final, methods)
    shown.figures["tuning"] = shared.search(stage["tune"])
    shown.figures["tradeoff"] = _tradeoff(final)
    for name, (verdict, answer) in answers(results).items():
        shown.values |= {f"verdict.{name}": verdict, f"answer.{name}": answer}
    return shown


@cache
def _model(task: str) -> nn.Module:
    return models.build("lm", device="meta", **TASKS[task].options)


def _newton_schulz(model: nn.Module, iterations: int = 5) -> float:
    """Operations of Muon's iterations over those of a training step: n x m takes 4 n² m + 2 n³ for each iteration,
    n the smaller side; forward and backward take 6 for each weight and token."""
    sides = [sorted(p.shape) for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    work = sum(iterations * (4 * n * n * m + 2 * n**3) for n, m in sides)
    tokens = Config.batch * TASKS[Config.task].length
    return work / (6 * tokens * sum(p.numel() for p in model.parameters()))


def _times(found: Sequence[float | None]) -> Any:
    known = [f for f in found if f is not None]
    if len(known) == len(found):
        return statistics.fmean(known) if known else None
    return f"{len(known)}/{len(found)} 达到" if known else "未达到"


def _main(final: Groups, methods: Sequence[str], rates: Mapping[str, float], target: float) -> pd.DataFrame:
    groups = [final.get(m, []) for m in methods]
    return shared.frame(
        {
            "method": methods,
            "lr": [rates.get(m) for m in methods],
            "test_loss": [interval(g, "test_loss") for g in groups],
            "比特/字节": [interval(g, "test_bits") for g in groups],
            "steps_to_target": [shared.reach(g, "val_loss", target, higher=False) for g in groups],
            "半程倍率": [_times(faster(final, m, 0.5)) for m in methods],
            "终程倍率": [_times(faster(final, m)) for m in methods],
            "seconds_per_step": [median(g, "seconds_per_step") for g in groups],
            "完成": [shared.ended(g) for g in groups],
        },
        steps_to_target="fixed:0",
        半程倍率="fixed:2",
        终程倍率="fixed:2",
    )


def _wording(change: Mapping[str, Any]) -> str:
    name, value = next(iter(change.items()))
    word = WORDS.get(name, f"{name} = ")
    if name == "clip_threshold":
        return f"{word}{shared.power(float(value))}）"
    return word if isinstance(value, bool) else f"{word}{shared.BLOCKS.get(value, value)}"


def _difference(run: Record | None, plain: Record | None, name: str) -> float | None:
    if run is None or plain is None or run.status != "done":
        return None
    return float(run.summary[name]) - float(plain.summary[name])


def _ablation_table(changed: Sequence[Change]) -> pd.DataFrame:
    names = ("method", "改动", "status", "test_loss", "Δ测试", "Δ验证", "种子标准差", "未截断比例", "state_bytes")
    columns: dict[str, list[Any]] = {n: [] for n in names}
    for method, change, run, plain, spread in changed:
        summary = run.summary if run else {}
        differences = [_difference(run, plain, name) for name in ("test_loss", "val_loss")]
        row = (method, _wording(change), run.status if run else None, summary.get("test_loss"), *differences, spread,
               summary.get("share_unclipped"), run.bytes.get("state") if run else None)  # fmt: skip
        for column, cell in zip(columns.values(), row):
            column.append(cell)
    styles = dict.fromkeys(names[3:7], "fixed:4") | {"未截断比例": "percent"}
    return shared.frame(columns, **styles)


def _tradeoff(final: Groups) -> Any:
    points: dict[str, Any] = {}
    for m, group in final.items():
        loss, held = interval(group, "test_loss"), next((r.bytes for r in group if r.bytes), None)
        if loss is not None and held is not None:
            points[m] = (float(Bytes(**held).state), loss if loss.n > 1 else loss.mean)
    return figures.pareto_plot(points, "state_bytes", "test_loss", y_better="low") if points else blank()
