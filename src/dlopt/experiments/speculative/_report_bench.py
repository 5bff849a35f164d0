"""What the report shows of `speculative/bench`; how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN, blank, partial_note, stages_table
from dlopt.experiments._series import grouped, line
from dlopt.experiments.speculative import _judge as judge
from dlopt.experiments.speculative import _report_machine as machine
from dlopt.experiments.speculative._names import STAGES, title
from dlopt.experiments.speculative._names import category as named
from dlopt.experiments.speculative._ratios import (
    acceptance,
    drafters,
    has,
    imagined,
    mean,
    names,
    predicted,
    share_drafting,
    speedup,
    tokens_per_round,
)
from dlopt.lab import figures, palette
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

REACHED = "前 i 个全被接受的份额"
ByCategory = Mapping[str, Sequence[Record]]


def present(results: Results) -> Presentation:
    """Values, tables and figures; the questions are judged here."""
    shown = Presentation(notes=partial_note(results))
    done = {stage: [r for r in records if r.status == "done"] for stage, records in results.stages.items()}
    lost = [f"{named(r.config['category'])}：{palette.STATUSES.get(r.status, r.status)}"
            for records in results.stages.values() for r in records if r.status != "done"]  # fmt: skip
    shown.notes += [f"未正常结束的运行：{'；'.join(lost)}。"] if lost else []
    lookup, models = (grouped(done.get(stage, []), _category) for stage in ("lookup", "models"))
    main = grouped([*done.get("lookup", []), *done.get("models", [])], _category)
    errors = judge.overestimates(lookup)
    ours, half = machine.same(done, bf16=False), machine.same(done, bf16=True)
    some = next((r for records in main.values() for r in records), None)
    shown.values |= {
        "prompts": None if some is None else some.config["prompts"],
        "tokens": None if some is None else some.config["tokens"],
        "repetition.low": min((judge.repetition(rs) for rs in main.values()), default=None),
        "repetition.high": max((judge.repetition(rs) for rs in main.values()), default=None),
        "machines": machine.machines(done) or None,
        "error.pairs": errors[0] or None,
        "error.high": errors[1] if errors[0] else None,
        "same.texts": ours[0] or None,
        "same.equal": ours[1] if ours[0] else None,
        "bf16.texts": half[0] or None,
        "bf16.differ": half[0] - half[1] if half[0] else None,
        "small.low": min(_first(models), default=None),
        "small.high": max(_first(models), default=None),
    }
    shown.tables |= {
        "speed": _speeds(lookup),
        "models": _speeds(models),
        "copies": machine.copies(lookup),
        "calibrations": machine.calibrations(lookup, models),
        "rounds": _rounds(main),
        "drafts": _drafts(main),
        "stores": _parts(done.get("stores", [])),
        "cascades": _parts(done.get("cascades", [])),
        "trees": _parts(done.get("trees", [])),
        "drawn": _drawn(done.get("drawn", [])),
        "runs": stages_table(results, STAGES),
    }
    made = {"speed": _bars(lookup), "costs": machine.shapes(lookup, models), "acceptance": _acceptance(main),
            "lengths": _lengths(done.get("lengths", []))}  # fmt: skip
    shown.figures |= {name: figure if figure is not None else blank() for name, figure in made.items()}
    numbers = (*range(1, 11), 12)  # 11 is that of `speculative/skipping`
    for n, (verdict, answer) in zip(numbers, judge.questions(done), strict=True):
        word = {True: CONFIRMED, False: CONTRADICTED, None: OPEN}[verdict]
        shown.values |= {f"verdict.q{n}": word, f"answer.q{n}": answer}
    return shown


def _category(record: Record) -> str:
    return str(record.config["category"])


def _first(models: ByCategory) -> list[float]:
    """By category: how often the first token of the small model was taken."""
    found = [acceptance(r, judge.SMALL) for records in models.values() for r in records]
    return [rates[0] for rates in found if rates and rates[0] is not None]


def _arms(main: ByCategory) -> list[str]:
    return list(dict.fromkeys(name for records in main.values() for r in records for name in names(r)))


def _of(records: Sequence[Record], arm: str) -> Record | None:
    return next((r for r in records if has(r, arm)), None)


def _frame(main: ByCategory, value: Any, style: str, rows: Sequence[str]) -> Any:
    """Arms x categories."""
    import pandas as pd

    data: dict[str, Any] = {"方法": [title(arm) for arm in rows]}
    for category, records in main.items():
        cells = [None if (r := _of(records, arm)) is None else value(r, arm) for arm in rows]
        data[named(category)] = pd.Series(cells, dtype=object)
    frame = pd.DataFrame(data)
    frame.attrs["styles"] = dict.fromkeys(list(frame.columns)[1:], style)
    return frame


def _speeds(main: ByCategory) -> Any:
    return _frame(main, lambda r, arm: judge.mean_of(speedup(r, arm)), "fixed:2", _arms(main))


def _rounds(main: ByCategory) -> Any:
    rows = [arm for arm in _arms(main) if any(arm in drafters(r) for records in main.values() for r in records)]
    return _frame(main, tokens_per_round, "fixed:2", rows)


def _drafts(main: ByCategory) -> Any:
    """Over all categories: tokens drafted and taken, time of drafting, prediction beside measurement, a GPU's costs."""
    import pandas as pd

    rows = []
    for arm in _arms(main):
        found = [r for records in main.values() if (r := _of(records, arm)) is not None and arm in drafters(r)]
        if found:
            drafted, accepted = (sum(r.summary[f"{arm} {what}"] for r in found) for what in ("drafted", "accepted"))
            speeds = [judge.mean_of(speedup(r, arm)) for r in found]
            rows.append((title(arm), drafted, accepted / drafted if drafted else None,
                         mean([share_drafting(r, arm) for r in found]), mean(speeds),
                         mean([predicted(r, arm) for r in found]),
                         mean([imagined(r, arm) for r in found])))  # fmt: skip
    columns = ["方法", "草稿词元", "接受率", "起草占时", "实测加速", "预测加速", "GPU 代价下"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"接受率": "percent", "起草占时": "percent"} | dict.fromkeys(columns[4:], "fixed:2")
    return frame


def _parts(records: Sequence[Record]) -> Any:
    """Arms of an ablation x (tokens a round, speed-up) of each category."""
    import pandas as pd

    main = grouped(records, _category)
    rows = _arms(main)
    data: dict[str, Any] = {"方法": [title(arm) for arm in rows]}
    styles = {}
    for category, group in main.items():
        name = named(category)
        for what, value in (("每轮词元", tokens_per_round), ("加速", lambda r, arm: judge.mean_of(speedup(r, arm)))):
            cells = [None if (r := _of(group, arm)) is None else value(r, arm) for arm in rows]
            data[f"{name}：{what}"] = pd.Series(cells, dtype=object)
            styles[f"{name}：{what}"] = "fixed:2"
    frame = pd.DataFrame(data)
    frame.attrs["styles"] = styles
    return frame


def _drawn(records: Sequence[Record]) -> Any:
    import pandas as pd

    rows = [
        (named(r.config["category"]), r.config["temperature"], title(arm),
         tokens_per_round(r, arm), speedup(r, arm), all(r.summary[f"{arm} same"]))
        for r in records for arm in names(r)
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["任务", "温度", "方法", "每轮词元", "加速", "逐词相同"])
    frame["逐词相同"] = ["是" if same else "否" for same in frame["逐词相同"]]
    frame.attrs["styles"] = {"每轮词元": "fixed:2", "加速": "fixed:2", "温度": "fixed:1"}
    return frame


def _bars(main: ByCategory) -> Any:
    """Gated lookup beside transformers' lookup, by category."""
    found, series = {}, {}
    for category, records in main.items():
        for arm in ("prompt-lookup", "hf-lookup"):
            r = _of(records, arm)
            value = None if r is None else speedup(r, arm)
            if value is not None:
                bar = f"{named(category)}：{title(arm)}"
                found[bar], series[bar] = value, arm
    return figures.bars(found, "加速（倍）", series=series) if found else None


def _acceptance(main: ByCategory) -> Any:
    """By depth, drafts of a fixed length, averaged over categories."""
    lines = []
    for arm in ("prompt-lookup/fixed", "llma/fixed", "rest/fixed", "suffix-decoding", "token-recycling"):
        found = [acceptance(r, arm) for records in main.values() if (r := _of(records, arm)) is not None]
        deepest = min(10, max((len(a) for a in found), default=0))
        values = [mean([a[d] if d < len(a) else None for a in found]) for d in range(deepest)]
        if values:
            lines.append(line(arm.partition("/")[0], {"草稿中的位置 i": list(range(1, deepest + 1)), REACHED: values}))
    return figures.curves(lines, "草稿中的位置 i", REACHED, height=2.3) if lines else None


def _lengths(records: Sequence[Record]) -> Any:
    """Speed-up against the fixed length of a draft, measured and at a GPU's costs."""
    lines = []
    for category, group in grouped(records, _category).items():
        r = group[0]
        points = sorted((int(arm.partition("length=")[2].partition("/")[0]), arm) for arm in names(r))
        name = named(category)
        lines.append(line(name, {
            "草稿长度": [n for n, _ in points],
            "实测加速": [judge.mean_of(speedup(r, arm)) for _, arm in points],
            "GPU 代价下的加速": [imagined(r, arm) for _, arm in points],
        }))  # fmt: skip
    return figures.curves(lines, "草稿长度", ["实测加速", "GPU 代价下的加速"], height=2.0) if lines else None
