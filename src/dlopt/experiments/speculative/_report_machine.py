"""What the runs of `speculative/bench` tell of the machines they ran on, and where the speed of lookup comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._series import line
from dlopt.experiments.speculative import _judge as judge
from dlopt.experiments.speculative._names import STAGES
from dlopt.experiments.speculative._names import category as named
from dlopt.experiments.speculative._ratios import (
    SLOPE,
    costs,
    drafters,
    of_prompts,
    prefill_ratio,
    seconds_per_token,
    speedup,
)
from dlopt.lab import figures
from dlopt.lab.record import Record

ByCategory = Mapping[str, Sequence[Record]]
RATIOS = (2, 3, 4, 8, 12, 16)
LOOPS = 0.05  # a text with less repetition is not looping


def machine(record: Record) -> str:
    return str(record.environment.get("cpu") or "未记录")


def machines(done: Mapping[str, Sequence[Record]]) -> str:
    """Which stage ran on which processor: times of two machines must not be compared unsaid."""
    found: dict[str, list[str]] = {}
    for stage, records in done.items():
        for cpu in dict.fromkeys(map(machine, records)):
            found.setdefault(cpu, []).append(STAGES.get(stage, stage))
    return "；".join(f"{cpu}：{'、'.join(stages)}" for cpu, stages in found.items())


def calibrations(*stages: ByCategory) -> Any:
    """What each run measured of the machine: plain decoding, v(k), what bfloat16 brings, and how far the model errs."""
    import pandas as pd

    rows = []
    for main in stages:
        for category, records in main.items():
            for r in records:
                table = costs(r)
                ratios = [table.at(k) / table.at(1) for k in RATIOS]
                half = prefill_ratio(r, "plain-bf16"), judge.mean_of(speedup(r, "plain-bf16"))
                rows.append((named(category), machine(r).partition("(")[0], 1e3 * seconds_per_token(r),
                             1e3 * table.at(1), *ratios, *half, judge.error(r)))  # fmt: skip
    columns = ["任务", "处理器", "逐词", "v(1)", *(f"r({k})" for k in RATIOS), "bf16 预填充", "bf16 逐词", "误差"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = (
        dict.fromkeys(columns[2:4], "fixed:0") | dict.fromkeys(columns[4:-1], "fixed:2") | {"误差": "percent"}
    )
    return frame


def copies(main: ByCategory) -> Any:
    """Where the speed of lookup comes from: loops of the model, the engine, the gate."""
    import pandas as pd

    rows = []
    for category, records in main.items():
        for r in records:
            gated, fixed, theirs = (judge.mean_of(speedup(r, arm)) for arm in (judge.LOOKUP, judge.FIXED, judge.THEIRS))
            if gated and fixed and theirs:
                calm = [v <= LOOPS for v in r.summary["repetition"]]
                rows.append((named(category), judge.repetition([r]), gated, sum(calm),
                             of_prompts(r, judge.LOOKUP, calm), fixed / theirs, gated / fixed))  # fmt: skip
    columns = ["任务", "重复率", "提示查找", "少重复的条数", "其上的提示查找", "定长 / transformers", "门控 / 定长"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = dict.fromkeys([columns[2], *columns[4:]], "fixed:2") | {"重复率": "percent"}
    return frame


def same(done: Mapping[str, Sequence[Record]], bf16: bool) -> tuple[int, int]:
    """(texts that were decoded, how many of them are plain decoding's) by our drafters, or by plain bfloat16."""
    records = [r for group in done.values() for r in group]
    arms = [(r, arm) for r in records for arm in (["plain-bf16"] if bf16 else drafters(r))]
    found = [same for r, arm in arms for same in r.summary.get(f"{arm} same", [])]
    return len(found), sum(found)


def shapes(*stages: ByCategory) -> Any:
    """v(k) over v(1) as calibrated on each processor (the first record of each), beside a GPU's."""
    tables = {machine(r): costs(r) for main in reversed(stages) for records in reversed(main.values()) for r in records}
    if not tables:
        return None
    lengths = list(next(iter(tables.values())).lengths)
    measured = {cpu: (list(t.lengths), [s / t.at(1) for s in t.seconds]) for cpu, t in sorted(tables.items())}
    imagined = {"GPU 式代价": (lengths, [1 + SLOPE * (k - 1) for k in lengths])}
    lines = [line(name, {"一遍的词元数 k": ks, "v(k) / v(1)": vs}) for name, (ks, vs) in (measured | imagined).items()]
    return figures.curves(lines, "一遍的词元数 k", "v(k) / v(1)", height=2.0)
