"""Sophia-G and Sophia-H: their step against the twin, their rounds and their state."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.adam import SophiaG, SophiaH, _shared, sophia_g
from dlopt.memory import tensor_bytes
from tests.adam import reference_sophia as reference
from tests.adam.digits import accuracy_on_digits, mlp
from tests.adam.softmax_regression import BOTH, curvature, regression, round_of

# ---- the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["paper", "official"])
def test_g_equals_the_twin(rule, monkeypatch):
    weight, x, y = regression()
    labels = np.random.default_rng(0).integers(0, 4, (10, 12))
    monkeypatch.setattr(
        sophia_g, "_sample", lambda logits, seed, skip: torch.from_numpy(labels[t])[skip : skip + len(logits)]
    )
    # rho so that some elements are clipped, and lr so that a decay after the step would differ
    options = {"lr": 0.05, "betas": (0.7, 0.8), "rho": 0.9, "weight_decay": 0.3}
    optimizer = SophiaG([weight], rule=rule, batch=12, interval=3, **options)
    before, gradients, estimates, shares = weight.detach().numpy().copy(), [], {}, []
    for t in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(x @ weight.T, y).backward()
        gradients.append(weight.grad.numpy().copy())
        if optimizer.curvature_due:
            t_label, t = t, t // 3
            estimates[t_label] = reference.sampled_diagonal(x.numpy(), weight.detach().numpy(), labels[t])
            round_of(optimizer, weight, x, parts=3)
        optimizer.step()
        shares.append(optimizer.share_unclipped)
    assert sorted(estimates) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert any(0 < s < 1 for s in shares)
    if rule == "paper":
        want = reference.sophia(before, gradients, estimates, **options)
    else:
        means = {t: np.sqrt(e / 12) for t, e in estimates.items()}  # of g, whose sign does not matter
        want = reference.sophia_official(before, gradients, means, bs=12, **options)
    np.testing.assert_allclose(weight.detach().numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probe", ["normal", "rademacher"])
def test_h_equals_the_twin(probe):
    weight, x, y = regression()

    def loss(w):
        return nn.functional.cross_entropy(x @ w.T, y)

    options = {"lr": 0.05, "betas": (0.7, 0.8), "rho": 0.9, "weight_decay": 0.3}
    optimizer = SophiaH([weight], probe=probe, interval=4, **options)
    before, gradients, estimates = weight.detach().numpy().copy(), [], {}
    for t in range(15):
        optimizer.zero_grad()
        loss(weight).backward()
        gradients.append(weight.grad.numpy().copy())
        if optimizer.curvature_due:
            u = optimizer._probes()[weight]
            hessian = torch.autograd.functional.hessian(loss, weight.detach()).flatten(2).flatten(0, 1)
            estimates[t] = (u * (hessian @ u.flatten()).view_as(u)).numpy()
            optimizer.update_curvature(loss(weight))
        optimizer.step()
    assert sorted(estimates) == [0, 4, 8, 12]
    assert any((e < 0).any() for e in estimates.values())  # then the step is lr sign(M)
    want = reference.sophia(before, gradients, estimates, **options)
    np.testing.assert_allclose(weight.detach().numpy(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", BOTH)
def test_no_curvature_takes_the_sign_and_much_curvature_newtons_step(cls):
    g = torch.tensor([3.0, -1e-6, 0.0, 2.0])
    for h, want in [(0.0, [0.5, -0.5, 0.0, 0.5]), (1e6, (0.5 * 0.1 * g / (0.04 * 1e6)).tolist())]:
        w = nn.Parameter(torch.zeros(4))
        optimizer = cls([w], lr=0.5, betas=(0.9, 0.9), rho=0.04)
        w.grad = torch.zeros(4)
        optimizer.step()  # makes the state
        curvature(optimizer, w).fill_(h)
        w.grad = g
        optimizer.step()
        torch.testing.assert_close(-w.detach(), torch.tensor(want))
        assert optimizer.share_unclipped == (0.25 if h == 0 else 1.0)  # no momentum is no clipping


def test_share_unclipped_counts_elements():
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    optimizer = SophiaG([{"params": [a]}, {"params": [b], "rho": 10.0}], rho=0.1, betas=(0.0, 0.9))
    assert optimizer.share_unclipped == 0
    for p in (a, b):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in (a, b):
        p.grad = torch.ones_like(p)
        curvature(optimizer, p).copy_(torch.tensor([0.05, 11.0, 9.0])[: len(p)])
    optimizer.step()
    # 1 < 0.1 h for 11 only; 1 < 10 h for 11 only
    assert optimizer.share_unclipped == 2 / 5


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_all_paths_are_one(cls, dtype, monkeypatch):
    results = []
    for chunk, foreach, maximize in [
        (1 << 18, None, False),
        (5, False, False),
        (5, True, False),
        (5, True, True),
        (5, False, True),
    ]:
        monkeypatch.setattr(_shared, "CHUNK", chunk)
        weight, x, _ = regression(dtype=dtype)
        optimizer = cls([weight], lr=0.1, betas=(0.8, 0.0), rho=0.2, foreach=foreach, maximize=maximize)
        for t in range(4):
            if t == 2:
                curvature(optimizer, weight).copy_(torch.arange(12).view(4, 3) - 1.0)
            generator = torch.Generator().manual_seed(t)
            weight.grad = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(dtype) * (
                -1 if maximize else 1
            )
            optimizer.step()
        results.append(weight.detach().double())
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-14, atol=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself, while it compiles
@pytest.mark.parametrize("official", [False, True])
def test_the_compiled_step_is_the_same(official):
    results = []
    for compiled in (False, True):
        weight, _, _ = regression(dtype=torch.float32)
        rule = {"rule": "official", "batch": 3} if official else {}
        optimizer = SophiaG([weight], lr=0.1, compile=compiled, **rule)
        for t in range(4):
            generator = torch.Generator().manual_seed(t)
            weight.grad = torch.randn(4, 3, generator=generator)
            optimizer.step()
            curvature(optimizer, weight).copy_(torch.rand(4, 3, generator=generator) * 10)
            optimizer.param_groups[0]["lr"] *= 0.9
        results.append(weight.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


# ---- rounds, state, errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_is_exact_at_every_point_also_within_a_round(cls, dtype):
    def steps(optimizer, weight, start=0):
        """Yields at every point where one may stop: after each micro-batch, update and step."""
        point = 0
        for t in range(5):
            _, x, y = regression(dtype=dtype, seed=t)
            actions = []
            if t % 2 == 0:
                for part in (0, 1):

                    def add(part=part, x=x, y=y):
                        logits = x[6 * part : 6 * part + 6] @ weight.T
                        loss = nn.functional.cross_entropy(logits.float(), y[6 * part : 6 * part + 6])
                        optimizer.accumulate_curvature(logits if cls is SophiaG else loss)

                    actions.append(add)
                actions.append(optimizer.update_curvature)

            def step(x=x, y=y):
                optimizer.zero_grad()
                nn.functional.cross_entropy((x @ weight.T).float(), y).backward()
                optimizer.step()

            actions.append(step)
            for action in actions:
                if point >= start:
                    yield point
                    action()
                point += 1

    weight, _, _ = regression(dtype=dtype)
    options = {"lr": 0.1, "rho": 0.5, "betas": (0.8, 0.5), "interval": 2}
    optimizer, kept = cls([weight], seed=7, **options), []
    for _ in steps(optimizer, weight):
        file = io.BytesIO()
        torch.save([weight.detach().clone(), optimizer.state_dict()], file)
        kept.append(file)
    assert len(kept) == 14
    assert optimizer.rounds == 3
    for start, file in enumerate(kept):
        file.seek(0)
        saved, state = torch.load(file, weights_only=True)
        other = nn.Parameter(saved)
        again = cls([other])  # seed, rates and interval come with the state
        again.load_state_dict(state)
        for _ in steps(again, other, start):
            pass
        assert torch.equal(weight, other), f"resumed at point {start}"
        assert torch.equal(curvature(optimizer, weight), curvature(again, other))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_bytes_equal_the_formula_and_a_round_has_one_number_more(cls, dtype):
    weight, x, _ = regression(dtype=dtype)
    optimizer = cls([weight])

    def counted():
        return tensor_bytes(t for s in optimizer.state.values() for t in s.values())

    logits = x @ weight.T
    optimizer.accumulate_curvature(logits if cls is SophiaG else logits.float().square().mean())
    assert counted() == 3 * 12 * 4
    optimizer.update_curvature()
    assert counted() == cls.memory([weight]).state == 2 * 12 * 4
    assert cls.memory([weight]).scratch >= 12 * 4


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [[(64, 64)], [(64, 64), (64, 48), (48, 64)]])
def test_scratch_is_what_a_round_needs(cls, dtype, shapes):
    peak = pytest.importorskip("dlopt.lab.peak")
    weights, x = [nn.Parameter(torch.ones(s, dtype=dtype)) for s in shapes], torch.ones(1, 64, dtype=dtype)
    optimizer = cls(weights)
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()

    def one_round():
        outputs = torch.cat([x[:, : len(w)] @ w for w in weights], dim=1)
        optimizer.accumulate_curvature(outputs if cls is SophiaG else outputs.square().sum())
        optimizer.update_curvature()

    held = [t for w in weights for t in (w, w.grad, *optimizer.state[w].values())]
    rise = peak.peak_live(one_round, held).rise
    outputs = 4 * 4 * sum(w.shape[1] for w in weights)  # and what is formed from them, which the formula leaves out
    assert 0 <= rise - cls.memory(weights).scratch <= outputs


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("part", [0, 1])
def test_a_round_that_is_not_finite_is_dropped_and_counted(cls, part):
    """Under a `GradScaler` too, which leaves out the step but knows nothing of the curvature."""
    _, x, y = regression(dtype=torch.float32)
    model = nn.Linear(3, 4)
    unused = nn.Parameter(torch.ones(0))  # no tensor's largest number
    optimizer = cls([*model.parameters(), unused], lr=0.1, interval=2, betas=(0.9, 0.5))
    scaler, kept = torch.amp.GradScaler("cpu", init_scale=1024.0), []
    for t in range(6):
        optimizer.zero_grad()
        due = optimizer.curvature_due
        parts = list(x.chunk(2))
        if t == 2:
            parts[part] = parts[part] * float("inf")
        for inputs, labels in zip(parts, y.chunk(2)):
            logits = model(inputs)
            loss = nn.functional.cross_entropy(logits, labels)
            scaler.scale(loss + unused.sum()).backward(retain_graph=True)
            if due:
                optimizer.accumulate_curvature(logits if cls is SophiaG else loss + unused.sum())
        if due:
            optimizer.update_curvature()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.param_groups[0]["targets"] == 0
        assert all(set(s) == {"momentum", "curvature"} for s in optimizer.state.values())
        kept.append([curvature(optimizer, p).clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(kept[1], kept[2]))
    assert not torch.equal(kept[2][0], kept[-1][0])  # the next round counts again, with other draws
    assert all(t.isfinite().all() for t in (*kept[-1], *model.parameters()))
    assert (optimizer.rounds, optimizer.rounds_skipped) == (4, 1)  # at t = 0, 2, 3, 5: a step left out is due again
    again = cls([*model.parameters(), unused])
    again.load_state_dict(optimizer.state_dict())
    assert again.rounds_skipped == 1


@pytest.mark.parametrize("cls", BOTH)
def test_states_saved_without_a_count_of_dropped_rounds_go_on(cls):
    weight, x, _ = regression()
    saved = cls([weight]).state_dict()
    for group in saved["param_groups"]:
        del group["rounds_skipped"]
    optimizer = cls([weight])
    optimizer.load_state_dict(saved)
    assert optimizer.rounds_skipped == 0
    round_of(optimizer, weight, x * float("nan"))
    assert optimizer.rounds_skipped == 1
    assert not curvature(optimizer, weight).any()


@pytest.mark.parametrize("cls", BOTH)
def test_curvature_is_due_before_the_first_step_and_then_by_the_interval(cls):
    weight, _, _ = regression()
    optimizer, due = cls([weight], interval=3), []
    for _ in range(8):
        due.append(optimizer.curvature_due)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert [t for t, d in enumerate(due) if d] == [0, 3, 6]


@pytest.mark.parametrize("cls", BOTH)
def test_wrong_arguments_are_refused_with_value_and_range(cls):
    weight, x, _ = regression()
    wrong = {"lr": -1, "betas": (1, 0), "rho": 0, "weight_decay": -0.1, "interval": 0, "seed": -1}
    wrong |= {"rule": "official!", "batch": 0} if cls is SophiaG else {"probe": "uniform"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"{name}=.* is out of range: it must be"):
            cls([weight], **{name: value})
    with pytest.raises(RuntimeError, match="call accumulate_curvature"):
        cls([weight]).update_curvature()
    if cls is SophiaG:
        with pytest.raises(ValueError, match=r"logits have shape \(4,\)"):
            cls([weight]).accumulate_curvature(weight[:, 0])
        with pytest.raises(ValueError, match=r"mask has shape \(3,\); logits have \(12,\) targets"):
            cls([weight]).accumulate_curvature(x @ weight.T, torch.ones(3))
    else:
        with pytest.raises(ValueError, match="loss has 12 elements"):
            cls([weight]).accumulate_curvature(weight * 2)


@pytest.mark.parametrize("cls", BOTH)
def test_learns_digits(cls):
    model = mlp()
    optimizer = cls(model.parameters(), lr=1e-2, betas=(0.9, 0.9), rho=1.0)
    shares = []

    def before_step(logits, loss):
        if optimizer.curvature_due:
            what = logits if cls is SophiaG else loss
            optimizer.accumulate_curvature(what)
            optimizer.update_curvature()
            shares.append(optimizer.share_unclipped)

    assert accuracy_on_digits(model, optimizer, before_step) > 0.93
    assert max(shares[1:]) > 0.05  # the curvature has a say
