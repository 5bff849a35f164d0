"""Proximal SGD, SAGA and SVRG against scikit-learn, formulas and each other."""

import json

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import Lasso, LogisticRegression

from dlopt.sampling import (
    ClassBalanced,
    FiniteSum,
    FixedOrder,
    GraB,
    Importance,
    RandomReshuffling,
    ShuffleOnce,
    WithReplacement,
    prox_sgd,
    saga,
    svrg,
)
from dlopt.sampling.problems import soft_threshold


def data(n=60, d=20, seed=0, density=1.0):
    random = np.random.default_rng(seed)
    A = random.normal(size=(n, d)) * (random.uniform(size=(n, d)) < density)
    b = A @ (random.normal(size=d) * (random.uniform(size=d) < 0.3)) + 0.1 * random.normal(size=n)
    return A, b


def problem(loss="squares", lam=0.05, l2=0.0, sparse=False, **size):
    A, b = data(density=0.3 if sparse else 1.0, **size)
    b = np.where(b > 0, 1.0, -1.0) if loss == "logistic" else b
    return FiniteSum(scipy.sparse.csr_matrix(A) if sparse else A, b, lam, loss=loss, l2=l2)


def sklearn_lasso(p):
    A = p.A.toarray() if p.sparse else p.A
    return Lasso(alpha=p.lam, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(A, p.b).coef_


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n", [60, 45])
def test_saga_reaches_the_lasso_of_scikit_learn(sparse, n):
    p = problem(sparse=sparse, n=n)
    best = sklearn_lasso(p)
    found = saga(p, epochs=600, tol=1e-15, step=1 / (2 * p.smoothness().max()))
    np.testing.assert_allclose(found.x, best, atol=1e-8)
    assert p.value(found.x) - p.value(best) < 1e-12
    assert found.history[-1]["support"] == np.count_nonzero(best)
    assert 0 < p.gap(best) + 1e-15 < 1e-12


def test_more_columns_than_rows():
    p = problem(n=30, d=60, lam=0.2)
    found = saga(p, epochs=1500, tol=1e-14)
    best = sklearn_lasso(p)
    assert p.value(found.x) - p.value(best) < 1e-10
    assert set(np.flatnonzero(found.x)) == set(np.flatnonzero(best))


@pytest.mark.parametrize(
    ("sampler", "snapshot"), [(None, "average"), ("importance", "average"), (None, "last"), ("reshuffle", "last")]
)
def test_svrg_reaches_it_too_with_any_sampler(sampler, snapshot):
    p = problem()
    chosen = {"importance": Importance(range(60), p.smoothness(), mix=1.0), "reshuffle": RandomReshuffling(range(60))}
    step = None if snapshot == "average" else 0.3 / p.smoothness().max()
    found = svrg(p, chosen.get(sampler), stages=250, tol=1e-13, step=step, snapshot=snapshot)
    assert p.value(found.x) - p.value(sklearn_lasso(p)) < 1e-11
    assert found.history[1]["passes"] == 3


def test_lam_scales_as_the_docstring_says():
    A, b = data()
    p, twice = FiniteSum(A, b, 0.05), FiniteSum(np.vstack([A, A]), np.concatenate([b, b]), 0.05)
    x = np.linspace(-1, 1, 20)
    assert p.value(x) == pytest.approx(twice.value(x))  # lam means the same for every n
    assert p.n * p.value(x) == pytest.approx(0.5 * ((b - A @ x) ** 2).sum() + p.n * 0.05 * np.abs(x).sum())
    best = sklearn_lasso(p)
    for factor in (1 / p.n, p.n):  # the usual mistakes are not the optimum
        assert FiniteSum(A, b, 0.05).value(sklearn_lasso(FiniteSum(A, b, 0.05 * factor))) > p.value(best) + 1e-6
    zero = FiniteSum(A, b, p.lam_max() * 1.001)
    assert not sklearn_lasso(zero).any()
    assert sklearn_lasso(FiniteSum(A, b, p.lam_max() * 0.999)).any()


@pytest.mark.parametrize("sparse", [False, True])
def test_logistic_regression_equals_scikit_learn(sparse):
    p = problem("logistic", lam=0.0, l2=0.1, sparse=sparse)
    fitted = LogisticRegression(C=1 / (p.n * p.l2), fit_intercept=False, tol=1e-12, max_iter=10**4).fit(p.A, p.b)
    found = saga(p, epochs=200, tol=1e-14)
    np.testing.assert_allclose(found.x, fitted.coef_[0], atol=1e-5)
    assert p.value(found.x) <= p.value(fitted.coef_[0]) + 1e-14


@pytest.mark.parametrize("loss", ["squares", "logistic"])
@pytest.mark.parametrize(("lam", "l2"), [(0.05, 0.0), (0.0, 0.1), (0.02, 0.1)])
def test_gradients_constants_and_gaps(loss, lam, l2):
    p, random = problem(loss, lam, l2), np.random.default_rng(3)
    smooth = FiniteSum(p.A, p.b, 0.0, loss=loss, l2=l2)
    for _ in range(20):
        x, v = random.normal(size=(2, 20))
        slope = (smooth.value(x + 1e-6 * v) - smooth.value(x - 1e-6 * v)) / 2e-6
        assert slope == pytest.approx(p.gradient(x) @ v, rel=1e-6, abs=1e-7)
        change = p.gradient(x) - p.gradient(v)
        assert np.linalg.norm(change) <= p.full_smoothness() * np.linalg.norm(x - v) * (1 + 1e-12)
    assert p.full_smoothness() <= p.smoothness().mean()
    best = saga(p, epochs=400, tol=1e-13)
    assert 0 <= p.gap(best.x) + 1e-15 <= 1e-10
    points = best.x + random.normal(size=(20, 20)) * 0.3
    assert (p.gap(points) >= p.value(points) - p.value(best.x) - 1e-12).all()
    np.testing.assert_allclose(p.gap(points)[3], p.gap(points[3]), rtol=1e-12)
    np.testing.assert_allclose(p.gradient(points)[3], p.gradient(points[3]), rtol=1e-12)


def test_sparse_and_dense_data_take_the_same_path():
    for loss in ("squares", "logistic"):
        sparse = problem(loss, sparse=True, l2=0.01)
        dense = FiniteSum(sparse.A.toarray(), sparse.b, sparse.lam, loss=loss, l2=0.01)
        np.testing.assert_allclose(sparse.smoothness(), dense.smoothness())
        assert sparse.full_smoothness() == pytest.approx(dense.full_smoothness())
        for solve in (
            lambda p: prox_sgd(p, RandomReshuffling(range(60)), epochs=3, batch_size=7),
            lambda p: prox_sgd(p, [WithReplacement(range(60), seed=s) for s in (0, 1)], epochs=2),
            lambda p: prox_sgd(p, GraB(range(60)), epochs=3, batch_size=2),
            lambda p: saga(p, epochs=3),
            lambda p: svrg(p, stages=2),
        ):
            np.testing.assert_allclose(solve(sparse).x, solve(dense).x, atol=1e-12)


def test_prox_sgd_is_the_formula():
    p = problem(l2=0.02)
    order = list(FixedOrder(range(60)))
    x, later = np.zeros(20), []
    for epoch in range(2):
        for at in range(0, 60, 7):
            rows, size = order[at : at + 7], len(order[at : at + 7])
            g = 0.01 / np.sqrt(1 + 0.5 * (epoch + at // 7 / 9))
            # nine batches: each sum is divided by 60/9, also the last one, of four
            gradient = (p.A[rows] * (p.A[rows] @ x - p.b[rows])[:, None]).sum(0) / (60 / 9) + size / (60 / 9) * 0.02 * x
            x = np.sign(x - g * gradient) * np.maximum(np.abs(x - g * gradient) - g * 0.05, 0)
            later.append(x)
    found = prox_sgd(p, FixedOrder(range(60)), epochs=2, step=0.01, schedule="sqrt", rate=0.5, batch_size=7)
    np.testing.assert_allclose(found.x, x, atol=1e-14)
    np.testing.assert_allclose(found.average, np.mean(later[9:], 0), atol=1e-14)
    assert [row["passes"] for row in found.history] == [0, 1, 2]
    assert found.history[-1]["average_value"] == pytest.approx(p.value(found.average))
    plain = prox_sgd(p, FixedOrder(range(60)), epochs=2, batch_size=7, normalize="batch", average_from=None)
    assert not np.allclose(plain.x, prox_sgd(p, FixedOrder(range(60)), epochs=2, batch_size=7).x, atol=1e-6)
    np.testing.assert_array_equal(plain.x, plain.average)
    assert "average_value" not in plain.history[-1]
    json.dumps(found.history)


def test_svrg_is_the_formula():
    p = problem(l2=0.02)
    kwargs = {"weights": p.smoothness(), "mix": 0.8, "seed": 5}
    drawn, x, g = Importance(range(60), **kwargs), np.full(20, 0.1), 0.004
    for stage in range(2):
        s, points = x.copy(), []
        for epoch in (2 * stage, 2 * stage + 1):
            drawn.set_epoch(epoch)
            for i, w in drawn:
                change = ((p.A[i] @ x - p.b[i]) - (p.A[i] @ s - p.b[i])) * p.A[i]
                y = x - g * (w * change + p.A.T @ (p.A @ s - p.b) / 60 + 0.02 * x)
                x = np.sign(y) * np.maximum(np.abs(y) - g * 0.05, 0)
                points.append(x)
        x = np.mean(points, 0)
    found = svrg(p, Importance(range(60), **kwargs), stages=2, step=g, x0=np.full(20, 0.1))
    np.testing.assert_allclose(found.x, x, atol=1e-13)


def test_saga_is_the_formula():
    p = problem(l2=0.02)
    x, g, table = np.full(20, 0.1), 0.004, np.zeros((60, 20))
    for i in list(RandomReshuffling(range(60), seed=5)):
        new = (p.A[i] @ x - p.b[i]) * p.A[i]
        y = x - g * (new - table[i] + table.mean(0) + 0.02 * x)
        table[i] = new
        x = np.sign(y) * np.maximum(np.abs(y) - g * 0.05, 0)
    found = saga(p, RandomReshuffling(range(60), seed=5), epochs=1, step=g, x0=np.full(20, 0.1))
    np.testing.assert_allclose(found.x, x, atol=1e-13)


def test_chains_side_by_side_equal_single_runs():
    p = problem()

    def samplers():
        yield WithReplacement(range(60), seed=1)
        yield Importance(range(60), p.smoothness(), seed=2)
        yield Importance(range(60), online=True, refresh=8, seed=2)
        yield GraB(range(60))
        yield ClassBalanced(range(60), (p.b > 0).astype(int), correct=True)

    steps = [0.001, 0.002, 0.003, 0.004, 0.005]
    for batch in (1, 8):
        many = prox_sgd(p, list(samplers()), epochs=3, step=steps, batch_size=batch)
        for chain, (sampler, step) in enumerate(zip(samplers(), steps)):
            one = prox_sgd(p, sampler, epochs=3, step=step, batch_size=batch)
            np.testing.assert_allclose(many.x[chain], one.x, atol=1e-12)
            np.testing.assert_allclose(many.average[chain], one.average, atol=1e-12)
            assert many.history[-1]["value"][chain] == pytest.approx(one.history[-1]["value"])
            assert many.history[-1]["support"][chain] == one.history[-1]["support"]


def test_decreasing_steps_and_averages_come_near_the_optimum():
    p = problem(l2=0.0)
    best = p.value(sklearn_lasso(p))
    start = p.value(np.zeros(20)) - best
    constant = prox_sgd(p, WithReplacement(range(60)), epochs=150)
    falling = prox_sgd(p, WithReplacement(range(60)), epochs=150, schedule="inverse", rate=1.0)
    assert constant.history[-1]["value"] - best < 0.1 * start
    assert constant.history[-1]["average_value"] < constant.history[-1]["value"]
    assert falling.history[-1]["value"] - best < 1e-3 * start
    assert p.value(ShuffledSolution(p)) - best < 1e-3 * start


def ShuffledSolution(p):
    return prox_sgd(p, ShuffleOnce(range(60)), epochs=150, schedule="inverse").x


def test_a_chain_that_diverges_leaves_the_others_alone():
    p = problem()
    found = prox_sgd(p, [RandomReshuffling(range(60), seed=s) for s in (0, 0)], epochs=40, step=[0.01, 10.0])
    alone = prox_sgd(p, RandomReshuffling(range(60)), epochs=40, step=0.01)
    np.testing.assert_allclose(found.x[0], alone.x, atol=1e-12)
    assert not np.isfinite(found.history[-1]["value"][1])


def test_watch_adds_columns_and_seconds_grow():
    p = problem()
    found = prox_sgd(p, epochs=2, watch=lambda x: {"norm": np.linalg.norm(x)}, x0=np.ones(20))
    assert found.history[0]["norm"] == pytest.approx(np.sqrt(20))
    seconds = [row["seconds"] for row in found.history]
    assert 0 == seconds[0] < seconds[1] < seconds[2]


def test_soft_threshold():
    x = np.array([3.0, -3.0, 0.5, -0.5, 0.0])
    np.testing.assert_array_equal(soft_threshold(x, 1.0), [2, -2, 0, 0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: FiniteSum(p.A, p.b[:3]), r"b must have shape \(60,\), not \(3,\)"),
        (lambda p: FiniteSum(p.A[0], p.b), r"A must have shape \(n, d\)"),
        (lambda p: FiniteSum(p.A[:0], p.b[:0]), r"not \(0, 20\)"),
        (lambda p: FiniteSum(p.A * np.nan, p.b), "A and b must be finite"),
        (lambda p: FiniteSum(p.A, p.b, -1.0), r"is -1\.0"),
        (lambda p: FiniteSum(p.A, p.b, loss="hinge"), "not 'hinge'"),
        (lambda p: FiniteSum(p.A, np.arange(60), loss="logistic"), "must be -1 or 1, not 0"),
        (lambda p: FiniteSum(p.A, p.b).gap(np.zeros(20)), "needs lam or l2 above 0"),
        (lambda p: prox_sgd(p, WithReplacement(range(59))), "over 59 examples, the problem has 60"),
        (lambda p: prox_sgd(p, []), "list of samplers is empty"),
        (lambda p: prox_sgd(p, [ShuffleOnce(range(60))] * 2), "cannot serve two chains"),
        (lambda p: prox_sgd(p, [FixedOrder(range(60)), WithReplacement(range(60), num_samples=9)]), r"\[60, 9\]"),
        (lambda p: prox_sgd(p, step=-1.0), "step must be finite and above 0, not -1.0"),
        (lambda p: prox_sgd(p, step=[0.1, 0.2]), "step must be one number or 1"),
        (lambda p: prox_sgd(p, schedule="cosine"), "not 'cosine'"),
        (lambda p: prox_sgd(p, epochs=0), "epochs must be at least 1, not 0"),
        (lambda p: prox_sgd(p, batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda p: prox_sgd(p, average_from=2), "average_from must be from 0 to 1, not 2"),
        (lambda p: prox_sgd(p, x0=np.zeros(3)), r"x0 must have shape \(20,\), not \(3,\)"),
        (lambda p: saga(p, Importance(range(60), p.smoothness())), "SAGA needs an unweighted sampler, not Importance"),
        (lambda p: svrg(p, snapshot="first"), "not 'first'"),
        (lambda p: svrg(p, inner=0), "inner must be at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(problem())
