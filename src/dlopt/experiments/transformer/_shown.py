"""From the records of topic `transformer` to figures, tables and verdicts: pieces that its parts use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.experiments.transformer._common import split
from dlopt.lab import palette
from dlopt.lab.record import Record
from dlopt.lab.stats import Interval
from dlopt.lab.study import Results

if TYPE_CHECKING:
    import pandas as pd

Answer = tuple[str, str]
NOTHING: Answer = (OPEN, "缺少可比的运行。")
RESAMPLES = 4000
MODELS = {"seq2seq": "编码器-解码器", "decoder": "纯解码器", "lstm": "LSTM + 注意力", "ngram": "三元模型"}


def done(results: Results, *stages: str) -> list[Record]:
    """The runs of some stages that ended well, each once; all stages if none is named."""
    found = {}
    for name in stages or results.stages:
        found.update({r.key: r for r in results.stages.get(name, ()) if r.status == "done"})
    return list(found.values())


def stages_of(results: Results, *stages: str) -> list[Record]:
    """All runs of some stages, each once."""
    found: dict[str, Record] = {}
    for name in stages:
        found.update({r.key: r for r in results.stages.get(name, ())})
    return list(found.values())


def lost(results: Results) -> list[str]:
    """A line for runs that did not end well, and why the first of them did not."""
    bad = {r.key: r for group in results.stages.values() for r in group if r.status != "done"}
    if not bad:
        return []
    counts: dict[str, int] = {}
    for r in bad.values():
        counts[r.status] = counts.get(r.status, 0) + 1
    told = "，".join(f"{palette.STATUSES.get(k, k)} {n} 次" for k, n in counts.items())
    first = next(iter(bad.values())).reason
    return [f"未正常结束的运行：{told}。首例的原因：{first[:120]}"]


def runs_table(results: Results, about: Mapping[str, str]) -> pd.DataFrame:
    """One row a stage: how many runs, how they ended, how long they took."""
    import pandas as pd

    rows = []
    for stage, records in results.stages.items():
        seeds = sorted({int(r.config["seed"]) for r in records})
        numbers = "—" if not seeds else f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        steps = sorted({int(r.config["steps"]) for r in records if r.config.get("steps")})
        trained = "—" if not steps else f"{steps[0]}–{steps[-1]}" if len(steps) > 1 else str(steps[0])
        bad = sum(r.status != "done" for r in records)
        minutes = sum(r.summary.get("seconds", 0.0) for r in records) / 60
        rows.append((about.get(stage, stage), len(records), numbers, trained, bad, minutes))
    frame = pd.DataFrame(rows, columns=["阶段", "运行数", "种子", "步数", "未完成", "合计分钟"])
    frame.attrs["styles"] = {"合计分钟": "fixed:1"}
    return frame


def judged(confirmed: bool | None, contradicted: bool | None) -> str:
    """证实 where the prediction holds, 推翻 where its opposite does; else, and where something is not known, 未定."""
    if confirmed is None or contradicted is None:
        return OPEN
    return CONFIRMED if confirmed else CONTRADICTED if contradicted else OPEN


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, seed: int = 0
) -> Interval:
    """sum / sum with a percentile bootstrap over poems, whose couplets are not independent."""
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if len(a) != len(b) or not len(a) or b.sum() <= 0:
        raise ValueError(f"a ratio needs as many numerators as denominators, got {len(a)} and {len(b)}")
    random = np.random.default_rng(seed)
    values = []
    for start in range(0, RESAMPLES, 200):
        count = min(200, RESAMPLES - start)
        weights = random.multinomial(len(a), np.full(len(a), 1 / len(a)), size=count)
        values.append((weights @ a) / np.maximum(weights @ b, 1e-300))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.sum() / b.sum()), float(low), float(high), len(a), math.nan)


def over_seeds(records: Iterable[Record], name: str) -> np.ndarray | None:
    """Numbers of single poems, averaged over seeds; None if no run has them."""
    found = [split(r.summary[name]) for r in records if r.summary.get(name)]
    if not found or len({len(f) for f in found}) > 1:
        return None
    return np.mean(np.array(found), axis=0)


def clopper(successes: int, n: int, level: float = 0.95) -> Interval:
    """The exact binomial interval of Clopper and Pearson."""
    from scipy import stats

    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return Interval(successes / n, low, high, n, math.nan)


def mean_bootstrap(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """A mean with the percentile bootstrap."""
    return ratio_interval(values, [1.0] * len(values), level, seed)


def difference(a: Interval, b: Interval) -> Interval:
    """a - b of two independent estimates, from their own intervals (variance estimates recovery)."""
    gap = a.mean - b.mean
    low = gap - math.hypot(a.mean - a.low, b.high - b.mean)
    high = gap + math.hypot(a.high - a.mean, b.mean - b.low)
    return Interval(gap, low, high, min(a.n, b.n), math.nan)


def frame(rows: Sequence[Sequence[Any]], columns: Sequence[str], **styles: str) -> pd.DataFrame:
    """A table whose cells stay as they are. styles: {column: style}."""
    import pandas as pd

    cells = {c: pd.Series([row[i] for row in rows], dtype=object) for i, c in enumerate(columns)}
    made = pd.DataFrame(cells, columns=list(columns))
    made.attrs["styles"] = styles
    return made


def span(x: Interval | None, digits: int = 3, scale: float = 1.0, sign: bool = True) -> str:
    """A number with its interval in a sentence."""
    if x is None:
        return "—"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    if not math.isfinite(x.low):
        return form.format(scale * x.mean)
    return f"{form.format(scale * x.mean)} [{form.format(scale * x.low)}, {form.format(scale * x.high)}]"
