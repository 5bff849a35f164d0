import errno
import json
import os

import numpy as np
import pytest

from dlopt.lab import record as records
from dlopt.lab.record import Record, RecordCorrupt, RecordUnwritable, load, load_all, make_key, plain, same, set_aside


def a_record(**changes):
    overrides = changes.pop("overrides", {"params": {"lr": 0.1}})
    key = make_key("toy", 1, overrides, {"toy": "0"}, "cpu")
    values = dict(  # noqa: C408 (reads better in columns)
        key=key, experiment="toy", version=1, config={"method": "sgd", "params": {"lr": 0.1}, "seed": 0},
        overrides=overrides, identity={"toy": "0"}, device="cpu", status="done",
        summary={"loss": 0.5, "seconds": 1.0}, curve={"step": [0, 1], "loss": [1.0, float("nan")]}, bytes={"state": 4},
    )  # fmt: skip
    return Record(**(values | changes))


def test_round_trip_keeps_everything_and_turns_nan_into_null(tmp_path):
    written = a_record()
    path = written.save(tmp_path)
    read = load(path)
    assert path.name == f"{written.key}.json"
    assert read.curve == {"step": [0, 1], "loss": [1.0, None]}
    assert read.config == written.config
    assert read.timeless()["summary"] == {"loss": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_record_is_refused_at_every_length(tmp_path):
    path = a_record().save(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordCorrupt, match="is not a whole JSON file"):
            load(path)


def test_a_hand_edited_number_is_refused(tmp_path):
    path = a_record().save(tmp_path)
    text = path.read_text()
    assert '"loss": 0.5' in text
    path.write_text(text.replace('"loss": 0.5', '"loss": 0.4'))
    with pytest.raises(RecordCorrupt, match="changed after it was written"):
        load(path)


def test_an_edited_record_with_a_mended_checksum_but_another_config_is_refused(tmp_path):
    path = a_record().save(tmp_path)
    content = json.loads(path.read_text())
    content["overrides"] = {"params": {"lr": 0.2}}
    content["checksum"] = records._checksum(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RecordCorrupt, match="belongs to another run"):
        load(path)


def test_foreign_files_are_refused_and_named(tmp_path):
    good = a_record().save(tmp_path)
    (tmp_path / "other.json").write_text('{"hello": 1}')
    (tmp_path / "list.json").write_text("[1, 2]")
    good.rename(tmp_path / "renamed.json")
    found, broken = load_all(tmp_path)
    assert found == []
    assert sorted(str(b).split()[0].rsplit("/", 1)[1] for b in broken) == ["list.json", "other.json", "renamed.json"]


def test_a_record_that_lacks_a_field_or_has_another_status_is_refused(tmp_path):
    path = a_record().save(tmp_path)
    for change, message in (({"experiment": None}, "lacks fields"), ({"status": "great"}, "unknown status")):
        content = json.loads(path.read_text())
        for name, value in change.items():
            if value is None:
                del content[name]
            else:
                content[name] = value
        content["checksum"] = records._checksum(content)
        other = tmp_path / "sub" / path.name
        other.parent.mkdir(exist_ok=True)
        other.write_text(json.dumps(content))
        with pytest.raises(RecordCorrupt, match=message):
            load(other)


def test_set_aside_never_overwrites(tmp_path):
    path = tmp_path / "x.json"
    for n in range(1, 4):
        path.write_text(str(n))
        assert set_aside(path).name == f"x.json.broken-{n}"
    assert [(tmp_path / f"x.json.broken-{n}").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_record_and_no_broken_one(tmp_path, monkeypatch, where):
    old = a_record()
    path = old.save(tmp_path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":
        real = type(path).open

        def opening(self, *args, **kwargs):
            file = real(self, *args, **kwargs)
            if "tmp" in self.name:
                file.write(b"half a rec")  # some bytes reach the disk before it is full
                file.close()
                full()
            return file

        monkeypatch.setattr(type(path), "open", opening)
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(RecordUnwritable, match="No space left on device"):
        a_record(summary={"loss": 9.0}).save(tmp_path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device_is_reported(monkeypatch, tmp_path):
    """/dev/full accepts an open and refuses every write, as a full disk does."""
    monkeypatch.setattr(records.Path, "with_name", lambda self, name: records.Path("/dev/full"))
    monkeypatch.setattr(records.Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(RecordUnwritable, match="No space left on device"):
        a_record().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_half_a_record(tmp_path):
    """While one process rewrites a record all the time, another only ever reads whole ones."""
    import multiprocessing

    path = a_record().save(tmp_path)
    context = multiprocessing.get_context("fork")
    stop = context.Event()

    def rewrite():
        n = 0
        while not stop.is_set():
            n += 1
            a_record(summary={"loss": float(n)}, curve={"step": list(range(3000))}).save(tmp_path)

    writer = context.Process(target=rewrite)
    writer.start()
    try:
        for _ in range(150):
            load(path)
    finally:
        stop.set()
        writer.join()


def test_the_key_depends_on_what_decides_the_result_only():
    base = make_key("toy", 1, {"params": {"lr": 0.1}}, {"toy": "0"}, "cpu")
    assert base == make_key("toy", 1, {"params": {"lr": 0.1}}, {"toy": "0"}, "cpu")
    others = [
        make_key("toy2", 1, {"params": {"lr": 0.1}}, {"toy": "0"}, "cpu"),
        make_key("toy", 2, {"params": {"lr": 0.1}}, {"toy": "0"}, "cpu"),
        make_key("toy", 1, {"params": {"lr": 0.2}}, {"toy": "0"}, "cpu"),
        make_key("toy", 1, {"params": {"lr": 0.1}}, {"toy": "1"}, "cpu"),
        make_key("toy", 1, {"params": {"lr": 0.1}}, {"toy": "0"}, "cuda"),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_setting_that_is_not_finite_gets_no_key(value):
    """Its record would hold null, as that of None does: three runs would share one key."""
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        make_key("toy", 1, {"params": {"clip": value}}, {"toy": "0"}, "cpu")


def test_settings_are_the_same_by_meaning():
    assert same(1, 1.0)
    assert same((1, (2,)), [1, [2]])
    assert same({"a": (1,)}, {"a": [1.0]})
    assert same(float("inf"), float("inf"))
    assert not same(float("inf"), None)
    assert not same("1", 1)
    numbers = plain([np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
    assert [type(v) for v in numbers] == [float, float, int, bool]


def test_a_record_with_a_number_that_is_not_finite_is_refused(tmp_path):
    path = a_record().save(tmp_path)
    path.write_text(path.read_text().replace('"loss": 0.5', '"loss": NaN'))
    with pytest.raises(RecordCorrupt, match="changed after it was written"):
        load(path)


def test_what_cannot_be_read_is_named_and_what_vanished_is_no_trouble(tmp_path, monkeypatch):
    good = a_record().save(tmp_path)
    (tmp_path / "folder.json").mkdir()
    found, broken = load_all(tmp_path)
    assert [r.key for r in found] == [good.stem]
    assert [str(b) for b in broken] == [f"{tmp_path}/folder.json cannot be read (Is a directory)"]
    (tmp_path / "gone.json").write_text("{")
    real = records.load

    def loading(path):
        if path.name == "gone.json":
            path.unlink()  # a driver sets it aside between the listing and the reading
        return real(path)

    monkeypatch.setattr(records, "load", loading)
    assert len(load_all(tmp_path)[1]) == 1
