"""What the report shows of `kvcache/cost`, and how its questions are judged: by rules fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlopt.experiments._present import partial_note, stages_table
from dlopt.experiments.kvcache._common import NAMES, series, settings, spec
from dlopt.experiments.kvcache._shown import Answer, answers, done, judged, lines, lost, table, title
from dlopt.experiments.kvcache.cost import BATCHED, BUDGET, CONTEXTS
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.memory import human

STAGES = {"contexts": "上下文", "batches": "批量"}
PACKED = "KIVI-2（直接读码）"
# layers, query heads, key-value heads, size of a head
SHAPES = {
    "7B（MHA，32 层）": (32, 32, 32, 128),
    "8B（GQA，32 层）": (32, 32, 8, 128),
    "13B（MHA，40 层）": (40, 40, 40, 128),
    "70B（GQA，80 层）": (80, 64, 8, 128),
}
LENGTHS = {"4k": 4096, "32k": 32_768, "128k": 131_072, "1M": 1_048_576}
TABLED = {"full": 0, "int8": 0, "kivi-4": 0, "kivi-2": 0, "sinks": 2048}


def name_of(record: Record) -> str:
    """The series, packed attention apart."""
    return f"{series(record)}:packed" if record.config["packed"] else series(record)


def written(name: str) -> str:
    """How it is written."""
    return PACKED if name.endswith(":packed") else title(name)


def present(results: Results) -> Presentation:
    """Values, tables and figures."""
    long, batched = done(results.stages.get("contexts", ())), done(results.stages.get("batches", ()))
    shown = Presentation(notes=partial_note(results) + lost(results))
    shown.values |= {"budget": BUDGET, "batched": BATCHED}
    columns = {"预填充（秒）": "prefill_seconds", "每步（秒）": "decode_seconds", "缓存": "stored_bytes",
               "临时": "transient_bytes", "峰值增量": "peak_bytes"}  # fmt: skip
    styles = dict.fromkeys(("缓存", "临时", "峰值增量"), "bytes") | {
        "预填充（秒）": "fixed:2", "每步（秒）": "fixed:3"}  # fmt: skip
    first = {
        "方法": lambda r: written(name_of(r)),
        "词元": lambda r: r.config["context"],
        "批": lambda r: r.config["batch"],
    }
    shown.tables["contexts"] = table([r for r in long if r.config["context"] == max(CONTEXTS)], first, columns, styles)
    shown.tables["batches"] = table(batched, first, columns, styles)
    shown.tables["shapes"] = shapes()
    shown.tables["designs"] = designs()
    shown.tables["runs"] = stages_table(results, STAGES, series)
    points: dict[str, list[tuple[float, float]]] = {}
    for r in long:
        points.setdefault(name_of(r), []).append((r.config["context"], r.summary["decode_seconds"]))
    names = {**NAMES, "kivi-2:packed": PACKED}
    shown.figures["decode"] = lines(points, "上下文（词元）", "每步 CPU 时间（秒）", names=names, height=2.9)
    shown.values |= answers([_time(long)])
    return shown


def shapes() -> Any:
    """Bytes of one row by formula, 16-bit keys and values."""
    import pandas as pd
    import torch
    from transformers import LlamaConfig

    from dlopt.kvcache import kv_bytes

    rows = []
    for name, (layers, queries, heads, dim) in SHAPES.items():
        config = LlamaConfig(hidden_size=queries * dim, num_hidden_layers=layers, num_attention_heads=queries,
                             num_key_value_heads=heads, head_dim=dim, vocab_size=32)  # fmt: skip
        for method, budget in TABLED.items():
            chosen = settings(method, budget)
            text = spec(chosen["method"], chosen["params"])
            found = [kv_bytes(config, text, n, dtype=torch.bfloat16).total for n in LENGTHS.values()]
            rows.append((name, title(method) + (f"（{budget}）" if budget else ""), *map(human, found)))
    return pd.DataFrame(rows, columns=["模型", "缓存", *LENGTHS])


def designs() -> Any:
    """Bytes of one token in a model of the 70B shape if its attention were designed otherwise, 16-bit."""
    import pandas as pd
    import torch

    from dlopt.kvcache import Shape, latent_bytes, shared_bytes

    layers, queries, heads, dim = SHAPES["70B（GQA，80 层）"]
    half = torch.bfloat16
    found = {
        "MHA": Shape(layers, queries, dim, queries).numbers(1) * 2,
        "GQA": Shape(layers, heads, dim, queries).numbers(1) * 2,
        "MQA": Shape(layers, 1, dim, queries).numbers(1) * 2,
        "MLA（512 + 64）": latent_bytes(layers, 512, 64, 1, half).total,
        "GQA + CLA（2 层共用）": shared_bytes(Shape(layers, heads, dim, queries), 2, 1, half).total,
    }
    rows = [(name, human(size), size / found["MHA"]) for name, size in found.items()]
    frame = pd.DataFrame(rows, columns=["设计", "每词元", "占 MHA"])
    frame.attrs["styles"] = {"占 MHA": "percent"}
    return frame


def _time(records: Sequence[Record]) -> Answer:
    at = {name_of(r): float(r.summary["decode_seconds"]) for r in records if r.config["context"] == max(CONTEXTS)}
    parts: list[bool | None] = []
    told = []
    for name, holds in (("sinks", lambda x: x < 1), ("kivi-2", lambda x: x > 1), ("kivi-2:packed", lambda x: x < 1.5)):
        ratio = at[name] / at["full"] if name in at and "full" in at else None
        parts.append(None if ratio is None else holds(ratio))
        if ratio is not None:
            told.append(f"{written(name)} {ratio:.2f} 倍")
    rule = "StreamingLLM 小于 1、展开的 KIVI-2 大于 1、直接读码的 KIVI-2 小于 1.5 为证实。"
    return judged(
        parts, [f"{max(CONTEXTS)} 词元处每步 CPU 时间与完整缓存之比：{'，'.join(told)}"] if told else [], rule
    )
