"""Lion against its twin. What all optimizers share is in tests/test_optimizers.py."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.adam import Lion, _shared
from tests.adam.digits import accuracy_on_digits, mlp
from tests.adam.reference_lion import lion

SHAPES = [(16, 24), (7,), (3, 8, 5), ()]


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def gradients(steps):
    generator = torch.Generator().manual_seed(1)
    rounds = [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(steps)]
    rounds[0][0][0] = 0  # the sign of 0 is 0
    return rounds


def run(optimizer, params, rounds):
    for grads in rounds:
        for p, g in zip(params, grads):
            p.grad = g.to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("foreach", [False, True])
def test_equals_the_twin(weight_decay, foreach, monkeypatch):
    monkeypatch.setattr(_shared, "CHUNK", 100)
    params, rounds = parameters(), gradients(50)
    options = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": weight_decay}
    want = [lion(p.detach().numpy(), [r[i].numpy() for r in rounds], **options) for i, p in enumerate(params)]
    for a, b in zip(run(Lion(params, foreach=foreach, **options), params, rounds), want):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("foreach", [False, True])
def test_low_precision_weights_are_float32_weights_rounded_once(foreach):
    low, full = parameters(torch.bfloat16), parameters(torch.bfloat16)
    full = [nn.Parameter(p.detach().float()) for p in full]
    rounds = [[g.bfloat16() for g in grads] for grads in gradients(1)]
    options = {"lr": 0.01, "weight_decay": 0.1, "foreach": foreach, "maximize": True}
    for a, b in zip(run(Lion(low, **options), low, rounds), run(Lion(full, **options), full, rounds)):
        assert torch.equal(a, b.bfloat16())


def test_every_element_moves_by_lr():
    params = parameters()
    before = [p.detach().clone() for p in params]
    for a, b in zip(before, run(Lion(params, lr=0.25), params, gradients(2)[1:])):
        torch.testing.assert_close((a - b).abs(), torch.full_like(a, 0.25))


def test_wrong_arguments_are_refused_with_value_and_range():
    for name, value in {"lr": math.inf, "betas": (0.9, 1.0), "weight_decay": -1}.items():
        with pytest.raises(ValueError, match=f"{name}=.* is out of range: it must be"):
            Lion(parameters(), **{name: value})


def test_learns_digits():
    model = mlp()
    assert accuracy_on_digits(model, Lion(model.parameters(), lr=3e-3)) > 0.93
