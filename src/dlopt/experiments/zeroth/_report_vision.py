"""What the report shows of `zeroth/vision`, and how questions 4 to 7 are judged: by rules fixed before the runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlopt.experiments._present import at, blank, interval, median, partial_note, percent, stages_table
from dlopt.experiments._series import grouped
from dlopt.experiments.zeroth._common import NAMES
from dlopt.experiments.zeroth._shown import NOTHING, Answer, answers, judged, lost, panels, title
from dlopt.experiments.zeroth.vision import BOXES, CIFAR, HEAT_EPS, HEAT_LR, MNIST, SEEDS, SERIES, SMOKE, series_of
from dlopt.lab import figures
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.search import edge_warnings
from dlopt.lab.study import Results

STAGES = {"tune": "调学习率", "report": "LeNet", "heat": "热图", "resnet8": "ResNet-8"}
TASKS = {MNIST.task: "LeNet", CIFAR.task: "ResNet-8", SMOKE.task: "MLP"}
GOAL, LEAST = 0.85, 200  # question 5: DeepZero's test accuracy, and steps
LOWER = 0.05  # question 6: by how much many directions must be lower to contradict
STEP_APART, STEPS_OFF, WORSE, NEAR = 1, 2, 0.2, 0.05  # question 7: cells of the grid; share above the least loss
ONE, MANY = "mezo", "mezo:q=16"
Groups = Mapping[str, Sequence[Record]]


def _series(record: Record) -> str:
    return series_of(record.config)


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    small = list(results.stages["report"])
    large = list(results.stages.get("resnet8", ()))
    heat = list(results.stages["heat"])
    shown = Presentation(notes=partial_note(results) + lost([*small, *large], _series))
    main, deep = grouped(small, _series), grouped(large, _series)
    shown.values |= {
        "rule.goal": GOAL, "rule.least": LEAST, "rule.lower": LOWER, "rule.apart": STEP_APART, "rule.off": STEPS_OFF,
        "rule.worse": WORSE, "rule.near": NEAR, "trials": MNIST.trials, "trials.cifar": CIFAR.trials,
        "seeds": len(SEEDS), "forwards": MNIST.forwards, "forwards.cifar": CIFAR.forwards, "batch": MNIST.batch,
        "batch.cifar": CIFAR.batch, "sparsity": MNIST.sparse["sparsity"], "sparsity.cifar": CIFAR.sparse["sparsity"],
        "deepzero.steps": MNIST.deepzero, "deepzero.steps.cifar": CIFAR.deepzero,
        "heat.steps": max((r.config["steps"] for r in heat), default=None),
        "parameters": _one(main, "parameters"), "parameters.cifar": _one(deep, "parameters"),
    }  # fmt: skip
    shown.values |= _speed(main)
    shown.tables |= {"main": _main(main), "resnet8": _main(deep), "directions": _directions(main)}
    shown.tables["runs"] = stages_table(results, STAGES, _series)
    both, maps = [*small, *large], grouped(heat, lambda r: (r.method, r.config["dtype"]))
    made: dict[str, Any] = {
        "forwards": panels(both, "forwards", "val_loss", _panel, _series, log_x=True, height=2.1),
        "seconds": _seconds(small),
        "tuning": _tuning(results),
    }
    for (method, dtype), name in (
        (("mezo", "float32"), "heat.mezo"), (("mezo", "bfloat16"), "heat.bfloat16"), (("lozo", "float32"), "heat.lozo")
    ):  # fmt: skip
        group = maps.get((method, dtype))
        made[name] = figures.heatmap(group, "params.lr", "params.eps", "val_loss", height=1.7) if group else None
    shown.figures |= {name: figure if figure is not None else blank() for name, figure in made.items()}
    shown.notes += _edges([*small, *large])
    answers(shown, {4: _q4(main), 5: _q5(main), 6: _q6(main), 7: _q7(maps)})
    return shown


def _seconds(records: Sequence[Record]) -> Any:
    """Loss and accuracy of the first task, side by side."""
    kept = [r for r in records if r.curve.get("val_accuracy")]
    if not kept:
        return None
    return figures.curves(
        kept, "seconds", ["val_loss", "val_accuracy"], by=_series, log_x=True, names=NAMES, height=2.1
    )


def _panel(record: Record) -> str:
    return f"{TASKS.get(record.config['task'], record.config['task'])}：验证损失"


def _one(groups: Groups, figure: str) -> Any:
    return next((r.summary[figure] for g in groups.values() for r in g if r.status == "done"), None)


def _speed(main: Groups) -> dict[str, Any]:
    """DeepZero's queries a second, the share of the network it computed, and MeZO's passes a second."""
    found: dict[str, Any] = {}
    for series, name in (("deepzero", "queries"), (ONE, "passes")):
        rates = [r.summary["forwards"] / (r.config["steps"] * r.summary["seconds_per_step"])
                 for r in main.get(series, []) if r.status == "done"]  # fmt: skip
        found[f"{name}.per_second"] = statistics.median(rates) if rates else None
    queries, passes = found["queries.per_second"], found["passes.per_second"]
    found["speed"] = queries / passes if queries and passes else None
    found["work"] = median(main.get("deepzero", []), "work_share")
    found["coordinates"] = _one({"deepzero": main.get("deepzero", [])}, "coordinates")
    return found


def _main(groups: Groups) -> Any:
    import pandas as pd

    rows = []
    for series in SERIES:
        mine = groups.get(series, [])
        if mine:
            bad = sum(r.status != "done" for r in mine)
            rows.append((title(series), mine[0].config["params"]["lr"], mine[0].config["steps"],
                         median(mine, "forwards"), median(mine, "seconds"), interval(mine, "test_accuracy"),
                         interval(mine, "val_loss"), f"{bad}/{len(mine)}"))  # fmt: skip
    columns = ["系列", "lr", "steps", "forwards", "seconds", "test_accuracy", "val_loss", "未完成"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"test_accuracy": "percent", "seconds": "fixed:0", "forwards": "fixed:0"}
    return frame


def _directions(groups: Groups) -> Any:
    import pandas as pd

    rows = [
        (title(s), groups[s][0].config["params"]["lr"], groups[s][0].config["steps"],
         interval(groups[s], "val_loss"), interval(groups[s], "val_accuracy"))
        for s in SERIES
        if groups.get(s) and s.startswith(("mezo", "rge"))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["系列", "lr", "steps", "val_loss", "val_accuracy"])


def _tuning(results: Results) -> Any:
    mine = [r for r in results.stages["tune"] if r.config["task"] != CIFAR.task]
    if not any(r.status == "done" for r in mine):
        return None
    return figures.scatter(mine, "params.lr", "val_loss", by=_series, log_x=True, best="min", names=NAMES, height=1.9)


def _edges(records: Sequence[Record]) -> list[str]:
    found = []
    for r in records:
        low, high = BOXES[_series(r)]
        lr = r.config["params"]["lr"]
        if low <= lr <= high and edge_warnings({"lr": lr}, {"lr": (low, high, "log")}):
            found.append(f"{TASKS.get(r.config['task'], r.config['task'])} 上的 {title(_series(r))}")
    return [f"选中的学习率位于搜索范围边缘：{'，'.join(dict.fromkeys(found))}。"] if found else []


def _pairs(groups: Groups, first: str, second: str) -> list[tuple[Record, Record]] | None:
    """(a, b) by seed, of runs that ended well; None unless every seed is there."""
    by = [{r.config["seed"]: r for r in groups.get(s, []) if r.status == "done"} for s in (first, second)]
    wanted = sorted({r.config["seed"] for s in (first, second) for r in groups.get(s, [])})
    if not wanted or any(set(b) != set(wanted) for b in by):
        return None
    return [(by[0][s], by[1][s]) for s in wanted]


def _meet(pairs: Sequence[tuple[Record, Record]], x: str, y: str) -> list[tuple[float, float, float]] | None:
    """[(place, a's y, b's y)] at the largest x that both of a pair have reached."""
    found = []
    for a, b in pairs:
        place = min(max(v for v in r.curve[x] if v is not None) for r in (a, b))
        values = at(a, x, place, y), at(b, x, place, y)
        if values[0] is None or values[1] is None:
            return None
        found.append((float(place), values[0], values[1]))
    return found


def _told(found: Sequence[tuple[float, float, float]], write: Callable[[float], str]) -> str:
    return "，".join(f"{write(a)} 对 {write(b)}" for _, a, b in found)


def _q4(groups: Groups) -> Answer:
    pairs = _pairs(groups, "mezo", "deepzero")
    found = _meet(pairs, "forwards", "val_loss") if pairs else None
    if not found:
        return NOTHING
    verdict = judged(all(a < b for _, a, b in found), all(b < a for _, a, b in found))
    return verdict, (
        f"在 {found[0][0]:.0f} 次前向处，各种子上 MeZO 对 DeepZero 的验证损失：{_told(found, lambda v: f'{v:.3f}')}。"
    )


def _q5(groups: Groups) -> Answer:
    pairs = _pairs(groups, "deepzero", "mezo")
    found = _meet(pairs, "seconds", "val_accuracy") if pairs else None
    if not pairs or not found:
        return NOTHING
    ends = [a.summary["test_accuracy"] for a, _ in pairs]
    steps = min(a.config["steps"] for a, _ in pairs)
    good, faster = min(ends) >= GOAL and steps >= LEAST, all(a > b for _, a, b in found)
    slower = all(a < b for _, a, b in found)
    told = _told(found, percent)
    return judged(good and faster, min(ends) < GOAL or slower), (
        f"DeepZero {steps} 步后测试准确率 {'、'.join(percent(v) for v in ends)}；在约 {found[0][0]:.0f} 秒处，"
        f"各种子上 DeepZero 对 MeZO 的验证准确率：{told}。"
    )


def _q6(groups: Groups) -> Answer:
    pairs = _pairs(groups, MANY, ONE)
    if not pairs:
        return NOTHING
    losses = [(a.summary["val_loss"], b.summary["val_loss"]) for a, b in pairs]
    verdict = judged(all(a >= b for a, b in losses), all(a < (1 - LOWER) * b for a, b in losses))
    told = "，".join(f"{a:.3f} 对 {b:.3f}" for a, b in losses)
    return verdict, f"各种子上 q = 16 对 q = 1 的最终验证损失：{told}。"


def _grid(records: Sequence[Record]) -> dict[float, dict[float, float]]:
    """{eps: {lr: loss}} of the runs that ended well."""
    found: dict[float, dict[float, float]] = {}
    for r in records:
        if r.status == "done":
            found.setdefault(r.config["params"]["eps"], {})[r.config["params"]["lr"]] = r.summary["val_loss"]
    return found


def _q7(maps: Mapping[tuple[str, str], Sequence[Record]]) -> Answer:
    both = [maps.get(("mezo", d), []) for d in ("float32", "bfloat16")]
    rows = HEAT_EPS[:3]
    wanted = {(e, lr) for e in rows for lr in HEAT_LR}
    if any(not wanted <= {(r.config["params"]["eps"], r.config["params"]["lr"]) for r in m} for m in both):
        return NOTHING
    full, low = (_grid(m) for m in both)
    if not set(rows) <= set(full) or not low:
        return NOTHING
    chosen = {e: min(full[e], key=lambda lr, e=e: full[e][lr]) for e in rows}  # type: ignore[misc]
    places = [HEAT_LR.index(lr) for lr in chosen.values()]
    apart = max(places) - min(places)
    least = min(v for row in low.values() for v in row.values())
    first = min(low.get(rows[0], {}).values(), default=float("inf"))
    above = first / least - 1
    verdict = judged(apart <= STEP_APART and above > WORSE, apart >= STEPS_OFF or above < NEAR)
    told = "，".join(f"ε = {e:g} 时 {lr:.2g}" for e, lr in chosen.items())
    high = "全部发散" if first == float("inf") else f"最好的损失比整图高 {percent(above)}"
    return verdict, f"float32 中最好的学习率：{told}，相差 {apart} 格；bfloat16 中 ε = {rows[0]:g} 一行{high}。"
