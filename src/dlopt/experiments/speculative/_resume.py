"""A comparison in pieces: what the prompts so far told is kept, and a run that was stopped goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dlopt.experiments.speculative._told import Told
from dlopt.lab import kept
from dlopt.lab.log import Log
from dlopt.speculative import Gate
from dlopt.speculative.costs import Costs, costs_of, describe, use

FILE = "prompts.json"


class Kept(NamedTuple):
    """found: {arm: what it did, by prompt}. gates: {arm: what its gate had learned}."""

    found: dict[str, list[Told]]
    gates: dict[str, dict[str, Any]]


def costs(log: Log, target: Any) -> Costs:
    """v(k) of the target: as the run had it before it was stopped, else measured now."""
    state = kept.load(log, FILE, restore=False)
    table = None if state is None else Costs.of(state["costs"])
    if table is not None and table.where == describe(target):  # with another number of threads it would be wrong
        use(target, table)
    return costs_of(target)


def load(log: Log, target: Any, arms: Sequence[str]) -> Kept | None:
    """What the run's folder holds, if anything. The target gets the cost table it had: its arms share one.

    arms: names of all. A file of others is named and set aside.
    """
    state = kept.load(log, FILE)
    if state is None:
        return None
    if list(state["found"]) != list(arms):
        kept.drop(log, FILE, f"holds the arms {', '.join(state['found'])}, where the run has {', '.join(arms)}")
        return None
    costs(log, target)
    return Kept({arm: [Told.of(row) for row in rows] for arm, rows in state["found"].items()}, state["gates"])


def save(log: Log, target: Any, found: Mapping[str, Sequence[Told]], gates: Mapping[str, Gate]) -> None:
    """Write all of it, whole or not at all."""
    state = {
        "found": {arm: [row.as_dict() for row in rows] for arm, rows in found.items()},
        "gates": {arm: gate.state_dict() for arm, gate in gates.items()},
        "costs": costs_of(target).as_dict(),
    }
    kept.save(log, FILE, state)
