"""What the report shows of `kvcache/books`, and how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlopt.experiments._present import curves_or_blank, partial_note, stages_table
from dlopt.experiments._series import line
from dlopt.experiments.kvcache._common import NAMES, budget_of, series
from dlopt.experiments.kvcache._shown import Answer, answers, done, figure_of, find, judged, lost, table, title
from dlopt.experiments.kvcache.books import BANDS, BUDGET, LENGTH, SHORTER
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results

STAGES = {"stream": "第一本", "quantized": "量化", "ablation": "消融", "again": "第二本"}
BOOKS = ("Moby Dick", "Ulysses")
PER_TOKEN = "每词元 CPU 时间（秒）"
DRAWN = ("full", "window", "sinks", "sinks:original", "h2o", "tova", "knorm", "snapkv")


def present(results: Results) -> Presentation:
    """Values, tables and figures."""
    stages = results.stages
    streams = [*done(stages.get("stream", ())), *done(stages.get("again", ()))]
    quantized, ablation = done(stages.get("quantized", ())), done(stages.get("ablation", ()))
    shown = Presentation(notes=partial_note(results) + lost(results))
    shown.values |= {"length": LENGTH, "budget": BUDGET, "shorter": SHORTER}
    bands = {f"至 {end}": f"nll_to_{end}" for end in BANDS}
    styles = dict.fromkeys(bands, "fixed:2") | {"末段困惑度": "fixed:1", "字节": "bytes"}
    first = {"书": lambda r: BOOKS[r.config["passage"]], "缓存": lambda r: title(series(r))}
    shown.tables["main"] = table(
        streams, first, bands | {"末段困惑度": "tail_perplexity", "字节": "stored_bytes"}, styles
    )
    short = {f"至 {end}": f"nll_to_{end}" for end in BANDS if end <= SHORTER}
    first = {
        "缓存": lambda r: title(series(r)),
        "汇": lambda r: r.config["params"].get("sinks"),
        "窗口": lambda r: r.config["params"].get("window"),
        "每遍": lambda r: r.config["chunk"],
    }
    more = short | {"全段 NLL": "nll", "字节": "stored_bytes"}
    styles |= {"全段 NLL": "fixed:3"}
    first_book = [_beginning(r) for r in streams if r.config["passage"] == 0]
    base = [r for r in first_book if series(r) == "sinks" and budget_of(r.config) == BUDGET]
    whole = [r for r in first_book if series(r) == "full"]
    shown.tables["ablation"] = table([*base, *ablation], first, more, styles)
    shown.tables["quantized"] = table([*whole, *quantized], {"缓存": first["缓存"]}, more, styles)
    shown.tables["runs"] = stages_table(results, STAGES, series)
    mine = [r for r in streams if r.config["passage"] == 0 and series(r) in DRAWN]
    shown.figures["curves"] = curves_or_blank(mine, "tokens", ("nll",), by=series, names=NAMES, height=3.4)
    shown.figures["costs"] = curves_or_blank([_by_token(r) for r in mine], "tokens", ("stored_bytes", PER_TOKEN),
                                             by=lambda r: r.method, names=NAMES, height=2.9)  # fmt: skip
    shown.values |= answers([_flat(streams), _positions(streams), _beyond(streams)])
    return shown


def _beginning(record: Record) -> Record:
    """A longer run of which only the first tokens are comparable: without the figures of all of it."""
    return replace(record, summary={**record.summary, "nll": None})


def _by_token(record: Record) -> Record:
    """Seconds of a token in each segment, which are of different lengths; without the last, shorter one."""
    ends = record.curve["tokens"]
    sizes = [end - start for start, end in zip([0, *ends], ends)]
    count = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
    spent = [seconds / size for seconds, size in zip(record.curve["cpu_seconds"], sizes)]
    columns = {"tokens": ends, "stored_bytes": record.curve["stored_bytes"], PER_TOKEN: spent}
    return line(series(record), {name: values[:count] for name, values in columns.items()})


def _flat(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for number, book in enumerate(BOOKS):
        sinks, window = (find(records, s, BUDGET, passage=number) for s in ("sinks", "window"))
        early, late, other = (
            figure_of(sinks, "nll_to_2048"),
            figure_of(sinks, "tail_nll"),
            figure_of(window, "tail_nll"),
        )
        if early is None or late is None or other is None:
            parts.append(None)
            continue
        parts += [late < early + 0.3, other > late + 1]
        told.append(f"{book}：StreamingLLM 在 512 至 2048 词元为 {early:.2f}，末段 {late:.2f}，窗口末段 {other:.2f}")
    return judged(
        parts, told, "两本书上，StreamingLLM 末段的 NLL 比 512 至 2048 词元处高不到 0.3，窗口末段再高 1 以上为证实。"
    )


def _positions(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for number, book in enumerate(BOOKS):
        both = [find(records, s, BUDGET, passage=number) for s in ("sinks", "sinks:original")]
        near = [figure_of(r, "nll_to_8192") for r in both]
        far = [figure_of(r, "tail_nll") for r in both]
        if near[0] is None or near[1] is None or far[0] is None or far[1] is None:
            parts.append(None)
            continue
        parts += [abs(near[1] - near[0]) < 0.05, far[1] > far[0] + 0.05]
        told.append(f"{book}：原位置减缓存内位置，8192 之前 {near[1] - near[0]:+.3f}，末段 {far[1] - far[0]:+.3f}")
    return judged(parts, told, "两本书上，训练长度之内相差不到 0.05，之外原位置差 0.05 以上为证实。")


def _beyond(records: Sequence[Record]) -> Answer:
    parts: list[bool | None] = []
    told = []
    for number, book in enumerate(BOOKS):
        full, sinks = (find(records, s, passage=number) for s in ("full", "sinks"))
        near = [figure_of(r, "nll_to_8192") for r in (full, sinks)]
        far = [figure_of(r, "tail_nll") for r in (full, sinks)]
        if near[0] is None or near[1] is None or far[0] is None or far[1] is None:
            parts.append(None)
            continue
        parts += [near[0] < near[1], far[0] > far[1]]
        told.append(f"{book}：完整减 StreamingLLM，训练长度之内 {near[0] - near[1]:+.2f}，末段 {far[0] - far[1]:+.2f}")
    return judged(parts, told, "两本书上，完整缓存在训练长度之内更好、在末段更差为证实。")
