"""What the reports of both parts of topic `adam` share: settings, stages, bytes beside their formula, cost, answers."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from dlopt import catalog
from dlopt.experiments._present import OPEN, blank, by_method, edges, first_reaching, median, p_text
from dlopt.experiments.adam._common import METHODS, TRIALS, Box, box
from dlopt.lab import canvas, figures, palette
from dlopt.lab.record import Record
from dlopt.lab.stats import Comparison
from dlopt.lab.study import Results
from dlopt.memory import Bytes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[Record]]
Answer = tuple[str, str]  # verdict, sentence
PHASES = {"forward": ("前向", "#0072B2"), "backward": ("反向", "#E69F00"), "curvature": ("曲率", "#CC79A7"),
          "optimizer": ("优化器", "#009E73")}  # fmt: skip
LACKING = "缺少可比的运行。"
# the hyper-parameters worth a place in a table of settings, and how they are written
TOLD = {"betas": "β", "momentum": "μ", "nesterov": "Nesterov", "eps": "ε", "rho": "ρ", "interval": "k",
        "clip_threshold": "d", "beta2_decay": "β₂ 指数", "partition": "分块", "ns_steps": "NS 迭代"}  # fmt: skip
BLOCKS = {"paper": "论文", "tensor": "张量", "row": "行", "head": "头", "element": "元素"}
COUPLED = ("adam", "sgd")  # what they call weight_decay is the L2 penalty


def frame(columns: Mapping[str, Iterable[Any]], **styles: str) -> pd.DataFrame:
    """A table whose cells stay as they are: numbers, intervals, texts, None."""
    import pandas as pd

    made = pd.DataFrame({name: pd.Series(list(cells), dtype=object) for name, cells in columns.items()})
    made.attrs["styles"] = styles
    return made


def rows(*groups: Groups) -> list[str]:
    """The eight methods, then others that were run."""
    return list(dict.fromkeys([*METHODS, *(m for group in groups for m in group)]))


def done(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r.status == "done"]


def ended(group: Sequence[Record]) -> str | None:
    """How many of a method's runs ended well, as "3/3"."""
    return f"{len(done(group))}/{len(group)}" if group else None


def trials_of(tuned: Iterable[Record]) -> dict[str, dict[float, float]]:
    """{method: {learning rate: validation loss}}, infinite where the trial did not end well."""
    found: dict[str, dict[float, float]] = {}
    for r in tuned:
        rate, loss = r.config.get("params", {}).get("lr"), r.summary.get("val_loss")
        if rate is not None:
            good = r.status == "done" and loss is not None
            found.setdefault(r.method, {})[float(rate)] = float(loss) if good and loss is not None else math.inf
    return found


def chosen(trials: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
    """{method: the learning rate of its best trial}, for the methods whose trials are complete."""
    full = {m: t for m, t in trials.items() if len(t) >= TRIALS and min(t.values()) < math.inf}
    return {m: min(t, key=lambda rate: t[rate]) for m, t in full.items()}


def edge_notes(rates: Mapping[str, float], boxes: Mapping[str, Box]) -> list[str]:
    """A line for each chosen learning rate on the edge of its search box."""
    return edges({m: {"lr": rate} for m, rate in rates.items()}, lambda m: {"lr": box(boxes, m)["lr"]})


def settings_table(
    trials: Mapping[str, Mapping[float, float]], boxes: Mapping[str, Box], fixed: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Where each method was tuned, what was chosen, whether that lies between other trials, and what is fixed."""
    best, methods = chosen(trials), rows(dict.fromkeys(trials, ()))
    columns: dict[str, list[Any]] = {n: [] for n in ("method", "搜索范围", "选中", "位置", "权重衰减", "其余设置")}
    for m in methods:
        entry = catalog.methods().get(m)
        values = {**(entry.parameters() if entry and not entry.missing() else {}), **fixed.get(m, {})}
        decay = values.get("weight_decay")
        low, high, _ = boxes[m]["lr"] if m in boxes else (entry.search if entry else {}).get("lr", (None, None, ""))
        told = [f"{word} = {_written(values[name])}" for name, word in TOLD.items() if values.get(name) is not None]
        row = (m, None if low is None else f"{power(low)} – {power(high)}", best.get(m), _place(m, trials, best, boxes),
               None if decay is None else f"{decay:g}（{'L2' if m in COUPLED else '解耦'}）" if decay else "0",
               "，".join(told))  # fmt: skip
        for column, cell in zip(columns.values(), row):
            column.append(cell)
    return frame(columns)


def _place(m: str, trials: Mapping[str, Mapping[float, float]], best: Mapping[str, float], boxes: Any) -> str | None:
    """Whether worse trials lie on both sides of the best one: else a better rate may lie beyond."""
    if m not in best:
        return None
    if edge_notes({m: best[m]}, boxes):
        return "范围边缘"
    tried = sorted(trials[m])
    return "最小的一点" if best[m] == tried[0] else "最大的一点" if best[m] == tried[-1] else "居中"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "是" if value else "否"
    if isinstance(value, list | tuple):
        return f"({', '.join(_written(v) for v in value)})"
    if isinstance(value, int | float):
        return f"{value:g}" if value == 0 or abs(value) >= 1e-3 else power(value)
    return BLOCKS.get(str(value), str(value))


def power(value: float) -> str:
    """3e-4 as "3×10⁻⁴"; numbers between 0.01 and 100 as they are."""
    if 0.01 <= abs(value) < 100:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if float(mantissa) == 1 else f"{float(mantissa):g}×10{raised}"


def stages_table(results: Results, about: Mapping[str, str]) -> pd.DataFrame:
    """One row per stage: what a run was, how many were planned, how they ended, what they took."""
    columns: dict[str, list[Any]] = {
        n: [] for n in ("阶段", "方法数", "种子", "每次运行", "计划", "完成", "发散", "失败", "尚缺", "合计分钟")
    }
    for stage, records in results.stages.items():
        lacking = sum(line.startswith(f"{stage}: ") for line in results.missing)
        numbers = sorted({int(r.config["seed"]) for r in records})
        counts = {status: sum(r.status == status for r in records) for status in ("done", "diverged", "failed")}
        lengths = {f"{e} 轮" if not (s := r.config.get("steps")) else f"{s} 步" for r in records
                   for e in [r.config.get("epochs")]}  # fmt: skip
        spent = sum(float(r.summary.get("seconds") or 0) for r in records) / 60
        name, _, kind = about.get(stage, stage).partition("：")
        row = (name, len(by_method(records)), "、".join(map(str, numbers)) or None,
               "，".join([*filter(None, [kind]), *sorted(lengths)]) or None, len(records) + lacking, *counts.values(),
               lacking, spent)  # fmt: skip
        for column, cell in zip(columns.values(), row):
            column.append(cell)
    return frame(columns, 合计分钟="fixed:1")


def predicted_state(method: str, params: Mapping[str, Any], model: nn.Module) -> int | None:
    """Bytes of state by the method's own formula; None where a method has none, or is not installed."""
    try:
        formula = catalog.find(method).load().memory
        options = {k: v for k, v in params.items() if k != "model"}
        if "model" in inspect.signature(formula).parameters:
            options["model"] = model
        found: Bytes = formula(list(model.parameters()), **options)
    except (catalog.CatalogError, ImportError, AttributeError, TypeError):
        return None
    return found.state


def cost_table(groups: Groups, model_of: Callable[[Record], nn.Module], methods: Sequence[str]) -> pd.DataFrame:
    """State counted and by formula, peak, and seconds of a step by phase; medians over the runs of a method."""
    columns: dict[str, list[Any]] = {
        n: [] for n in ("method", "状态（计数）", "状态（公式）", "相差", "状态/参数", "peak_bytes",
                        *(word for word, _ in PHASES.values()), "优化器占比")
    }  # fmt: skip
    for m in methods:
        held = next((r for r in groups.get(m, []) if r.bytes), None)
        cells: list[Any] = [m, None, None, None, None, None]
        if held is not None:
            model = model_of(held)
            counted, formula = held.bytes.get("state", 0), predicted_state(m, held.config.get("params", {}), model)
            weights = 4 * sum(p.numel() for p in model.parameters())
            cells = [m, counted, formula, None if formula is None else counted - formula, counted / weights,
                     Bytes(**held.bytes).total]  # fmt: skip
        cells += [median(groups.get(m, []), f"seconds_{phase}") for phase in PHASES] + [share(groups.get(m, []))]
        for column, cell in zip(columns.values(), cells):
            column.append(cell)
    seconds = {word: "fixed" for word, _ in PHASES.values()}
    sizes = {"状态（计数）": "bytes", "状态（公式）": "bytes", "相差": "bytes", "状态/参数": "fixed:3"}
    return frame(columns, **sizes, **seconds, 优化器占比="percent:2")


def share(group: Iterable[Record]) -> float | None:
    """Median share of the optimizer and of its rounds of curvature in the seconds of a step: a ratio within a run."""
    found = []
    for r in done(group):
        total = r.summary.get("seconds_per_step")
        if total:
            own = r.summary.get("seconds_optimizer", 0.0) + r.summary.get("seconds_curvature", 0.0)
            found.append(own / total)
    return statistics.median(found) if found else None


def phases(groups: Groups, methods: Sequence[str]) -> Figure:
    """Seconds of a step by phase: one horizontal bar for each method that has a finished run."""
    there = [m for m in methods if done(groups.get(m, []))]
    if not there:
        return blank()
    with canvas.style():
        figure, (axes,) = canvas.panels(1, 0.85 + 0.25 * len(there))
        canvas.axis(axes, "x", "seconds_per_step")
        start = [0.0] * len(there)
        for phase, (word, colour) in PHASES.items():
            width = [median(groups[m], f"seconds_{phase}") or 0.0 for m in there]
            axes.barh(range(len(there)), width, left=start, color=colour, height=0.62, label=word)
            start = [a + b for a, b in zip(start, width)]
        axes.set_yticks(range(len(there)), [palette.title(m) for m in there])
        axes.set_ylim(len(there) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        canvas.legend(figure, *axes.get_legend_handles_labels())
        return canvas.finish(figure)


def search(tuned: Sequence[Record]) -> Figure:
    """Every trial of every method, the best of each ringed."""
    if not trials_of(tuned):
        return blank()
    return figures.scatter(tuned, "lr", "val_loss", log_x=True, best="min", height=2.9)


def reach(group: Iterable[Record], column: str, target: float, x: str = "step", higher: bool = True) -> Any:
    """Mean over seeds of where a target is first reached; a text where some seed never does; None without runs."""
    good = done(group)
    found = [first_reaching(r, column, target, x, higher) for r in good]
    known = [f for f in found if f is not None]
    if not found:
        return None
    if len(known) == len(found):
        return statistics.fmean(known)
    return f"{len(known)}/{len(found)} 达到" if known else "未达到"


def within(row: Comparison, margin: float) -> bool:
    """Whether the 95% interval of the difference lies inside ±margin: then the two are as good as equal."""
    return bool(-margin < row.interval.low and row.interval.high < margin)


def told(row: Comparison, unit: str, scale: float = 1.0, digits: int = 3) -> str:
    """The difference in words, with its interval and its corrected p."""
    low, high = scale * row.interval.low, scale * row.interval.high
    ends = f"，95% 区间 [{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) and low < high else ""
    lost = "" if not row.diverged else f"，另有 {len(row.diverged)} 个种子未正常结束"
    return f"{scale * row.difference:+.{digits}f} {unit}{ends}，{row.n} 个种子，校正后 {p_text(row.p_holm)}{lost}"


def judged(results: Results, stages: Sequence[str], answer: Answer) -> Answer:
    """The answer; but nothing is judged before the runs of its stages are complete."""
    if any(line.startswith(f"{stage}: ") for line in results.missing for stage in stages):
        return OPEN, f"网格尚未完成，暂不判定。目前：{answer[1]}"
    return answer
