"""A log rebuilds a run bit for bit for every method that keeps one, and refuses what it cannot rebuild."""

import pytest
import torch
from torch import nn

from dlopt.zeroth import LOZO, MeZO, MeZOSVRG
from dlopt.zeroth.log import METHODS, Log, replay

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {
    "mezo": (MeZO, {"n_directions": 2}),
    "mezo one-sided": (MeZO, {"one_sided": True, "direction": "rademacher"}),
    "mezo_svrg": (MeZOSVRG, {"anchor_lr": 2e-2, "interval": 3}),
    "mezo_svrg sphere": (MeZOSVRG, {"shared_z": False, "n_directions": 2, "direction": "sphere"}),
    "lozo": (LOZO, {"interval": 5}),
    "lozo-m": (LOZO, {"interval": 5, "momentum": 0.7, "rank": 3}),
    "lozo-m official": (LOZO, {"interval": 4, "momentum": 0.9, "scale": "official"}),
}


def net(dtype, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def closure(model, dtype, low=0, high=8):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(8, 4, generator=generator).to(dtype), torch.arange(8) % 3
    return lambda: nn.functional.cross_entropy(model(x[low:high]).float(), y[low:high])


@pytest.mark.parametrize("given", ["model", "parameters"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_log_rebuilds_the_run_bit_for_bit(case, dtype, given, tmp_path):
    cls, options = CASES[case]
    model, initial = net(dtype), net(dtype)
    options = {"lr": 1e-2, "weight_decay": 0.1, "log": True, **options}
    optimizer = cls(model if given == "model" else model.named_parameters(), **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for t in range(12):
        if t in (4, 7):  # a step that is skipped has no row
            optimizer.step(lambda: closure(model, dtype)() * float("nan"))
        elif cls is MeZOSVRG:
            full = [closure(model, dtype, 0, 4), closure(model, dtype, 4, 8)]
            optimizer.step(closure(model, dtype, t % 5, t % 5 + 3), full)
        else:
            optimizer.step(closure(model, dtype))
        scheduler.step()
    optimizer.log.save(tmp_path / "log.json")
    log = Log.load(tmp_path / "log.json")
    assert log == optimizer.log
    assert log.header["method"] in METHODS
    assert replay(initial, log) == 10
    assert all(map(torch.equal, model.parameters(), initial.parameters()))
    assert not all(map(torch.equal, model.parameters(), net(dtype).parameters()))


@pytest.mark.parametrize("case", CASES)
def test_a_log_goes_on_after_resume(case):
    cls, options = CASES[case]
    model, initial = net(torch.float32), net(torch.float32)
    optimizer = cls(model, lr=1e-2, log=True, **options)
    for _ in range(4):
        optimizer.step(closure(model, torch.float32))
    other = net(torch.float32)
    other.load_state_dict(model.state_dict())
    again = cls(other, log=True)
    again.load_state_dict(optimizer.state_dict())
    for _ in range(4):
        again.step(closure(other, torch.float32))
    assert replay(initial, again.log) == 8
    assert all(map(torch.equal, other.parameters(), initial.parameters()))


def test_a_log_of_momentum_must_begin_with_the_run():
    model = net(torch.float32)
    optimizer = LOZO(model, lr=1e-2, momentum=0.5)
    optimizer.step(closure(model, torch.float32))
    optimizer.log = Log()
    with pytest.raises(RuntimeError, match="must begin with the run"):
        optimizer.step(closure(model, torch.float32))


def test_a_log_may_begin_between_two_anchors():
    model = net(torch.float32)
    optimizer = MeZOSVRG(model, lr=1e-2, interval=5)
    optimizer.step(closure(model, torch.float32))
    initial = net(torch.float32)
    initial.load_state_dict(model.state_dict())
    optimizer.log = Log()
    for _ in range(6):
        optimizer.step(closure(model, torch.float32))
    assert replay(initial, optimizer.log) == 6
    assert all(map(torch.equal, model.parameters(), initial.parameters()))


@pytest.mark.parametrize(
    ("entry", "value", "message"), [("format", 1, "format 1, this version reads 2"), ("method", "os", "is of 'os'")]
)
def test_other_formats_and_methods_are_refused(entry, value, message):
    model = net(torch.float32)
    optimizer = MeZO(model, log=True)
    optimizer.step(closure(model, torch.float32))
    optimizer.log.header[entry] = value
    with pytest.raises(ValueError, match=message):
        replay(net(torch.float32), optimizer.log)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        '{"header": 1}',
        '{"header": {}, "rows": 3}',
        '{"rows": [1]}',
        '{"rows": [{"seed": 1}]}',
        '{"more": 1}',
    ],
)
def test_a_file_that_is_no_log_is_refused(text, tmp_path):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match="is not a log of a zeroth-order run"):
        Log.load(tmp_path / "log")
