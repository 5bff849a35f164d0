"""A log rebuilds a run bit for bit for every method that keeps one, and refuses what it cannot rebuild."""

import gzip
import json

import pytest
import torch
from torch import nn

from dlopt.zeroth import LOZO, MeZO, MeZOSVRG
from dlopt.zeroth._columns import pack, unpack
from dlopt.zeroth.directions import mix
from dlopt.zeroth.log import METHODS, Log, replay

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {
    "mezo": (MeZO, {"n_directions": 2}),
    "mezo one-sided": (MeZO, {"one_sided": True, "direction": "rademacher"}),
    "mezo_svrg": (MeZOSVRG, {"anchor_lr": 2e-2, "interval": 3}),
    "mezo_svrg sphere": (MeZOSVRG, {"shared_z": False, "n_directions": 2, "direction": "sphere"}),
    "lozo": (LOZO, {"interval": 5}),
    "lozo-m": (LOZO, {"interval": 5, "momentum": 0.7, "rank": 3}),
    "lozo-m, directions": (LOZO, {"interval": 5, "momentum": 0.7, "n_directions": 3, "direction": "sphere"}),
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
            bad = lambda: closure(model, dtype)() * float("nan")  # noqa: E731
            optimizer.step(*([bad, bad] if cls is MeZOSVRG else [bad]))
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


# ---- damaged logs ------------------------------------------------------------------------------------------------


def logged(case, steps=6):
    """(a log of some steps, one of them skipped, as its file gives it; the model after them)"""
    cls, options = CASES[case]
    model = net(torch.float32)
    optimizer = cls(model, lr=1e-2, log=True, **options)
    for t in range(steps):
        optimizer.step(lambda t=t: closure(model, torch.float32)() * (float("nan") if t == 2 else 1.0))
    return optimizer.log, model


def refused(log, message):
    model, before = net(torch.float32), net(torch.float32)
    with pytest.raises(ValueError, match=message):
        replay(model, log)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


ONE = ["mezo", "mezo_svrg", "lozo-m"]
DAMAGES = {
    "no rates": (ONE, lambda row: row.pop("lr"), "row 3 .* lr must be finite numbers"),
    "a rate too few": (ONE, lambda row: row["weight_decay"].pop(), "row 3 .* one per param group"),
    "a rate that is not finite": (ONE, lambda row: row.update(lr=[float("nan")] * 2), "row 3 .* lr must be finite"),
    "text": (ONE, lambda row: row.update(lr=["1", "1"]), "row 3 .* lr must be finite"),
    "no step": (ONE, lambda row: row.pop("step"), "row 3 .* step"),
    "no count": (ONE, lambda row: row.pop("skipped"), "row 3 .* lacks skipped"),
    "a step that is no integer": (ONE, lambda row: row.update(step=4.5), r"row 3 .* step=4\.5 must be an integer"),
    "an earlier step": (ONE, lambda row: row.update(step=1), "row 3 .* step=1 comes after 3"),
    "a later step": (ONE, lambda row: row.update(step=5), "row 3 .* 1 rows are missing"),
    "no scalars": (["mezo"], lambda row: row.pop("scalars"), "row 3 .* scalars must be 2 finite"),
    "a scalar too few": (["mezo"], lambda row: row["scalars"].pop(), "row 3 .* scalars must be 2 finite"),
    "a scalar that is not finite": (["mezo"], lambda row: row.update(scalars=[1.0, float("inf")]), "row 3 .* 2 finite"),
    "no scalar": (["lozo-m"], lambda row: row.pop("scalars"), "row 3 .* finite scalar"),
    "no terms": (["mezo_svrg"], lambda row: row.pop("terms"), "row 3 .* terms must be a list"),
    "half a term": (["mezo_svrg"], lambda row: row["terms"][0].pop(), "row 3 .* must be pairs"),
    "a term without seed": (["mezo_svrg"], lambda row: row.update(terms=[[0.5, 1.0]]), "row 3 .* must be pairs"),
}


@pytest.mark.parametrize(("case", "damage"), [(case, name) for name, (cases, *_) in DAMAGES.items() for case in cases])
def test_a_damaged_row_is_named_before_anything_changes(case, damage, tmp_path):
    _, break_it, message = DAMAGES[damage]
    log, _ = logged(case)
    break_it(log.rows[3])
    refused(log, message)
    log.save(tmp_path / "log.json")
    if damage != "no rates":
        refused(Log.load(tmp_path / "log.json"), message)


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("case", ONE)
def test_a_row_that_is_missing_is_noticed(case, place):
    log, _ = logged(case)
    del log.rows[place]
    refused(log, f"row {place} .* 1 rows are missing")


@pytest.mark.parametrize("entry", ["names", "groups", "shapes", "options", "step"])
def test_a_damaged_header_is_refused(entry):
    log, _ = logged("lozo-m")
    log.header[entry] = None
    refused(log, "header is damaged")


@pytest.mark.parametrize("case", CASES)
def test_final_weights_that_were_saved_are_checked(case, tmp_path):
    log, model = logged(case)
    log.save(tmp_path / "log.json", model)
    assert log.final == ""
    read, again = Log.load(tmp_path / "log.json"), net(torch.float32)
    assert len(read.final) == 64
    assert replay(again, read) == 5
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    for row in read.rows[4:]:
        row["lr"] = [lr * 1.5 for lr in row["lr"]]
    refused(read, "does not lead to the final weights")
    read.final = ""
    assert replay(net(torch.float32), read) == 5
    with pytest.raises(ValueError, match="no rows yet"):
        Log().save(tmp_path / "none.json", model)
    with pytest.raises(ValueError, match="names of trained tensors"):
        log.save(tmp_path / "none.json", model.parameters())


# ---- files -------------------------------------------------------------------------------------------------------


def as_text(path, change):
    """Write a log's file again, changed and without compression."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_text(json.dumps(data))


def test_a_file_that_lost_something_is_refused(tmp_path):
    path = tmp_path / "log.json"
    logged("mezo")[0].save(path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[: len(whole) // 2], whole[:40] + b"0" + whole[41:], whole[:2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a log"):
            Log.load(path)
    for change in (
        lambda data: data.update(count=4),
        lambda data: data.pop("count"),
        lambda data: data["blocks"].pop(),
        lambda data: data["blocks"][0]["lr"]["times"].append(1),
        lambda data: data.update(blocks=3),
    ):
        path.write_bytes(whole)
        as_text(path, lambda data: None)
        assert len(Log.load(path).rows) == 5
        path.write_bytes(whole)
        as_text(path, change)
        with pytest.raises(ValueError, match="is not a log"):
            Log.load(path)


@pytest.mark.parametrize("case", CASES)
def test_files_of_earlier_versions_are_read_and_go_on(case, tmp_path):
    cls, options = CASES[case]
    model = net(torch.float32)
    optimizer = cls(model, lr=1e-2, seed=3, log=True, **options)
    for _ in range(3):
        optimizer.step(closure(model, torch.float32))
    state = optimizer.state_dict()
    old = state[optimizer.log.header["method"]]["log"]
    old["header"] = {name: value for name, value in old["header"].items() if name not in ("step", "skipped")}
    old["rows"] = [dict(row) for row in old["rows"]]
    for row in old["rows"]:
        row.pop("skipped")
        if cls is MeZO:
            row["seed"] = mix(3, row["step"])
        if cls is not LOZO:
            row.pop("step")
    (tmp_path / "old.json").write_text(json.dumps(old))
    again = net(torch.float32)
    assert replay(again, Log.load(tmp_path / "old.json")) == 3
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    state.get("mezo_svrg", {}).pop("whole", None)  # earlier versions did not keep it
    resumed = cls(again, log=True)
    resumed.load_state_dict(state)
    for _ in range(3):
        resumed.step(closure(again, torch.float32))
    resumed.log.save(tmp_path / "new.json", again)
    log, initial = Log.load(tmp_path / "new.json"), net(torch.float32)
    assert log.rows == resumed.log.rows
    assert replay(initial, log) == 6
    assert all(map(torch.equal, again.parameters(), initial.parameters()))


def test_two_thousand_steps_take_less_than_50_kilobytes(tmp_path):
    model, initial = nn.Linear(3, 2), nn.Linear(3, 2)
    initial.load_state_dict(model.state_dict())
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    optimizer = MeZO(model, lr=1e-3, log=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for t in range(2000):
        optimizer.step(lambda t=t: model(x[t % 9 : t % 9 + 8]).square().mean())
        scheduler.step()
    optimizer.log.save(tmp_path / "log.json")
    assert (tmp_path / "log.json").stat().st_size < 50_000
    log = Log.load(tmp_path / "log.json")
    assert log == optimizer.log
    replay(initial, log)
    assert all(map(torch.equal, model.parameters(), initial.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.log = Log()
    for _ in range(200):
        optimizer.step(lambda: model(x).square().mean())
    optimizer.log.save(tmp_path / "log.json")
    assert (tmp_path / "log.json").stat().st_size < 3_000


def test_columns_bring_every_value_back_as_it_was():
    rows = [
        {"a": 0.0, "b": [0.0, 1e-320], "c": 7},
        {"a": -0.0, "b": [-0.0, 1e-320], "c": 7},
        {"a": 0, "b": [1], "c": 2**62},
        {"a": 1.0, "b": [], "c": -5},
        {"a": True, "b": None, "c": 0},
        {"c": 3, "a": 0.1},
        {"c": 3, "a": 0.1},
    ]
    packed = json.loads(json.dumps(pack(rows)))
    assert repr(unpack(packed)) == repr(rows)
    assert [len(block["c"]["values"]) for block in packed] == [5, 2]
    again = unpack(packed)
    again[5]["a"] = 2.0
    assert again[6]["a"] == 0.1
    assert unpack(pack([])) == []
