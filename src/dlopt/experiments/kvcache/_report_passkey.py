"""What the report shows of `kvcache/passkey`, and how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence

from dlopt.experiments._present import partial_note, percent, stages_table
from dlopt.experiments.kvcache._common import EVICTING, KEEPING, series
from dlopt.experiments.kvcache._shown import (
    Answer,
    answers,
    cells,
    done,
    figure_of,
    find,
    judged,
    lost,
    table,
    title,
)
from dlopt.experiments.kvcache.passkey import BUDGET, DEPTHS, KEYS
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

STAGES = {"after": "问题在后", "in": "问题在提示中", "long": "4096 词元"}
ORDER = (*KEEPING, *EVICTING)


def present(results: Results) -> Presentation:
    """Values, tables and figures."""
    records = [r for stage in results.stages.values() for r in done(stage)]
    after = [r for r in records if r.config["asked"] == "after"]
    asked = [r for r in records if r.config["asked"] == "in"]
    shown = Presentation(notes=partial_note(results) + lost(results))
    shown.values |= {"budget": BUDGET, "keys": KEYS}
    lengths = sorted({int(r.config["length"]) for r in after})
    columns = [f"{n}@{d:g}" for n in lengths for d in DEPTHS]
    rows = [title(s) for s in ORDER if any(series(r) == s for r in after)]
    values = {
        (title(series(r)), f"{r.config['length']}@{d:g}"): share
        for r in after
        for d, share in zip(DEPTHS, r.summary["digits_by_depth"])
    }
    shown.figures["heat"] = cells(values, rows, columns, "正确数字的份额（格中为百分数）")
    columns_ = {"全对": "retrieved_share", "数字": "digits_share", "密钥 NLL": "key_nll", "字节": "stored_bytes"}
    styles = {"全对": "percent:0", "数字": "percent:0", "密钥 NLL": "fixed:1", "字节": "bytes"}
    first = {"长度": lambda r: r.config["length"], "缓存": lambda r: title(series(r))}
    shown.tables["after"] = table([r for r in after if r.config["length"] == 1024], first, columns_, styles)
    shown.tables["in"] = table(asked, first, columns_, styles)
    shown.tables["runs"] = stages_table(results, STAGES, series)
    shown.values |= answers([_forgotten(after), _asked(after, asked)])
    return shown


def _forgotten(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for length in (512, 1024, 2048):
        whole = figure_of(find(records, "full", length=length), "digits_share")
        kept = [figure_of(find(records, s, length=length), "digits_share") for s in ("int8", "kivi-4")]
        gone = [figure_of(find(records, s, length=length), "digits_share") for s in EVICTING]
        if whole is None or any(v is None for v in (*kept, *gone)):
            parts.append(None)
            continue
        least, most = min(v for v in kept if v is not None), max(v for v in gone if v is not None)
        parts += [least >= whole - 0.05, most < whole / 2]
        told.append(
            f"{length} 词元：完整 {percent(whole, 0)}，int8 与 KIVI-4 至少 {percent(least, 0)}，"
            f"淘汰法至多 {percent(most, 0)}"
        )
    return judged(
        parts,
        told,
        "每个长度上（问题在后），int8 与 KIVI-4 的正确数字不低于完整缓存 5 个百分点以上，淘汰法都不到它的一半为证实。",
    )


def _asked(after: Sequence[Record], asked: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for name in ("snapkv", "pyramid", "tova"):
        late = figure_of(find(after, name, length=1024), "digits_share")
        early = figure_of(find(asked, name, length=1024), "digits_share")
        parts.append(None if late is None or early is None else early > late + 0.2)
        if late is not None and early is not None:
            told.append(f"{title(name)} {percent(late, 0)} 变为 {percent(early, 0)}")
    return judged(
        parts, told, "1024 词元上，把问题放进提示后，SnapKV、PyramidKV 与 TOVA 的正确数字都提高 20 个百分点以上为证实。"
    )
