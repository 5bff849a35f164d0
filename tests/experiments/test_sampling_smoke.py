"""The experiments of topic `sampling` run end to end at smoke scale, and go on where they were stopped."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlopt import experiments
from dlopt.experiments.sampling import lasso, logistic, theory, vision
from dlopt.experiments.sampling._common import VARIANTS, best, quantile_labels, series_of, variant
from dlopt.lab import train
from dlopt.lab.experiment import ConfigError, Earlier, Pending, Run
from dlopt.lab.record import Record
from dlopt.lab.run import Settings, execute
from dlopt.lab.study import Study, collect


@pytest.mark.parametrize("part", ["lasso", "logistic", "theory", "variance", "vision"])
def test_the_smoke_stages_run_end_to_end(part: str, tmp_path: Path) -> None:
    study = Study(experiments.load(f"sampling/{part}"), "smoke")
    plans = study.conduct(Settings(tmp_path))
    records = [r for plan in plans for r in plan.records.values()]
    assert all(not plan.left and not plan.pending for plan in plans)
    assert {r.status for r in records} <= {"done", "diverged"}, [r.reason for r in records if r.status == "failed"]
    final = [r for plan in plans if plan.stage.name != "tune" for r in plan.records.values()]
    assert all(r.status == "done" for r in final)
    found = collect(study, tmp_path)
    assert found.complete
    shown = study.experiment.present(found)
    assert not any("不完整" in note for note in shown.notes)
    if part == "lasso":
        assert {series_of(r.config) for r in final} == {*VARIANTS, "saga", "coordinate descent"}
        assert all(r.summary["gap"] <= lasso.GAP and r.summary["skew"] > 1 for r in final)
        by = {(series_of(r.config), r.config["data"]): r.summary["log_suboptimality"] for r in final}
        assert by["saga", "diabetes"] < by["with-replacement", "diabetes"]
    if part == "variance":  # by Cauchy and Schwarz nothing beats the gradients' norms, here mixed with uniform draws
        ratio = {(r.config["data"], r.config["by"]): r.summary["variance_ratio"] for r in final}
        assert len(ratio) == 6
        assert all(ratio[d, "norms"] < min(1, ratio[d, by]) for d, by in ratio if by != "norms")
    if part == "vision":
        norm = [r for r in final if not r.config["task"].endswith("group")]
        assert all("recalibrated_test_accuracy" in r.summary for r in norm)
        examples = {r.curve["examples"][-1] for r in norm}
        assert examples == {2 * 1298}  # every sampler has used as many


class Stopped:
    """The clock of the training loop: the deadline has come after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else float("inf")


@pytest.mark.parametrize(("series", "steps"), [("importance:online", 5), ("class-balanced", 21), ("shuffle-once", 30)])
def test_a_run_paused_in_mid_epoch_ends_as_if_it_had_not_been(
    series: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vision.Config(**variant(series), task="digits-vgg8", epochs=2, batch=64)
    run = Run.of(vision.experiment, config, "report", "cpu")

    def finished(folder: Path) -> Record:
        record = execute(run, Settings(folder)).record
        assert record is not None
        assert record.status == "done", record.reason
        return record

    whole = finished(tmp_path / "whole")
    settings = Settings(tmp_path / "pieces", deadline=time.time() + 1e6)
    with monkeypatch.context() as patched:
        patched.setattr(train, "time", Stopped(steps))
        assert execute(run, settings).state == "paused"
    assert finished(tmp_path / "pieces").timeless() == whole.timeless()


def planned(part: Any, scale: str) -> dict[str, list[Any]]:
    return {s.name: list(s.configs(Earlier({}, {}))) for s in part.experiment.stages[scale]}


def test_the_cpu_grid_is_that_of_the_issue() -> None:
    stages = planned(lasso, "cpu")
    per_cell: dict[Any, int] = {}
    for cfg in stages["tune"]:
        per_cell[series_of(vars(cfg)), cfg.data] = per_cell.get((series_of(vars(cfg)), cfg.data), 0) + 1
    assert set(per_cell.values()) == {lasso.TRIALS}  # equal trials
    assert len({cfg.data for cfg in stages["tune"]}) == 5
    seeds = {cfg.seed for cfg in stages["report"]}
    assert len(seeds) == 10
    assert not seeds & {cfg.seed for cfg in stages["tune"]}
    waiting = [cfg for cfg in stages["report"] if cfg.solver == "stochastic"]
    assert all(isinstance(cfg.params, Pending) for cfg in waiting)
    assert len({cfg.seed for cfg in planned(logistic, "cpu")["report"]}) == 20
    images = planned(vision, "cpu")
    assert {(c.task, c.epochs) for c in images["report"]} == {("mnist-vgg8-half", 3), ("cifar10-resnet8", 8)}
    assert {(c.task, c.epochs) for c in images["resnet18"]} == {("cifar10-resnet18-half", 2)}
    assert len({c.method for c in images["report"]}) == 7


def test_the_best_trial_is_taken_and_waited_for() -> None:
    trials = lasso._trials("grab", "mg", 40, 3)
    records = [
        Record(str(i), "", 1, {**vars(t), "params": {}}, {}, {}, "cpu", "done", summary={"log_suboptimality": -i})
        for i, t in enumerate(trials)
    ]

    def chosen(records: list[Record]) -> Any:
        return best(Earlier({"tune": records}, {}), "tune", trials, "step", "log_suboptimality")

    assert chosen(records) == trials[2].step
    assert isinstance(chosen(records[:2]), Pending)
    records[2] = replace(records[2], status="diverged")
    assert chosen(records) == trials[1].step
    assert isinstance(chosen([replace(r, status="diverged") for r in records]), Pending)


@pytest.mark.parametrize(
    ("part", "settings", "told"),
    [
        ("lasso", {"data": "abalon"}, "did you mean abalone"),
        ("lasso", {"step": 0.0}, "step above 0"),
        ("lasso", {"method": "importance"}, "by says what importance samples by"),
        ("lasso", {"method": "importance", "by": "norms"}, "needs params.online=true"),
        ("lasso", {"params.seed": 3}, "params.seed cannot be set"),
        ("lasso", {"method": "prox-sgd"}, "not a sampler"),
        ("lasso", {"solver": "newton"}, "coordinate-descent"),
        ("logistic", {"method": "grab", "data": "breast-cancer"}, "not part of this setting"),
        ("logistic", {"data": "w9a"}, "w8a"),
        ("theory", {"part": "flor"}, "part takes"),
        ("theory", {"part": "floor"}, "needs a step"),
        ("vision", {"task": "digits", "lr": 0.0}, "lr above 0"),
        ("vision", {"task": "digits", "method": "grab"}, "not for deep networks"),
        ("vision", {"task": "digit"}, "did you mean digits"),
    ],
)
def test_what_cannot_run_is_refused_before_it_begins(part: str, settings: dict[str, Any], told: str) -> None:
    experiment = experiments.load(f"sampling/{part}")
    with pytest.raises(ConfigError, match=told):
        Run.of(experiment, experiment.configure(settings), "report", "cpu").check()


def test_a_step_that_is_too_large_is_a_divergence(tmp_path: Path) -> None:
    for series in ("random-reshuffling", "importance:online", "grab"):
        config = lasso.Config(**variant(series), data="wide-small", step=1e3, epochs=30)
        record = execute(Run.of(lasso.experiment, config, "tune", "cpu"), Settings(tmp_path)).record
        assert record is not None
        assert record.status == "diverged", record.reason


def test_the_optimum_is_certified_and_the_reference_of_logistic_is_stationary() -> None:
    ref = lasso.reference("diabetes")
    assert 0 <= ref.gap + 1e-15 <= lasso.GAP
    assert ref.problem.value(np.zeros(ref.problem.d)) == pytest.approx(0.5)
    other = logistic.reference("breast-cancer")
    assert np.abs(other.problem.gradient(other.x)).max() < 1e-8
    assert other.batch_smoothness(other.problem.n) == pytest.approx(other.full + other.problem.l2)
    assert other.batch_smoothness(1) == pytest.approx(other.largest + other.problem.l2)


def test_fifths_of_the_target_are_equally_large_and_in_order() -> None:
    b = np.random.default_rng(0).normal(size=503)
    labels = quantile_labels(b)
    assert set(np.bincount(labels)) <= {100, 101}
    assert all(b[labels == c].max() < b[labels == c + 1].min() for c in range(4))


def test_the_proxy_is_the_gradient_in_the_logits() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y = torch.arange(6) % 4
    torch.nn.functional.cross_entropy(logits, y, reduction="sum").backward()
    assert logits.grad is not None
    assert torch.allclose(vision.logit_gradient_norms(logits.detach(), y), logits.grad.norm(dim=1))


def test_normalised_rows_have_no_skew() -> None:
    problem, _, _ = theory.ridge(50, 4, 1.0, 0, l2=0.0, normalised=True)
    assert np.allclose(problem.smoothness(), 1)
