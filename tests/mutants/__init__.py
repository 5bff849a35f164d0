"""Mutants: one wrong line each. The named test file must fail for every one of them, or it proves nothing.

They stand in the `mutants.py` of each folder of tests. `python -m tests.mutants [WORD ...]` shows all at work, or those
whose names hold a word; `tests/test_mutants.py` runs them with the suite. Each is applied to a copy of the source, and
only its test file runs, against that copy, in a process forked from one that has the heavy packages loaded already (but
not dlopt): most of a mutant's time was the import of torch and transformers.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LOADED = (
    "pytest",
    "setuptools",
    "torch",
    "hypothesis",
    "scipy.stats",
    "sklearn.linear_model",
    "transformers.generation",
)
MODELS = tuple(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen2", "gpt2", "gpt_neox"))
PATIENCE = 900.0  # seconds; a test file that hangs shows nothing


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file` and becomes `new`; then `test` must fail. only: pytest's -k, for speed."""

    name: str
    file: str
    old: str
    new: str
    test: str
    only: str = ""


def all_mutants() -> list[Mutant]:
    """Those of all folders, in alphabetical order of the folders."""
    files = sorted(Path(__file__).parent.parent.glob("*/mutants.py"))
    return [m for file in files for m in importlib.import_module(f"tests.{file.parent.name}.mutants").MUTANTS]


def survives(mutant: Mutant) -> str:
    """'' if the test file failed, as it must; else what it printed."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in ("src", "tests", "reports", "notebooks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "gen"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        path = copy / "src" / "dlopt" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"the line to change stands {text.count(mutant.old)} times in {mutant.file}: mend the mutant"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        data = os.environ.get("DLOPT_DATA")  # as seen from here, not from the copy
        where = {"DLOPT_DATA": str(Path(data).resolve())} if data else {}
        arguments = ["-x", "-p", "no:cacheprovider", "-p", "no:xdist", mutant.test]
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is loaded already
        arguments += ["-k", mutant.only] if mutant.only else []
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*LOADED, *MODELS])
        child = context.Process(target=_run_tests, args=(copy, arguments, dict(os.environ) | where))
        child.start()
        child.join(PATIENCE)
        if child.exitcode is None:
            child.kill()
            child.join()
        printed = (copy / "printed.txt").read_text(encoding="utf-8", errors="replace")
        # 1: tests ran and some failed. Anything else (no test found, an error of the runner) shows nothing
        return "" if child.exitcode == 1 and "FAILED" in printed else f"exit {child.exitcode}\n{printed[-1500:]}"


def _run_tests(copy: Path, arguments: list[str], environment: dict[str, str]) -> None:
    """pytest in this fresh process, as `python -m pytest` would run it inside the copy."""
    assert "dlopt" not in sys.modules, "the process to fork from must not hold the source that is to be mutated"
    file = os.open(copy / "printed.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment | {"PYTHONPATH": str(copy / "src")})  # for the processes that the tests start
    os.chdir(copy)
    # the tests of the copy, too: this module came from the checkout
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.path[:] = [str(copy / "src"), str(copy), *(place for place in sys.path if place not in ("", str(ROOT)))]
    sys.argv[:] = ["pytest", *arguments]
    import pytest

    code = int(pytest.main(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
