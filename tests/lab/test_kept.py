"""What an evaluation in pieces keeps: it comes back whole, or is set aside with a sentence."""

import json

import pytest

from dlopt.lab import kept
from dlopt.lab.log import Log
from dlopt.memory import Bytes


def a_log(folder, key="key"):
    return Log(key, work=folder)


def test_state_and_log_come_back(tmp_path):
    log = a_log(tmp_path)
    assert kept.load(log, "x.json") is None
    log.bytes = Bytes(cache=3)
    log.row(1, loss=0.5)
    kept.save(log, "x.json", {"found": [1, "a", None]})
    again = a_log(tmp_path)
    assert kept.load(again, "x.json", restore=False) == {"found": [1, "a", None]}
    assert again.rows == []
    assert kept.load(again, "x.json") == {"found": [1, "a", None]}
    assert again.rows == log.rows
    assert again.bytes == log.bytes
    assert again.elapsed() >= log.rows[0]["seconds"]


def test_a_run_without_a_folder_keeps_nothing(tmp_path):
    kept.save(Log(), "x.json", {})
    assert kept.load(Log(), "x.json") is None


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_text(path.read_text()[:-9]), "cannot be read (JSONDecodeError)"),
        (lambda path: path.write_text("[]"), "cannot be read (TypeError)"),
        (lambda path: path.write_bytes(b"\xff"), "cannot be read (UnicodeDecodeError)"),
        (lambda path: path.write_text("{}"), "cannot be read (KeyError)"),
        (lambda path: _edit(path, log={}), "cannot be read (KeyError)"),
        (lambda path: _edit(path, key="other"), "belongs to another run"),
        (lambda path: _edit(path, code="0"), "was made by other code"),
    ],
)
def test_what_cannot_be_used_is_named_and_set_aside(spoil, sentence, tmp_path, capsys):
    kept.save(a_log(tmp_path), "x.json", {"found": []})
    spoil(tmp_path / "x.json")
    spoiled = (tmp_path / "x.json").read_bytes()
    log = a_log(tmp_path)
    assert kept.load(log, "x.json") is None
    assert log.rows == []
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'x.json'} {sentence}; it is kept as ")
    assert (tmp_path / "x.json.broken-1").read_bytes() == spoiled
    assert kept.load(a_log(tmp_path), "x.json") is None
