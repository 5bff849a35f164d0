"""What the report shows of `speculative/skipping`: skip sets, agreement, and what drafting with them gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN, partial_note
from dlopt.experiments.speculative._ratios import imagined, names, speedup, tokens_per_round
from dlopt.lab.record import Record
from dlopt.lab.report import Presentation
from dlopt.lab.stats import Interval
from dlopt.lab.study import Results

TRAINED, LATER = "trained", "deeper"


def present(results: Results) -> Presentation:
    """A table of all runs, and question 11."""
    shown = Presentation(notes=partial_note(results))
    done = {stage: [r for r in rows if r.status == "done"] for stage, rows in results.stages.items()}
    records = [r for rows in done.values() for r in rows]
    shown.tables["sets"] = _sets(records)
    # what was added after the answer was known does not change it
    verdict, answer = question([r for stage, rows in done.items() if stage != LATER for r in rows])
    word = {True: CONFIRMED, False: CONTRADICTED, None: OPEN}[verdict]
    shown.values |= {"verdict.q11": word, "answer.q11": answer}
    with_, without = (_loss(records, dropped) for dropped in (True, False))
    shown.values |= {"loss.dropout": with_, "loss.plain": without, "dropout": _dropout(records)}
    return shown


def best(record: Record) -> Interval | None:
    """The larger of the speed-ups of the gated arm and of that of fixed length."""
    found = [v for arm in names(record) if (v := speedup(record, arm)) is not None]
    return max(found, key=lambda v: v.mean, default=None)


def fixed(record: Record) -> tuple[str, Interval] | None:
    """The arm whose drafts have the whole length, with its speed-up."""
    for arm in names(record):
        value = speedup(record, arm)
        if arm.endswith("/fixed") and value is not None:
            return arm, value
    return None


def question(records: Sequence[Record]) -> tuple[bool | None, str]:
    """11: drafting without some layers loses on SmolLM2 whatever is skipped, and gains on the model with dropout."""
    found = [(r, pair[1]) for r in records if (pair := fixed(r)) is not None]
    pretrained = [v for r, v in found if r.config["model"] != TRAINED]
    dropped = [v for r, v in found if r.config["model"] == TRAINED and r.config["dropout"]]
    plain = [v for r, v in found if r.config["model"] == TRAINED and not r.config["dropout"]]
    if not (pretrained and dropped and plain):
        return None, "所依据的运行不齐全，按规则记为未定。"
    most, least, other = max(v.mean for v in pretrained), min(dropped, key=lambda v: v.mean), plain[0]
    told = (f"定长时，SmolLM2 最好的跳过集为 {most:.2f} 倍；带层丢弃训练的小模型 {_told(least)}，"
            f"不带的 {_told(other)}。")  # fmt: skip
    return most < 1 < least.low and other.mean < least.mean, told


def _told(value: Interval) -> str:
    return f"{value.mean:.2f}（95% 区间 {value.low:.2f}–{value.high:.2f}）"


def _loss(records: Sequence[Record], dropped: bool) -> Any:
    return next((r.summary["test_loss"] for r in records
                 if r.config["model"] == TRAINED and bool(r.config["dropout"]) == dropped), None)  # fmt: skip


def _dropout(records: Sequence[Record]) -> Any:
    return next((r.config["dropout"] for r in records if r.config["dropout"]), None)


def _model(config: Mapping[str, Any]) -> str:
    if config["model"] != TRAINED:
        return "SmolLM2"
    return "自训练，层丢弃" if config["dropout"] else "自训练"


def _sets(records: Sequence[Record]) -> Any:
    import pandas as pd

    rows = []
    for r in records:
        s, pair = r.summary, fixed(r)
        share = f"{r.config['share']:g}" if r.config["share"] else "自选"
        count = len(s["attention"]) + len(s["mlp"])
        arm, speed = pair if pair is not None else (None, None)
        rows.append((_model(r.config), share, f"{count}/{2 * s['layers']}", s["agreement"], s["cost"],
                     tokens_per_round(r, arm) if arm else None, speed, best(r),
                     imagined(r, arm) if arm else None))  # fmt: skip
    columns = ["模型", "比例", "跳过", "一致率", "代价 c", "每轮词元", "定长加速", "较好者", "GPU 代价下"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["styles"] = {"一致率": "percent"} | dict.fromkeys(columns[4:], "fixed:2")
    return frame
