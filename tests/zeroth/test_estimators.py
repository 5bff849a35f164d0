"""Gradients from losses: against autograd and exact quadratics, unbiased, and weights that come back bit for bit."""

import math

import pytest
import torch
from torch import nn

from dlopt.zeroth.estimators import coordinate_gradient, number, random_gradient, stepped

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def bits(tensors):
    return [t.detach().clone().contiguous().reshape(-1).view(torch.uint8) for t in tensors]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def problem(dtype=torch.float64):
    """(loss, its weights, a smooth net): scalars, vectors, matrices and a convolution stored in channels_last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    model.to(memory_format=torch.channels_last)
    model.register_parameter("gain", nn.Parameter(torch.tensor(1.5, dtype=dtype)))
    x, y = torch.randn(6, 3, 4, 4).to(dtype), torch.arange(6) % 3
    loss = lambda: nn.functional.cross_entropy(model.gain * model(x), y)  # noqa: E731
    return loss, list(model.parameters())


def quadratic(n=6, seed=0):
    """(loss, weights in two tensors, gradient, Hessian)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    hessian, linear = root @ root.T, torch.randn(n, generator=generator, dtype=torch.float64)
    w = torch.randn(n, generator=generator, dtype=torch.float64)
    params = [w[:2].clone(), w[2:].clone().view(2, -1)]

    def loss():
        flat = torch.cat([p.reshape(-1) for p in params])
        return 0.5 * flat @ hessian @ flat + linear @ flat

    return loss, params, hessian @ w + linear, hessian


def test_coordinates_agree_with_autograd_to_first_order_in_mu_and_second_when_central():
    loss, params = problem()
    exact = torch.autograd.grad(loss(), params)
    errors = {}
    for central in (False, True):
        for mu in (1e-3, 1e-4):
            found = coordinate_gradient(loss, params, mu=mu, central=central)
            errors[central, mu] = max(float((a - b).abs().max()) for a, b in zip(found.gradients, exact, strict=True))
            elements = sum(p.numel() for p in params)
            assert found.forwards == (2 * elements if central else elements + 1)
    assert errors[False, 1e-3] < 1e-3
    assert 8 < errors[False, 1e-3] / errors[False, 1e-4] < 12  # O(mu)
    assert 80 < errors[True, 1e-3] / errors[True, 1e-4] < 120  # O(mu^2)


@pytest.mark.parametrize("mu", [0.3, 2.0])
def test_coordinates_are_exact_on_quadratics_with_central_differences(mu):
    loss, params, gradient, hessian = quadratic()
    central = coordinate_gradient(loss, params, mu=mu, central=True)
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in central.gradients]), gradient, rtol=0, atol=1e-10)
    forward = coordinate_gradient(loss, params, mu=mu)
    expected = gradient + mu / 2 * hessian.diagonal()
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in forward.gradients]), expected, rtol=0, atol=1e-10)
    assert forward.loss == float(loss())


def test_only_the_chosen_coordinates_are_estimated():
    loss, params, gradient, _ = quadratic()
    found = coordinate_gradient(loss, params, [torch.tensor([1]), torch.tensor([], dtype=torch.long)], central=True)
    assert found.forwards == 2
    assert found.gradients[0][0] == 0
    assert not found.gradients[1].any()
    assert abs(float(found.gradients[0][1] - gradient[1])) < 1e-8


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("direction", ["gaussian", "rademacher", "sphere"])
def test_random_directions_are_unbiased_on_quadratics(direction, central):
    loss, params, gradient, _ = quadratic()
    rounds = []
    for seed in range(400):
        found = random_gradient(loss, params, q=2, mu=0.1, seed=seed, direction=direction, central=central)
        rounds.append(torch.cat([g.reshape(-1) for g in found.gradients]))
        assert found.forwards == (4 if central else 3)
    rounds = torch.stack(rounds)
    error = rounds.std(0) / math.sqrt(len(rounds))
    assert bool(((rounds.mean(0) - gradient).abs() < 4 * error).all())
    # the interval is a test only where it is narrow: not 0, and no other scale
    assert float(error.norm()) < 0.2 * float(gradient.norm())


def test_more_directions_are_the_mean_of_single_ones_and_reduce_variance():
    loss, params, gradient, _ = quadratic()

    def error(q):
        found = [random_gradient(loss, params, q=q, mu=1e-3, seed=s).gradients for s in range(100)]
        return sum(float((torch.cat([g.reshape(-1) for g in f]) - gradient).square().sum()) for f in found)

    assert 12 < error(1) / error(16) < 21


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_come_back_bit_for_bit(dtype):
    loss, params = problem(dtype)
    with torch.no_grad():
        params[1][0] = -0.0
    before = bits(params)
    wide = lambda: loss().double()  # noqa: E731
    coordinates = coordinate_gradient(wide, params, mu=0.3, central=True)  # seen in bfloat16 too
    random = random_gradient(wide, params, q=3, mu=0.3)
    assert same(before, bits(params))
    for found in (coordinates, random):
        assert all(bool(g.isfinite().all()) and bool(g.any()) for g in found.gradients)
        assert all(g.dtype == (dtype if dtype.itemsize > 2 else torch.float32) for g in found.gradients)

    def broken():
        raise RuntimeError("broken")

    calls = iter([loss, broken])
    with pytest.raises(RuntimeError, match="broken"):
        coordinate_gradient(lambda: next(calls)(), params)
    calls = iter([loss, broken])
    with pytest.raises(RuntimeError, match="broken"):
        random_gradient(lambda: next(calls)(), params)
    assert same(before, bits(params))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mu", [1e-9, -1e-9, 1e-3, -1e-3, 1.0])
def test_a_step_is_what_rounding_makes_of_it_and_never_nothing(dtype, mu):
    old = torch.tensor([0.0, 1.0, -1.0, 300.0, -300.0, 1e-3, -1e-3]).to(dtype)
    new, steps = stepped(old, mu)
    assert new.dtype == dtype
    assert torch.equal(steps, new.double() - old.double())
    # beside 0 and where the numbers are dense enough, mu itself; never back, never none
    assert bool((steps * mu > 0).all())
    spacing = torch.finfo(dtype).eps * old.double().abs().clamp(min=torch.finfo(dtype).tiny)
    assert bool(((steps - mu).abs() <= spacing + torch.finfo(dtype).eps * abs(mu)).all())


def test_a_large_low_precision_weight_has_a_slope():
    weight = torch.tensor([256.0], dtype=torch.bfloat16)
    found = coordinate_gradient(lambda: 3 * weight.double().sum(), [weight], mu=1e-3)
    assert found.gradients[0].tolist() == [3.0]


def test_bad_arguments_are_refused():
    w = [torch.ones(3)]
    loss = lambda: w[0].sum()  # noqa: E731
    for function in (coordinate_gradient, random_gradient):
        for mu in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="mu="):
                function(loss, w, mu=mu)
        with pytest.raises(ValueError, match="empty"):
            function(loss, [])
    for q in (0, 1.5, True):
        with pytest.raises(ValueError, match="q="):
            random_gradient(loss, w, q=q)
    with pytest.raises(ValueError, match="cauchy"):
        random_gradient(loss, w, direction="cauchy")
    for wrong in ([torch.tensor([3])], [torch.tensor([-1])], [torch.tensor([0.5])], [torch.tensor([[0]])]):
        with pytest.raises(ValueError, match="coordinate"):
            coordinate_gradient(loss, w, wrong)
    with pytest.raises(ValueError, match="one for each"):
        coordinate_gradient(loss, w, [None, None])
    with pytest.raises(ValueError, match="nothing to estimate"):
        coordinate_gradient(loss, w, [torch.tensor([], dtype=torch.long)])
    with pytest.raises(ValueError, match=r"\(3,\)"):
        coordinate_gradient(lambda: w[0], w)
    with pytest.raises(TypeError, match="None"):
        number(None)
