"""How methods are compared: tables over matched seeds, single examples, Holm's correction.

The statistics of samples below (`mean_interval`, `effect_size`, `paired_test`, `bootstrap_interval`) stand in
`dlopt.lab.samples`; those of curves and points (`steps_to_target`, `area_under_curve`, `pareto`,
`performance_profile`) in `dlopt.lab.tradeoffs`; `edge_warnings` in `dlopt.lab.search`. All can be imported from here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from dlopt.lab.samples import (
    Interval,
    PairedTest,
    bootstrap_interval,
    effect_size,
    mean_interval,
    paired_test,
)
from dlopt.lab.search import Edge, edge_warnings
from dlopt.lab.tradeoffs import Profile, area_under_curve, pareto, performance_profile, steps_to_target

__all__ = [
    "Comparison",
    "Edge",
    "ExampleComparison",
    "Interval",
    "PairedTest",
    "Profile",
    "area_under_curve",
    "bootstrap_interval",
    "compare",
    "compare_examples",
    "edge_warnings",
    "effect_size",
    "holm",
    "mean_interval",
    "paired_test",
    "pareto",
    "performance_profile",
    "steps_to_target",
]

NAN = math.nan


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: with p_(1) <= ... <= p_(m),
    adjusted p_(i) = max_{j <= i} min(1, (m - j + 1) · p_(j)). They control the family-wise error.

    A nan is no test: it stays nan and does not count in m. `ValueError` for a number outside [0, 1].
    """
    for p in pvalues:
        if not (math.isnan(p) or 0 <= p <= 1):
            raise ValueError(f"{p} is not a p-value: it must lie between 0 and 1")
    order = sorted((i for i, p in enumerate(pvalues) if not math.isnan(p)), key=lambda i: pvalues[i])
    adjusted, running = [NAN] * len(pvalues), 0.0
    for done, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - done) * pvalues[i]))
        adjusted[i] = running
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """A method against a baseline over matched seeds. difference = mean(method - baseline), with its interval.

    n counts the pairs that enter the numbers. unmatched: seeds that only one of the two has. diverged: matched
    seeds on which a value is not finite, {seed: "method", "baseline" or "both"}. Neither kind enters the numbers,
    and `note` says so; it also says why p is nan.

    verdict: "better" or "worse" if p_holm < alpha and the difference points there, else "undecided". A method that
    diverged on a seed is never "better", and none is "worse" than a baseline that did.
    """

    method: str
    baseline: str
    difference: float
    interval: Interval
    effect: float
    p: float
    p_holm: float
    n: int
    verdict: Literal["better", "worse", "undecided"]
    unmatched: tuple[Hashable, ...] = ()
    diverged: Mapping[Hashable, str] = field(default_factory=dict)
    note: str = ""


def compare(
    table: Mapping[str, Mapping[Any, float]],
    baseline: str,
    higher_is_better: bool,
    test: Literal["t", "wilcoxon", "signflip"] = "t",
    level: float = 0.95,
    alpha: float = 0.05,
) -> list[Comparison]:
    """Each method of {method: {seed: value}} against the baseline by `paired_test`, corrected over all by `holm`.

    effect is the paired `effect_size` of method - baseline, interval the `mean_interval` of the differences. The
    list has the table's order. Comparisons that cannot be tested (p nan) do not count in Holm's family.
    `ValueError` if the baseline is not in the table or alpha is not in (0, 1).
    """
    if baseline not in table:
        raise ValueError(f"the baseline {baseline!r} is not among the methods {', '.join(table)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1")
    rows = [_against(table, name, baseline, test, level) for name in table if name != baseline]
    corrected = holm([row.p for row in rows])
    return [_judge(replace(row, p_holm=p), higher_is_better, alpha) for row, p in zip(rows, corrected)]


def _against(
    table: Mapping[str, Mapping[Any, float]],
    method: str,
    baseline: str,
    test: Literal["t", "wilcoxon", "signflip"],
    level: float,
) -> Comparison:
    ours, theirs = table[method], table[baseline]
    unmatched = tuple([s for s in theirs if s not in ours] + [s for s in ours if s not in theirs])
    diverged: dict[Hashable, str] = {}
    seeds = []
    for seed in (s for s in theirs if s in ours):
        good, base_good = math.isfinite(ours[seed]), math.isfinite(theirs[seed])
        if good and base_good:
            seeds.append(seed)
        else:
            diverged[seed] = "baseline" if good else "method" if base_good else "both"
    a, b = [float(ours[s]) for s in seeds], [float(theirs[s]) for s in seeds]
    result = paired_test(a, b, test)
    notes = [result.note] if result.note else []
    if unmatched:
        notes.append(f"seeds that only one of the two has: {', '.join(map(str, unmatched))}")
    if diverged:
        notes.append("not finite: " + ", ".join(f"seed {seed} ({who})" for seed, who in diverged.items()))
    differences = [x - y for x, y in zip(a, b)]
    interval = mean_interval(differences, level) if seeds else Interval(NAN, NAN, NAN, 0, NAN)
    effect = effect_size(a, b) if seeds else NAN
    return Comparison(
        method, baseline, interval.mean, interval, effect, result.p, NAN, len(seeds), "undecided", unmatched, diverged,
        "; ".join(notes),
    )  # fmt: skip


def _judge(row: Comparison, higher_is_better: bool, alpha: float) -> Comparison:
    if not row.p_holm < alpha:  # also where it is nan
        return row
    better = (row.difference > 0) == higher_is_better
    # leaving out its own failures must not make a winner
    if (set(row.diverged.values()) - {"baseline"}) if better else (set(row.diverged.values()) - {"method"}):
        return row
    return replace(row, verdict="better" if better else "worse")


@dataclass(frozen=True)
class ExampleComparison:
    """Two classifiers on the same examples. difference = accuracy_a - accuracy_b; p of McNemar's exact test."""

    both: int
    only_a: int
    only_b: int
    neither: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    p: float

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.both + self.only_a + self.only_b + self.neither


def compare_examples(correct_a: Iterable[bool], correct_b: Iterable[bool]) -> ExampleComparison:
    """McNemar's exact test: among the examples that only one of the two has right, is it a fair coin which one?

    p = min(1, 2 · P[Binomial(only_a + only_b, 1/2) <= min(only_a, only_b)]), and 1 if there is none of them. It
    tests these two trained models on examples like these, not what another seed would give.
    `ValueError` for unequal lengths, no example, or entries that are not 0 or 1.
    """
    a, b = np.asarray(list(correct_a)), np.asarray(list(correct_b))
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two flat lists over the same examples are needed, their shapes are {a.shape} and {b.shape}")
    for name, given in (("correct_a", a), ("correct_b", b)):
        if not np.isin(given, (0, 1)).all():
            raise ValueError(f"{name} must hold only True and False (1 and 0), one entry per example")
    a, b = a.astype(bool), b.astype(bool)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    accuracy_a, accuracy_b = float(a.mean()), float(b.mean())
    difference = (only_a - only_b) / len(a)
    return ExampleComparison(
        both, only_a, only_b, len(a) - both - only_a - only_b, accuracy_a, accuracy_b, difference, p
    )
