"""What an evaluation in pieces has found so far: a JSON file in the run's folder, from which it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from dlopt.lab.environment import PACKAGE, code_hash
from dlopt.lab.log import Log
from dlopt.lab.record import set_aside, write_atomic


def save(log: Log, name: str, state: Mapping[str, Any]) -> None:
    """Write the log and `state`, whole or not at all. Nothing for a run without a folder."""
    if log.work is not None:
        content = {"key": log.key, "code": _code(), "log": log.state_dict(), "state": dict(state)}
        write_atomic(log.work / name, json.dumps(content).encode())


def load(log: Log, name: str, restore: bool = True) -> dict[str, Any] | None:
    """The state, the log put back to where it was if asked to; None if there is none.

    A file that cannot be read, of another run or of other code is named and set aside, and the run starts anew: one
    record never holds figures of two versions of the code.
    """
    path = None if log.work is None else log.work / name
    if path is None or not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wrong = "belongs to another run" if content["key"] != log.key else ""
        wrong = wrong or ("was made by other code" if content["code"] != _code() else "")
        state: dict[str, Any] = content["state"]
        if not wrong and restore:
            log.load_state_dict(content["log"])
    except (ValueError, KeyError, TypeError) as error:
        wrong = f"cannot be read ({type(error).__name__})"
    if wrong:
        drop(log, name, wrong)
        return None
    return state


def drop(log: Log, name: str, why: str) -> None:
    """Set the file aside, with a sentence."""
    assert log.work is not None
    path = log.work / name
    print(f"{path} {why}; it is kept as {set_aside(path)}, the run starts anew")


@cache
def _code() -> str:
    """Of the whole package, when it is first asked for: what is imported differs from moment to moment."""
    return code_hash(PACKAGE.rglob("*.py"))
