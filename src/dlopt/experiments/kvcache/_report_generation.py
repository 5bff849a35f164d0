"""What the report shows of `kvcache/generation`, and how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence

from dlopt.experiments._present import partial_note, percent, stages_table
from dlopt.experiments.kvcache._common import EVICTING, series
from dlopt.experiments.kvcache._shown import Answer, answers, done, figure_of, find, judged, lost, table, title
from dlopt.experiments.kvcache.generation import BUDGET, GENERATED, PASSAGE, PROMPTS
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

STAGES = {"summary": "摘要", "copy": "抄写"}
COLUMNS = {"重叠": "overlap_share", "首处不同": "same_share", "逐字相同": "identical_share", "重复": "repetition_share",
           "抄对": "copied_share", "长度": "length", "倍数": "smaller"}  # fmt: skip
STYLES = dict.fromkeys(("重叠", "首处不同", "逐字相同", "重复", "抄对"), "percent:0") | {
    "长度": "fixed:0",
    "倍数": "fixed:1",
}


def present(results: Results) -> Presentation:
    """Values, tables and figures."""
    records = [r for stage in results.stages.values() for r in done(stage)]
    shown = Presentation(notes=partial_note(results) + lost(results))
    shown.values |= {"budget": BUDGET, "generated": GENERATED, "passage": PASSAGE, "prompts": PROMPTS}
    for kind in STAGES:
        mine = [r for r in records if r.config["kind"] == kind]
        shown.tables[kind] = table(mine, {"缓存": lambda r: title(series(r))}, COLUMNS, STYLES)
    shown.tables["runs"] = stages_table(results, STAGES, series)
    shown.values |= answers([_closer(records)])
    return shown


def _closer(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for kind, name in STAGES.items():
        ours = figure_of(find(records, "kivi-4", kind=kind), "overlap_share")
        others = {s: figure_of(find(records, s, kind=kind), "overlap_share") for s in EVICTING}
        known = {s: v for s, v in others.items() if v is not None}
        if ours is None or len(known) < len(others):
            parts.append(None)
            continue
        best = max(known, key=lambda s: known[s])
        parts.append(ours > known[best])
        told.append(f"{name}：KIVI-4 {percent(ours, 0)}，淘汰法中最好的是{title(best)} {percent(known[best], 0)}")
    return judged(parts, told, "两种任务上，KIVI-4 与完整缓存的重叠都高于每种淘汰法为证实。")
