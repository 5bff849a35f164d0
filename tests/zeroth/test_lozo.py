"""LOZO: it moves along what it measured, within the rank it promises, unbiased; its momentum follows the plane."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.lab.peak import peak_live
from dlopt.zeroth import LOZO, MeZO
from dlopt.zeroth._lowrank import Plane
from dlopt.zeroth.directions import draw, mix
from dlopt.zeroth.log import replay

SHAPES = [(5, 4), (3, 7), (6,), (), (2, 3, 4), (4, 1)]


def parameters(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def loss_of(params, targets):
    return sum((p - t).square().sum() / 2 + (p - t).sin().sum() for p, t in zip(params, targets))


def twin(weights, loss, factors, z, *, steps, lr, rank, interval, momentum, eps, official, decay, n, one_sided):
    """Chen et al. (2025), algorithms 1 and 2, in NumPy, with n directions; factors(step, i, k) gives U_k and V,
    z(step, i, k) a vector."""
    weights = [w.copy() for w in weights]
    kept = {}
    for t in range(steps):
        scalars = []
        for k in range(n):
            shifts = []
            for i, w in enumerate(weights):
                u, v = factors(t, i, k) if w.ndim > 1 else (None, None)
                shifts.append(z(t, i, k) if u is None else (u @ v.T).reshape(w.shape))
            up = loss([w + eps * s for w, s in zip(weights, shifts)])
            down = loss(weights if one_sided else [w - eps * s for w, s in zip(weights, shifts)])
            scalars.append((up - down) / (eps if one_sided else 2 * eps))
        for i, w in enumerate(weights):
            if w.ndim < 2:
                move = sum(c * z(t, i, k) for k, c in enumerate(scalars)) / n
            else:
                v = factors(t, i, 0)[1]
                cu = sum(c * factors(t, i, k)[0] for k, c in enumerate(scalars)) / n
                step = cu
                if momentum is not None:
                    if i in kept:
                        before = kept[i]
                        if t % interval == 0:
                            before = before @ (factors(t - 1, i, 0)[1].T @ v) / len(v)
                        step = momentum * before + (1 - momentum) * cu
                    elif not official:
                        step = (1 - momentum) * cu
                    kept[i] = step
                move = (step @ v.T).reshape(w.shape) / (1 if official else rank)
            weights[i] = w - lr * (move + decay * w)
    return weights


@pytest.mark.parametrize("scale", ["paper", "official"])
@pytest.mark.parametrize(("momentum", "rank", "decay", "direction", "n", "one_sided"), [
    (None, 2, 0.0, "gaussian", 1, False),
    (None, 3, 0.1, "gaussian", 1, False),
    (0.7, 2, 0.1, "gaussian", 1, False),
    (0.0, 1, 0.0, "gaussian", 1, False),
    (None, 2, 0.1, "rademacher", 3, True),
    (0.7, 3, 0.0, "sphere", 2, False),
])  # fmt: skip
def test_equals_the_twin(momentum, rank, decay, direction, n, one_sided, scale):
    params, targets = parameters(), [p.detach() for p in parameters(seed=1)]
    start = [p.detach().numpy().copy() for p in params]
    options = {"lr": 0.002, "rank": rank, "interval": 7, "momentum": momentum, "eps": 0.1, "one_sided": one_sided}
    optimizer = LOZO(
        params, seed=3, scale=scale, weight_decay=decay, direction=direction, n_directions=n, **options
    )  # fmt: skip

    def noise(rows, seed):
        found = draw(direction, torch.empty(rows, rank, dtype=torch.float64), seed).numpy()
        return found * (found.size / (found**2).sum()) ** 0.5 if direction == "sphere" else found

    def factors(step, i, k):
        m = SHAPES[i][0]
        columns = int(np.prod(SHAPES[i])) // m
        return noise(m, mix(mix(3, step), i, 2 * k + 1)), noise(columns, mix(mix(3, step // 7), i, 2))

    def z(step, i, k):
        def drawn(index):
            return draw(direction, params[index], mix(mix(mix(3, step), k), index)).numpy()

        if direction != "sphere":
            return drawn(i)
        both = [drawn(index) for index, shape in enumerate(SHAPES) if len(shape) < 2]  # one sphere for all vectors
        return drawn(i) * (sum(v.size for v in both) / sum((v**2).sum() for v in both)) ** 0.5

    def loss(weights):
        return sum(
            ((w - t) ** 2).sum() / 2 + np.sin(w - t).sum() for w, t in zip(weights, [t.numpy() for t in targets])
        )

    expected = twin(start, loss, factors, z, steps=50, official=scale == "official", decay=decay, n=n, **options)
    for _ in range(50):
        optimizer.step(lambda: loss_of(params, targets))
    for p, w in zip(params, expected):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=0, atol=1e-12)
    assert optimizer.forwards == 50 * (n + 1 if one_sided else 2 * n)


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_every_step_moves_along_what_it_measured(momentum):
    # also where t % interval == 0: the published update draws U there where the perturbation drew V
    params, targets = parameters(), parameters(seed=1)
    optimizer = LOZO(params, lr=1e-3, rank=2, interval=3, momentum=momentum, eps=0.1)
    seen = []

    def closure():
        seen.append([p.detach().clone() for p in params])
        return loss_of(params, targets)

    for t in range(10):
        before = [p.detach().clone() for p in params]
        seen.clear()
        optimizer.step(closure)
        up, down = seen
        for w, a, b, p in zip(before, up, down, params):
            shift, move = (a - b).flatten(), (p.detach() - w).flatten()
            cosine = float(shift @ move / (shift.norm() * move.norm()))
            assert abs(abs(cosine) - 1) < 1e-9, (t, tuple(p.shape))


def test_within_a_period_the_change_has_the_promised_rank():
    p = nn.Parameter(torch.zeros(12, 9, dtype=torch.float64))
    target = torch.randn(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer = LOZO([p], lr=1e-2, rank=2, interval=6, eps=0.1)
    ranks = []
    for _ in range(12):
        optimizer.step(lambda: (p - target).square().sum())
        ranks.append(int(torch.linalg.matrix_rank(p.detach(), rtol=1e-10)))
    assert ranks[:6] == [2] * 6
    assert ranks[6:] == [4] * 6


@pytest.mark.parametrize(
    ("scale", "factor", "direction", "k"),
    [("paper", 1, "gaussian", 1), ("official", 3, "gaussian", 1), ("paper", 1, "rademacher", 1),
     ("paper", 1, "sphere", 1), ("paper", 1, "gaussian", 4)],
)  # fmt: skip
def test_the_estimate_has_the_gradient_as_its_expectation(scale, factor, direction, k):
    g = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, n, found = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)), 1000, []
    optimizer = LOZO([p], lr=1.0, rank=3, eps=0.5, scale=scale, direction=direction, n_directions=k)
    for seed in range(n):
        optimizer.seed = seed
        p.data.zero_()
        optimizer.step(lambda: (g * p).sum())
        found.append(-p.detach())
    found = torch.stack(found)
    assert ((found.mean(0) - factor * g).abs() < 4 * found.std(0) / n**0.5).all()


def test_momentum_zero_is_lozo():
    results = []
    for momentum in (None, 0.0):
        params, targets = parameters(), parameters(seed=1)
        optimizer = LOZO(params, lr=1e-3, interval=4, momentum=momentum, eps=0.1)
        for _ in range(20):
            optimizer.step(lambda params=params, targets=targets: loss_of(params, targets))
        results.append([p.detach().clone() for p in params])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_change_of_plane_projects_the_momentum():
    # N V_old^T V_new / n is nearly the least-squares N for the new plane, since V_new^T V_new is about n I. Its part of
    # the old N V^T is r / n in expectation: E[V_new V_new^T] = r I
    w = torch.zeros(3, 5, dtype=torch.float64)
    options = {"seed": 1, "rank": 2, "interval": 1, "momentum": 0.5, "scale": "paper", "direction": "gaussian"}
    n0 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = 2 / 5 * n0 @ Plane(options, 0).v(0, w).T
    found = []
    for step in range(1, 1501):
        plane = Plane(options, step)
        n = plane.carry(0, w, [0.0], {"momentum": n0.clone(), "period": 0})  # c = 0: only the transfer and beta
        found.append(n @ plane.v(0, w).T / 0.5)
    found = torch.stack(found)
    assert ((found.mean(0) - before).abs() < 4 * found.std(0) / len(found) ** 0.5).all()
    assert float(before.abs().max()) > 0.5
    wide = torch.zeros(3, 4000, dtype=torch.float64)
    old, new = Plane(options, 0).v(0, wide), Plane(options, 1).v(0, wide)
    carried = Plane(options, 1).carry(0, wide, [0.0], {"momentum": n0.clone(), "period": 0}) / 0.5
    best = torch.linalg.lstsq(new, old @ n0.T).solution.T
    assert float((carried - best).norm() / best.norm()) < 0.1


def test_a_skipped_step_at_a_change_of_plane_does_not_lose_the_momentum():
    p, bad = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)), {3}
    optimizer = LOZO([p], lr=1e-2, interval=3, momentum=0.9)
    for t in range(5):
        optimizer.step(lambda t=t: p.sum() * (float("nan") if t in bad else 1.0))
        state = optimizer.state[p]
        assert state["period"] == (0 if t < 4 else 1)
    assert optimizer.skipped == 1
    assert len(optimizer.state_dict()["state"][0]) == 2


def test_vectors_follow_mezo_bit_for_bit():
    results = []
    for method in (LOZO, MeZO):
        p = nn.Parameter(torch.linspace(-1, 1, 9))
        optimizer = method([p], lr=1e-2, seed=5, weight_decay=0.1)
        for _ in range(5):
            optimizer.step(lambda p=p: p.pow(3).sum())
        results.append(p.detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize(("momentum", "n"), [(None, 1), (0.9, 1), (0.9, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_and_scratch_are_those_of_the_formula(dtype, momentum, n):
    params = [nn.Parameter(torch.ones(s, dtype=dtype)) for s in ((300, 200), (200, 300), (7,))]
    optimizer, count = LOZO(params, lr=1e-3, rank=4, momentum=momentum, n_directions=n), iter(range(20))
    optimizer.step(lambda: float(next(count)))
    memory = LOZO.memory(params, rank=4, momentum=momentum, n_directions=n)
    assert memory.state == (0 if momentum is None else (300 + 200) * 4 * 4)
    state = [p["momentum"] for p in optimizer.state.values() if p]
    assert sum(n.numel() * 4 for n in state) == memory.state
    assert all(n.dtype == torch.float32 for n in state)
    rise = peak_live(lambda: optimizer.step(lambda: float(next(count))), [params, state]).rise
    assert memory.scratch <= rise <= memory.scratch + torch.get_rng_state().numel() + 64
    dense = 300 * 200 * params[0].element_size()
    assert memory.scratch < 2.1 * dense + (memory.scratch - 2 * dense if dtype == torch.bfloat16 else 0.2 * dense)


def test_resume_across_a_change_of_plane_in_half_precision():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4).bfloat16(), torch.randn(5, 6).bfloat16()

    def loss(model):
        return model(x).float().square().mean()

    optimizer = LOZO(model, lr=1e-2, rank=3, interval=4, momentum=0.8, seed=2, scale="official")
    for offset in range(6):
        other, file = copy.deepcopy(model), io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        again = LOZO(other)
        again.load_state_dict(torch.load(file, weights_only=True))
        ahead, last = copy.deepcopy((optimizer, model))
        for _ in range(5):
            again.step(lambda other=other: loss(other))
            ahead.step(lambda last=last: loss(last))
        assert all(map(torch.equal, other.parameters(), last.parameters())), offset
        optimizer.step(lambda: loss(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 .* at least 1"),
        ({"interval": 0}, "interval=0 .* at least 1"),
        ({"momentum": 1.0}, r"momentum=1.0 .* \[0, 1\)"),
        ({"scale": "half"}, "'half' .* paper, official"),
        ({"eps": 0.0}, "eps=0.0 .* above 0"),
        ({"patience": 0}, "patience=0"),
        ({"n_directions": 0}, "n_directions=0 .* at least 1"),
        ({"direction": "cube"}, "'cube' .* gaussian, rademacher, sphere"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LOZO(nn.Linear(2, 2), **options)


def test_momentum_of_another_rank_or_of_a_vector_is_refused():
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = LOZO([p], lr=1e-3, momentum=0.5, rank=2)
    optimizer.step(lambda: p.sum())
    state = optimizer.state_dict()
    LOZO([nn.Parameter(torch.ones(4, 5))]).load_state_dict(state)  # N has no side of length 3
    state["lozo"]["rank"] = 3
    for wrong, there in ((p, r"\(4, 3\)"), (nn.Parameter(torch.ones(4)), "None")):
        with pytest.raises(ValueError, match=r"momentum .* has shape \(4, 2\), but here it is " + there):
            LOZO([wrong]).load_state_dict(state)


def test_a_state_and_a_log_of_earlier_versions_mean_one_gaussian_direction():
    params, again = ([nn.Parameter(torch.ones(4, 3))] for _ in range(2))
    optimizer = LOZO(params, lr=1e-2, interval=2, momentum=0.5, log=True)
    for _ in range(5):
        optimizer.step(lambda: params[0].pow(3).sum())
    state, log = optimizer.state_dict(), copy.deepcopy(optimizer.log)
    for name in ("direction", "n_directions", "one_sided"):
        del state["lozo"][name], log.header["options"][name]
    for row in log.rows:
        (row["scalar"],) = row.pop("scalars")
    assert replay(again, log) == 5
    assert torch.equal(*params, *again)
    other = LOZO(again, n_directions=4, direction="sphere", one_sided=True)
    other.load_state_dict(state)
    assert (other.n_directions, other.direction, other.one_sided) == (1, "gaussian", False)
