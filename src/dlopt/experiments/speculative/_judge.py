"""The questions of the report on speculative decoding, judged by rules that were written before the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlopt.experiments._series import grouped
from dlopt.experiments.speculative._names import CATEGORIES, title
from dlopt.experiments.speculative._names import category as named
from dlopt.experiments.speculative._ratios import (
    drafters,
    has,
    imagined,
    mean,
    predicted,
    speedup,
    tokens_per_round,
)
from dlopt.lab.record import Record
from dlopt.lab.stats import Interval

Answer = tuple[bool | None, str]
ByCategory = Mapping[str, Sequence[Record]]
LOOKUP, FIXED, THEIRS, BF16 = "prompt-lookup", "prompt-lookup/fixed", "hf-lookup", "plain-bf16"
NEVER_SLOWER, REWRITING, OTHERS, DRAFTS = 0.95, 1.6, 1.3, 1.1
OWN_STORE, AGREES, IMAGINED = 1.3, 0.10, 1.5
SMALL, CASCADE = "speculative-sampling/fixed", "cascade/fixed"
IN_TEXT = (FIXED, "llma/fixed")  # question 9: drafters that look up in the text at hand
NOTHING: Answer = (None, "所依据的运行不齐全，按规则记为未定。")


def repetition(records: Sequence[Record]) -> float:
    """Share of four-grams that an output already had, averaged over prompts."""
    return mean([v for r in records for v in r.summary["repetition"]]) or 0.0


def mean_of(value: Interval | None) -> float | None:
    return None if value is None else value.mean


def questions(done: Mapping[str, Sequence[Record]]) -> list[Answer]:
    """(holds, fails or not known; the numbers it was judged by) of questions 1 to 10 and 12. done: records by stage.

    Drafters that look up and those that are models were measured in runs of their own, so no question mixes the two.
    """
    main, models = (grouped(done.get(stage, []), lambda r: r.config["category"]) for stage in ("lookup", "models"))
    # what is asked of all categories is not known from some of them
    every, each = (found if set(CATEGORIES) <= set(found) else {} for found in (main, models))
    return [
        _never_slower(every),
        _at_least(main, ("rewriting",), REWRITING),
        _at_least(main, ("code", "qa"), OTHERS),
        _fixed_on_chat(main),
        _beats(every),
        _half(main),
        _stores(done.get("stores", [])),
        _model(every),
        _gpu(main),
        _overall(every),
        _distilled(each),
    ]


def _get(main: ByCategory, category: str, arm: str) -> Record | None:
    return next((r for r in main.get(category, ()) if has(r, arm)), None)


def _speed(main: ByCategory, category: str, arm: str) -> Interval | None:
    r = _get(main, category, arm)
    return None if r is None else speedup(r, arm)


def _told(value: Interval) -> str:
    return f"{value.mean:.2f}（95% 区间 {value.low:.2f}–{value.high:.2f}）"


def _never_slower(main: ByCategory) -> Answer:
    found = {c: v for c in main if (v := _speed(main, c, LOOKUP)) is not None}
    if not found or len(found) < len(main):
        return NOTHING
    worst = min(found, key=lambda c: found[c].low)
    return found[worst].low >= NEVER_SLOWER, f"下界最低的任务是{named(worst)}：{_told(found[worst])}。"


def _at_least(main: ByCategory, categories: Sequence[str], least: float) -> Answer:
    found = {c: _speed(main, c, LOOKUP) for c in categories}
    if any(v is None for v in found.values()):
        return NOTHING
    told = "，".join(f"{named(c)} {_told(v)}" for c, v in found.items() if v is not None)
    return all(v is not None and v.mean >= least for v in found.values()), f"带门控的查找：{told}。"


def _fixed_on_chat(main: ByCategory) -> Answer:
    r, value = _get(main, "chat", FIXED), _speed(main, "chat", FIXED)
    if r is None or value is None:
        return NOTHING
    rounds = tokens_per_round(r, FIXED) or 0.0
    return value.high < 1 and rounds > DRAFTS, f"闲聊上定长查找每轮 {rounds:.2f} 个词元，加速 {_told(value)}。"


def _beats(main: ByCategory) -> Answer:
    pairs = {c: (_speed(main, c, LOOKUP), _speed(main, c, THEIRS)) for c in main}
    if not pairs or any(a is None or b is None for a, b in pairs.values()):
        return NOTHING
    ratios = {c: a.mean / b.mean for c, (a, b) in pairs.items() if a is not None and b is not None}
    least = min(ratios, key=lambda c: ratios[c])
    wins = sum(v > 1 for v in ratios.values())
    told = f"{len(ratios)} 个任务中 {wins} 个更快；两者加速之比最低的是{named(least)}，{ratios[least]:.2f}。"
    return ratios[least] > 1, told


def _half(main: ByCategory) -> Answer:
    half = _speed(main, "chat", BF16)
    mine = {arm: v.mean for r in main.get("chat", ()) for arm in drafters(r) if (v := speedup(r, arm)) is not None}
    if half is None or not mine:
        return NOTHING
    best = max(mine, key=lambda arm: mine[arm])
    told = f"闲聊上 bf16 逐词为 fp32 逐词的 {_told(half)}，最好的起草方法是{title(best)}，{mine[best]:.2f}。"
    return half.mean > 1 and half.mean > mine[best], told


def _stores(records: Sequence[Record]) -> Answer:
    gains, own = [], []
    for r in records:
        for arm in drafters(r):
            value = speedup(r, arm)
            if value is not None:
                (own if "store=outputs" in arm else gains).append((arm, str(r.config["category"]), value))
    if not gains or not own:
        return NOTHING
    best, mine = (max(rows, key=lambda row: row[2].mean) for rows in (gains, own))
    told = (f"别处文本的数据库最好是{named(best[1])}上的 {_told(best[2])}；"
            f"自己先前的输出最好是{named(mine[1])}上的 {_told(mine[2])}。")  # fmt: skip
    return all(row[2].low <= 1 for row in gains) and all(row[2].mean < OWN_STORE for row in own), told


def _pairs(main: ByCategory, value: Callable[[Record, str], float | None]) -> list[tuple[str, str, float, float]]:
    """(category, arm, value, measured speed-up) of all drafters."""
    found = []
    for category, records in main.items():
        for r in records:
            for arm in drafters(r):
                a, b = value(r, arm), mean_of(speedup(r, arm))
                if a is not None and b is not None:
                    found.append((category, arm, a, b))
    return found


def _model(main: ByCategory) -> Answer:
    rows = _pairs(main, predicted)
    if not rows:
        return NOTHING
    errors = [abs(a / b - 1) for _, _, a, b in rows]
    average = mean(errors) or 0.0
    return average <= AGREES, f"{len(rows)} 个组合的平均相对误差 {100 * average:.1f}%，最大 {100 * max(errors):.1f}%。"


def error(record: Record) -> float | None:
    """Mean relative error of the predicted speed-ups of a run."""
    return mean([abs(a / b - 1) for _, _, a, b in _pairs({"": [record]}, predicted)])


def overestimates(main: ByCategory) -> tuple[int, int]:
    """(pairs of category and drafter, how many of them were predicted to be faster than they were)."""
    rows = _pairs(main, predicted)
    return len(rows), sum(a > b for _, _, a, b in rows)


def _gpu(main: ByCategory) -> Answer:
    rows = {arm: v for r in main.get("rewriting", ()) for arm in drafters(r)
            if arm in IN_TEXT and (v := imagined(r, arm)) is not None}  # fmt: skip
    if not rows:
        return NOTHING
    least = min(rows, key=lambda arm: rows[arm])
    told = "，".join(f"{title(arm)} {v:.2f}" for arm, v in rows.items())
    return rows[least] >= IMAGINED, f"改错任务在 GPU 式代价下：{told}。"


def _overall(main: ByCategory) -> Answer:
    rows: dict[str, list[float]] = {}
    for _, arm, _, measured in _pairs(main, tokens_per_round):
        rows.setdefault(arm, []).append(measured)
    whole: dict[str, Any] = {arm: mean(v) for arm, v in rows.items() if len(v) == len(main)}
    if not whole:
        return NOTHING
    best = max(whole, key=lambda arm: whole[arm])
    return best.partition(":")[0].partition("/")[0] in ("suffix-decoding", "best-of-drafts"), (
        f"各任务平均加速最高的是{title(best)}，{whole[best]:.2f}；"
        f"带门控的查找为 {whole.get(LOOKUP, float('nan')):.2f}。"
    )


def _distilled(main: ByCategory) -> Answer:
    pairs = {c: (_speed(main, c, SMALL), _speed(main, c, CASCADE)) for c in main}
    if not pairs or any(a is None or b is None for a, b in pairs.values()):
        return NOTHING
    small, both = ({c: pair[i] for c, pair in pairs.items() if pair[i] is not None} for i in (0, 1))
    most = max(small, key=lambda c: small[c].mean)
    averages = [mean([v.mean for v in rows.values()]) or 0.0 for rows in (small, both)]
    told = (f"定长的小模型起草最快的任务是{named(most)}，{_told(small[most])}；"
            f"各类平均，小模型 {averages[0]:.2f}，级联 {averages[1]:.2f}。")  # fmt: skip
    return all(v.high < 1 for v in small.values()) and averages[1] > averages[0], told
