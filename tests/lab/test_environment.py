"""What a record says about machine and source: true, JSON, and nobody's name."""

import getpass
import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import dlopt
from dlopt.lab.meter import code_hash, environment, source_state


def test_environment_is_json_and_anonymous():
    found = environment()
    text = json.dumps(found)
    assert found["torch"] == torch.__version__
    assert found["dlopt"] == dlopt.__version__
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["device"] == "cpu"
    assert len(found["load"]) == 3
    assert found["cores"] >= found["cores_usable"] >= 1
    # as words: a short name may well be a part of another word
    words = set(text.replace('"', " ").replace(",", " ").split())
    for private in (socket.gethostname(), getpass.getuser(), str(Path.home()), os.getcwd()):
        assert private not in words
    for path in (str(Path.cwd()), sys.prefix, str(Path(dlopt.__file__).parent)):
        assert path not in text


def test_environment_shows_determinism():
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert environment()["deterministic"]["algorithms"] is True
        assert environment()["deterministic"]["warn_only"] is True
    finally:
        torch.use_deterministic_algorithms(False)
    assert environment()["deterministic"]["algorithms"] is False


def git(root, *command):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *command], check=True, capture_output=True)


def test_source_state(tmp_path, monkeypatch):
    nothing = {"revision": None, "dirty": None}
    assert source_state(tmp_path) == nothing
    assert source_state(tmp_path / "missing") == nothing
    git(tmp_path, "init", "-q")
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("a = 1\n")
    assert source_state(tmp_path) == nothing  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = source_state(code)
    assert len(clean["revision"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "result.json").write_text("{}")
    assert source_state(code) == clean  # beside the code
    assert source_state(tmp_path) == {**clean, "dirty": True}
    (code / "a.py").write_text("a = 2\n")
    assert source_state(code)["dirty"] is True
    installed = tmp_path / "installed"
    installed.mkdir()
    assert source_state(installed) == nothing  # nothing tracked below
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert source_state(code)["revision"] == clean["revision"]
    monkeypatch.setenv("PATH", "")
    assert source_state(code) == nothing  # git is not installed


def test_code_hash(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("x")
    b.write_text("y")
    first = code_hash([a, b])
    assert len(first) == 64
    assert code_hash([str(b), a, a]) == first
    assert code_hash([a]) != first
    many = [tmp_path / f"{i}.py" for i in range(20)]
    for i, file in enumerate(many):
        file.write_text(str(i))
    assert code_hash(many) == code_hash(many[::-1])
    before = code_hash(many)
    many[0].write_text("1")
    many[1].write_text("0")
    assert code_hash(many) != before  # names and contents belong together
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.py").write_text("x")
    assert code_hash([elsewhere / "a.py", b]) == first
    b.write_text("z")
    assert code_hash([a, b]) != first
    import dlopt.memory as module

    assert code_hash([module]) == code_hash([Path(module.__file__)])
    assert code_hash() == code_hash()
    with pytest.raises(ValueError, match="bare has no source file"):
        code_hash([types.ModuleType("bare")])
    with pytest.raises(FileNotFoundError):
        code_hash([tmp_path / "missing.py"])
