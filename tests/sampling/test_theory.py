"""What the papers say about orders and probabilities, reproduced (recipes: design notes, section 10)."""

import numpy as np
import pytest

from dlopt.sampling import (
    FiniteSum,
    FixedOrder,
    GraB,
    Importance,
    RandomReshuffling,
    ShuffleOnce,
    WithReplacement,
    prox_sgd,
)


def ridge(n, d, spread, seed, l2=0.1):
    """Least squares with log-normal row norms, its optimum and its Hessian."""
    random = np.random.default_rng(seed)
    A = random.normal(size=(n, d)) * np.exp(spread * random.normal(size=(n, 1)))
    b = A @ random.normal(size=d) + random.normal(size=n)
    hessian = A.T @ A / n + l2 * np.eye(d)
    return FiniteSum(A, b, l2=l2), np.linalg.solve(hessian, A.T @ b / n), hessian


@pytest.fixture(scope="module")
def errors():
    """{K: (kinds, seeds) squared distance, mean of the last quarter of K epochs} with tuned steps."""
    n, seeds = 100, 6
    p, best, hessian = ridge(n, 10, 0.0, seed=0)
    mu = np.linalg.eigvalsh(hessian)[0]
    found = {}
    for epochs in (16, 32, 64, 128, 256):
        samplers = [
            kind(range(n), seed=s) for kind in (WithReplacement, ShuffleOnce, RandomReshuffling) for s in range(seeds)
        ]
        step = min(1 / p.smoothness().max(), 2 * np.log(n * epochs) / (mu * n * epochs))
        run = prox_sgd(
            p, samplers, epochs=epochs, step=step, average_from=None,
            watch=lambda x: {"distance": ((x - best) ** 2).sum(-1)},
        )  # fmt: skip
        rows = np.array([row["distance"] for row in run.history[-max(1, epochs // 4) :]])
        found[epochs] = rows.mean(0).reshape(3, seeds)
    return found


def test_errors_fall_with_the_epochs_as_1_over_K_K2_and_faster(errors):
    # from 64 epochs on the tuned step is below 1/L_max for every kind
    K = np.array(sorted(errors))
    logs = np.log([errors[k].mean(1) for k in K])
    sgd, once, reshuffled = np.polyfit(np.log(K), logs, 1)[0]
    assert -1.2 < sgd < -0.8, sgd
    assert -2.3 < once < -1.7, once
    assert reshuffled < -2.4, reshuffled
    last = errors[256].mean(1)
    assert last[2] < last[1] < last[0] / 10


def test_halving_the_step_halves_the_floor_of_sgd_and_quarters_that_of_fixed_orders():
    n, chains = 50, 60
    p, best, _ = ridge(n, 5, 0.0, seed=2, l2=0.2)
    floors = []
    for step in (0.02, 0.01):
        samplers = [
            kind(range(n), seed=s)
            for kind in (WithReplacement, FixedOrder, ShuffleOnce, RandomReshuffling)
            for s in range(chains)
        ]
        epochs = int(2 / step)
        run = prox_sgd(
            p, samplers, epochs=epochs, step=step, average_from=None, x0=best,
            watch=lambda x: {"distance": ((x - best) ** 2).sum(-1)},
        )  # fmt: skip
        rows = np.array([row["distance"] for row in run.history[epochs // 3 :]])
        floors.append(rows.mean(0).reshape(4, chains).mean(1))
    sgd, fixed, once, reshuffled = floors[1] / floors[0]
    assert 0.42 < sgd < 0.58, sgd
    assert 0.18 < fixed < 0.32, fixed
    assert 0.18 < once < 0.32, once
    assert reshuffled < 0.2, reshuffled


def test_the_floor_of_a_constant_step_is_that_of_yuan_et_al():
    n, d, chains, epochs = 200, 8, 150, 60
    p, best, hessian = ridge(n, d, 0.7, seed=1)
    rows = p.slopes(p.A @ best, p.b)[:, None] * p.A  # data gradients at the optimum, weighted by 1/(n p)
    step = 0.06 / p.smoothness().max()
    optimal = np.linalg.norm(rows, axis=1)
    samplers = [WithReplacement(range(n), seed=s) for s in range(chains)]
    samplers += [Importance(range(n), optimal, mix=1.0, seed=s) for s in range(chains)]
    run = prox_sgd(
        p, samplers, epochs=epochs, step=step, x0=best, average_from=None,
        watch=lambda x: {"distance": ((x - best) ** 2).sum(-1), "excess": p.value(x) - p.value(best)},
    )  # fmt: skip
    late = run.history[epochs // 3 :]
    centre = rows.mean(0)  # minus l2 times the optimum, which is not sampled
    for kind, chain in enumerate((slice(0, chains), slice(chains, None))):
        probabilities = np.full(n, 1 / n) if kind == 0 else optimal / optimal.sum()
        noise = (rows.T / (n**2 * probabilities)) @ rows - np.outer(centre, centre)
        distance = np.mean([row["distance"][chain] for row in late])
        excess = np.mean([row["excess"][chain] for row in late])
        assert distance == pytest.approx(step / 2 * np.trace(np.linalg.solve(hessian, noise)), rel=0.1)
        assert excess == pytest.approx(step / 4 * np.trace(noise), rel=0.1)


def variance_ratio(p, x, weights, mix=1.0):
    """sum |g|^2/(n^2 p) under the sampler's probabilities over that of uniform draws, and the same from draws."""
    norms = np.abs(p.slopes(p.A @ x, p.b)) * p.row_norms()
    sampler = Importance(range(p.n), weights, mix=mix, num_samples=50_000, seed=3)
    exact = (norms**2 / (p.n**2 * sampler.probabilities())).sum()
    indices, w = np.array(list(sampler)).T
    drawn = ((w * norms[indices.astype(int)]) ** 2).mean()
    uniform = (norms**2).mean()
    return exact / uniform, drawn / uniform


@pytest.mark.parametrize(("spread", "low", "high"), [(0.0, 0.6, 1.0), (0.5, 0.15, 0.6), (1.0, 0.0, 0.15)])
def test_sampling_by_smoothness_reduces_the_variance_with_the_skew_of_row_norms(spread, low, high):
    p, _, _ = ridge(1000, 10, spread, seed=4, l2=0.0)
    start = np.zeros(10)
    by_smoothness, drawn = variance_ratio(p, start, p.smoothness())
    assert low < by_smoothness < high
    assert drawn == pytest.approx(by_smoothness, rel=0.1)
    norms = np.abs(p.slopes(p.A @ start, p.b)) * p.row_norms()
    optimal, _ = variance_ratio(p, start, norms)
    assert optimal <= by_smoothness
    assert optimal == pytest.approx(norms.mean() ** 2 / (norms**2).mean())
    mixed, _ = variance_ratio(p, start, p.smoothness(), mix=0.5)
    assert mixed <= 2 * by_smoothness  # the mixture costs at most 1/a


def test_at_the_optimum_residuals_are_mere_noise_and_only_gradient_norms_help():
    # there |grad f_i| = |noise_i| |a_i|: p ~ L_i makes mean(noise^2) mean(L), just as uniform draws do
    p, best, _ = ridge(1000, 10, 1.0, seed=4, l2=0.0)
    by_smoothness, _ = variance_ratio(p, best, p.smoothness())
    assert 0.7 < by_smoothness < 1.6
    by_root, _ = variance_ratio(p, best, np.sqrt(p.smoothness()))
    assert by_root < 0.6
    by_norms, _ = variance_ratio(p, best, np.abs(p.slopes(p.A @ best, p.b)) * p.row_norms())
    assert by_norms < by_root


def test_on_normalised_rows_there_is_nothing_to_gain():
    p, best, _ = ridge(300, 10, 1.0, seed=5, l2=0.0)
    p = FiniteSum(p.A / p.row_norms()[:, None], p.b)
    ratio, drawn = variance_ratio(p, best, p.smoothness())
    assert ratio == pytest.approx(1, abs=1e-9)
    assert drawn == pytest.approx(1, rel=0.1)


def test_grab_beats_reshuffling_on_a_quadratic():
    n = 120
    p, best, _ = ridge(n, 6, 0.0, seed=6, l2=0.3)
    seeds = range(3)
    samplers = [kind(range(n), seed=s) for kind in (RandomReshuffling, GraB) for s in seeds]
    run = prox_sgd(
        p, samplers, epochs=50, step=0.02, average_from=None, watch=lambda x: {"distance": ((x - best) ** 2).sum(-1)}
    )
    late = np.mean([row["distance"] for row in run.history[25:]], axis=0)
    assert late[3:].mean() < 0.5 * late[:3].mean()
