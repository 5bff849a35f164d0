"""Long evaluations in pieces: results of the pieces so far are kept, and a run that is stopped goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dlopt.lab import kept
from dlopt.lab.log import Log, Paused
from dlopt.lab.record import plain

FILE = "pieces.json"
T = TypeVar("T")


def each(log: Log, items: Sequence[T], work: Callable[[T], Any]) -> list[Any]:
    """[work(item) for item in items], as JSON holds it: numbers, texts, lists and dicts of them.

    Kept in the run's folder at most every `checkpoint_seconds` and before a pause. work must not depend on the items
    before. Raises `Paused` between two items once the deadline has passed.
    """
    state = kept.load(log, FILE)
    found: list[Any] = [] if state is None else state["found"]
    saved = time.monotonic()
    for number in range(len(found), len(items)):
        if log.deadline is not None and time.time() >= log.deadline:
            kept.save(log, FILE, {"found": found})
            raise Paused(f"after {number} of {len(items)} pieces")
        found.append(plain(work(items[number])))
        log.progress(number + 1, len(items))
        if time.monotonic() - saved >= log.checkpoint_seconds:
            kept.save(log, FILE, {"found": found})
            saved = time.monotonic()
    return found
