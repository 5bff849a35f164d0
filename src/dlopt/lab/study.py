"""A study: the runs of one experiment at one scale, stage by stage, against the records that are there.

`plan` says what is done and what is left, without running anything; `conduct` runs what is left. Since a finished
run is known by its record, the same command resumes a study, and two commands on one folder share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlopt import catalog
from dlopt.lab.engine import inline, submit
from dlopt.lab.experiment import ConfigError, Earlier, Experiment, Pending, Run, Stage, resolved
from dlopt.lab.record import Record, same
from dlopt.lab.run import Outcome, Settings, describe, finished, recorded


@dataclass(frozen=True)
class Waiting:
    """A run whose hyper-parameters are not known yet, and why."""

    label: str
    reason: str
    minutes: float


@dataclass(frozen=True)
class StagePlan:
    """One stage: its runs, the records that some of them have, and the runs that cannot be named yet."""

    stage: Stage
    runs: Sequence[Run]
    records: Mapping[str, Record]
    pending: Sequence[Waiting]

    @property
    def left(self) -> list[Run]:
        return [run for run in self.runs if run.key not in self.records]

    @property
    def minutes(self) -> float:
        """Estimated minutes on one core for what is left, the pending runs included."""
        return sum(run.minutes for run in self.left) + sum(w.minutes for w in self.pending)


@dataclass(frozen=True)
class Study:
    """An experiment at a scale. only: {setting: values} that a run must have. changes: settings over the grid's."""

    experiment: Experiment
    scale: str
    device: str = "cpu"
    only: Mapping[str, Sequence[Any]] | None = None
    changes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.scale not in self.experiment.stages:
            have = ", ".join(self.experiment.stages)
            raise ConfigError(f"{self.experiment.name} has no scale {self.scale!r}; it has {have}")
        known = set(resolved(self.experiment.config())) | {"stage"}
        for name in self.only or {}:
            if name not in known and not ("params" in known and name.startswith("params.")):
                hint = catalog.suggest(name, known)
                raise ConfigError(f"--only {name}: {self.experiment.name} has no such setting{hint}")
        if "method" in (self.only or {}):
            for name in (self.only or {})["method"]:
                catalog.find(str(name))

    def plan(self, folder: Path) -> list[StagePlan]:
        """All stages. A later stage's runs are pending where they depend on earlier ones that are not complete."""
        return list(self._plans(lambda run: recorded(run, folder)))

    def _plans(self, lookup: Callable[[Run], Record | None]) -> Iterator[StagePlan]:
        found: dict[str, list[Record]] = {}
        planned: dict[str, list[Run]] = {}
        nothing = True
        for stage in self.experiment.stages[self.scale]:
            runs: dict[str, Run] = {}
            wanted: set[str] = set()
            pending = []
            for config in stage.configs(Earlier(found, planned)):
                params = getattr(config, "params", {})
                asked = self._wanted(config, stage.name)
                if isinstance(params, Pending):
                    if asked:
                        label = f"{getattr(config, 'method', '')} seed {getattr(config, 'seed', '-')}"
                        pending.append(Waiting(label, params.reason, stage.minutes(config)))
                    continue
                if self.changes:
                    config = self.experiment.configure(self.changes, config)
                run = Run.of(self.experiment, config, stage.name, self.device, stage.minutes(config))
                runs[run.key] = run
                wanted |= {run.key} if asked else set()
            records = {}
            for run in runs.values():
                record = lookup(run)
                if record is not None:
                    if problem := run.stale(record):
                        raise ConfigError(problem)
                    records[run.key] = record
            # later stages depend on all runs of this one, whichever are asked for now
            planned[stage.name] = list(runs.values())
            found[stage.name] = list(records.values())
            nothing = nothing and not wanted and not pending
            asked_for = [run for run in runs.values() if run.key in wanted]
            yield StagePlan(stage, asked_for, {k: r for k, r in records.items() if k in wanted}, pending)
        if self.only and nothing:
            said = " and ".join(f"{name}={','.join(map(str, values))}" for name, values in self.only.items())
            raise ConfigError(f"--only: no run of {self.experiment.name} at scale {self.scale} has {said}")

    def _wanted(self, config: Any, stage: str) -> bool:
        for name, values in (self.only or {}).items():
            if name == "stage":
                have: Any = stage
            elif name.startswith("params."):
                if isinstance(config.params, Pending):
                    continue  # not known yet
                have = resolved(config)["params"].get(name.removeprefix("params."))
            else:
                have = getattr(config, name)
            if not any(same(have, value) for value in values):
                return False
        return True

    def conduct(
        self,
        settings: Settings,
        engine: str = "inline",
        jobs: int = 1,
        tell: Callable[[StagePlan, Outcome], None] = lambda plan, outcome: None,
        start: Callable[[StagePlan], None] = lambda plan: None,
    ) -> list[StagePlan]:
        """Run what is left, stage by stage, and return the plan as it then stands.

        Runs that another process works on are waited for, and taken over if that process dies. Stops early when
        the deadline has come. Every run of a stage is checked before the first one starts.
        """
        ended: dict[str, Record] = {}  # read or made by this call: each is read once, a skipped run is tried once

        def lookup(run: Run) -> Record | None:
            if run.key not in ended and (record := finished(run, settings)) is not None:
                ended[run.key] = record
            return ended.get(run.key)

        number = 0
        while number < len(self.experiment.stages[self.scale]):
            plans = list(self._plans(lookup))
            plan = plans[number]
            for run in plan.left:
                run.check()
            start(plan)
            paused = self._conduct_stage(plan, settings, engine, jobs, tell, ended)
            if paused:
                break
            number += 1
        return list(self._plans(lookup))

    def _conduct_stage(
        self,
        plan: StagePlan,
        settings: Settings,
        engine: str,
        jobs: int,
        tell: Callable[[StagePlan, Outcome], None],
        ended: dict[str, Record],
    ) -> bool:
        left, waited = plan.left, 0.2
        while left:
            busy = []
            paused = False
            for outcome in submit(left, settings, engine, jobs):
                if outcome.state == "busy":
                    busy.append(outcome.run)
                    continue
                paused |= outcome.state == "paused"
                if outcome.record is not None:
                    ended[outcome.run.key] = outcome.record
                tell(plan, outcome)
            if paused:
                return True
            if len(busy) == len(left):
                time.sleep(waited)
                waited = min(2 * waited, 5.0)
            left = busy
        return False


@dataclass(frozen=True)
class Results:
    """What a report may use: the records of each stage at one scale, and what is missing."""

    experiment: Experiment
    scale: str
    stages: Mapping[str, Sequence[Record]]
    missing: Sequence[str]

    @property
    def complete(self) -> bool:
        return not self.missing


def collect(study: Study, folder: Path) -> Results:
    """The records of a study and a line for each run that has none."""
    plans = study.plan(folder)
    missing = []
    for plan in plans:
        missing += [f"{plan.stage.name}: {describe(run)}" for run in plan.left]
        missing += [f"{plan.stage.name}: {w.label} ({w.reason})" for w in plan.pending]
    stages = {plan.stage.name: list(plan.records.values()) for plan in plans}
    return Results(study.experiment, study.scale, stages, missing)


def rerun(experiment: Experiment, record: Record, settings: Settings) -> Outcome:
    """Do a recorded run again in another folder, to compare with what was recorded."""
    if experiment.version != record.version:
        raise ConfigError(
            f"record {record.key} was made by version {record.version} of {experiment.name}, "
            f"which is {experiment.version} today: check out {record.source.get('revision')}"
        )
    config = experiment.configure(record.overrides)
    run = Run.of(experiment, config, "reproduce", record.device)
    if run.key != record.key:
        raise ConfigError(
            f"record {record.key} cannot be reproduced here: data, weights or settings differ, "
            f"its run has the key {run.key} today (recorded identity: {dict(record.identity)})"
        )
    run.check()
    return next(inline([run], settings, 1))
