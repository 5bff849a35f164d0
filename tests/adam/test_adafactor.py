"""Adafactor against its twin, torch and the paper. What all optimizers share is in tests/test_optimizers.py."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.adam import Adafactor, _factored
from tests import reference

SHAPES = [(16, 24), (24, 16), (7,), (3, 8, 5), ()]


def parameters(dtype=torch.float64, shapes=SHAPES, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype)) for s in shapes]


def gradients(steps, shapes=SHAPES, seed=1):
    """Of changing size, with a step of zeros and a zero row: what separates one clip or eps from another."""
    generator = torch.Generator().manual_seed(seed)
    rounds = []
    for t in range(steps):
        size = 10.0 ** (t % 5 - 2)
        grads = [torch.randn(s, generator=generator, dtype=torch.float64) * size for s in shapes]
        if t == 7:
            grads = [torch.zeros_like(g) for g in grads]
        for g in grads:
            if g.dim() >= 2:
                g[..., 0, :] = 0 if t % 2 else g[..., 0, :]
        rounds.append(grads)
    return rounds


def run(optimizer, params, rounds):
    for grads in rounds:
        for p, g in zip(params, grads):
            p.grad = g.to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def update(optimizer, p, g):
    """What one step subtracts from p."""
    before = p.detach().clone()
    p.grad = g
    optimizer.step()
    return before - p.detach()


OPTIONS = [
    {},
    {"warmup_init": True},
    {"lr": 0.5},
    {"lr": 0.5, "relative_step": True},
    {"lr": 0.03, "scale_parameter": False},
    {"lr": 0.1, "beta1": 0.9, "weight_decay": 0.1},
    {"factored": False},
    {"clip_threshold": 0.3, "beta2_decay": -0.6},
    {"clip_threshold": 2.5, "eps1": 1e-3, "eps2": 10.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_paper(options):
    params, rounds = parameters(), gradients(50)
    twin = dict(options)
    twin["d"] = twin.pop("clip_threshold", 1.0)
    twin.setdefault("relative_step", "lr" not in twin)
    expected = [
        reference.adafactor(p.detach().numpy(), [r[i].numpy() for r in rounds], **twin) for i, p in enumerate(params)
    ]
    for got, want in zip(run(Adafactor(params, **options), params, rounds), expected):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.1, "weight_decay": 0.1}, {"maximize": True, "scale_parameter": False}]
)
@pytest.mark.parametrize("chunk", [1, 50, 24 * 16])
def test_pieces_change_nothing(options, chunk, monkeypatch):
    """The matrices' own path, however it is cut, against the one for tensors of any shape (here one matrix deep)."""
    monkeypatch.setattr(_factored, "CHUNK", chunk)
    shapes = [(16, 24), (24, 16), (1, 5), (5, 1)]
    flat, deep = parameters(shapes=shapes), parameters(shapes=shapes)
    deep = [nn.Parameter(p.detach().unsqueeze(0)) for p in deep]
    rounds = gradients(20, shapes)
    one, other = Adafactor(flat, **options), Adafactor(deep, **options)
    got = run(one, flat, rounds)
    want = run(other, deep, [[g.unsqueeze(0) for g in grads] for grads in rounds])
    for p, q, a, b in zip(flat, deep, got, want, strict=True):
        torch.testing.assert_close(a, b.squeeze(0), rtol=1e-12, atol=1e-12)
        for key in ("row", "col"):
            torch.testing.assert_close(one.state[p][key], other.state[q][key].squeeze(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("lr", "weight_decay", "eps1"), [(1e-2, 0.0, None), (0.5, 0.1, None), (0.5, 0.0, 0.1)])
def test_equals_torch(lr, weight_decay, eps1):
    ours, theirs, rounds = parameters(), parameters(), gradients(50)
    floor = torch.finfo(torch.float64).eps if eps1 is None else eps1
    mine = Adafactor(ours, lr=lr, relative_step=True, eps_floor=True, eps1=floor, weight_decay=weight_decay)
    torchs = torch.optim.Adafactor(theirs, lr=lr, eps=(eps1, 1e-3), weight_decay=weight_decay)
    for a, b in zip(run(mine, ours, rounds), run(torchs, theirs, rounds)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rank_one_squares_are_factored_exactly():
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(0, 2, (20, 3, 6, 9), generator=generator, dtype=torch.float64) * 2 - 1
    left, right = torch.rand(6, 1, generator=generator).double() + 0.1, torch.rand(1, 9, generator=generator).double()
    rounds = [[s * left * right] for s in signs]  # the same rank-1 square at every step: so is its running mean
    results = []
    for factored in (True, False):
        params = parameters(shapes=[(3, 6, 9)])
        results.append(run(Adafactor(params, lr=0.1, factored=factored), params, rounds)[0])
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-14)


def test_factoring_is_visible_where_squares_are_not_rank_one():
    results = []
    for factored in (True, False):
        params = parameters()
        results.append(run(Adafactor(params, factored=factored), params, gradients(3)))
    same = [torch.equal(a, b) for a, b in zip(*results)]
    assert same == [False, False, True, False, True]


@pytest.mark.parametrize("d", [0.25, 1.0, 3.0])
def test_clip_bounds_the_update_and_never_raises_it(d):
    for shape in [(5, 4), (6,), (2, 3, 4)]:
        (p,), (q,) = parameters(shapes=[shape]), parameters(shapes=[shape])
        options = {"lr": 1.0, "scale_parameter": False}
        clipped = Adafactor([p], clip_threshold=d, **options)
        free = Adafactor([q], clip_threshold=float("inf"), **options)
        seen = set()
        for (g,) in gradients(30, [shape]):
            u, raw = update(clipped, p, g), update(free, q, g)
            a, b = float(u.square().mean().sqrt()), float(raw.square().mean().sqrt())
            assert a <= min(b, d) * (1 + 1e-12)
            torch.testing.assert_close(u, raw * min(1.0, d / max(b, 1e-300)), rtol=1e-9, atol=1e-12)
            seen.add(b > d)
        assert seen == ({True, False} if d == 1.0 else seen)


def test_first_step_forgets_nothing_and_needs_no_correction():
    # b2 = 0 at t = 1: V is the first square itself, so a vector moves by lr times the sign
    p = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    got = update(Adafactor([p], lr=0.1, scale_parameter=False), p, torch.tensor([1e-3, -50.0], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([0.1, -0.1], dtype=torch.float64), rtol=1e-14, atol=0)


def test_second_moment_follows_the_schedule():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Adafactor([p], lr=0.0)
    v = 0.0
    for t in range(1, 20):
        v = (1 - t**-0.8) * v + t**-0.8 * (t * t + 1e-30)
        update(optimizer, p, torch.full((1,), float(t), dtype=torch.float64))
        assert float(optimizer.state[p]["variance"]) == pytest.approx(v, rel=1e-13)


def test_zero_gradients_in_float32_stay_finite_and_move_nothing():
    for shape in [(4, 3), (5,)]:
        (p,) = parameters(torch.float32, [shape])
        assert torch.equal(update(Adafactor([p]), p, torch.zeros(shape)), torch.zeros(shape))


def test_zero_weights_move_by_eps2():
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    assert update(Adafactor([p], lr=0.5, eps2=1e-2), p, torch.ones(4).double()).tolist() == [0.005] * 4


def test_maximize_is_descent_on_the_negative():
    a, b = parameters(), parameters()
    up = run(Adafactor(a, lr=0.1, maximize=True), a, gradients(5))
    down = run(Adafactor(b, lr=0.1), b, [[-g for g in grads] for grads in gradients(5)])
    assert all(torch.equal(x, y) for x, y in zip(up, down))


def test_lr_is_never_written_and_schedulers_work_with_none():
    (p,) = parameters(shapes=[(3, 3)])
    optimizer = Adafactor([p], weight_decay=0.1, warmup_init=True)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    optimizer = Adafactor([p])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    moved = []
    for t in range(3):
        assert optimizer.param_groups[0]["lr"] == 1e-2 * 0.5**t
        size = float(p.detach().square().mean().sqrt())
        moved.append(float(update(optimizer, p, torch.ones(3, 3).double()).mean()) / size)
        scheduler.step()
    assert moved == pytest.approx([1e-2, 5e-3, 2.5e-3])
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)


def test_a_group_with_its_own_lr_takes_it_as_it_is():
    a, b = nn.Parameter(torch.ones(1).double()), nn.Parameter(torch.ones(1).double())
    optimizer = Adafactor([{"params": [a]}, {"params": [b], "lr": 0.5}])
    assert [g["relative_step"] for g in optimizer.param_groups] == [True, False]
    a.grad, b.grad = torch.ones(1).double(), torch.ones(1).double()
    optimizer.step()
    assert (a.item(), b.item()) == (pytest.approx(0.99), 0.5)


def test_tensor_lr_and_closure():
    (p,) = parameters(shapes=[(3,)])
    optimizer = Adafactor([p], lr=torch.tensor(0.1))

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_float32_moments_also_when_loaded(dtype):
    params = parameters(dtype)
    optimizer = Adafactor(params, lr=0.1, beta1=0.9)
    run(optimizer, params, gradients(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = Adafactor(params, lr=0.1, beta1=0.9)
    again.load_state_dict(torch.load(file, weights_only=True))
    for p in params:
        for key, value in optimizer.state[p].items():
            loaded = again.state[p][key]
            if key == "step":
                assert type(loaded) is int
            else:
                assert value.dtype == loaded.dtype == torch.float32
                assert torch.equal(value, loaded)


def test_low_precision_is_the_float32_step_rounded_once():
    (low,), (high,) = parameters(torch.bfloat16, [(8, 8)]), parameters(torch.bfloat16, [(8, 8)])
    high = nn.Parameter(high.detach().float())
    g = gradients(1, [(8, 8)])[0][0].bfloat16()
    update(Adafactor([low], lr=0.1, weight_decay=0.1), low, g)
    update(Adafactor([high], lr=0.1, weight_decay=0.1), high, g.float())
    assert torch.equal(low, high.bfloat16())


def test_loading_copies():
    params = parameters()
    optimizer = Adafactor(params)
    run(optimizer, params, gradients(1))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other = parameters()
    again = Adafactor(other)
    again.load_state_dict(saved)
    run(again, other, gradients(3))
    for key, state in saved["state"].items():
        assert all(torch.equal(v, kept["state"][key][k]) for k, v in state.items() if k != "step")


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9}, {"factored": False}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 48), (1, 64, 48)])
@pytest.mark.parametrize("chunk", [1 << 18, 1000])
def test_scratch_is_what_a_step_needs(options, dtype, shape, chunk, monkeypatch):
    peak = pytest.importorskip("dlopt.lab.peak")
    monkeypatch.setattr(_factored, "CHUNK", chunk)
    (p,) = parameters(dtype, [shape])
    optimizer = Adafactor([p], lr=0.1, **options)
    update(optimizer, p, torch.ones_like(p))
    rise = peak.peak_live(optimizer.step, [p, p.grad, *optimizer.state[p].values()]).rise
    vectors = 4 * 4 * (64 + 48)  # row and column means and their roots, which the formula leaves out
    assert 0 <= rise - Adafactor.memory([p], **options).scratch <= vectors


def test_empty_tensors_and_refusals():
    p = nn.Parameter(torch.zeros(0, 3))
    update(Adafactor([p]), p, torch.zeros(0, 3))
    c = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(RuntimeError, match="complex"):
        update(Adafactor([c]), c, torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 .* at least 0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": torch.ones(2)}, "2 elements"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0 .* above 0"),
        ({"beta2_decay": 0.8}, "beta2_decay=0.8 .* -1 to 0"),
        ({"eps1": -1e-30}, "eps1"),
        ({"eps2": -1.0}, "eps2"),
        ({"beta1": 1.0}, r"beta1=1.0 .* \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"lr": 0.1, "warmup_init": True}, "relative step"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Adafactor(parameters(), **options)
    with pytest.raises(ValueError, match=message):
        Adafactor([{"params": parameters(), **options}])
