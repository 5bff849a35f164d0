"""MeZO-SVRG: the anchor is a real copy, the correction is exact at it, forwards are counted, the paper's formulas."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.zeroth import MeZO, MeZOSVRG
from dlopt.zeroth.directions import add, draw, mix
from dlopt.zeroth.log import Log


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Problem:
    """n quadratics a_i (w.x_i)^2 / 2 + b_i.w in d weights: differences are exact at any eps, gradients are known."""

    def __init__(self, d=4, n=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        self.b = torch.randn(n, d, generator=generator, dtype=torch.float64)
        self.w = torch.linspace(-1, 1, d, dtype=torch.float64)

    def loss(self, w, rows):
        return ((self.x[rows] @ w).square() / 2 + self.b[rows] @ w).mean()

    def gradient(self, w, rows):
        return (self.x[rows] * (self.x[rows] @ w)[:, None] + self.b[rows]).mean(0)


ALL = slice(None)


def twin(problem, batches, z, *, steps, lr, anchor_lr, interval, eps, n_directions, shared, decay):
    """Gautam et al. (2024), algorithm 2, in NumPy; z(step, k) gives a direction."""
    x, b, w = problem.x.numpy(), problem.b.numpy(), problem.w.numpy().copy()

    def loss(w, rows):
        return ((x[rows] @ w) ** 2 / 2 + b[rows] @ w).mean()

    def estimate(w, rows, step, first=0):
        total = np.zeros_like(w)
        for k in range(first, first + n_directions):
            c = (loss(w + eps * z(step, k), rows) - loss(w - eps * z(step, k), rows)) / (2 * eps)
            total += c * z(step, k) / n_directions
        return total

    for t in range(steps):
        if t % interval == 0:
            anchor, g = w.copy(), estimate(w, slice(None), t)
            w = w - anchor_lr * (g + decay * w)
        else:
            there = estimate(anchor, batches(t), t, 0 if shared else n_directions)
            w = w - lr * (estimate(w, batches(t), t) - there + g + decay * w)
    return w


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("interval", "n_directions", "decay"), [(2, 1, 0.0), (3, 2, 0.1), (1, 1, 0.0)])
def test_equals_the_twin(interval, n_directions, decay, shared):
    problem, p = Problem(), None
    p = nn.Parameter(problem.w.clone())
    options = {"lr": 0.01, "anchor_lr": 0.02, "interval": interval, "eps": 0.3, "n_directions": n_directions}
    optimizer = MeZOSVRG([p], seed=7, shared_z=shared, weight_decay=decay, **options)

    def batches(t):
        return slice(t % 4, t % 4 + 3)

    def z(step, k):
        return draw("gaussian", problem.w, mix(mix(mix(7, step), k), 0)).numpy()

    halves = [(lambda: problem.loss(p, slice(0, 5)), 5), (lambda: problem.loss(p, slice(5, 8)), 3)]
    for t in range(50):
        optimizer.step(lambda t=t: problem.loss(p, batches(t)), full=iter(halves))
    expected = twin(problem, batches, z, steps=50, shared=shared, decay=decay, **options)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=0, atol=1e-12)
    anchors = len(range(0, 50, interval))
    assert optimizer.forwards == anchors * 2 * n_directions * 2 + (50 - anchors) * 4 * n_directions


def test_full_may_be_one_closure_or_parts_of_equal_weight_or_the_closure_itself():
    problem, results = Problem(), []

    def part(p, low, high):
        return lambda: problem.loss(p, slice(low, high))

    for kind in ("closure", "parts", "none"):
        p = nn.Parameter(problem.w.clone())
        optimizer = MeZOSVRG([p], lr=0.01, interval=2)
        for _ in range(4):
            full = {"closure": part(p, 0, 8), "parts": [part(p, 0, 4), part(p, 4, 8)], "none": None}[kind]
            loss = optimizer.step(part(p, 0, 8), full)
            assert float(loss) == pytest.approx(float(problem.loss(p.detach(), ALL)), abs=0.2)
        results.append(p.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    assert torch.equal(results[0], results[2])
    with pytest.raises(ValueError, match="holds no closure"):
        MeZOSVRG([p]).step(part(p, 0, 8), [])
    with pytest.raises(ValueError, match="above 0"):
        MeZOSVRG([p]).step(part(p, 0, 8), [(part(p, 0, 8), 0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_at_its_anchor_the_update_is_the_stored_gradient_exactly(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    x = torch.randn(10, 4).to(dtype)
    optimizer = MeZOSVRG(model, lr=0.05, anchor_lr=0.0, interval=5, n_directions=2)
    optimizer.step(lambda: model(x).float().square().mean())
    expected = [p.detach().clone() for p in model.parameters()]
    for i, p in enumerate(expected):
        add("gaussian", p, [(mix(seed, i), scale) for seed, scale in optimizer.gradient], -0.05)
    optimizer.step(lambda: model(x[:3]).float().pow(3).sum())  # any batch
    assert all(map(torch.equal, expected, model.parameters()))


def test_with_directions_of_their_own_the_differences_do_not_cancel():
    problem = Problem()
    p = nn.Parameter(problem.w.clone())
    optimizer = MeZOSVRG([p], lr=0.05, anchor_lr=0.0, interval=5, shared_z=False)
    optimizer.step(lambda: problem.loss(p, ALL))
    expected = problem.w.clone()
    add("gaussian", expected, [(mix(seed, 0), scale) for seed, scale in optimizer.gradient], -0.05)
    optimizer.step(lambda: problem.loss(p, slice(0, 2)))
    assert not torch.allclose(expected, p)


def test_the_anchor_is_a_copy_that_stays_until_it_is_renewed():
    problem = Problem()
    p = nn.Parameter(problem.w.clone())
    optimizer = MeZOSVRG([p], lr=0.01, interval=3)
    for t in range(9):
        assert optimizer.renews == (t % 3 == 0)
        before = p.detach().clone()
        optimizer.step(lambda: problem.loss(p, slice(0, 2)), lambda: problem.loss(p, ALL))
        anchor = optimizer.state[p]["anchor"]
        if t % 3 == 0:
            kept = before
        assert torch.equal(anchor, kept)
        assert anchor.data_ptr() != p.data_ptr()
        assert not torch.equal(anchor, p)


def test_the_estimate_is_unbiased_and_near_the_anchor_its_variance_is_below_mezos():
    problem, n = Problem(), 600
    near = problem.w + torch.tensor([0.03, -0.02, 0.01, 0.02], dtype=torch.float64)
    rows = torch.randint(8, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    found, mezos, given_g, fixed = [], [], [], None
    p = nn.Parameter(problem.w.clone())
    optimizer = MeZOSVRG([p], lr=1.0, anchor_lr=0.0, eps=0.5)
    mezo = MeZO([p], lr=1.0, eps=0.5)
    for i in range(n):
        optimizer.seed = mezo.seed = i
        p.data.copy_(problem.w)
        optimizer.due = True
        optimizer.step(lambda: problem.loss(p, ALL))
        fixed = fixed or list(optimizer.gradient)

        def batch(i=i):
            return problem.loss(p, slice(rows[i], rows[i] + 1))

        for kept, gradient in ((found, optimizer.gradient), (given_g, fixed)):
            p.data.copy_(near)
            optimizer.gradient, optimizer.steps = gradient, 1
            optimizer.step(batch)
            kept.append(near - p.detach())
        p.data.copy_(near)
        mezo.step(batch)
        mezos.append(near - p.detach())
    found, given_g, mezos = torch.stack(found), torch.stack(given_g), torch.stack(mezos)
    error = found.std(0) / n**0.5
    assert ((found.mean(0) - problem.gradient(near, ALL)).abs() < 4 * error).all()
    # between two anchors g stays: what varies is the correction alone, small near the anchor
    assert float(given_g.var(0).sum()) < 0.05 * float(mezos.var(0).sum())


def test_losses_that_are_not_finite_leave_anchor_and_gradient_and_are_tried_again():
    p, value = nn.Parameter(torch.ones(3)), [float("nan")]
    optimizer = MeZOSVRG([p], lr=0.1, interval=4, patience=3, log=True)

    def loss():
        return p.sum() * value[0]

    optimizer.step(loss)
    assert optimizer.renews
    assert optimizer.skipped == 1
    assert not optimizer.state[p]
    value[0] = 1.0
    optimizer.step(loss)  # step 1: not a multiple of 4, but the anchor was due
    assert not optimizer.renews
    anchor, gradient = optimizer.state[p]["anchor"].clone(), list(optimizer.gradient)
    value[0] = float("inf")
    before = p.detach().clone()
    for _ in range(2):
        optimizer.step(loss)
    assert torch.equal(before, p)
    assert torch.equal(anchor, optimizer.state[p]["anchor"])
    assert gradient == optimizer.gradient
    assert (optimizer.steps, optimizer.skipped, len(optimizer.log.rows)) == (4, 3, 1)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        optimizer.step(loss)


def test_resume_mid_interval_takes_over_anchor_gradient_and_counters():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).bfloat16(), torch.randn(6, 4).bfloat16()
    optimizer = MeZOSVRG(model, lr=1e-2, anchor_lr=2e-2, interval=4, seed=3, shared_z=False, direction="sphere")

    def loss(model):
        return model(x).float().square().mean()

    for offset in range(6):
        other = copy.deepcopy(model)
        again = MeZOSVRG(other)
        again.load_state_dict(saved(optimizer))
        for _ in range(5):
            again.step(lambda other=other: loss(other))
        ahead, last = copy.deepcopy((optimizer, model))
        for _ in range(5):
            ahead.step(lambda last=last: loss(last))
        assert all(map(torch.equal, other.parameters(), last.parameters())), offset
        assert again.forwards == ahead.forwards
        optimizer.step(lambda: loss(model))
    with pytest.raises(ValueError, match="not a state of MeZOSVRG"):
        again.load_state_dict(MeZO(other).state_dict())


def test_a_tensor_that_is_trained_later_brings_a_new_anchor():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.ones(2, 3)
    model[0].requires_grad_(False)
    optimizer = MeZOSVRG(model.parameters(), lr=1e-3, interval=100)
    for _ in range(2):
        optimizer.step(lambda: model(x).sum())
    model[0].requires_grad_(True)
    optimizer.step(lambda: model(x).sum())
    assert all("anchor" in optimizer.state[p] for p in model.parameters())
    assert optimizer.forwards == 2 + 4 + 2


def test_a_tensor_that_was_frozen_over_a_renewal_brings_a_new_anchor():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), torch.ones(2, 3)
    optimizer = MeZOSVRG(model.parameters(), lr=1e-3, interval=2)
    renewed = []
    for t in range(5):
        model[0].requires_grad_(t not in (1, 2))  # the renewal at step 2 passes it by
        before, forwards = [p.detach().clone() for p in model.parameters()], optimizer.forwards
        optimizer.step(lambda: model(x).sum())
        if optimizer.forwards == forwards + 2:
            renewed.append(t)
            for w, p in zip(before, model.parameters(), strict=True):
                if p.requires_grad:
                    assert torch.equal(optimizer.state[p]["anchor"], w)
    assert renewed == [0, 2, 3, 4]


def test_a_renewal_is_told_beforehand_and_is_refused_without_the_whole_set():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = MeZOSVRG([a, b], lr=1e-3, interval=10, log=True)

    def loss():
        return (a + b).sum()

    optimizer.step(loss, loss)
    optimizer.step(loss)
    assert not optimizer.renews
    assert b not in optimizer.state  # asking leaves nothing behind
    b.requires_grad_(True)
    optimizer.log = Log()
    assert optimizer.renews
    again = MeZOSVRG([a, b])
    again.load_state_dict(saved(optimizer))
    for refusing in (optimizer, again):
        before, forwards = [a.detach().clone(), b.detach().clone()], refusing.forwards
        with pytest.raises(ValueError, match="needs full"):
            refusing.step(loss)
        assert (refusing.steps, refusing.forwards, refusing.renews) == (2, forwards, True)
        assert torch.equal(a, before[0])
        assert torch.equal(b, before[1])
    optimizer.step(loss, loss)
    assert optimizer.forwards == 2 + 4 + 2
    assert not optimizer.renews
    b.requires_grad_(False)
    assert not optimizer.renews


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchor_lr": -1.0}, "anchor_lr=-1.0 .* at least 0"),
        ({"interval": 0}, "interval=0 .* at least 1"),
        ({"eps": -1.0}, "eps=-1.0 .* above 0"),
        ({"direction": "cube"}, "'cube' .* gaussian"),
        ({"seed": None}, "seed=None"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MeZOSVRG(nn.Linear(2, 2), **options)
