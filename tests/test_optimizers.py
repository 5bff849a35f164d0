"""What every registered optimizer must do, found through the catalogue: a new method enters by being registered.

First-order methods (kind "optimizer") and zeroth-order ones (kind "zeroth") of any package pass through here. A
method that needs the module structure (an argument called `model`) gets it, one that wraps another optimizer
(`inner`) gets a factory, and any other argument without a default gets the middle of its search box.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from dlopt import catalog
from dlopt.memory import tensor_bytes

FIRST = sorted(catalog.methods(kind="optimizer"))
ZEROTH = sorted(catalog.methods(kind="zeroth"))
ALL = FIRST + ZEROTH
DTYPES = [torch.float32, torch.bfloat16]
STEPS = 5
SHAPES = [(), (5,), (4, 6), (6, 4), (2, 3, 4), (3, 2, 2, 2), (1, 1)]


# ---- one way to build and step any method ---------------------------------------------------------------------


class Net(nn.Module):
    """Convolution, normalization and linear layers: 4-D, 2-D and 1-D weights under names that everybody knows."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.LayerNorm(16)
        self.fc, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.fc(self.norm(self.conv(x).flatten(1)))))


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Net().to(dtype)


def data(n=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=generator).to(dtype), torch.arange(n) % 3


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x).float(), y)


def middle(box):
    low, high, scale = box
    if scale == "log":
        return math.sqrt(low * high)
    return (low + high) // 2 if scale == "int" else (low + high) / 2


def build(name, model, params=None, **options):
    """The optimizer `name` over a model's parameters (or groups of them), with its own defaults elsewhere."""
    entry = catalog.find(name)
    if entry.missing():
        pytest.skip(f"{name} needs {', '.join(entry.missing())}")
    for key, default in entry.parameters().items():
        if key in options:
            continue
        if key == "model":
            options[key] = model
        elif default is inspect.Parameter.empty:
            if key == "inner":
                options[key] = lambda inside: torch.optim.SGD(inside, lr=0.1, momentum=0.9)
            else:
                options[key] = middle(entry.search[key])
    if params is None:
        # as the lab's experiments do: what looks at modules may also look at names
        params = model.named_parameters() if "model" in options else model.parameters()
    return entry.load()(params, **options)


def visible_lr(name):
    """An lr whose steps can be seen in bfloat16: the largest that the method is tuned with."""
    return catalog.find(name).search["lr"][1]


def advance(name, optimizer, model, rounds):
    """Steps with gradients (or losses) that depend on the round only."""
    for t in rounds:
        generator = torch.Generator().manual_seed(100 + t)
        if name in ZEROTH:
            weights = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
            optimizer.step(lambda w=weights: sum((a * p.float()).sum() for a, p in zip(w, params_of(optimizer))))
        else:
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            optimizer.step()


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for v in values for t in tensors_in(v)]


def state_bytes(optimizer):
    return tensor_bytes(tensors_in(optimizer.state_dict()["state"]))


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


# ---- both kinds ---------------------------------------------------------------------------------------------------


def test_the_matrix_is_not_empty():
    assert {"adafactor", "adam", "adamw", "sgd"} <= set(FIRST)
    assert "mezo" in ZEROTH


@pytest.mark.parametrize("name", ALL)
def test_lr_out_of_range_is_refused_at_construction(name):
    with pytest.raises(ValueError, match=r"-1(\.0)?"):
        build(name, net(), lr=-1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_steps_move_finite_weights_of_the_same_dtype(name, dtype):
    model = net(dtype)
    before = weights(model)
    optimizer = build(name, model, lr=visible_lr(name))
    advance(name, optimizer, model, range(STEPS))
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_resume_is_exact_at_every_step(name, dtype):
    model = net(dtype)
    optimizer = build(name, model, lr=visible_lr(name))
    kept = []
    for t in range(STEPS):
        kept.append((copy.deepcopy(model.state_dict()), through_file(optimizer.state_dict())))
        advance(name, optimizer, model, [t])
    for offset, (saved_model, saved_state) in enumerate(kept):
        other = net(dtype, seed=9)
        other.load_state_dict(saved_model)
        again = build(name, other)  # with its own defaults: the state brings lr and the rest
        again.load_state_dict(saved_state)
        advance(name, again, other, range(offset, STEPS))
        assert same(weights(model), weights(other)), f"resumed before step {offset}"
        assert same(tensors_in(optimizer.state_dict()), tensors_in(again.state_dict()))


def test_resume_is_exact_in_a_new_process(tmp_path):
    for name in ALL:
        for dtype in DTYPES:
            model = net(dtype)
            optimizer = build(name, model, lr=visible_lr(name))
            advance(name, optimizer, model, range(2))
            file = tmp_path / f"{name}-{str(dtype)[6:]}"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{file}.before.pt")
            advance(name, optimizer, model, range(2, STEPS))
            torch.save(weights(model), f"{file}.after.pt")
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from tests.test_optimizers import DTYPES, STEPS, ALL, advance, build, net, same, weights

        torch.set_num_threads(1)
        for name in ALL:
            for dtype in DTYPES:
                file = f"{sys.argv[1]}/{name}-{str(dtype)[6:]}"
                saved = torch.load(file + ".before.pt", weights_only=True)
                model = net(dtype, seed=9)
                model.load_state_dict(saved["model"])
                optimizer = build(name, model)
                optimizer.load_state_dict(saved["optimizer"])
                advance(name, optimizer, model, range(2, STEPS))
                assert same(weights(model), torch.load(file + ".after.pt", weights_only=True)), (name, dtype)
        """
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ALL)
def test_a_deep_copy_goes_on_alone(name):
    model = net()
    optimizer = build(name, model, lr=visible_lr(name))
    advance(name, optimizer, model, range(2))
    other, again = copy.deepcopy((model, optimizer))
    before = weights(model)
    advance(name, again, other, range(2, STEPS))
    assert same(before, weights(model))
    advance(name, optimizer, model, range(2, STEPS))
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_state_bytes_equal_the_formula(name, dtype):
    cls = catalog.find(name).load()
    model = net(dtype)
    options = {"lr": visible_lr(name)}
    cases = [(model, list(model.parameters()))]
    if "model" not in catalog.find(name).parameters():  # such a method may refuse weights of no known module
        bare = nn.ParameterList([nn.Parameter(torch.ones(s, dtype=dtype)) for s in SHAPES])
        cases.append((bare, list(bare)))
        cases += [(nn.ParameterList([p]), [p]) for p in copy.deepcopy(bare)]
    for owner, params in cases:
        optimizer = build(name, owner, params, **options)
        advance(name, optimizer, owner, range(2))
        extra = {"model": owner} if "model" in inspect.signature(cls.memory).parameters else {}
        memory = cls.memory(params, **options, **extra)
        assert memory.state == state_bytes(optimizer), [tuple(p.shape) for p in params]
        size = sum(p.numel() * p.element_size() for p in params)
        assert memory.weights == size
        assert memory.gradients == (0 if name in ZEROTH else tensor_bytes(p.grad for p in params))
        if not extra:
            meta = [torch.empty_like(p, device="meta") for p in params]
            assert cls.memory(iter(meta), **options) == memory


@pytest.mark.parametrize("name", ALL)
def test_groups_keep_their_own_lr(name):
    model = net()
    before = weights(model)
    first, *rest = model.parameters()
    groups = [{"params": [first], "lr": 0.0}, {"params": rest}]
    optimizer = build(name, model, groups, lr=visible_lr(name))
    advance(name, optimizer, model, range(2))
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [False] + [True] * len(rest)


@pytest.mark.parametrize("name", ALL)
def test_schedulers_accept_it(name):
    model = net()
    optimizer = build(name, model, lr=visible_lr(name))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if t else 1.0)
    advance(name, optimizer, model, range(1))
    scheduler.step()
    before = weights(model)
    advance(name, optimizer, model, range(1, 3))
    assert same(before, weights(model))
    assert all(group["lr"] == 0 for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ALL)
def test_learns_digits(name):
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.from_numpy(images[:600]).float() / 16, torch.from_numpy(labels[:600])
    low, high, _ = catalog.find(name).search["lr"]
    steps = 300 if name in ZEROTH else 40
    losses = []
    for share in (1.0, 0.75, 0.5):  # of the way through its own search box
        torch.manual_seed(0)
        model = nn.Linear(64, 10)
        optimizer = build(name, model, lr=low ** (1 - share) * high**share)
        start = nn.functional.cross_entropy(model(x), y).item()
        for _ in range(steps):
            if name in ZEROTH:
                optimizer.step(lambda model=model: nn.functional.cross_entropy(model(x), y))
            else:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        losses.append(nn.functional.cross_entropy(model(x), y).item())
    assert min(losses) < (0.8 if name in ZEROTH else 0.5) * start, losses


# ---- first order only -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_tensors_without_a_gradient_stay(name):
    model = net()
    optimizer = build(name, model, lr=visible_lr(name))
    advance(name, optimizer, model, range(2))
    before = weights(model)
    for i, p in enumerate(model.parameters()):
        p.grad = None if i % 2 else torch.ones_like(p)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [i % 2 == 0 for i in range(len(before))]
    optimizer.zero_grad()
    optimizer.step()  # nothing at all to do


@pytest.mark.parametrize("name", FIRST)
def test_a_closure_is_run_with_gradients_and_its_loss_returned(name):
    model = net()
    optimizer = build(name, model, lr=visible_lr(name))
    x, y = data()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    expected = loss_of(model, x, y).item()
    before = weights(model)
    assert optimizer.step(closure).item() == expected
    assert not same(before, weights(model))


@pytest.mark.parametrize("name", FIRST)
def test_accumulated_micro_batches_are_one_batch(name):
    results = []
    for parts in (1, 4):
        model = net().double()
        optimizer = build(name, model, lr=visible_lr(name))
        x, y = data(dtype=torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts)):
                (nn.functional.cross_entropy(model(a), b) / parts).backward()
            optimizer.step()
        results.append(weights(model))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", FIRST)
def test_clipping_sees_and_scales_the_gradients_that_are_used(name):
    model, other = net().double(), net().double()
    a, b = build(name, model, lr=visible_lr(name)), build(name, other, lr=visible_lr(name))
    x, y = data(dtype=torch.float64)
    for _ in range(2):
        for m, optimizer in ((model, a), (other, b)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(m(x), y).backward()
        true = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), true / 3))
        assert norm == pytest.approx(true)
        for p in other.parameters():
            p.grad.mul_(true / 3 / (true + 1e-6))
        a.step()
        b.step()
    for p, q in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", FIRST)
def test_maximize_where_it_is_offered(name):
    if "maximize" not in catalog.find(name).parameters():
        pytest.skip(f"{name} has no maximize")
    up, down = net(), net()
    a, b = build(name, up, lr=visible_lr(name), maximize=True), build(name, down, lr=visible_lr(name))
    for t in range(3):
        generator = torch.Generator().manual_seed(t)
        for p, q in zip(up.parameters(), down.parameters()):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = -p.grad
        a.step()
        b.step()
    assert same(weights(up), weights(down))


@pytest.mark.parametrize("name", FIRST)
def test_grad_scaler_skips_infinite_gradients_and_leaves_the_state(name):
    model = net()
    optimizer = build(name, model, lr=visible_lr(name))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = data()
    for t in range(3):
        state = copy.deepcopy(optimizer.state_dict())
        before, scale = weights(model), scaler.get_scale()
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x, y)).backward()
        if t == 1:
            next(model.parameters()).grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        if t == 1:
            assert scaler.get_scale() == scale / 2
            assert same(before, weights(model))
            after = optimizer.state_dict()
            assert same(tensors_in(state), tensors_in(after))
            assert repr(state) == repr(after)  # step counts and seeds too
        else:
            assert not same(before, weights(model))


@pytest.mark.parametrize("name", FIRST)
def test_the_global_generator_is_left_alone(name):
    model = net()
    optimizer = build(name, model, lr=visible_lr(name))
    state = torch.get_rng_state()
    advance(name, optimizer, model, range(3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", [n for n in FIRST if n != "adam"])
def test_differs_from_adam(name):
    paths = []
    for method in (name, "adam"):
        model = net()
        optimizer = build(method, model, lr=visible_lr(name))
        advance(method, optimizer, model, range(3))
        paths.append(weights(model))
    assert not any(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*paths) if a.dim() > 1)


# ---- zeroth order only ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("name", ZEROTH)
def test_zero_lr_leaves_every_bit_and_no_gradient(name, dtype):
    model = net(dtype)
    before = weights(model)
    optimizer = build(name, model, lr=0.0)
    for t in range(20):
        advance(name, optimizer, model, [t])
    assert same(before, weights(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ZEROTH)
def test_forwards_are_counted_and_have_no_graph(name):
    model, calls = net(), []
    optimizer = build(name, model)
    x, y = data()

    def closure():
        loss = loss_of(model, x, y)
        calls.append(loss.requires_grad)
        return loss

    for _ in range(3):
        loss = optimizer.step(closure)
    assert optimizer.forwards == len(calls) >= 6
    assert not any(calls)
    assert math.isfinite(float(loss))


@pytest.mark.parametrize("name", ZEROTH)
def test_frozen_tensors_stay_and_losses_that_are_not_finite_are_skipped(name):
    model = net()
    model.fc.requires_grad_(False)
    before = weights(model)
    optimizer = build(name, model, lr=visible_lr(name))
    x, y = data()
    optimizer.step(lambda: loss_of(model, x, y) * math.nan)
    assert same(before, weights(model))
    assert optimizer.skipped == 1
    optimizer.step(lambda: loss_of(model, x, y))
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", ["weights", "gradients", "both"])
def test_channels_last_changes_no_update(name, layout):
    """Images are faster in channels_last, which makes weights or gradients non-contiguous: the same steps."""
    plain, other = wide(), wide()
    if layout != "gradients":
        other.to(memory_format=torch.channels_last)
    optimizers = [build(name, m, lr=visible_lr(name)) for m in (plain, other)]
    for t in range(3):
        for optimizer, model in zip(optimizers, (plain, other)):
            generator = torch.Generator().manual_seed(100 + t)
            noise = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
            if name in ZEROTH:
                optimizer.step(lambda w=noise, m=model: sum((a * p).sum() for a, p in zip(w, m.parameters())))
                continue
            for p, g in zip(model.parameters(), noise):
                laid = g.to(memory_format=torch.channels_last) if layout != "weights" and g.dim() == 4 else g.clone()
                p.grad = laid
            optimizer.step()
    for a, b in zip(plain.parameters(), other.parameters()):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)


def wide():
    """Convolutions whose channels_last layout differs from the plain one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 2))
