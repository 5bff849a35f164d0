"""From the lists in a record of `speculative/bench` to speed-ups with intervals, tokens a round, predictions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from dlopt.experiments.speculative._arms import BASELINES, DRAWN, PLAIN, arms
from dlopt.lab.record import Record
from dlopt.lab.stats import Interval
from dlopt.speculative.costs import Costs

RESAMPLES, SLOPE = 4000, 0.03  # SLOPE: of v(k) on an accelerator that waits for memory: v(k) = 1 + SLOPE (k - 1)


def names(record: Record) -> list[str]:
    """The arms of a run, without plain."""
    line = str(record.config.get("arms") or record.summary.get("arms") or "")
    return [arm.text for arm in arms(line)] if line else []


def method_of(arm: str) -> str:
    """The method of an arm's text."""
    return arm.partition("/")[0].partition(":")[0]


def has(record: Record, arm: str) -> bool:
    return f"{arm} cpu" in record.summary


def speedup(record: Record, arm: str, clock: str = "cpu", over: str = PLAIN) -> Interval | None:
    """Seconds per new token of `over` over those of the arm, all prompts together, both after the prefill.

    The interval resamples prompts; it tells how much other prompts could have changed the figure, not how much another
    machine would. None where the run lacks one of the two.
    """
    if not (has(record, arm) and has(record, over)):
        return None
    base, mine = ((_list(record, f"{name} {clock}"), _after_first(record, name)) for name in (over, arm))
    ratio = _ratio(base, mine, np.arange(len(base[0]))[None])
    draws = np.random.default_rng(0).integers(0, len(base[0]), (RESAMPLES, len(base[0])))
    low, high = np.quantile(_ratio(base, mine, draws), [0.025, 0.975])
    return Interval(float(ratio[0]), float(low), float(high), len(base[0]), float("nan"))


def seconds_per_token(record: Record, arm: str = PLAIN, clock: str = "cpu") -> float:
    """Over all prompts, after the prefill."""
    return float(_list(record, f"{arm} {clock}").sum() / _after_first(record, arm).sum())


def of_prompts(record: Record, arm: str, chosen: Sequence[bool], clock: str = "cpu") -> float | None:
    """The speed-up over plain decoding on some of the prompts; None where none is chosen."""
    if not (has(record, arm) and any(chosen)):
        return None
    pairs = ((_list(record, f"{name} {clock}"), _after_first(record, name)) for name in (PLAIN, arm))
    return float(_ratio(*pairs, np.flatnonzero(np.asarray(chosen))[None])[0])


def prefill_ratio(record: Record, arm: str, clock: str = "prefill") -> float | None:
    """Median over prompts of plain's time for the prompt over the arm's."""
    if f"{arm} {clock}" not in record.summary:
        return None
    return float(np.median(_list(record, f"{PLAIN} {clock}") / _list(record, f"{arm} {clock}")))


def _list(record: Record, name: str) -> np.ndarray:
    return np.asarray(record.summary[name], dtype=float)


def _after_first(record: Record, arm: str) -> np.ndarray:
    """New tokens after the one that the prefill gave; at least 1, for answers that end at once."""
    return np.maximum(_list(record, f"{arm} tokens") - 1, 1)


def _ratio(base: Sequence[np.ndarray], mine: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    per_token = [seconds[rows].sum(1) / tokens[rows].sum(1) for seconds, tokens in (base, mine)]
    return per_token[0] / per_token[1]


def tokens_per_round(record: Record, arm: str) -> float | None:
    """New tokens per pass of the target, over all prompts; plain: 1. None for arms that do not count passes."""
    rounds = record.summary.get(f"{arm} rounds")
    return float((_list(record, f"{arm} tokens") - 1).sum() / max(1, sum(rounds))) if rounds else None


def widths(record: Record, arm: str) -> dict[int, int]:
    return {int(width): int(count) for width, count in record.summary.get(f"{arm} widths", {}).items()}


def costs(record: Record) -> Costs:
    """v(k) as the run calibrated it."""
    table: Mapping[str, float] = record.summary["costs"]
    pairs = sorted((int(k), float(s)) for k, s in table.items())
    return Costs(tuple(k for k, _ in pairs), tuple(s for _, s in pairs))


def imagined(record: Record, arm: str, slope: float = SLOPE) -> float | None:
    """Speed-up of the same drafts where a pass of k tokens costs 1 + slope (k - 1) and a drafted token c: nothing for
    lookup, for a model the share of the target's weights that it reads (None where the record does not tell c)."""
    c = record.summary.get(f"{arm} cost", record.summary.get("cost")) if method_of(arm) in DRAWN else 0.0
    found = widths(record, arm)
    if not found or c is None:
        return None
    tokens = int((_list(record, f"{arm} tokens") - 1).sum())
    spent = sum(count * (1 + slope * (width - 1)) for width, count in found.items())
    return tokens / (spent + c * int(record.summary[f"{arm} drafted"]))


def predicted(record: Record, arm: str) -> float | None:
    """Speed-up by the cost model: calibrated v(k) of the widths that were run, and measured seconds of drafting."""
    found, table = widths(record, arm), costs(record)
    if not found:
        return None
    tokens = float((_list(record, f"{arm} tokens") - 1).sum())
    spent = sum(count * table.at(width) for width, count in found.items())
    return tokens * table.at(1) / (spent + float(record.summary[f"{arm} draft_seconds"]))


def acceptance(record: Record, arm: str) -> list[float | None]:
    """By depth: of the drafts that were so long, the share of which all tokens up to there were taken."""
    offered, taken = (record.summary.get(f"{arm} {name}", []) for name in ("offered", "taken"))
    return [t / o if o else None for o, t in zip(offered, taken)]


def share_drafting(record: Record, arm: str) -> float | None:
    """Share of the time after the prefill that went into drafting and the gate."""
    whole = record.summary.get(f"{arm} total_seconds")
    if not whole:
        return None
    return float(record.summary[f"{arm} draft_seconds"] / (whole - record.summary[f"{arm} prefill_seconds"]))


def mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def drafters(record: Record) -> list[str]:
    """Arms that draft with our engine."""
    return [name for name in names(record) if name not in BASELINES]
