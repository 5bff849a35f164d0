"""What MeZO, MeZO-SVRG and LOZO promise alike: weights come back, models and parameters walk the same path, and uses
outside a module's forward are named."""

import copy

import pytest
import torch
from torch import nn

from dlopt.lab.peak import peak_live
from dlopt.zeroth import LOZO, MeZO, MeZOSVRG
from dlopt.zeroth.log import replay

METHODS = {
    "mezo": MeZO,
    "mezo one-sided": lambda given, **more: MeZO(given, one_sided=True, **more),
    "mezo_svrg": lambda given, **more: MeZOSVRG(given, interval=3, **more),
    "lozo": lambda given, **more: LOZO(given, interval=3, **more),
    "lozo-m": lambda given, **more: LOZO(given, interval=3, momentum=0.7, **more),
}
every = pytest.mark.parametrize("method", METHODS)


def bits(tensors):
    return [t.detach().clone().reshape(-1).view(torch.uint8) for t in tensors]


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        (torch.float32, "model"),
        (torch.bfloat16, "parameters"),
        pytest.param(torch.float32, "parameters", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, "model", marks=pytest.mark.slow),
        pytest.param(torch.float16, "model", marks=pytest.mark.slow),
        pytest.param(torch.float16, "parameters", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("method", ["mezo_svrg", "lozo-m"])
def test_a_thousand_steps_at_zero_lr_leave_every_bit(method, dtype, mode):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).to(dtype), torch.randn(2, 3).to(dtype)
    with torch.no_grad():
        model.bias[0] = -0.0
    before = bits(model.parameters())
    optimizer = METHODS[method](model if mode == "model" else model.parameters(), lr=0.0, weight_decay=0.1)
    losses = {float(optimizer.step(lambda: model(x).float().sum())) for _ in range(1000)}
    assert same(before, bits(model.parameters()))
    assert len(losses) > 3  # the forwards did run at other weights


class Net(nn.Module):
    """A module called twice, a tied weight, a scalar of its own, a convolution in channels-last form, attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.twice, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.twice.weight
        self.norm, self.attend = nn.LayerNorm(8), nn.MultiheadAttention(8, 2)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        h = self.conv(x).flatten(2).reshape(-1, 2, 8)
        h = self.norm(self.twice(torch.tanh(self.twice(h))))
        return self.tied(self.attend(h, h, h)[0]) * self.gain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every
def test_model_and_parameters_walk_the_same_path(method, dtype):
    x, results = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype), []
    for hooks in (True, False):
        torch.manual_seed(0)
        model = Net().to(dtype)
        before = bits(model.parameters())
        optimizer = METHODS[method](model if hooks else model.named_parameters(), lr=1e-3, eps=1e-2)
        losses = [float(optimizer.step(lambda model=model: model(x).float().pow(3).sum())) for _ in range(7)]
        addresses = [p.data_ptr() for p in model.parameters()]
        results.append((losses, bits(model.parameters())))
        optimizer.step(lambda model=model: model(x).float().pow(3).sum())
        assert addresses == [p.data_ptr() for p in model.parameters()]
        assert not any(map(torch.equal, before, bits(model.parameters()))) or dtype == torch.bfloat16
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


class Functional(nn.Module):
    """An embedding whose weight is also the head, read without calling the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)

    def forward(self, i):
        return self.embed(i) @ self.embed.weight.T


@every
def test_a_use_outside_the_modules_forward_is_named_and_can_be_held(method):
    model, i = Functional(), torch.tensor([1, 2])
    before = bits(model.parameters())
    with pytest.raises(RuntimeError, match=r"embed\.weight.*hold="):
        METHODS[method](model, lr=1e-2).step(lambda: model(i).sum())
    assert same(before, bits(model.parameters()))
    bare = copy.deepcopy(model)
    held, plain = METHODS[method](model, lr=1e-2, hold=["embed"]), METHODS[method](bare.parameters(), lr=1e-2)
    for _ in range(4):
        assert float(held.step(lambda: model(i).square().sum())) == float(plain.step(lambda: bare(i).square().sum()))
    assert same(bits(model.parameters()), bits(bare.parameters()))
    assert not same(before, bits(model.parameters()))


@every
def test_an_exception_in_the_forward_leaves_weights_hooks_and_modes(method):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 2))  # the second layer fails
    before, addresses = bits(model.parameters()), [p.data_ptr() for p in model.parameters()]
    for given in (model, model.parameters()):
        with pytest.raises(RuntimeError, match="shapes"):
            METHODS[method](given, lr=1.0).step(lambda: model(torch.ones(1, 3)).sum())
    assert same(before, bits(model.parameters()))
    assert addresses == [p.data_ptr() for p in model.parameters()]
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@every
def test_a_refused_group_is_not_kept_and_the_callers_dictionaries_stay(method):
    group = {"params": [nn.Parameter(torch.ones(2))], "lr": 0.1}
    optimizer = METHODS[method]([group])
    assert "indices" not in group
    whole = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"floating-point tensors, not torch\.int64"):
        optimizer.add_param_group({"params": [whole]})
    assert len(optimizer.param_groups) == 1
    optimizer.step(lambda: optimizer.param_groups[0]["params"][0].sum())


@every
def test_an_index_that_is_used_twice_is_refused(method):
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    for groups in ([{"params": [a, b], "indices": [1, 1]}], [{"params": [a], "indices": [1]}, {"params": [b, c]}]):
        with pytest.raises(ValueError, match="each used once"):
            METHODS[method](groups)
    with pytest.raises(ValueError, match="one per tensor"):
        METHODS[method]([{"params": [a, b], "indices": [1]}])
    assert METHODS[method]([{"params": [a, b], "indices": [7, 3]}, {"params": [c]}]).param_groups[1]["indices"] == [2]


@pytest.mark.parametrize("direction", ["gaussian", "rademacher", "sphere"])
def test_tensors_without_numbers_have_nothing_to_learn(direction):
    p = nn.Parameter(torch.ones(0, 3))
    for optimizer in (MeZO([p], direction=direction, log=True), MeZOSVRG([p], direction=direction, log=True)):
        assert float(optimizer.step(lambda: 2.0)) == 2.0
        assert replay([p], optimizer.log) == 1


def named(model):
    return dict(model.named_parameters())


@every
def test_a_state_of_other_names_or_shapes_is_refused_before_anything_changes(method):
    torch.manual_seed(0)
    first, x = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}), torch.randn(2, 3)
    optimizer = METHODS[method](list(named(first).items()), lr=1e-2, log=True)
    for _ in range(2):
        optimizer.step(lambda: first["b"](first["a"](x)).sum())
    saved = optimizer.state_dict()
    other = METHODS[method](list(reversed(named(first).items())), lr=1e-3, log=True)
    with pytest.raises(ValueError, match=r"of 'a\.weight' where this optimizer has 'b\.bias'"):
        other.load_state_dict(saved)
    assert (other.steps, other.param_groups[0]["lr"], other.log.rows, len(other.state)) == (0, 1e-3, [], 0)
    assert other.param_groups[0]["param_names"] == list(reversed(named(first)))
    bare = METHODS[method](list(named(first).values()), log=True)  # names are known on one side only
    bare.load_state_dict(saved)
    assert bare.steps == 2
    if optimizer.state:
        wide = [nn.Parameter(torch.ones(4, 4)) for _ in named(first)]
        other = METHODS[method](wide, lr=1e-3)
        with pytest.raises(ValueError, match=r"has shape \(3, .*, but here it is \(4, .*another model"):
            other.load_state_dict(saved)
        assert (other.steps, other.param_groups[0]["lr"], len(other.state)) == (0, 1e-3, 0)
    key = next(name for name in saved if name not in ("state", "param_groups"))
    del saved[key]["seed"], saved[key]["eps"]
    with pytest.raises(ValueError, match="damaged: it lacks seed, eps"):
        bare.load_state_dict(saved)


class Cached(nn.Module):
    """A buffer that is None until the first forward, one that is replaced, one that is written, one under two names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("first", None)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("written", torch.zeros(2))
        self.inner.register_buffer("again", self.written)

    def forward(self, x):
        if self.first is None:
            self.first = x.sum()
        self.replaced = self.replaced + 1
        self.written += 1
        return self.inner(x) * self.written.sum()


@every
def test_buffers_come_back_also_where_there_were_none(method):
    model = Cached()
    replaced, written = model.replaced, model.written
    optimizer = METHODS[method](model, lr=1e-3)
    for _ in range(2):
        optimizer.step(lambda: model(torch.ones(1, 2)).sum())
        assert model.first is None
        assert model.replaced is replaced
        assert model.written is model.inner.again is written
        assert not written.any()
        assert not replaced.any()


@pytest.mark.parametrize("method", ["mezo", "lozo", "mezo_svrg"])
def test_scratch_counts_the_copies_of_buffers(method):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model.register_buffer("large", torch.zeros(1 << 20))
    model[0].register_buffer("same", model.large)
    optimizer, count = METHODS[method](model, lr=1e-3, train_mode=True), iter(range(99))

    def loss():
        model(torch.ones(2, 8))
        return float(next(count))

    for _ in range(2):
        optimizer.step(loss)
    rise = peak_live(lambda: optimizer.step(loss), [model, optimizer.state]).rise
    scratch = optimizer.memory(model, train_mode=True).scratch
    activations = 4 * 2 * 8 * 4
    assert 4 << 20 < scratch <= rise <= scratch + activations + torch.get_rng_state().numel() + 256
