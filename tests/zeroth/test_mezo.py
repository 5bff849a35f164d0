"""MeZO: weights come back, both ways of shifting agree, the estimate is the paper's, a log replays the run."""

import copy
import io
import itertools
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.zeroth import MeZO
from dlopt.zeroth.directions import DIRECTIONS, draw, mix, sphere_factor
from dlopt.zeroth.log import Log, replay
from tests import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def net(dtype=torch.float32, seed=0):
    """Norms, a scalar of its own, a module called twice, a tied weight."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.twice, self.norm = nn.Linear(4, 6), nn.Linear(6, 6), nn.LayerNorm(6)
            self.gain = nn.Parameter(torch.ones(()))
            self.tied = nn.Linear(6, 6)
            self.tied.weight = self.twice.weight
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            h = self.norm(self.twice(torch.tanh(self.twice(self.inp(x)))))
            return self.out(self.tied(h) * self.gain)

    torch.manual_seed(seed)
    return Net().to(dtype)


def batch(dtype=torch.float32, n=8):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 4, generator=generator).to(dtype), torch.arange(n) % 3


def closure(model, dtype=torch.float32):
    x, y = batch(dtype)
    return lambda: nn.functional.cross_entropy(model(x).float(), y)


def bits(model):
    tensors = model.state_dict().values() if isinstance(model, nn.Module) else model
    return [t.detach().clone().reshape(-1).view(torch.uint8) for t in tensors]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("mode", ["model", "parameters"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_steps_at_zero_lr_leave_every_bit(dtype, mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)).to(dtype)
    with torch.no_grad():
        model[0].bias[0] = -0.0
    x = torch.randn(2, 4).to(dtype)
    before = bits(model)
    optimizer = MeZO(model if mode == "model" else model.parameters(), lr=0.0, weight_decay=0.1)
    losses = {float(optimizer.step(lambda: model(x).float().sum())) for _ in range(1000)}
    assert same(before, bits(model))
    assert len(losses) > 3  # the forwards did run at other weights


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_model_and_parameters_walk_the_same_path(dtype, direction):
    results = []
    for hooks in (True, False):
        model = net(dtype)
        options = {"lr": 1e-2, "direction": direction, "n_directions": 2, "eps": 1e-2, "seed": 7}
        optimizer = MeZO(model if hooks else model.named_parameters(), **options)
        losses = [float(optimizer.step(closure(model, dtype))) for _ in range(10)]
        results.append((losses, bits(model), optimizer.forwards))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert results[0][2] == 40
    assert not same(results[0][1], bits(net(dtype)))


def test_same_path_in_a_transformer_layer_with_its_fused_attention():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    results, fused = [], set()
    for hooks in (True, False):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        optimizer = MeZO(model if hooks else model.parameters(), lr=1e-4)

        def loss(model=model):
            fused.add(torch.backends.mha.get_fastpath_enabled())  # only taken where there are no hooks
            return model(x)[:, :, :3].pow(3).sum()

        losses = [float(optimizer.step(loss)) for _ in range(5)]
        results.append((losses, bits(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert fused == {False}
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("options", [{}, {"n_directions": 3}, {"direction": "sphere"}, {"direction": "rademacher"}])
def test_equals_the_twin(options):
    model = net(torch.float64)
    params = list(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    start = [p.detach().clone() for p in params]
    decays = [0.0 if name.startswith("norm") or name.endswith("bias") else 0.1 for name in names]
    x, y = batch(torch.float64)

    def loss(weights):
        values = dict(zip(names, map(torch.as_tensor, weights)))
        values["tied.weight"] = values["twice.weight"]
        return float(nn.functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y))

    direction = options.get("direction", "gaussian")

    def directions(step, k):
        seed = mix(mix(3, step), k)
        factor = sphere_factor(list(enumerate(params)), seed) if direction == "sphere" else 1.0
        return [draw(direction, p, mix(seed, i)).numpy() * factor for i, p in enumerate(params)]

    n = options.get("n_directions", 1)
    expected = reference.mezo(
        [p.numpy() for p in start], loss, directions, steps=20, lr=0.01, n_directions=n, weight_decay=decays
    )
    optimizer = MeZO(model, lr=0.01, seed=3, weight_decay=0.1, **options)
    for _ in range(20):
        optimizer.step(lambda: nn.functional.cross_entropy(model(x), y))
    for p, want in zip(params, expected):
        np.testing.assert_allclose(p.detach().numpy(), want, rtol=1e-9, atol=1e-11)  # 2 eps divides rounding errors


def quadratic(d=6):
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return a @ a.T / d, torch.randn(d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("direction", "factor"), [("gaussian", 8), ("rademacher", 6), ("sphere", 6)])
def test_the_estimate_is_unbiased_with_the_known_second_moment(direction, factor):
    # on a quadratic c is exactly g.z at any eps, so E[c z] = g and E|c z|^2 = (d + 2)|g|^2 (d for the other two)
    a, b = quadratic()
    w = torch.linspace(-1, 1, 6, dtype=torch.float64)
    g, n = a @ w + b, 2500
    estimates, p = [], nn.Parameter(w.clone())
    optimizer = MeZO([p], lr=1.0, eps=0.5, direction=direction)
    for seed in range(n):
        p.data.copy_(w)
        optimizer.seed, optimizer.steps = seed, 0
        optimizer.step(lambda: p @ a @ p / 2 + b @ p)
        estimates.append(w - p.detach())
    estimates = torch.stack(estimates)
    error = estimates.std(0) / n**0.5
    assert ((estimates.mean(0) - g).abs() < 4 * error).all()
    squares = estimates.square().sum(1)
    assert abs(float(squares.mean()) - factor * float(g @ g)) < 4 * float(squares.std()) / n**0.5


def test_directions_are_told_apart_by_every_integer_and_leave_torch_alone():
    state = torch.get_rng_state()
    p = torch.zeros(50)
    first = draw("gaussian", p, mix(0, 0, 0))
    others = [draw("gaussian", p, mix(*i)) for i in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert torch.equal(first, draw("gaussian", p, mix(0, 0, 0)))
    assert all(abs(float(first @ z)) < 40 for z in others)  # 50 if equal; standard deviation 7
    assert torch.equal(state, torch.get_rng_state())
    assert mix(1, 23) != mix(12, 3)
    assert torch.equal(draw("gaussian", torch.zeros(3, 4).t(), 1), draw("gaussian", torch.zeros(4, 3), 1))
    assert set(draw("rademacher", p, 3).tolist()) == {-1.0, 1.0}


def test_the_order_of_parameters_in_groups_does_not_matter_with_a_model():
    # two groups (decayed or not) are walked group by group, but indices follow the model
    model = net()
    optimizer = MeZO(model)
    indices = {n: i for g in optimizer.param_groups for n, i in zip(g["param_names"], g["indices"])}
    assert indices == {name: i for i, (name, _) in enumerate(model.named_parameters())}
    spared = optimizer.param_groups[1]
    assert spared["weight_decay"] == 0.0
    assert set(spared["param_names"]) == {n for n in indices if n.endswith("bias") or n.startswith("norm")}


def test_two_forwards_per_direction_no_gradient_no_graph():
    model, calls = net(), []

    def counted():
        loss = closure(model)()
        calls.append((loss.requires_grad, torch.is_grad_enabled(), model.training))
        return loss

    optimizer = MeZO(model, n_directions=3)
    loss = optimizer.step(counted)
    assert calls == [(False, False, False)] * 6
    assert optimizer.forwards == 6
    assert loss.dtype == torch.float64
    assert loss.dim() == 0
    assert all(p.grad is None for p in model.parameters())
    assert model.training


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop, self.out = (
            nn.Conv1d(1, 4, 3),
            nn.BatchNorm1d(4),
            nn.Dropout(0.5),
            nn.Linear(8, 1),
        )

    def forward(self, x):
        return self.out(self.drop(self.norm(self.conv(x)).flatten(1)))


@pytest.mark.parametrize("train_mode", [False, True])
def test_batch_norm_buffers_and_modes_come_back(train_mode):
    torch.manual_seed(0)
    model, x = Dropping(), torch.randn(5, 1, 4)
    model.norm.eval()  # frozen by the user: must stay so
    model(x)
    model.drop.register_buffer("wide", torch.zeros(1).expand(10))
    optimizer, buffers = MeZO(model, lr=1e-2, train_mode=train_mode), bits(model.buffers())
    model.norm.train()
    modes = []
    for _ in range(3):
        optimizer.step(lambda: modes.append((model.norm.training, model.drop.training)) or model(x).square().mean())
    assert same(buffers, bits(model.buffers()))
    assert set(modes) == {(train_mode, train_mode)}
    assert model.norm.training
    assert model.drop.training
    model.norm.eval()
    optimizer.step(lambda: model(x).square().mean())
    assert not model.norm.training


def test_what_the_closure_draws_is_the_same_in_all_forwards_and_moves_on_between_steps():
    p, drawn = nn.Parameter(torch.zeros(2)), []
    optimizer = MeZO([p], n_directions=2)
    for _ in range(2):
        optimizer.step(lambda: drawn.append(float(torch.rand(()))) or p.sum())
    assert len(set(drawn[:4])) == len(set(drawn[4:])) == 1
    assert drawn[0] != drawn[4]


def test_attention_is_reached_though_it_never_calls_its_projection():
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(8, 2), torch.randn(5, 1, 8)
    optimizer = MeZO(model, lr=1e-2)
    before = bits([model.out_proj.weight])
    bare = copy.deepcopy(model)
    other = MeZO(bare.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.step(lambda: model(x, x, x)[0].square().sum())
        other.step(lambda: bare(x, x, x)[0].square().sum())
    assert not same(before, bits([model.out_proj.weight]))
    assert same(bits(model), bits(bare))


class Functional(nn.Module):
    """An embedding whose weight is also the head, read without calling the embedding."""

    def __init__(self, call=True):
        super().__init__()
        self.embed, self.unused, self.call = nn.Embedding(5, 3), nn.Linear(3, 3), call

    def forward(self, i):
        return (self.embed(i) if self.call else torch.ones(2, 3)) @ self.embed.weight.T


@pytest.mark.parametrize("call", [True, False])
def test_a_use_outside_the_modules_forward_is_named(call):
    model = Functional(call)
    del model.unused
    before, i = bits(model), torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match=r"embed\.weight.*hold="):
        MeZO(model).step(lambda: model(i).sum())
    assert same(before, bits(model))
    assert not model.embed._forward_hooks
    held, bare = MeZO(model, lr=1e-2, hold=["embed"]), copy.deepcopy(model)
    plain = MeZO(bare.parameters(), lr=1e-2)
    for _ in range(3):
        assert float(held.step(lambda: model(i).square().sum())) == float(plain.step(lambda: bare(i).square().sum()))
    assert same(bits(model), bits(bare))


def test_a_module_that_never_runs_is_named_unless_frozen():
    model, i = Functional(), torch.tensor([1, 2])
    optimizer = MeZO(model, hold=["embed.weight"])
    with pytest.raises(RuntimeError, match=r"unused\.weight, unused\.bias"):
        optimizer.step(lambda: model(i).sum())
    model.unused.requires_grad_(False)
    optimizer.step(lambda: model(i).sum())
    with pytest.raises(ValueError, match="hold names 'nowhere'"):
        MeZO(model, hold=["nowhere"])


def test_an_exception_in_the_forward_leaves_weights_hooks_and_modes():
    model = net()
    before = bits(model)

    def broken():
        model(batch()[0])
        raise KeyError("broken")

    for given in (model, model.parameters()):
        optimizer = MeZO(given, lr=1.0)
        with pytest.raises(KeyError):
            optimizer.step(broken)
        with pytest.raises(RuntimeError):  # inside a module
            optimizer.step(lambda: model(torch.zeros(2, 5)))
    assert same(before, bits(model))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_recursive_module_and_an_exception_caught_inside():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, depth):
            if depth < 0:
                raise ValueError("too deep")
            return self.w * (self(depth - 1) if depth else 1)

    def run(model):
        with pytest.raises(ValueError, match="too deep"):
            model(-1)
        return model(2).sum()

    a, b = Twice(), Twice()
    MeZO(a, lr=0.1).step(lambda: run(a))
    MeZO(b.parameters(), lr=0.1).step(lambda: run(b))
    assert torch.equal(a.w, b.w)
    assert not torch.equal(a.w, torch.ones(2))


@pytest.mark.parametrize("hooks", [True, False])
def test_autocast_around_the_step_is_autocast_in_the_closure(hooks):
    # autocast keeps casts of weights until it ends, and does not see that they were shifted
    results, x = [], batch()[0]
    for outside in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3, bias=False)
        optimizer = MeZO(model if hooks else model.parameters(), lr=1e-2, eps=0.1)

        def loss(model=model, outside=outside):
            with nullcontext() if outside else torch.autocast("cpu", torch.bfloat16):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16) if outside else nullcontext():
            model(x)  # fills the cache
            for _ in range(3):
                optimizer.step(loss)
            now = model(x)
            torch.clear_autocast_cache()
            assert torch.equal(now, model(x))
        results.append(bits(model))
    assert same(*results)
    torch.manual_seed(0)
    assert not same(results[0], bits(nn.Linear(4, 3, bias=False)))


def test_losses_that_are_not_finite_are_skipped_counted_and_end_in_an_error():
    p = nn.Parameter(torch.ones(3))
    bad = [False]
    optimizer = MeZO([p], lr=0.1, patience=3, log=True)

    def loss():
        return torch.tensor(float("nan")) if bad[0] else p.sum()

    optimizer.step(loss)
    before, bad[0] = bits([p]), True
    for _ in range(2):
        assert not torch.isfinite(optimizer.step(loss))
    assert same(before, bits([p]))
    assert (optimizer.skipped, optimizer.steps, optimizer.forwards, len(optimizer.log.rows)) == (2, 3, 6, 1)
    bad[0] = False
    optimizer.step(loss)
    bad[0] = True
    for _ in range(2):
        optimizer.step(loss)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*nan, nan"):
        optimizer.step(loss)


@pytest.mark.parametrize("given", ["model", "parameters"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_log_rebuilds_the_run_bit_for_bit(dtype, direction, given, tmp_path):
    model, initial = net(dtype), net(dtype)
    options = {"lr": 1e-2, "weight_decay": 0.1, "direction": direction, "n_directions": 2, "log": True}
    optimizer = MeZO(model if given == "model" else model.named_parameters(), **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(12):
        optimizer.step(closure(model, dtype))
        scheduler.step()
    optimizer.log.save(tmp_path / "log.json")
    log = Log.load(tmp_path / "log.json")
    assert log == optimizer.log
    assert len({tuple(row["lr"]) for row in log.rows}) == 12
    assert replay(initial, log) == 12
    assert same(bits(model), bits(initial))
    assert not same(bits(model), bits(net(dtype)))


def test_a_log_refuses_what_does_not_fit(tmp_path):
    model = net()
    optimizer = MeZO(model, log=True)
    assert replay(net(), optimizer.log) == 0
    optimizer.step(closure(model))
    log = optimizer.log
    for wrong, message in [
        (net(seed=1), "sha256 of the initial weights"),
        (net(torch.bfloat16), "dtypes were torch.float32"),
        (nn.Linear(2, 2), "names of trained tensors"),
        (list(net().parameters()), "names"),
    ]:
        before = bits(wrong)
        with pytest.raises(ValueError, match=message):
            replay(wrong, log)
        assert same(before, bits(wrong))
    log.header["torch"] = "1.0"
    with pytest.raises(ValueError, match=r"version of torch were 1\.0"):
        replay(net(), log)
    again = net()
    replay(again, log, strict=False)
    assert same(bits(model), bits(again))
    model.out.requires_grad_(False)
    with pytest.raises(RuntimeError, match="set of trained parameters changed"):
        optimizer.step(closure(model))
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a log"):
        Log.load(tmp_path / "other.json")


def test_resume_takes_over_seed_counters_and_log():
    model = net()
    optimizer = MeZO(model, lr=1e-2, seed=5, eps=1e-2, direction="sphere", n_directions=2, log=True)
    for _ in range(3):
        optimizer.step(closure(model))
    other = net()
    other.load_state_dict(model.state_dict())
    again = MeZO(other, log=True)
    again.load_state_dict(saved(optimizer))
    for _ in range(2):
        optimizer.step(closure(model))
        again.step(closure(other))
    assert same(bits(model), bits(other))
    assert (again.steps, again.forwards) == (5, 20)
    assert again.log == optimizer.log
    rebuilt = net()
    replay(rebuilt, again.log)
    assert same(bits(rebuilt), bits(model))
    quiet = MeZO(net())
    quiet.load_state_dict(saved(optimizer))
    assert quiet.log is None
    with pytest.raises(ValueError, match="not a state of MeZO"):
        MeZO(net()).load_state_dict(torch.optim.SGD(net().parameters()).state_dict())


def test_losses_without_derivatives():
    torch.manual_seed(0)
    model, (x, y) = net(), batch()
    optimizer = MeZO(model, lr=1e-3, eps=0.1)
    assert 0 <= float(optimizer.step(lambda: (model(x).argmax(-1) != y).float().mean().item())) <= 1


def test_copies_held_are_those_of_one_module_or_of_all():
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    x = torch.randn(2, 8)
    small, whole = MeZO(model), MeZO(model.parameters())
    for optimizer in (small, whole):
        optimizer.step(lambda: model(x).sum())
    assert small.held == 4 * (32 * 32 + 32) == MeZO.memory(model).scratch - 4 * 32 * 32
    assert whole.held == sum(4 * p.numel() for p in model.parameters())
    inside = nn.MultiheadAttention(8, 2)
    attention = MeZO(inside)
    attention.step(lambda: inside(x, x, x)[0].sum())
    assert attention.held == sum(4 * p.numel() for p in inside.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"n_directions": 2}, {"weight_decay": 0.1}, {"direction": "rademacher"}])
def test_scratch_is_what_a_step_needs(options, dtype):
    peak = pytest.importorskip("dlopt.lab.peak")
    for shapes in ([(64, 64), (8,)], [(64, 64), (64, 60)]):
        params = [nn.Parameter(torch.ones(s, dtype=dtype)) for s in shapes]
        optimizer = MeZO(params, **options)
        losses = itertools.count()  # they must differ, or nothing is updated
        rise = peak.peak_live(
            lambda optimizer=optimizer, losses=losses: optimizer.step(lambda: float(next(losses))), params
        ).rise
        generators = torch.get_rng_state().numel() + 64
        assert 0 <= rise - MeZO.memory(params, **options).scratch <= generators


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 .* at least 0"),
        ({"eps": 0.0}, "eps=0.0 .* above 0"),
        ({"direction": "cube"}, "'cube' .* gaussian, rademacher, sphere"),
        ({"n_directions": 0}, "n_directions=0 .* at least 1"),
        ({"patience": 0}, "patience=0"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MeZO(net(), **options)


def test_wrong_parameters_and_closures_are_named():
    shared = torch.zeros(3)
    with pytest.raises(ValueError, match="share their memory"):
        MeZO([nn.Parameter(shared), nn.Parameter(shared)])
    with pytest.raises(ValueError, match=r"not torch\.complex64"):
        MeZO([torch.zeros(3, dtype=torch.complex64)])
    with pytest.raises(ValueError, match="hold needs a model"):
        MeZO([nn.Parameter(shared)], hold=["x"])
    optimizer = MeZO([nn.Parameter(shared)])
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step(None)
    with pytest.raises(ValueError, match=r"one number, .* \(2,\)"):
        optimizer.step(lambda: torch.zeros(2))
    with pytest.raises(TypeError, match="not None"):
        optimizer.step(lambda: None)
    with pytest.raises(ValueError, match="nothing to train"):
        MeZO([torch.zeros(3)]).step(lambda: 1.0)
