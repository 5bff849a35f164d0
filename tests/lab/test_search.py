"""Sobol points in a box, the best trial, and the edges of the box."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import qmc

from dlopt.lab.search import best, sobol
from dlopt.lab.stats import edge_warnings

BOX = {"lr": (1e-4, 1e-1, "log"), "beta": (0.8, 0.999, "linear"), "rank": (1, 8, "int")}


def test_sobol_is_deterministic_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    points = sobol(BOX, 16, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert points == sobol(BOX, 16, seed=3) != sobol(BOX, 16, seed=4)
    assert sobol(BOX, 5, seed=3) == points[:5]  # trials can be added
    turned = dict(reversed(BOX.items()))
    assert sobol(turned, 16, seed=3) == points
    assert list(points[0]) == list(BOX)


def test_sobol_values_are_fixed():
    # recorded trials are named by these numbers: a change would orphan every tuning record
    points = sobol({"lr": (1e-4, 1e-1, "log"), "k": (1, 4, "int")}, 3, seed=0)
    expected = [0.005992002366110802, 0.00012923073703232429, 0.03863955722686207]
    assert [p["lr"] for p in points] == pytest.approx(expected, rel=1e-12)
    assert [p["k"] for p in points] == [2, 3, 4]


def test_sobol_is_spread_evenly_in_each_scale():
    points = sobol(BOX, 64, seed=1)
    decades = [math.floor(3 * math.log(p["lr"] / 1e-4) / math.log(1e3)) for p in points]
    assert all(abs(decades.count(k) - 64 / 3) <= 1.5 for k in range(3))
    ranks = [p["rank"] for p in points]
    assert [ranks.count(k) for k in range(1, 9)] == [8] * 8  # a Sobol net fills every eighth equally
    assert all(type(r) is int for r in ranks)
    betas = np.array([(p["beta"] - 0.8) / 0.199 for p in points])
    assert np.bincount((betas * 64).astype(int), minlength=64).tolist() == [1] * 64


def test_sobol_is_more_even_than_random():
    unit = {f"x{i}": (0.0, 1.0, "linear") for i in range(4)}
    ours = np.array([list(p.values()) for p in sobol(unit, 64, seed=0)])
    random = np.random.default_rng(0).random((64, 4))
    assert qmc.discrepancy(ours) < 0.2 * qmc.discrepancy(random)
    assert stats.kstest(ours[:, 0], "uniform").statistic <= 1 / 32


@given(st.integers(0, 2**31), st.integers(0, 20), st.floats(1e-8, 1), st.floats(1.01, 1e6), st.integers(-5, 5))
@settings(max_examples=40, deadline=None)
def test_sobol_stays_in_the_box(seed, n, low, ratio, first):
    box = {"a": (low, low * ratio, "log"), "b": (low, low * ratio, "linear"), "c": (first, first + 2, "int")}
    points = sobol(box, n, seed)
    assert len(points) == n
    for point in points:
        assert all(box[name][0] <= value <= box[name][1] for name, value in point.items())


def test_sobol_of_nothing():
    assert sobol({}, 3, seed=0) == [{}, {}, {}]
    assert sobol(BOX, 0, seed=0) == []
    with pytest.raises(ValueError, match="n=-1"):
        sobol(BOX, -1, seed=0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((1, 2), r"must be \(low, high, 'linear', 'log' or 'int'\)"),
        ((1, 2, "cubic"), "must be"),
        ((2, 1, "linear"), "low < high"),
        ((1, math.inf, "log"), "finite bounds"),
        ((0, 1, "log"), "lower bound 0 must be above 0"),
        ((1, 2.5, "int"), "has integers"),
    ],
)
def test_wrong_boxes(entry, message):
    with pytest.raises(ValueError, match=message):
        sobol({"x": entry}, 1, seed=0)
    with pytest.raises(ValueError, match=message):
        edge_warnings({"x": 1}, {"x": entry})


def test_best():
    trials = [({"lr": 1}, 0.5), ({"lr": 2}, 0.9), ({"lr": 3}, 0.9), ({"lr": 4}, 0.1), ({"lr": 5}, 0.1)]
    assert best(trials, higher_is_better=True) == {"lr": 2}  # the earlier of two equals
    assert best(iter(trials), higher_is_better=False) == {"lr": 4}
    assert best([("a", math.inf), ("b", 1.0), ("c", math.nan)], True) == "b"
    with pytest.raises(ValueError, match="none of 2 trials has a finite score"):
        best([("a", math.nan), ("b", math.inf)], True)
    with pytest.raises(ValueError, match="none of 0 trials"):
        best([], True)


def test_best_takes_the_mean_over_seeds():
    trials = [({"lr": 1}, 0.9), ({"lr": 2}, 0.8), ({"lr": 1}, 0.5), ({"lr": 2}, 0.8)]
    assert best(trials, True) == {"lr": 2}
    diverged = [({"lr": 3}, 1.0), ({"lr": 3}, math.nan)]  # on one seed
    assert best([*trials, *diverged], True) == best([*diverged, *trials], True) == {"lr": 2}


def test_edges():
    inside = {"lr": 3e-3, "beta": 0.9, "rank": 4}
    assert edge_warnings(inside, BOX) == []
    low, high = edge_warnings({"lr": 1.2e-4, "beta": 0.995, "rank": 4, "other": 5}, BOX)
    assert (low.name, low.side, high.name, high.side) == ("lr", "lower", "beta", "upper")
    assert str(low) == "lr=0.00012 sits on the lower edge of its search box [0.0001, 0.1]"
    assert [e.side for e in edge_warnings({**inside, "rank": 8}, BOX)] == ["upper"]
    assert edge_warnings({**inside, "rank": 7}, BOX) == []


def test_log_edges_are_in_log_space():
    # 5% of the logarithm's range of [1e-4, 1] is a factor of 10^0.2 = 1.585
    box = {"lr": (1e-4, 1.0, "log")}
    assert edge_warnings({"lr": 1e-4 * 10**0.2}, box)
    assert not edge_warnings({"lr": 1e-4 * 10**0.21}, box)
    assert edge_warnings({"lr": 10**-0.2}, box)
    assert not edge_warnings({"lr": 10**-0.21}, box)  # 0.617: in linear space this box would warn below 0.05
    assert not edge_warnings({"lr": 0.01}, box)


def test_edges_refuse():
    with pytest.raises(ValueError, match="the search box has 'beta'"):
        edge_warnings({"lr": 1e-3}, BOX)
    with pytest.raises(ValueError, match=r"lr=1 lies outside its search box \[0.0001, 0.1\]"):
        edge_warnings({"lr": 1, "beta": 0.9, "rank": 2}, BOX)
