"""Importance sampling: exact tables, unbiased gradients, running norms, per-example norms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dlopt.sampling import Importance, Weighted, per_example_gradients, per_example_norms, weighted_mean
from dlopt.sampling.alias import AliasTable
from dlopt.sampling.sumtree import SumTree
from tests.sampling.helpers import chi_square

# zero, and 12 orders of magnitude
WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(-6, 6).map(lambda e: 10.0**e)), min_size=1, max_size=60).filter(
    any
)


def draws(sampler):
    pairs = list(sampler)
    return np.array([i for i, _ in pairs]), np.array([w for _, w in pairs])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(weights=WEIGHTS, mix=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_alias_table_draws_exactly_the_probabilities(weights, mix):
    s, n = np.array(weights), len(weights)
    expected = (1 - mix) / n + mix * s / s.sum()
    sampler = Importance(range(n), weights, mix=mix)
    np.testing.assert_allclose(sampler.probabilities(), expected, rtol=1e-12)
    np.testing.assert_allclose(sampler._table.probabilities(), expected, rtol=1e-12)
    assert ((sampler._table.keep >= 0) & (sampler._table.keep <= 1)).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_a_large_alias_table_is_exact_too(spread):
    q = np.exp(np.random.default_rng(0).normal(size=100_003) * spread)
    q /= q.mean()
    np.testing.assert_allclose(AliasTable(q).probabilities() * len(q), q, rtol=1e-10)


@pytest.mark.parametrize("mix", [0.5, 1.0])
def test_draws_follow_the_probabilities_over_12_orders_of_magnitude(mix):
    s = np.concatenate([[0.0, 0.0], 10.0 ** np.linspace(-12, 0, 37)])
    sampler = Importance(range(39), s, mix=mix, num_samples=200_000, seed=3)
    indices, weights = draws(sampler)
    p = sampler.probabilities()
    assert chi_square(np.bincount(indices, minlength=39), p * 200_000) > 1e-3
    np.testing.assert_allclose(weights, 1 / (39 * p[indices]), rtol=1e-12)
    assert weights.max() <= 1 / (1 - mix) if mix < 1 else not np.isin(indices, (0, 1)).any()


def test_more_than_two_to_the_24_examples():
    n = 2**24 + 5
    s = np.ones(n, dtype=np.float32)
    s[-3:] = n  # torch.multinomial refuses this size
    sampler = Importance(range(n), s, mix=1.0, num_samples=4000)
    indices, weights = draws(sampler)
    assert chi_square([(indices == n - k).sum() for k in (1, 2, 3)] + [(indices < n - 3).sum()], [1000] * 4) > 1e-3
    assert len(set(indices[indices < n - 3].tolist())) > 900
    np.testing.assert_allclose(weights[indices >= n - 3], 4 / n, rtol=1e-6)


class Gradients(Dataset):
    """Made-up gradients (n, d) whose norms differ much, fetched a batch at a time."""

    def __init__(self, n=40, d=3):
        random = np.random.default_rng(1)
        self.rows = torch.from_numpy(random.normal(size=(n, d)) * np.exp(1.5 * random.normal(size=(n, 1)) + 1))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return index, self.rows[index]

    def __getitems__(self, indices):
        return [(index, self.rows[index]) for index in indices]


def close_to_full_gradient(estimates, rows, errors=4.0):
    estimates = np.asarray(estimates)
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    return (np.abs(estimates.mean(0) - rows.numpy().mean(0)) < errors * error).all()


@pytest.mark.parametrize("mix", [0.3, 1.0])
def test_the_mean_weighted_gradient_is_the_full_gradient(mix):
    rows = Gradients().rows
    indices, weights = draws(Importance(rows, rows.norm(dim=1), mix=mix, num_samples=60_000, seed=2))
    assert close_to_full_gradient(weights[:, None] * rows.numpy()[indices], rows)
    assert not close_to_full_gradient(rows.numpy()[indices], rows), "without weights it must fail"


@pytest.mark.parametrize("workers", [0, 2])
def test_online_the_mean_weighted_gradient_is_the_full_gradient_too(workers):
    data = Gradients()
    sampler = Importance(data, online=True, mix=0.7, rate=0.5, refresh=32, num_samples=24_000, seed=4)
    estimates, bare, drift = [], [], np.random.default_rng(5)
    for indices, rows, w in DataLoader(Weighted(data), batch_size=60, sampler=sampler, num_workers=workers):
        estimates.append(weighted_mean_rows(rows, w))
        bare.append(rows.mean(0).numpy())
        # norms that change all the time: the weights must belong to the probabilities at the draw
        sampler.update(indices, rows.norm(dim=1) * torch.from_numpy(drift.lognormal(size=len(rows))))
    assert close_to_full_gradient(estimates, data.rows)
    assert not close_to_full_gradient(bare, data.rows), "without weights it must fail"
    p, norms = sampler.probabilities(), data.rows.norm(dim=1).numpy()
    assert p.sum() == pytest.approx(1)
    assert np.corrcoef(np.log(p), np.log(norms))[0, 1] > 0.7  # it learned what is large


def weighted_mean_rows(rows, w):
    return torch.stack([weighted_mean(column, w) for column in rows.T]).numpy()


@pytest.mark.parametrize("epoch", [0, 1])
def test_online_draws_follow_the_probabilities(epoch):
    s = np.concatenate([[0.0], 10.0 ** np.linspace(-12, 0, 30)])
    sampler = Importance(range(31), s, online=True, mix=0.9, refresh=4096, num_samples=100_000, seed=6)
    sampler.set_epoch(epoch)
    indices, weights = draws(sampler)
    p = sampler.probabilities()
    assert chi_square(np.bincount(indices, minlength=31), p * 100_000) > 1e-3
    np.testing.assert_allclose(weights, 1 / (31 * p[indices]), rtol=1e-12)


def test_running_norms():
    sampler = Importance(range(4), online=True, mix=0.5, rate=0.25)
    np.testing.assert_allclose(sampler.probabilities(), [0.25] * 4)
    sampler.update([], [])
    sampler.update([0], [0.0])  # no scale can be learned from nothing
    sampler.update(torch.tensor([1, 2]), torch.tensor([2.0, 6.0]))  # the others count as 4, the mean
    np.testing.assert_allclose(sampler._tree.weights, [4, 3.5, 4.5, 4])
    sampler.update([3, 3], [0.0, 8.0])  # twice: their mean
    np.testing.assert_allclose(sampler._tree.weights, [4, 3.5, 4.5, 4])
    sampler.update(np.array([0]), np.array([0.0]))
    np.testing.assert_allclose(sampler.probabilities(), 0.125 + 0.5 * np.array([3, 3.5, 4.5, 4]) / 15)


def test_where_all_norms_are_zero_draws_are_uniform():
    sampler = Importance(range(3), [1.0, 2.0, 3.0], online=True, num_samples=3000)
    sampler.update([0, 1, 2], [0.0, 0.0, 0.0])
    indices, weights = draws(sampler)
    assert chi_square(np.bincount(indices), [1000] * 3) > 1e-3
    assert (weights == 1).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights=WEIGHTS, data=st.data())
def test_the_sum_tree_is_exact_whatever_its_history(weights, data):
    n = len(weights)
    tree, plain = SumTree(np.array(weights)), np.array(weights)
    for _ in range(3):
        indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
        new = np.array(data.draw(st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e6]), min_size=n, max_size=n)))[indices]
        tree.set(indices, new)
        plain[indices] = new
        np.testing.assert_array_equal(tree.nodes, SumTree(plain).nodes)
        np.testing.assert_allclose(tree.total, plain.sum(), rtol=1e-12)
        if not plain.any():
            continue
        u = (np.arange(200) + 0.5) / 200
        drawn = tree.draw(np.append(u, [0.0, np.nextafter(1, 0)]))
        assert (plain[drawn] > 0).all()
        expected = np.searchsorted(np.cumsum(plain) / plain.sum(), u, side="right")
        assert (drawn[:200] != expected).mean() <= 0.02  # but for rounding at the borders


def test_the_sum_tree_never_draws_a_weight_of_zero_by_rounding():
    # (3/2 ulp) + (1 + 2 ulp) rounds up to 1 + 4 ulp, and taking the first off again leaves the whole second part
    ulp = 2.0**-52
    tree = SumTree(np.array([1.5 * ulp, 0.0, 1 + 2 * ulp, 0.0]))
    assert tree.draw(np.array([np.nextafter(1, 0)])) == [2]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([1.0, float("nan"), 2.0], {}, r"weights\[1\] is nan"),
        ([1.0, 2.0, -0.5], {}, r"weights\[2\] is -0.5"),
        ([1.0, float("inf"), 2.0], {}, r"weights\[1\] is inf"),
        ([0.0, 0.0, 0.0], {}, "weights must not all be 0, but all 3 are"),
        ([1.0, 2.0], {}, r"weights must have shape \(3,\), not \(2,\)"),
        (None, {}, "needs weights"),
        ([1.0, 1.0, 1.0], {"mix": 1.5}, r"mix must be from 0 to 1, not 1\.5"),
        ([1.0, 1.0, 1.0], {"mix": float("nan")}, "mix must be from 0 to 1, not nan"),
        ([1.0, 1.0, 1.0], {"online": True, "mix": 1.0}, r"mix below 1, not 1\.0"),
        ([1.0, 1.0, 1.0], {"rate": -1}, "rate must be from 0 to 1, not -1"),
        ([1.0, 1.0, 1.0], {"refresh": 0}, "refresh must be at least 1, not 0"),
        ([1.0, 1.0, 1.0], {"num_samples": 0}, "num_samples must be at least 1, not 0"),
    ],
)
def test_wrong_arguments(weights, options, message):
    with pytest.raises(ValueError, match=message):
        Importance(range(3), weights, **options)


@pytest.mark.parametrize(
    ("indices", "norms", "message"),
    [
        ([0, 1], [1.0, float("nan")], r"norms\[1\] is nan"),
        ([0, 1], [-1.0, 1.0], r"norms\[0\] is -1.0"),
        ([0, 1], [1.0], r"norms must have shape \(2,\)"),
        ([0, 3], [1.0, 1.0], "indices must be integers from 0 to 2"),
        ([-1], [1.0], "indices must be integers from 0 to 2"),
        ([0.5], [1.0], "indices must be integers from 0 to 2"),
    ],
)
def test_wrong_updates_change_nothing(indices, norms, message):
    sampler = Importance(range(3), online=True)
    with pytest.raises(ValueError, match=message):
        sampler.update(indices, norms)
    np.testing.assert_allclose(sampler.probabilities(), [1 / 3] * 3)


def test_fixed_weights_cannot_be_updated_or_mixed_up_with_online_ones():
    fixed, online = Importance(range(3), [1.0, 2.0, 3.0]), Importance(range(3), online=True)
    with pytest.raises(ValueError, match="online=True"):
        fixed.update([0], [1.0])
    with pytest.raises(ValueError, match="loads only into online=True"):
        fixed.load_state_dict(online.state_dict(consumed=0))


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval().double()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_per_example_norms_equal_those_of_single_backward_passes(chunk_size):
    model, loss_fn = small_model(), nn.CrossEntropyLoss()
    model[0].weight.requires_grad_(False)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    expected = []
    for x_1, y_1 in zip(x, y):
        model.zero_grad()
        loss_fn(model(x_1[None]), y_1[None]).backward()
        expected.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    expected = torch.stack(expected)
    found = per_example_gradients(model, loss_fn, x, y, chunk_size=chunk_size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    norms = per_example_norms(model, loss_fn, x, y, chunk_size=chunk_size)
    torch.testing.assert_close(norms, expected.norm(dim=1), rtol=1e-12, atol=1e-14)


def test_per_example_norms_refuse_what_has_none():
    model, loss_fn = small_model().train(), nn.CrossEntropyLoss()
    x, y = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="2 is a BatchNorm in training mode"):
        per_example_norms(model, loss_fn, x, y)
    with pytest.raises(ValueError, match="not 2 and 1"):
        per_example_norms(model.eval(), loss_fn, x, y[:1])
    with pytest.raises(ValueError, match="no parameter"):
        per_example_norms(model.requires_grad_(False), loss_fn, x, y)
