"""What the report shows of `sampling/vision`; its four questions are judged in `_judge_vision`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from dlopt.experiments._present import (
    blank,
    interval,
    partial_note,
    percent,
    stages_table,
)
from dlopt.experiments._series import grouped
from dlopt.experiments.sampling._common import series
from dlopt.experiments.sampling._judge_vision import ACCURACY, MARGIN, TASKS, Sets, mean_of, questions
from dlopt.experiments.sampling._shown import (
    Groups,
    cell,
    compared,
    drawable,
    lost,
    panels,
    title,
)
from dlopt.experiments.sampling.vision import BOX, NORMS, SEEDS, SERIES, TRIALS
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.search import edge_warnings
from dlopt.lab.stats import Interval
from dlopt.lab.study import Results

STAGES = {"tune": "调学习率", "report": "报告", "norms": "归一化", "resnet18": "ResNet-18", "seeds": "VGG 的其余种子"}


def present(results: Results) -> Presentation:
    """Values, tables and figures; and the four answers."""
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
    for n, (judged, answer) in enumerate(questions(sets, groups), start=1):
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
        means = {s: mean_of(sets.get(t, {}), s) for s in SERIES if s != "class-blocks"}
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
