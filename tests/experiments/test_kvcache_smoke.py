"""Topic `kvcache` end to end at smoke scale, what is refused, and runs that are stopped and go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dlopt import experiments
from dlopt.experiments.kvcache import _pieces, books
from dlopt.experiments.kvcache._common import EVICTING, KEEPING, budget_of, series, series_of, settings
from dlopt.experiments.kvcache.openbookqa import BUDGETS
from dlopt.lab.experiment import ConfigError, Earlier, Run
from dlopt.lab.record import Record
from dlopt.lab.run import Settings, execute
from dlopt.lab.study import Study, collect

PARTS = ("openbookqa", "kivi", "books", "passkey", "generation")


@pytest.mark.parametrize("part", [*PARTS, pytest.param("cost", marks=pytest.mark.slow)])
def test_smoke(part: str, tmp_path: Path) -> None:
    study = Study(experiments.load(f"kvcache/{part}"), "smoke")
    plans = study.conduct(Settings(tmp_path))
    records = [r for plan in plans for r in plan.records.values()]
    assert all(not plan.left and not plan.pending for plan in plans)
    assert {r.status for r in records} == {"done"}, [r.reason for r in records]
    found = collect(study, tmp_path)
    assert found.complete
    assert not any("不完整" in note for note in study.experiment.present(found).notes)
    assert all(r.summary[study.experiment.primary] is not None for r in records)
    if part == "openbookqa":
        ranked = [r for r in records if r.config["prefix"] != "zero"]
        assert {series(r) for r in ranked} == {*KEEPING, *EVICTING}
        assert all(r.summary["stored_bytes"] == r.summary["formula_bytes"] for r in ranked)
        assert sum(r.bytes.get(k, 0) for r in ranked for k in ("codes", "scales", "residual", "scores")) == sum(
            r.summary["stored_bytes"] for r in ranked
        )
        distance = {(series(r), r.config["order"]): r.summary["divergence"] for r in ranked}
        assert distance["full", "packed"] == 0 < distance["int8", "packed"] < distance["kivi-2", "packed"]
    if part == "books":
        sizes = {series(r): r.curve["stored_bytes"] for r in records}
        assert sizes["sinks"][2:] == [sizes["sinks"][-1]] * len(sizes["sinks"][2:])
        assert sizes["full"][-1] == 8 * sizes["sinks"][-1]
    if part == "generation":
        whole = next(r for r in records if r.method == "full")
        assert whole.summary["overlap_share"] == whole.summary["identical_share"] == 1


def finished(run: Run, folder: Path) -> Record:
    record = execute(run, Settings(folder)).record
    assert record is not None
    assert record.status == "done", record.reason
    return record


class Clock:
    """The deadline has come after so many looks at the clock."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def time(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else float("inf")

    def monotonic(self) -> float:
        return time.monotonic()

    def process_time(self) -> float:
        return time.process_time()


@pytest.mark.parametrize(
    ("part", "values", "module"),
    [
        ("books", {**settings("sinks", 32), "tokens": 256, "chunk": 16, "text": "stdlib-text"}, books),
        ("books", {"method": "kivi", "tokens": 256, "chunk": 16, "text": "stdlib-text"}, books),
        ("passkey", {**settings("h2o", 32), "length": 512, "keys": 1}, _pieces),
    ],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    part: str, values: dict[str, Any], module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiments.load(f"kvcache/{part}")
    run = Run.of(experiment, experiment.configure({**values, "model": "tiny"}), "x", "cpu")
    whole = finished(run, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(module, "time", Clock(3))
        assert execute(run, Settings(tmp_path / "pieces", deadline=time.time() + 1e6)).state == "paused"
    assert finished(run, tmp_path / "pieces").timeless() == whole.timeless()


def test_the_cpu_grid_is_that_of_the_issue() -> None:
    grid = {s.name: list(s.configs(Earlier({}, {}))) for s in experiments.load("kvcache/openbookqa").stages["cpu"]}
    assert {c.questions for name in ("zero", "ranked", "between") for c in grid[name]} == {500}
    assert {series_of(vars(c)) for c in grid["ranked"]} == {*KEEPING, *EVICTING}
    for cfg in (c for name in ("ranked", "between") for c in grid[name]):
        tokens = 420 if cfg.prefix.startswith("shots") else int(cfg.prefix.partition(":")[2])
        assert (budget_of(vars(cfg)) or 0) * 4 <= tokens + 4
        assert cfg.prefix in BUDGETS
    total = 0.0
    for part in (*PARTS, "cost"):
        for stage in experiments.load(f"kvcache/{part}").stages["cpu"]:
            times = [stage.minutes(c) for c in stage.configs(Earlier({}, {}))]
            assert max(times) < 15
            total += sum(times)
    assert total < 300


@pytest.mark.parametrize(
    ("part", "changes", "told"),
    [
        ("openbookqa", {"method": "adamw"}, "is not a cache"),
        ("openbookqa", {"method": "kivi", "params.bit": 2}, "did you mean bits"),
        ("openbookqa", {"prefix": "shots"}, "shots:NUMBER"),
        ("openbookqa", {"order": "sorted"}, "order takes packed or stepwise"),
        ("openbookqa", {"prefix": "zero", "method": "sinks"}, "method must be full"),
        ("openbookqa", {"questions": 0}, "questions must be at least 1"),
        ("kivi", {"method": "quant"}, "no hyper-parameter 'bits'"),
        ("kivi", {"params.bits": 3}, "bits must be one of 2, 4, 8, 16, not 3"),
        ("openbookqa", {"method": "kivi", "params.group": 24}, "must divide"),
        ("passkey", {"method": "h2o", "params.budget": 8, "params.recent": 8}, "budget must be at least 9"),
        ("cost", {"model": "no-such-model"}, "no pretrained model"),
        ("kivi", {"part": "axis"}, "part takes"),
        ("books", {"chunk": 0}, "chunk must be at least 1"),
        ("books", {"method": "snapkv"}, "params.evict=blocks"),
        ("passkey", {"asked": "before"}, "asked takes"),
        ("passkey", {"length": 100}, "has at least"),
        ("generation", {"kind": "poem"}, "kind takes"),
        ("cost", {"packed": True}, "codes of kivi alone"),
        ("cost", {"steps": 0}, "at least 1"),
    ],
)
def test_what_cannot_run_is_refused_before_it_begins(part: str, changes: dict[str, Any], told: str) -> None:
    experiment = experiments.load(f"kvcache/{part}")
    sample = {"model": "tiny"}
    if part in ("openbookqa", "kivi"):
        sample |= {"data": "openbookqa-sample", "prefix": "shots:4"}
    if part in ("books", "generation"):
        sample |= {"text": "stdlib-text"}
    with pytest.raises(ConfigError, match=told):
        Run.of(experiment, experiment.configure(sample | changes), "x", "cpu").check()
