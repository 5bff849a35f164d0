"""The curvature of Sophia-G and Sophia-H against the exact diagonal; micro-batches and masks change nothing."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.adam import SophiaG, SophiaH, sophia_g
from tests.adam import reference_sophia as reference
from tests.adam.softmax_regression import BOTH, curvature, regression, round_of


@pytest.mark.parametrize("cls", BOTH)
def test_mean_estimate_is_the_exact_diagonal(cls):
    weight, x, _ = regression()
    exact = reference.softmax_regression_diagonal(x.numpy(), weight.detach().numpy())
    optimizer = cls([weight], betas=(0.9, 0.0))  # H is the newest estimate
    draws = []
    for _ in range(3000):
        round_of(optimizer, weight, x)
        draws.append(curvature(optimizer, weight).numpy().copy())
    mean, error = np.mean(draws, axis=0), np.std(draws, axis=0) / math.sqrt(len(draws))
    assert (np.abs(mean - exact) < 4.5 * error).all(), (mean, exact, error)
    assert (error < 0.1 * exact).all()  # the test would see a missing B = 12


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("parts", [2, 5, 12])
def test_micro_batches_change_nothing(cls, parts):
    results = []
    for n in (1, parts):
        weight, x, _ = regression()
        optimizer = cls([weight])
        for _ in range(3):
            round_of(optimizer, weight, x, n)
        results.append(curvature(optimizer, weight))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)
    assert results[0].any()


def test_masked_targets_are_as_if_they_were_not_there():
    results = []
    keep = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0]).view(3, 4)
    for masked in (True, False):
        weight, x, _ = regression()
        optimizer = SophiaG([weight])
        for _ in range(2):
            if masked:
                x = x.view(3, 4, 3)
                optimizer.accumulate_curvature(x @ weight.T, mask=keep)
                optimizer.accumulate_curvature(x @ weight.T, mask=torch.zeros(3, 4, dtype=torch.bool))
            else:
                optimizer.accumulate_curvature(x[keep.flatten().bool()] @ weight.T)
            assert optimizer.param_groups[0]["targets"] == 7
            optimizer.update_curvature()
        results.append(curvature(optimizer, weight))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-15)


def test_labels_are_drawn_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, -math.inf, 2.0, -3.0])
    labels = sophia_g._sample(logits.expand(20000, 5), seed=3, skip=0)
    expected = logits.softmax(0) * 20000
    counts = torch.bincount(labels, minlength=5).float()
    assert counts[2] == 0
    chi2 = float(((counts - expected) ** 2 / expected)[expected > 0].sum())
    assert chi2 < 21.1  # the 99.97% point for 3 degrees of freedom
    again = torch.cat([sophia_g._sample(logits.expand(n, 5), seed=3, skip=s) for s, n in ((0, 7), (7, 100))])
    assert torch.equal(again, labels[:107])
    assert not torch.equal(sophia_g._sample(logits.expand(107, 5), seed=4, skip=0), again)
    last = sophia_g._sample(torch.full((1000, 3), 30.0), seed=0, skip=0)
    assert last.unique().tolist() == [0, 1, 2]


def test_hutchinson_with_signs_is_exact_where_the_hessian_is_diagonal():
    w, unused = nn.Parameter(torch.tensor([1.0, -2.0, 0.5])), nn.Parameter(torch.ones(2))
    scale = torch.tensor([3.0, -1.0, 0.0])
    for maximize in (False, True):
        optimizer = SophiaH([w, unused], probe="rademacher", betas=(0.9, 0.0), maximize=maximize)
        optimizer.update_curvature((scale * w**2).sum() + 5 * w.sum())
        assert torch.equal(curvature(optimizer, w), (-2 if maximize else 2) * scale)
        assert unused not in optimizer.state
    optimizer.update_curvature(w.sum())  # linear: no second derivative at all
    assert torch.equal(curvature(optimizer, w), torch.zeros(3))


@pytest.mark.parametrize("cls", BOTH)
def test_a_round_leaves_gradients_and_the_global_generator_alone(cls):
    weight, x, y = regression()
    optimizer = cls([weight])
    loss = nn.functional.cross_entropy(logits := x @ weight.T, y)
    before = torch.get_rng_state()
    optimizer.accumulate_curvature(logits if cls is SophiaG else loss, retain_graph=True)
    optimizer.update_curvature()
    assert weight.grad is None
    assert torch.equal(before, torch.get_rng_state())
    loss.backward()  # the graph is still there
    assert weight.grad is not None
    assert optimizer.rounds == 1
