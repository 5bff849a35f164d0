"""What the demonstration's report shows, and how its five questions are judged: by rules fixed before the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._present import (
    CONFIRMED,
    CONTRADICTED,
    OPEN,
    at,
    by_method,
    edges,
    interval,
    lost_note,
    mean_steps_to,
    p_text,
    partial_note,
    percent,
    runs_table,
    tests,
    tests_table,
)
from dlopt.experiments.demo import FIRST, METHODS, SEEDS, TRIALS, ZEROTH, Config, box
from dlopt.lab import figures, palette
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.stats import Comparison
from dlopt.lab.study import Results
from dlopt.memory import Bytes
from dlopt.tasks.classification import TASKS


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report; the questions are judged here, by rules fixed before the runs."""
    tuned, final = results.stages["tune"], by_method(results.stages["report"])
    shown = Presentation(notes=partial_note(results) + lost_note([*tuned, *results.stages["report"]]))
    target = TASKS[Config.task].target
    any_record = next(iter(results.stages["report"]), None)
    size = any_record.summary if any_record else {}
    shown.values |= {name: size.get(name) for name in ("parameters", "train_size", "test_size")}
    shown.values |= {"trials": TRIALS, "seeds": len(SEEDS), "batch": Config.batch, "target.accuracy": target}
    shown.values |= {"steps.first": FIRST, "steps.mezo": ZEROTH}
    for m in METHODS:
        group = final.get(m, [])
        held = Bytes(**group[0].bytes) if group else Bytes()
        shown.values |= {
            f"{m}.accuracy": interval(group, "test_accuracy"),
            f"{m}.loss": interval(group, "test_loss"),
            f"{m}.state_bytes": held.state,
            f"{m}.peak_bytes": held.total,
            f"{m}.forwards": group[0].summary.get("forwards") if group else None,
            f"{m}.seconds_per_step": _median([r.summary.get("seconds_per_step") for r in group]),
            f"{m}.lr": group[0].config["params"].get("lr") if group else None,
            f"{m}.steps_to_target": mean_steps_to(group, "val_accuracy", target),
        }
    rows = tests(final, "adamw", "test_accuracy", higher=True)
    for row in rows:
        shown.values[f"p.{row.method}_adamw"] = row.p_holm
    shown.tables["main"] = _main(shown.values)
    shown.tables["tests"] = tests_table(rows)
    shown.tables["runs"] = runs_table(results, {"tune": "调参", "report": "报告"}, lambda r: f"{r.config['steps']} 步")
    everything = [r for group in final.values() for r in group]
    if everything:
        both = ["val_loss", "val_accuracy"]
        shown.figures["curves_examples"] = figures.curves(
            everything, "examples", both, log_x=True, log_y=True, target=target
        )
        shown.figures["curves_forwards"] = figures.curves(
            everything, "forwards", both, log_x=True, log_y=True, target=target
        )
        shown.figures["memory"] = figures.stacked({m: final[m][0].bytes for m in METHODS if final.get(m)})
        shown.figures["tuning"] = figures.scatter(tuned, "lr", "val_loss", log_x=True, log_y=True, best="min")
    shown.notes += edges({m: group[0].config["params"] for m, group in final.items()}, box)
    for n, (verdict, answer) in enumerate(_answers(shown.values, rows, final, tuned, target), start=1):
        shown.values |= {f"verdict.q{n}": verdict, f"answer.q{n}": answer}
    return shown


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _main(values: Mapping[str, Any]) -> Any:
    import pandas as pd

    columns = {"lr": "lr", "accuracy": "test_accuracy", "loss": "test_loss", "state_bytes": "state_bytes",
               "peak_bytes": "peak_bytes", "forwards": "forwards", "seconds_per_step": "seconds_per_step"}  # fmt: skip
    data: dict[str, Any] = {"method": list(METHODS)}
    for key, name in columns.items():
        data[name] = pd.Series([values[f"{m}.{key}"] for m in METHODS], dtype=object)
    return pd.DataFrame(data)


Final = Mapping[str, Sequence[Record]]
Answer = tuple[str, str]


def _answers(
    values: Mapping[str, Any], rows: Sequence[Comparison], final: Final, tuned: Sequence[Record], target: float
) -> list[Answer]:
    """(verdict, sentence) of the report's five questions, in their order."""
    test = {row.method: row for row in rows}
    return [
        _small_state(values, test.get("adafactor")),
        _equal_examples(final),
        _whole_budget(test.get("mezo")),
        _peaks(values, final),
        _sensitivity(tuned, target),
    ]


def _difference(row: Comparison) -> str:
    low, high = 100 * row.interval.low, 100 * row.interval.high
    return (
        f"测试准确率之差 {100 * row.difference:+.1f} 个百分点，95% 区间 [{low:+.1f}, {high:+.1f}]，"
        f"校正后 {p_text(row.p_holm)}"
    )


def _small_state(values: Mapping[str, Any], row: Comparison | None) -> Answer:
    if row is None or not row.n:
        return OPEN, "缺少可比的运行。"
    share = values["adafactor.state_bytes"] / values["adamw.state_bytes"]
    close = row.interval.low > -0.03 and row.interval.high < 0.03
    verdict = CONTRADICTED if row.verdict == "worse" or share >= 0.1 else CONFIRMED if close else OPEN
    rule = "规则：状态不到十分之一且区间在 ±3 个百分点之内为证实。"
    return verdict, f"Adafactor 的状态是 AdamW 的 {percent(share)}；{_difference(row)}。{rule}"


def _equal_examples(final: Final) -> Answer:
    seen = FIRST * Config.batch
    late = {r.config["seed"]: at(r, "examples", seen, "val_loss") for r in final.get("mezo", [])}
    pairs = []
    for method in METHODS:
        for r in final.get(method, []):
            here, there = at(r, "examples", seen, "val_loss"), late.get(r.config["seed"])
            if method != "mezo" and here is not None and there is not None:
                pairs.append((there, here))
    if not pairs:
        return OPEN, "缺少可比的运行。"
    behind = sum(mezo > other for mezo, other in pairs)
    verdict = CONFIRMED if behind == len(pairs) else OPEN if behind else CONTRADICTED
    mean = statistics.fmean(mezo for mezo, _ in pairs)
    return verdict, (
        f"在 {seen} 个样本处，MeZO 的平均验证损失为 {mean:.3f}；"
        f"与三种一阶方法逐种子比较 {len(pairs)} 次，MeZO 落后 {behind} 次。"
    )


def _whole_budget(row: Comparison | None) -> Answer:
    if row is None or not row.n:
        return OPEN, "缺少可比的运行。"
    verdict = CONFIRMED if row.verdict == "worse" else CONTRADICTED if row.difference >= 0 else OPEN
    return verdict, f"用完预算后，MeZO 与 AdamW 的{_difference(row)}。"


def _peaks(values: Mapping[str, Any], final: Final) -> Answer:
    if not all(final.get(m) for m in METHODS):
        return OPEN, "缺少可比的运行。"
    order = sorted(METHODS, key=lambda m: values[f"{m}.peak_bytes"])
    mezo = Bytes(**final["mezo"][0].bytes)
    clean = mezo.gradients == 0 and mezo.saved == 0
    verdict = CONFIRMED if order[0] == "mezo" and order[-1] == "adamw" and clean else CONTRADICTED
    return verdict, (
        f"峰值由小到大为 {' < '.join(palette.title(m) for m in order)}；"
        f"MeZO 的梯度为 {mezo.gradients} 字节，为反向传播保留的激活为 {mezo.saved} 字节。"
    )


def _sensitivity(tuned: Sequence[Record], target: float) -> Answer:
    groups = by_method(tuned)
    reached = {m: sum((r.summary.get("val_accuracy") or 0) >= target for r in groups.get(m, [])) for m in METHODS}
    least = min(n for m, n in reached.items() if m != "mezo")
    verdict = CONFIRMED if reached["mezo"] < least else CONTRADICTED if reached["mezo"] > least else OPEN
    counts = "，".join(f"{palette.title(m)} {n} 次" for m, n in reached.items())
    rule = "规则：MeZO 严格最少为证实，并列为未定；各方法的搜索范围不同，此结论是描述性的。"
    return verdict, f"{TRIALS} 次试验中达标的有：{counts}。{rule}"
