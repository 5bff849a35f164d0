"""What the report shows of `kvcache/kivi`, and how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence

from dlopt.experiments._present import partial_note, stages_table
from dlopt.experiments.kvcache._common import series
from dlopt.experiments.kvcache._shown import Answer, answers, done, judged, lost, paired, prefix_name, table
from dlopt.experiments.kvcache.kivi import PARTS, QUESTIONS
from dlopt.experiments.kvcache.openbookqa import LONG, SHOTS
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

STAGES = {"axes": "轴", "others": "位数、组、残差", "longer": "2000 词元"}
AXES = {"channel": "按通道", "token": "按词元"}
PAPER = ("channel", "token")
COLUMNS = {"KL": "divergence_each", "词元 KL": "token_divergence", "一致": "agreement", "K 误差": "key_error",
           "V 误差": "value_error", "倍数": "smaller"}  # fmt: skip
STYLES = {"KL": "fixed:4", "词元 KL": "fixed:3", "一致": "percent", "K 误差": "percent", "V 误差": "percent",
          "倍数": "fixed:2"}  # fmt: skip


def present(results: Results) -> Presentation:
    """Values, tables and figures."""
    records = [r for stage in results.stages.values() for r in done(stage)]
    shown = Presentation(notes=partial_note(results) + lost(results))
    shown.values["questions"] = QUESTIONS
    for part in PARTS:
        mine = [r for r in records if r.config["part"] == part]
        first = {"前缀": lambda r: prefix_name(r.config["prefix"]), "位数": _of("bits")}
        if part == "axes":
            first |= {"K": lambda r: AXES[r.config["params"]["key_axis"]],
                      "V": lambda r: AXES[r.config["params"]["value_axis"]]}  # fmt: skip
        else:
            first |= {"组": _of("group"), "残差": _of("residual")}
        shown.tables[part] = table(mine, first, COLUMNS, STYLES)
    shown.tables["runs"] = stages_table(results, STAGES, series)
    shown.values |= answers([_axes(records), _bits(records), _residual(records)])
    return shown


def _of(name: str):
    return lambda r: r.config["params"][name]


def _pick(records: Sequence[Record], part: str, prefix: str, **params: object) -> Record | None:
    for r in records:
        own = r.config["params"]
        if (r.config["part"], r.config["prefix"]) == (part, prefix) and all(own[k] == v for k, v in params.items()):
            return r
    return None


def _axes(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for prefix in (SHOTS, LONG):
        paper = _pick(records, "axes", prefix, bits=2, key_axis=PAPER[0], value_axis=PAPER[1])
        for key, value in (("token", "token"), ("channel", "channel"), ("token", "channel")):
            gap = paired(
                paper, _pick(records, "axes", prefix, bits=2, key_axis=key, value_axis=value), "divergence_each"
            )
            parts.append(None if gap is None else gap.high < 0)
            if gap is not None:
                other = f"（K {AXES[key]}，V {AXES[value]}）"
                told.append(f"{prefix_name(prefix)} 减{other}{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]")
    return judged(parts, told, "2 位时论文的组合在两个前缀上都显著好于另外三种（配对差的 95% 区间在零以下）为证实。")


def _bits(records: Sequence[Record]) -> Answer:
    found = {b: _pick(records, "bits", SHOTS, bits=b) for b in (2, 4, 8)}
    values = {b: float(r.summary["divergence"]) for b, r in found.items() if r is not None}
    parts: list[bool | None] = []
    told = []
    for low, high in ((2, 4), (4, 8)):
        known = low in values and high in values
        parts.append(values[high] < values[low] / 10 if known else None)
        if known:
            told.append(f"{low} 位 {values[low]:.5f}，{high} 位 {values[high]:.5f}")
    return judged(parts, told, "每加倍一次位数，KL 都降到十分之一以下为证实。")


def _residual(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for prefix in (SHOTS, LONG):
        small, large = (_pick(records, "residual", prefix, residual=r) for r in (32, 128))
        gap = paired(large, small, "divergence_each")
        parts.append(None if gap is None or small is None else abs(gap.mean) < small.summary["divergence"] / 2)
        if gap is not None:
            told.append(f"{prefix_name(prefix)}上 R = 128 减 R = 32：{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]")
    return judged(parts, told, "残差由 32 加到 128，两个前缀上 KL 的改变都不到 R = 32 时的一半为证实。")
