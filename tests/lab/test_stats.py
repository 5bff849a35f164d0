"""Statistics against SciPy, closed forms, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special
from scipy import stats as scipy_stats

from dlopt.lab.stats import (
    area_under_curve,
    bootstrap_interval,
    compare,
    compare_examples,
    effect_size,
    holm,
    mean_interval,
    paired_test,
    pareto,
    performance_profile,
    steps_to_target,
)

NAN, INF = math.nan, math.inf
numbers = st.floats(-100, 100).map(lambda v: round(v, 3))
pvalues = st.lists(st.floats(0, 1), min_size=1, max_size=12)


# --- intervals -------------------------------------------------------------------------------------------------


def test_mean_interval_equals_scipy():
    x = np.random.default_rng(0).normal(3, 2, 7)
    for level in (0.5, 0.95, 0.99):
        found = mean_interval(x, level)
        low, high = scipy_stats.ttest_1samp(x, 0).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.mean, found.std, found.n) == (pytest.approx(x.mean()), pytest.approx(x.std(ddof=1)), 7)


def test_mean_interval_of_three_by_hand():
    # with 2 degrees the quantile has a closed form: t_p = (2p - 1) / sqrt(2p (1 - p))
    t = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert mean_interval([1, 2, 3]).high == pytest.approx(2 + t / math.sqrt(3), rel=1e-9)
    assert mean_interval(iter([4, 4])) == mean_interval([4, 4])
    assert (mean_interval([4, 4]).low, mean_interval([4, 4]).high) == (4, 4)


def test_one_value_has_no_bounds():
    one = mean_interval([2.5])
    assert (one.mean, one.n) == (2.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(one.std)


def test_mean_interval_refuses_what_is_not_finite():
    for bad in (NAN, INF, -INF):
        with pytest.raises(ValueError, match=r"values has 1 of 3 numbers that are not finite \(at 1\)"):
            mean_interval([1, bad, 2])
    assert mean_interval([1, NAN, 2], nan="omit") == mean_interval([1, 2])
    empty = mean_interval([NAN], nan="omit")
    assert empty.n == 0
    assert math.isnan(empty.mean)
    with pytest.raises(ValueError, match="at least one number"):
        mean_interval([])
    with pytest.raises(ValueError, match=r"level=95 must lie between 0 and 1"):
        mean_interval([1, 2], level=95)


@pytest.mark.parametrize(("n", "level"), [(3, 0.95), (5, 0.8)])
def test_mean_interval_covers_as_often_as_it_says(n, level):
    rng = np.random.default_rng(n)
    trials = 4000
    found = [mean_interval(x, level) for x in rng.normal(1.0, 3.0, (trials, n))]
    covered = sum(i.low <= 1.0 <= i.high for i in found)
    # 4 standard deviations of a binomial: one false alarm in 16 000 seeds, and this seed is fixed
    assert abs(covered - trials * level) < 4 * math.sqrt(trials * level * (1 - level))


def test_bootstrap_interval():
    x = np.random.default_rng(1).exponential(size=400)
    ours = bootstrap_interval(x, seed=3)
    theirs = scipy_stats.bootstrap((x,), np.mean, method="percentile", random_state=5).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert ours == bootstrap_interval(x, seed=3) != bootstrap_interval(x, seed=4)
    median = bootstrap_interval(x, np.median)
    assert median.mean == np.median(x)
    assert median.low < median.mean < median.high
    assert math.isnan(bootstrap_interval([1.0]).low)
    assert bootstrap_interval([2.0, 2.0]).high == 2.0
    # drawn in more than one piece
    assert bootstrap_interval(np.arange(1500.0), resamples=3000).low == pytest.approx(749.5 - 1.96 * 11.18, abs=2)
    with pytest.raises(ValueError, match="resamples=0"):
        bootstrap_interval([1, 2], resamples=0)


def test_bootstrap_covers():
    rng = np.random.default_rng(0)
    found = [bootstrap_interval(x, level=0.9, resamples=400) for x in rng.random((400, 100))]
    covered = sum(i.low <= 0.5 <= i.high for i in found)
    assert 0.85 * 400 < covered < 0.95 * 400


# --- effects ---------------------------------------------------------------------------------------------------


def test_effect_size_by_hand():
    a, b = [3.0, 5.0, 4.0, 8.0], [1.0, 4.0, 4.0, 5.0]
    d = np.subtract(a, b)
    j = math.gamma(1.5) / (math.sqrt(1.5) * math.gamma(1.0))
    assert effect_size(a, b) == pytest.approx(j * d.mean() / d.std(ddof=1), rel=1e-12)
    pooled = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    j = math.gamma(3.0) / (math.sqrt(3.0) * math.gamma(2.5))
    assert effect_size(a, b, paired=False) == pytest.approx(j * (np.mean(a) - np.mean(b)) / pooled, rel=1e-12)
    assert effect_size(b, a) == pytest.approx(-effect_size(a, b))


@pytest.mark.parametrize("paired", [True, False])
def test_effect_size_is_unbiased(paired):
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, (6000, 5)), rng.normal(0, 1, (6000, 5))
    found = np.array([effect_size(x, y, paired) for x, y in zip(a, b)])
    truth = 1 / math.sqrt(2) if paired else 1.0
    assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(len(found))


def test_effect_size_where_there_is_none():
    assert math.isnan(effect_size([1, 2], [0, 0]))  # one degree of freedom
    assert effect_size([1, 2, 3], [1, 2, 3]) == 0
    assert effect_size([1.1, 2.1, 3.1], [1, 2, 3]) == INF  # equal up to rounding
    assert effect_size([1, 1], [2, 2], paired=False) == -INF
    assert math.isnan(effect_size([1], [2, 3], paired=False))
    assert effect_size([1, 2, 3], [1, 2], paired=False) > 0
    with pytest.raises(ValueError, match="3 values against 2"):
        effect_size([1, 2, 3], [1, 2])


# --- paired tests ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=9))
@settings(max_examples=60, deadline=None)
def test_t_equals_scipy(pairs):
    a, b = np.array(pairs).T
    if np.ptp(a - b) < 1e-6:
        return
    ours, theirs = paired_test(a, b), scipy_stats.ttest_rel(a, b)
    assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-300)


def brute_force(d, weights, observed):
    """Share of the sign vectors for which |sum s w| >= observed."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(d))))
    return (np.abs(signs @ weights) >= observed - 1e-9).mean()


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_exact_tests_equal_brute_force_also_with_ties_and_zeros(differences):
    d = np.array(differences, dtype=float)
    zero = np.zeros(len(d))
    flip = paired_test(d, zero, "signflip")
    rank = paired_test(d, zero, "wilcoxon")
    assert flip.p == pytest.approx(brute_force(d, d, abs(d.sum())))
    kept = d[d != 0]
    if len(kept):
        ranks = scipy_stats.rankdata(np.abs(kept))
        assert rank.p == pytest.approx(brute_force(kept, ranks, abs((np.sign(kept) * ranks).sum())))
    assert ("differences of 0 dropped" in rank.note) == (0 < len(kept) < len(d))


@pytest.mark.parametrize("n", [2, 5, 12, 25, 60])
def test_wilcoxon_equals_scipy(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    ours, theirs = paired_test(d, 0 * d, "wilcoxon"), scipy_stats.wilcoxon(d, method="exact")
    assert (ours.statistic, ours.p) == (theirs.statistic, pytest.approx(theirs.pvalue, rel=1e-10))


def test_signflip_equals_scipy_and_samples_when_it_must():
    d = np.random.default_rng(0).normal(0.5, 1, 10)
    theirs = scipy_stats.permutation_test(
        (d, 0 * d), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert paired_test(d, 0 * d, "signflip").p == pytest.approx(theirs.pvalue)
    d = np.random.default_rng(1).normal(0.4, 1, 30)
    sampled = paired_test(d, 0 * d, "signflip", seed=1)
    assert sampled == paired_test(d, 0 * d, "signflip", seed=1)
    assert sampled.note == "100000 drawn signs"
    assert sampled.p == pytest.approx(paired_test(d, 0 * d).p, abs=0.01)


def test_signflip_with_twenty_pairs_is_exact_and_bounded():
    d = np.ones(20)
    assert paired_test(d, 0 * d, "signflip").p == 2 / 2**20
    assert paired_test([1.0] * 5, [0.0] * 5, "wilcoxon").p == 2 / 2**5


def test_tests_that_say_nothing_say_why():
    for name in ("t", "wilcoxon", "signflip"):
        one = paired_test([1], [2], name)
        assert math.isnan(one.p)
        assert one.note == "a paired test needs at least 2 pairs, there is 1"
        assert paired_test([], [], name).note.endswith("there are 0")
        same = paired_test([1, 2], [1, 2], name)
        assert (same.p, same.note) == (1.0, "all differences are 0")
    constant = paired_test([0.1, 0.7, 1.3], [0.0, 0.6, 1.2])  # equal differences up to rounding
    assert math.isnan(constant.p)
    assert "all the same" in constant.note
    with pytest.raises(ValueError, match="test='z'"):
        paired_test([1, 2], [2, 1], "z")
    with pytest.raises(ValueError, match="not finite"):
        paired_test([1, NAN], [2, 1])


@pytest.mark.parametrize("name", ["t", "wilcoxon", "signflip"])
def test_level_under_the_null(name):
    rng = np.random.default_rng(0)
    rejected = sum(paired_test(d, 0 * d, name).p < 0.05 for d in rng.normal(size=(2000, 8)))
    assert rejected <= 2000 * 0.05 + 4 * math.sqrt(2000 * 0.05 * 0.95)


# --- Holm ------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_is_no_test():
    adjusted = holm([0.01, NAN, 0.04])
    assert (adjusted[0], adjusted[2]) == (0.02, 0.04)
    assert math.isnan(adjusted[1])
    for bad in (-0.1, 1.1, INF):
        with pytest.raises(ValueError, match="is not a p-value"):
            holm([bad])


@given(pvalues)
def test_holm_properties(p):
    adjusted = holm(p)
    assert all(raw <= a <= 1 for raw, a in zip(p, adjusted))
    assert all(a <= min(1, len(p) * raw) for raw, a in zip(p, adjusted))  # never worse than Bonferroni
    by_p = [a for _, a in sorted(zip(p, adjusted))]
    assert by_p == sorted(by_p)
    order = np.random.default_rng(len(p)).permutation(len(p))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


@given(pvalues, st.floats(0.01, 0.3))
def test_holm_equals_the_step_down_procedure(p, alpha):
    rejected = [False] * len(p)
    for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if (len(p) - k) * p[i] >= alpha:
            break
        rejected[i] = True
    assert [a < alpha for a in holm(p)] == rejected


# --- tables ----------------------------------------------------------------------------------------------------

TABLE = {
    "adamw": {0: 0.80, 1: 0.82, 2: 0.81, 3: 0.79},
    "lion": {0: 0.90, 1: 0.93, 2: 0.91, 3: 0.90},
    "sgd": {3: 0.69, 2: 0.70, 1: 0.73, 0: 0.70},
    "noise": {0: 0.85, 1: 0.78, 2: 0.83, 3: 0.77},
}


def test_compare():
    rows = {row.method: row for row in compare(TABLE, "adamw", higher_is_better=True)}
    assert list(rows) == ["lion", "sgd", "noise"]
    assert {name: row.verdict for name, row in rows.items()} == {
        "lion": "better", "sgd": "worse", "noise": "undecided"
    }  # fmt: skip
    lion = rows["lion"]
    a, b = list(TABLE["lion"].values()), list(TABLE["adamw"].values())
    assert lion.difference == pytest.approx(0.105)
    assert lion.effect == effect_size(a, b)
    assert lion.p == paired_test(a, b).p
    assert lion.interval == mean_interval(np.subtract(a, b))
    assert (lion.n, lion.unmatched, lion.diverged, lion.note) == (4, (), {}, "")
    assert [row.p_holm for row in rows.values()] == holm([row.p for row in rows.values()])
    assert rows["sgd"].difference == pytest.approx(-0.1)  # matched by seed, not by position
    lower = compare(TABLE, "adamw", higher_is_better=False)
    assert [row.verdict for row in lower] == ["worse", "better", "undecided"]


def test_compare_corrects_over_the_whole_table():
    # alone p is between 0.025 and 0.05, so that of two such methods Holm keeps neither
    base = dict(enumerate([0.0, 0.0, 0.0, 0.0]))
    close = dict(enumerate([1.0, 2.0, 3.0, 0.7]))
    (alone,) = compare({"base": base, "a": close}, "base", True)
    assert 0.025 < alone.p < 0.05
    assert alone.verdict == "better"
    both = compare({"base": base, "a": close, "b": close}, "base", True)
    assert [row.verdict for row in both] == ["undecided", "undecided"]


def test_unmatched_seeds_are_reported():
    table = {"base": {0: 1.0, 1: 2.0, 2: 3.0}, "a": {1: 2.5, 2: 3.7, 7: 1.0}}
    (row,) = compare(table, "base", True)
    assert (row.n, row.unmatched) == (2, (0, 7))
    assert row.difference == pytest.approx(0.6)
    assert row.note == "seeds that only one of the two has: 0, 7"
    (row,) = compare({"base": {0: 1.0}, "a": {1: 1.0}}, "base", True)
    assert (row.n, row.verdict) == (0, "undecided")
    assert math.isnan(row.difference)
    assert math.isnan(row.interval.low)
    assert "at least 2 pairs" in row.note


def test_divergence_never_makes_a_winner():
    base = dict(enumerate([1.0, 1.1, 0.9, 1.0, 1.05]))
    table = {
        "base": base,
        "good": {s: v + 1 + 0.01 * s for s, v in base.items()},
        "lucky": {**{s: v + 1 + 0.01 * s for s, v in base.items()}, 4: NAN},
        "bad": {**{s: v - 1 - 0.01 * s for s, v in base.items()}, 4: INF},
    }
    good, lucky, bad = compare(table, "base", True)
    assert (good.verdict, lucky.verdict, bad.verdict) == ("better", "undecided", "worse")
    assert lucky.p_holm < 0.05
    assert lucky.diverged == {4: "method"}
    assert lucky.note == "not finite: seed 4 (method)"
    assert lucky.n == 4
    # and a baseline that diverged beats nobody
    table = {"base": {**base, 4: NAN}, "good": table["good"], "bad": table["bad"]}
    good, bad = compare(table, "base", True)
    assert (good.verdict, bad.verdict) == ("better", "undecided")
    assert (good.diverged, bad.diverged) == ({4: "baseline"}, {4: "both"})


def test_compare_edge_cases():
    with pytest.raises(ValueError, match="the baseline 'adam' is not among the methods base"):
        compare({"base": {}}, "adam", True)
    with pytest.raises(ValueError, match="alpha=5"):
        compare(TABLE, "adamw", True, alpha=5)
    assert compare({"base": {0: 1.0}}, "base", True) == []
    # bytes do not depend on the seed: no test, and a note that says so
    (row,) = compare({"base": {0: 10, 1: 10}, "a": {0: 5, 1: 5}}, "base", False)
    assert (row.difference, row.verdict) == (-5, "undecided")
    assert "compare the values" in row.note
    assert compare(TABLE, "adamw", True, test="signflip")[0].p == 2 / 2**4


def test_compare_examples_is_mcnemar():
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.8, rng.random(500) < 0.7
    found = compare_examples(a, b)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    k, n = min(only_a, only_b), only_a + only_b
    assert found.p == pytest.approx(min(1, 2 * special.bdtr(k, n, 0.5)), rel=1e-9)
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, 500)
    assert found.both == int((a & b).sum())
    assert found.difference == pytest.approx(found.accuracy_a - found.accuracy_b)
    assert compare_examples(b, a).p == pytest.approx(found.p)


def test_compare_examples_by_hand():
    found = compare_examples([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    assert (found.p, found.only_a, found.only_b, found.neither) == (2 / 2**5, 5, 0, 1)
    assert compare_examples([True, False], [True, False]).p == 1.0
    assert compare_examples([1, 0], [0, 1]).p == 1.0
    with pytest.raises(ValueError, match="same examples"):
        compare_examples([1, 0], [1])
    with pytest.raises(ValueError, match="correct_b must hold only True and False"):
        compare_examples([1, 0], [1, 0.5])
    with pytest.raises(ValueError, match="same examples"):
        compare_examples([], [])


# --- curves ----------------------------------------------------------------------------------------------------


def test_steps_to_target():
    x, loss = [0, 10, 20, 30], [4.0, 3.0, 1.0, 2.0]
    assert steps_to_target(x, loss, 2.0, higher_is_better=False) == 15
    assert steps_to_target(x, loss, 2.0, higher_is_better=False, interpolate=False) == 20
    assert steps_to_target(x, loss, 3.0, higher_is_better=False) == 10
    assert steps_to_target(x, loss, 5.0, higher_is_better=False) == 0  # from the start
    assert steps_to_target(x, loss, 0.5, higher_is_better=False) is None
    assert steps_to_target(x, [-v for v in loss], -2.0, higher_is_better=True) == 15
    assert steps_to_target([], [], 1.0, True) is None


def test_steps_to_target_with_divergence():
    assert steps_to_target([0, 1, 2], [NAN, NAN, NAN], 0, True) is None
    assert steps_to_target([0, 1, 2], [0.0, NAN, 1.0], 0.5, True) == 2  # no line through a nan
    assert steps_to_target([0, 1, 2], [INF, 4.0, 1.0], 4.5, False) == 1
    assert steps_to_target([0, 1], [0.0, INF], 0.5, True) == 1
    with pytest.raises(ValueError, match="must not decrease"):
        steps_to_target([1, 0], [1, 2], 1, True)
    with pytest.raises(ValueError, match="2 and 1"):
        steps_to_target([1, 2], [1], 1, True)
    with pytest.raises(ValueError, match="target=nan"):
        steps_to_target([1, 2], [1, 2], NAN, True)


@given(st.lists(numbers, min_size=1, max_size=10), numbers)
def test_crossing_lies_on_the_curve(y, target):
    x = np.cumsum(np.arange(1.0, len(y) + 1))
    found = steps_to_target(x, y, target, True)
    if found is None:
        assert max(y) < target
    elif found > x[0]:
        assert np.interp(found, x, y) == pytest.approx(target, abs=1e-6)
        assert all(v < target for v in np.array(y)[x < found - 1e-6])


@given(st.lists(st.tuples(st.floats(0.01, 5), numbers), min_size=2, max_size=12))
def test_area_equals_scipy(steps):
    x, y = np.cumsum([s for s, _ in steps]), [v for _, v in steps]
    area = integrate.trapezoid(y, x)
    assert area_under_curve(x, y) == pytest.approx(area, rel=1e-9, abs=1e-9)
    assert area_under_curve(x, y, normalise=True) == pytest.approx(area / (x[-1] - x[0]), rel=1e-9, abs=1e-9)


def test_area_refuses():
    with pytest.raises(ValueError, match="at least 2 points"):
        area_under_curve([1], [1])
    with pytest.raises(ValueError, match="finite values"):
        area_under_curve([1, 2], [1, NAN])
    with pytest.raises(ValueError, match="no range"):
        area_under_curve([1, 1], [1, 2], normalise=True)


@given(
    st.integers(1, 3).flatmap(
        lambda d: st.tuples(st.lists(st.tuples(*[st.integers(0, 4)] * d), max_size=12), st.tuples(*[st.booleans()] * d))
    )
)
def test_pareto_equals_brute_force(case):
    points, minimise = case

    def dominates(p, q):
        pairs = [(a, b) if less else (-a, -b) for a, b, less in zip(p, q, minimise)]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    expected = [i for i, q in enumerate(points) if not any(dominates(p, q) for p in points)]
    assert pareto(points, minimise) == expected


def test_pareto_by_hand():
    memory_and_accuracy = [(10, 0.9), (5, 0.8), (7, 0.7), (5, 0.8), (INF, 0.95)]
    assert pareto(memory_and_accuracy, minimise=(True, False)) == [0, 1, 3, 4]
    assert pareto([(1, 2), (2, 1), (2, 2)]) == [0, 1]
    assert pareto([]) == []
    with pytest.raises(ValueError, match="without nan"):
        pareto([(1, NAN)])
    with pytest.raises(ValueError, match="2 entries for points with 1 columns"):
        pareto([(1,)], (True, False))


def test_performance_profile_by_hand():
    times = {"a": {"p": 1.0, "q": 4.0, "r": None}, "b": {"p": 2.0, "q": 2.0}, "c": {"q": NAN, "s": INF}}
    found = performance_profile(times)
    assert found.taus == [1.0, 2.0]
    assert found.problems == 4  # r and s are solved by nobody and still count
    assert found.share == {"a": [0.25, 0.5], "b": [0.25, 0.5], "c": [0.0, 0.0]}
    assert performance_profile(times, [1, 1.9, INF]).share["a"] == [0.25, 0.25, 0.5]
    with pytest.raises(ValueError, match=r"a has the time 0 on p"):
        performance_profile({"a": {"p": 0}})
    with pytest.raises(ValueError, match="start at 1"):
        performance_profile(times, [0.5])
    with pytest.raises(ValueError, match="at least one method"):
        performance_profile({"a": {}})


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(0.1, 10), min_size=4, max_size=4), min_size=1))
def test_profiles_rise_and_somebody_is_best(rows):
    times = {method: dict(zip("pqrs", row)) for method, row in rows.items()}
    found = performance_profile(times)
    assert all(share == sorted(share) and share[-1] == 1 for share in found.share.values())
    assert sum(share[0] for share in found.share.values()) >= 1
