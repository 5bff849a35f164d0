"""A comparison in pieces: what the prompts so far told is kept, and a run that was stopped goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dlopt.experiments.speculative._told import Told
from dlopt.lab.log import Log
from dlopt.lab.record import write_atomic
from dlopt.speculative import Gate
from dlopt.speculative.costs import Costs, costs_of, describe, use

FILE = "prompts.json"


class Kept(NamedTuple):
    """found: {arm: what it did, by prompt}. gates: {arm: what its gate had learned}."""

    found: dict[str, list[Told]]
    gates: dict[str, dict[str, Any]]


def load(log: Log, target: Any) -> Kept | None:
    """What the run's folder holds, if anything. The target gets the cost table it had: its arms share one."""
    path = None if log.work is None else log.work / FILE
    if path is None or not path.exists():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    log.load_state_dict(state["log"])
    table = Costs(tuple(state["costs"]["lengths"]), tuple(state["costs"]["seconds"]), state["costs"]["where"])
    if table.where == describe(target):  # with another number of threads it would be wrong
        use(target, table)
    return Kept({arm: [Told.of(row) for row in rows] for arm, rows in state["found"].items()}, state["gates"])


def save(log: Log, target: Any, found: Mapping[str, Sequence[Told]], gates: Mapping[str, Gate]) -> None:
    """Write all of it, whole or not at all."""
    if log.work is None:
        return
    state = {
        "found": {arm: [row.as_dict() for row in rows] for arm, rows in found.items()},
        "gates": {arm: gate.state_dict() for arm, gate in gates.items()},
        "costs": costs_of(target).as_dict(),
        "log": log.state_dict() | {"bytes": {}},
    }
    write_atomic(log.work / FILE, json.dumps(state).encode())
