"""What goes wrong around a step leaves weights, hooks and logs as they should be."""

import threading
import time

import pytest
import torch
from torch import nn

from dlopt.zeroth import LOZO, MeZO, MeZOSVRG, directions
from dlopt.zeroth.perturb import Hooked, Trained

METHODS = {"mezo": MeZO, "mezo-svrg": MeZOSVRG, "lozo": LOZO}
every = pytest.mark.parametrize("method", METHODS)


class Positions(nn.Module):
    """Returns a view of its weight, large enough for the memory that is kept from module to module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 256))

    def forward(self, x):
        return self.weight[: x.shape[0]]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.inner, self.head = Positions(), nn.Linear(256, 1024), nn.Linear(1024, 1)

    def forward(self, x):
        at = self.positions(x)
        return self.head(self.inner(x).relu()).mean() + at.square().mean()


@every
def test_a_module_that_returns_its_weight_is_seen_at_the_shifted_weight(method):
    torch.manual_seed(0)
    model, x = Net(), torch.randn(8, 256)
    seen = [METHODS[method](given, lr=1e-3, eps=0.5, seed=3) for given in (model, model.parameters())]
    a, b = (optimizer.step(lambda: model(x)) for optimizer in seen)  # the second moves on, so compare first losses
    torch.manual_seed(0)
    again = Net()
    assert torch.equal(a, METHODS[method](again.parameters(), lr=1e-3, eps=0.5, seed=3).step(lambda: again(x)))
    assert bool(b.isfinite())


def test_an_interrupt_while_a_weight_is_put_back_loses_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = [p.detach().clone() for p in model.parameters()]
    trained = [Trained(n, i, p, 0) for i, (n, p) in enumerate(model.named_parameters())]
    around = Hooked(model, trained, (), watch=False)
    usual, left = Hooked._put_back, [3]

    def interrupted(self, t):
        if t.index in self.originals:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        usual(self, t)

    Hooked._put_back = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            around.run(lambda: model(torch.ones(1, 4)).sum(), lambda index, w, source, **_: w.copy_(source + 1))
    finally:
        Hooked._put_back = usual
    around.restore()
    assert all(map(torch.equal, before, model.parameters()))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_no_thread_writes_after_an_exception(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    w, usual = torch.zeros(1 << 20), directions._fill

    def failing(*given):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        return usual(*given)

    monkeypatch.setattr(directions, "_fill", failing)
    with pytest.raises(KeyboardInterrupt):
        directions.add("gaussian", w, [(1, 1.0)], 1.0)
    w.zero_()
    time.sleep(0.3)
    assert not bool(w.any())


@every
def test_threads_follow_inference_mode(method, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model = nn.Linear(512, 512)

    def closure():
        with torch.inference_mode():
            return model(torch.ones(1, 512)).square().mean()

    assert bool(METHODS[method](model, lr=1e-6).step(closure).isfinite())


@every
def test_an_option_that_changes_ends_a_log(method):
    w = nn.Parameter(torch.ones(4, 4))
    optimizer = METHODS[method]([w], lr=1e-3, log=True)
    optimizer.step(lambda: w.square().sum())
    optimizer.eps *= 2  # which the rows already hold
    optimizer.step(lambda: w.square().sum())
    optimizer.seed += 1
    with pytest.raises(RuntimeError, match="an option of the optimizer changed"):
        optimizer.step(lambda: w.square().sum())


@every
def test_no_rate_is_refused(method):
    with pytest.raises(ValueError, match="lr=None"):
        METHODS[method]([nn.Parameter(torch.ones(2))], lr=None)
