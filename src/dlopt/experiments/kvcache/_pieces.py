"""Long evaluations in pieces: results of the pieces so far are kept, and a run that is stopped goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dlopt.lab.log import Log, Paused
from dlopt.lab.record import plain, write_atomic

T = TypeVar("T")


def each(log: Log, items: Sequence[T], work: Callable[[T], Any]) -> list[Any]:
    """[work(item) for item in items], as JSON holds it: numbers, texts, lists and dicts of them.

    Kept in the run's folder at most every `checkpoint_seconds` and before a pause. work must not depend on the items
    before. Raises `Paused` between two items once the deadline has passed.
    """
    path = None if log.work is None else log.work / "pieces.json"
    found: list[Any] = []
    if path is not None and path.exists():
        state = json.loads(path.read_text(encoding="utf-8"))
        log.load_state_dict(state["log"])
        found = state["found"]
    kept = time.monotonic()

    def keep() -> None:
        if path is not None:
            # the bytes of a run are counted anew when it goes on
            state = {"found": found, "log": log.state_dict() | {"bytes": {}}}
            write_atomic(path, json.dumps(state).encode())

    for number in range(len(found), len(items)):
        if log.deadline is not None and time.time() >= log.deadline:
            keep()
            raise Paused(f"after {number} of {len(items)} pieces")
        found.append(plain(work(items[number])))
        log.progress(number + 1, len(items))
        if time.monotonic() - kept >= log.checkpoint_seconds:
            keep()
            kept = time.monotonic()
    return found
