"""Counters are exact and resume; phases add up."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from dlopt.lab.meter import Meter, count_forwards


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_meter_counts_exactly():
    meter = Meter()
    meter.add(forwards=1, examples=2**60)
    meter.add(forwards=2, examples=1, tokens=np.int64(7), bytes_sent=torch.tensor(3))
    assert (meter.forwards, meter.examples, meter.tokens, meter.bytes_sent) == (3, 2**60 + 1, 7, 3)
    with pytest.raises(TypeError, match=r"tokens=1.5 must be an integer"):
        meter.add(forwards=1, tokens=1.5)
    with pytest.raises(ValueError, match="forwards=-1 must not be negative"):
        meter.add(forwards=-1)
    assert meter.forwards == 3  # all or nothing


def test_phases_nest_and_add_up():
    clock = Clock()
    meter = Meter(clock=clock)
    with meter.phase("optimizer"):
        clock.now = 1.0
        with meter.phase("forward"):
            clock.now = 3.0
        with meter.phase("backward"):
            clock.now = 7.0
        clock.now = 15.0
    clock.now = 100.0  # outside of all phases
    with meter.phase("forward"):
        clock.now = 100.5
        assert meter.as_dict()["seconds"]["forward"] == 2.5
        clock.now = 101.0
    assert meter.seconds == {"optimizer": 9.0, "forward": 3.0, "backward": 4.0}


def test_an_exception_closes_the_phase():
    clock = Clock()
    meter = Meter(clock=clock)

    def fail():
        clock.now = 2.0
        raise KeyError

    with pytest.raises(KeyError), meter.phase("forward"):
        fail()
    clock.now = 5.0
    assert meter.as_dict()["seconds"] == {"forward": 2.0}


def test_meter_resumes(tmp_path):
    clock = Clock()
    meter = Meter(clock=clock)
    meter.add(forwards=2**53 + 1, tokens=5)
    with meter.phase("forward"):
        clock.now = 0.1
    torch.save(meter.state_dict(), tmp_path / "meter.pt")
    assert json.loads(json.dumps(meter.as_dict())) == meter.as_dict()
    again = Meter(clock=clock)
    again.load_state_dict(torch.load(tmp_path / "meter.pt", weights_only=True))
    assert again.as_dict() == meter.as_dict()
    for m in (meter, again):
        m.add(forwards=1)
        clock.now = 1.0
        with m.phase("forward"):
            clock.now = 1.2
    assert again.as_dict() == meter.as_dict()
    assert again.forwards == 2**53 + 2


def test_meter_refuses_a_wrong_state():
    meter = Meter()
    state = meter.state_dict()
    with pytest.raises(ValueError, match="entries"):
        meter.load_state_dict({**state, "extra": 1})
    with pytest.raises(ValueError, match="must not be negative"):
        meter.load_state_dict({**state, "tokens": -1})
    with pytest.raises(ValueError, match="'forward' is open"), meter.phase("forward"):
        meter.load_state_dict(state)


def test_count_forwards():
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.ones(2, 8)
    with count_forwards(model) as counted:
        model(x)
        model[0](x)  # a part is not the model
        torch.func.functional_call(model, dict(model.named_parameters()), (x,))
    model(x)
    assert counted.forwards == 2
    meter = Meter()
    with pytest.raises(RuntimeError), count_forwards(model, meter) as same:
        model(torch.ones(2, 9))
    assert same is meter
    assert meter.forwards == 1
    assert not model._forward_pre_hooks
