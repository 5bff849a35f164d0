"""The experiments of topic `adam` run end to end at smoke scale, and go on where they were stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dlopt import experiments
from dlopt.experiments.adam import lm
from dlopt.experiments.adam._common import methods
from dlopt.lab import train
from dlopt.lab.experiment import Run
from dlopt.lab.record import Record
from dlopt.lab.run import Settings, execute
from dlopt.lab.study import Study, collect


@pytest.mark.parametrize("name", ["adam/resnet", "adam/lm"])
def test_the_smoke_stages_run_end_to_end(name: str, tmp_path: Path) -> None:
    study = Study(experiments.load(name), "smoke")
    (plan,) = study.conduct(Settings(tmp_path))
    records = list(plan.records.values())
    assert [(r.method, r.status, r.reason) for r in records] == [(m, "done", "") for m in methods()]
    for r in records:
        assert r.summary["val_loss"] < r.curve["val_loss"][0], f"{r.method} did not learn"
        assert r.bytes["state"] > 0
        assert {"seconds_forward", "seconds_backward", "seconds_optimizer", "seconds_per_step"} <= set(r.summary)
    sophia = next(r for r in records if r.method == "sophia-g")
    assert sophia.summary["seconds_curvature"] > 0
    assert 0 <= sophia.summary["share_unclipped"] <= 1

    found = collect(study, tmp_path)
    assert found.complete
    shown = study.experiment.present(found)  # the report can show this scale too
    cost = shown.tables["cost"]
    assert list(cost["相差"]) == [0] * len(records), "state as counted differs from the methods' formulas"
    assert list(shown.tables["main"]["完成"]) == ["1/1"] * len(records)


class Stopped:
    """The clock of the training loop: the deadline has come after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else float("inf")


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("method", ["sophia-g", "muon"])
def test_a_run_paused_by_the_deadline_ends_as_if_it_had_not_been(
    method: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params: dict[str, Any] = dict(lm.FIXED[method])
    if method == "sophia-g":
        params["interval"] = 3  # rounds of curvature before the pause and after it
    config = lm.Config(method=method, params=params, task="stdlib-tiny", steps=9, batch=4)
    run = Run.of(lm.experiment, config, "report", "cpu")

    def finish(folder: Path) -> Record:
        outcome = execute(run, Settings(folder, deadline=time.time() + 3600))
        assert outcome.record is not None, outcome.note
        return outcome.record

    whole = finish(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(train, "time", Stopped(steps))
        outcome = execute(run, Settings(tmp_path / "pieces", deadline=time.time() + 3600))
    assert (outcome.state, outcome.note) == ("paused", f"paused at step {steps} of 9")
    pieces = finish(tmp_path / "pieces")
    assert pieces.status == "done"
    assert pieces.timeless() == whole.timeless()
