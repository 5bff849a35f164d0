"""Statistics of one or two samples: confidence intervals, effect sizes, paired tests.

`dlopt.lab.stats` builds comparisons on them, and all can be imported from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
EXACT_SIGNFLIPS = 20  # 2^19 sums: below a second; above, a seeded sample
NAN = math.nan


@dataclass(frozen=True)
class Interval:
    """A mean (or another statistic) with its confidence bounds, over n values of sample deviation std (n - 1)."""

    mean: float
    low: float
    high: float
    n: int
    std: float


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of paired differences. `note` says why p is nan, or what was done in a special case."""

    name: str
    statistic: float
    p: float
    n: int
    note: str = ""


def mean_interval(values: Iterable[float], level: float = 0.95, nan: Literal["refuse", "omit"] = "refuse") -> Interval:
    """mean ± t_{n-1, (1+level)/2} · s / √n, Student's interval for the mean of independent normal values.

    With n = 1 there is no deviation: the bounds and std are nan. Values that are not finite are refused with
    `ValueError`, since a diverged run has no mean; `nan="omit"` leaves them out (n counts the rest, and may be 0).
    """
    x = finite(values, "values", omit=nan == "omit")
    _check_level(level)
    if not len(x):
        return Interval(NAN, NAN, NAN, 0, NAN)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, NAN, NAN, 1, NAN)
    std = float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * std / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, len(x), std)


def bootstrap_interval(
    values: Iterable[float],
    statistic: Callable[..., Any] = np.mean,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of `statistic(array, axis=...)`: the (1 ± level)/2 quantiles over resampled values.

    `Interval.mean` holds the statistic of the values themselves. For per-example scores (n of some hundreds);
    with a handful of seeds it is too narrow and `mean_interval` is right. n = 1 gives nan bounds.
    """
    x = finite(values, "values")
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    value = float(statistic(x, axis=-1))
    if len(x) == 1:
        return Interval(value, NAN, NAN, 1, NAN)
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // len(x))  # bounds the memory: 16 MB of indices at a time
    sizes = [min(chunk, resamples - done) for done in range(0, resamples, chunk)]
    drawn = np.concatenate([statistic(x[rng.integers(0, len(x), (size, len(x)))], axis=-1) for size in sizes])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(x), float(x.std(ddof=1)))


def effect_size(a: Iterable[float], b: Iterable[float], paired: bool = True) -> float:
    """Standardised mean difference of a over b with Hedges' correction J(df) for small samples.

    paired:   g = J(n-1) · mean(a - b) / s(a - b), in units of the deviation of the differences. It grows with the
              correlation of the pairs, so it is not to be compared with unpaired effects.
    unpaired: g = J(n_a+n_b-2) · (mean a - mean b) / s_pooled.
    J(df) = Γ(df/2) / (√(df/2) · Γ((df-1)/2)), which makes g unbiased for normal values.

    nan where df < 2, since J does not exist there (3 pairs are the least). Without any spread: 0 for equal means,
    else ±inf. `ValueError` for values that are not finite or, if paired, of unequal number.
    """
    if paired:
        x, y = _pair(a, b)
        df = len(x) - 1
        gap, spread = float((x - y).mean()) if len(x) else NAN, _std(x - y, x, y)
    else:
        x, y = finite(a, "a"), finite(b, "b")
        df = len(x) + len(y) - 2
        gap = float(x.mean() - y.mean())
        squares = ((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()
        spread = math.sqrt(float(squares) / df) if df > 0 else NAN
    if df < 2:
        return NAN
    if spread == 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    j = math.exp(float(special.gammaln(df / 2) - special.gammaln((df - 1) / 2))) / math.sqrt(df / 2)
    return j * gap / spread


def paired_test(
    a: Iterable[float], b: Iterable[float], test: Literal["t", "wilcoxon", "signflip"] = "t", seed: int = 0
) -> PairedTest:
    """Two-sided test that the differences d = a - b are centred on 0.

    "t": t = mean(d) / (s(d)/√n), Student with n - 1 degrees. "wilcoxon": signed ranks, zero differences dropped,
    ties at their mean rank, p from the exact distribution. "signflip": |sum d| over all 2^n signs, exact up to
    n = 20, beyond that over 100 000 signs drawn with `seed`, p = (hits + 1) / (draws + 1).
    The least p of the last two is 2^(1-n): below n = 6 they cannot reach 0.05.

    p is nan with a note where a test says nothing: n < 2, or (for "t") differences that are all the same but
    not 0, as of quantities that do not depend on the seed. Differences that are all 0 give p = 1.
    """
    x, y = _pair(a, b)
    d, n = x - y, len(x)
    if test not in ("t", "wilcoxon", "signflip"):
        raise ValueError(f"test={test!r} must be 't', 'wilcoxon' or 'signflip'")
    if n < 2:
        return PairedTest(
            test, NAN, NAN, n, f"a paired test needs at least 2 pairs, there {'is' if n == 1 else 'are'} {n}"
        )
    if not d.any():
        return PairedTest(test, 0.0, 1.0, n, "all differences are 0")
    if test == "t":
        spread = _std(d, x, y)
        if spread == 0:
            note = "the differences are all the same, so there is no spread to test against: compare the values"
            return PairedTest(test, math.copysign(math.inf, d[0]), NAN, n, note)
        t = float(d.mean()) / (spread / math.sqrt(n))
        return PairedTest(test, t, float(2 * special.stdtr(n - 1, -abs(t))), n)
    return _wilcoxon(d) if test == "wilcoxon" else _signflip(d, seed)


def _wilcoxon(d: Array) -> PairedTest:
    kept = d[d != 0]
    # ranks doubled, so that mean ranks of ties are integers and the exact distribution is a count of subsets
    ranks = np.rint(2 * stats.rankdata(np.abs(kept))).astype(int)
    ways = np.zeros(int(ranks.sum()) + 1)
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] += ways[:-rank].copy()
        ways /= 2
    plus = int(ranks[kept > 0].sum())
    smaller = min(plus, int(ranks.sum()) - plus)
    p = min(1.0, 2 * float(ways[: smaller + 1].sum()))
    note = f"{len(d) - len(kept)} differences of 0 dropped" if len(kept) < len(d) else ""
    return PairedTest("wilcoxon", smaller / 2, p, len(d), note)


def _signflip(d: Array, seed: int) -> PairedTest:
    observed, slack = abs(float(d.sum())), 1e-12 * float(np.abs(d).sum())
    if len(d) <= EXACT_SIGNFLIPS:
        sums = d[:1]  # the sign of the first is fixed: the other half are the same sums negated
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return PairedTest("signflip", float(d.mean()), float((np.abs(sums) >= observed - slack).mean()), len(d))
    rng, draws, hits = np.random.default_rng(seed), 100_000, 0
    for _ in range(100):
        signs = rng.integers(0, 2, (draws // 100, len(d))) * 2 - 1
        hits += int((np.abs(signs @ d) >= observed - slack).sum())
    return PairedTest("signflip", float(d.mean()), (hits + 1) / (draws + 1), len(d), f"{draws} drawn signs")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, such as 0.95")


def finite(values: Iterable[float], name: str, omit: bool = False) -> Array:
    x = np.asarray(list(values), dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name} must be a flat list of at least one number, its shape is {x.shape}")
    bad = ~np.isfinite(x)
    if bad.any() and not omit:
        where = ", ".join(str(i) for i in np.flatnonzero(bad)[:5])
        raise ValueError(
            f"{name} has {bad.sum()} of {len(x)} numbers that are not finite (at {where}): a run that diverged has no "
            "value to average; report it by itself, or leave such values out on purpose"
        )
    return x[~bad]


def _pair(a: Iterable[float], b: Iterable[float]) -> tuple[Array, Array]:
    a, b = list(a), list(b)
    if len(a) != len(b):
        raise ValueError(f"pairs are needed, but there are {len(a)} values against {len(b)}")
    return (finite(a, "a"), finite(b, "b")) if a else (np.zeros(0), np.zeros(0))


def _std(d: Array, x: Array, y: Array) -> float:
    """Sample deviation of differences; 0 where it is only rounding of the values they came from."""
    if len(d) < 2:
        return NAN
    std = float(d.std(ddof=1))
    return 0.0 if std <= 4 * np.finfo(np.float64).eps * max(np.abs(x).max(), np.abs(y).max()) else std
