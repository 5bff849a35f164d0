"""The experiments of topic `zeroth` run end to end at smoke scale, and go on where they were stopped."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dlopt import experiments
from dlopt.experiments.zeroth import _estimates, _rules, _toy, estimators, lm, official, vision
from dlopt.experiments.zeroth._common import SVRG, Cast, Estimator, cosine, flat
from dlopt.lab import train
from dlopt.lab.experiment import ConfigError, Earlier, Pending, Run
from dlopt.lab.record import Record
from dlopt.lab.run import Settings, execute
from dlopt.lab.study import Study, collect
from dlopt.zeroth.lozo import LOZO


@pytest.mark.parametrize("part", ["estimators", "vision", "lm", "official"])
def test_the_smoke_stages_run_end_to_end(part: str, tmp_path: Path) -> None:
    study = Study(experiments.load(f"zeroth/{part}"), "smoke")
    plans = study.conduct(Settings(tmp_path))
    records = [r for plan in plans for r in plan.records.values()]
    assert all(not plan.left and not plan.pending for plan in plans)
    assert {r.status for r in records} <= {"done", "diverged"}, [r.reason for r in records if r.status == "failed"]
    heat = [r for plan in plans if plan.stage.name == "heat" for r in plan.records.values()]
    assert all(r.status == "done" for r in records if r not in heat), [r.reason for r in records]
    found = collect(study, tmp_path)
    assert found.complete
    shown = study.experiment.present(found)
    assert not any("不完整" in note for note in shown.notes)
    if part == "official":
        by = {(r.config["part"], r.config["rule"]): r.summary for r in records}
        assert by["drift", "ours"]["largest_shift"] == 0 < by["drift", "official"]["rms_shift"]
        assert by["change", "ours"]["cosine_at_change"] == pytest.approx(1)
        assert abs(by["change", "official"]["cosine_at_change"]) < 0.2
        assert by["anchor", "ours"]["ratio_at_anchor"] == 0
        assert by["anchor", "official"]["ratio_at_anchor"] > 1
    if part == "estimators":
        law = next(r for r in records if r.config["part"] == "law")
        assert all(abs(ratio - 1) < 0.4 for ratio in law.curve["ratio"])
    if part == "vision":
        final = {vision.series_of(r.config): r for r in records if r.config["seed"] == 0}
        assert set(final) == set(vision.SERIES)
        assert all(r.summary["val_loss"] < r.curve["val_loss"][0] for r in final.values())
        passes = {s: r.summary["forwards"] for s, r in final.items()}
        assert {passes[s] for s in ("mezo", "mezo:q=4", "mezo:q=16")} == {1600}
        assert passes["sgd"] == 3 * final["sgd"].config["steps"]
        assert final["deepzero"].summary["mode"] == "batched"
    if part == "lm":
        final = {lm.series_of(r.config): r for r in records if r.config["part"] == "train" and r.config["seed"] == 0}
        assert set(final) == {*lm.FIRST, *lm.ZEROTH}
        whole = lm.TASKS["toy"].train // 8
        assert final[SVRG].summary["forwards"] == 2 * whole + 4 * (final[SVRG].config["steps"] - 1)
        assert final["mezo"].summary["forwards"] == 2 * final["mezo"].config["steps"]
        assert final["adamw"].bytes["state"] > 0 == final["mezo"].bytes.get("state", 0)


class Stopped:
    """The clock of the training loop: the deadline has come after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        self.left -= 1
        return 0.0 if self.left >= 0 else float("inf")


def whole_and_in_pieces(run: Run, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Record, Record]:
    def finished(where: Path) -> Record:
        record = execute(run, Settings(where)).record
        assert record is not None
        assert record.status == "done", record.reason
        return record

    settings = Settings(folder / "pieces", deadline=time.time() + 1e6)
    with monkeypatch.context() as patched:
        patched.setattr(train, "time", Stopped(steps))
        assert execute(run, settings).state == "paused"
    return finished(folder / "whole"), finished(folder / "pieces")


@pytest.mark.parametrize(("series", "steps"), [("rge:q=16", 3), ("deepzero", 2), ("mezo:q=4", 5)])
def test_an_image_run_paused_in_between_ends_as_if_it_had_not_been(
    series: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = vision.Plan("digits", forwards=200, deepzero=6, sgd=10, evaluations=2, sparse={"q_pruning": 4})
    run = Run.of(vision.experiment, plan.config(series, {**plan.fixed(series), "lr": 0.01}), "report", "cpu")
    whole, pieces = whole_and_in_pieces(run, steps, tmp_path, monkeypatch)
    assert pieces.timeless() == whole.timeless()


@pytest.mark.parametrize(("series", "steps"), [(SVRG, 7), ("lozo-m", 4), ("adamw", 3)])
def test_a_language_run_paused_in_between_ends_as_if_it_had_not_been(
    series: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, fixed = lm.VARIANTS[series]
    changed = {"interval": 5} if "interval" in fixed else {}
    config = lm.Config("train", method, {**fixed, **changed, "lr": 1e-4}, "toy", steps=12, evaluations=3)
    whole, pieces = whole_and_in_pieces(Run.of(lm.experiment, config, "report", "cpu"), steps, tmp_path, monkeypatch)
    assert pieces.timeless() == whole.timeless()


def planned(part: Any, scale: str) -> dict[str, list[Any]]:
    return {s.name: list(s.configs(Earlier({}, {}))) for s in part.experiment.stages[scale]}


def test_the_cpu_grids_are_those_of_the_issue() -> None:
    images, text = planned(vision, "cpu"), planned(lm, "cpu")
    trials: dict[Any, int] = {}
    for cfg in images["tune"]:
        trials[cfg.task, vision.series_of(vars(cfg))] = trials.get((cfg.task, vision.series_of(vars(cfg))), 0) + 1
    assert {n for (t, _), n in trials.items() if t == "mnist-lenet"} == {4}  # equal trials
    assert {n for (t, _), n in trials.items() if t == "cifar10-resnet8"} == {3}
    deep = [c for c in images["report"] if c.method == "deepzero"]
    assert [c.seed for c in deep] == [0, 1, 2]
    assert all(c.steps >= 200 for c in deep)
    assert {(c.method, c.dtype) for c in images["heat"]} == set(vision.HEAT)
    spent = {vision._series(c): c.steps * vision.PER_STEP[vision._series(c)] for c in images["report"]
             if c.method != "deepzero" and not (c.method == "sgd" and not c.gradient)}  # fmt: skip
    assert all(39_900 <= n <= 40_000 for n in spent.values())  # equal forward passes
    assert {vision._series(c) for c in images["report"]} == set(vision.SERIES)  # also while params are pending

    trained = [c for s in ("report", "seeds", "svrg") for c in text[s]]
    assert all(isinstance(c.params, Pending) for c in trained)
    zeroth = [c for c in trained if c.method not in lm.FIRST]
    assert all(c.steps >= 2000 for c in zeroth)
    assert {(c.method, c.seed) for c in zeroth} == {(m, s) for m in ("mezo", "lozo", SVRG) for s in (0, 1)}
    assert not {c.seed for c in trained} & {c.seed for c in text["tune"]}
    budget = {s: lm.passes(lm.SST2, s) * lm.SST2.trial_steps(s) for s in lm.ZEROTH}
    assert all(abs(n / budget["mezo"] - 1) < 0.02 for n in budget.values())
    for part in (vision, lm, estimators, official):
        for stage in part.experiment.stages["cpu"]:
            assert all(stage.minutes(c) > 0 for c in stage.configs(Earlier({}, {})))


def test_the_best_trial_is_taken_and_waited_for() -> None:
    trials = lm.SMOKE.trials_of("lozo-m")
    records = [
        Record(str(i), "", 1, {**vars(t)}, {}, {}, "cpu", "done", summary={"val_loss": 1.0 - i / 10})
        for i, t in enumerate(trials)
    ]
    assert lm.best(Earlier({"tune": records}, {}), lm.SMOKE, "lozo-m") == trials[-1].params
    assert isinstance(lm.best(Earlier({"tune": records[:1]}, {}), lm.SMOKE, "lozo-m"), Pending)
    assert isinstance(lm.best(Earlier({"tune": records}, {}), lm.SMOKE, "lozo"), Pending)  # not those of LOZO-M


@pytest.mark.parametrize(
    ("part", "settings", "told"),
    [
        ("estimators", {"part": "laws"}, "part takes"),
        ("estimators", {"task": "quadratic"}, "size goes with the task quadratic"),
        ("estimators", {"task": "digits", "draws": 8}, "at least 64 draws"),
        ("estimators", {"task": "digits", "params.n_directions": 4}, "leave params.n_directions"),
        ("estimators", {"task": "digits", "method": "lozo"}, "params.interval must be 1"),
        ("estimators", {"task": "digits-softmax", "part": "rank"}, "known for mnist-lenet, digits"),
        ("official", {"part": "change"}, "is about lozo"),
        ("official", {"rule": "theirs"}, "rule takes"),
        ("official", {"part": "anchor", "method": SVRG}, "settings of the method"),
        ("official", {"part": "change", "method": "lozo", "params.momentum": 0.5}, "no momentum"),
        ("vision", {"task": "digits", "gradient": "rge"}, "cannot run with gradient"),
        ("vision", {"task": "digits", "dtype": "int8"}, "dtype takes"),
        ("vision", {"task": "digits", "params.seed": 3}, "not params.seed"),
        ("lm", {"task": "toy", "batch": 7}, "batches must divide"),
        ("lm", {"task": "toi"}, "did you mean toy"),
        ("lm", {"task": "toy", "method": "deepzero"}, "cannot train a language model"),
    ],
)
def test_what_cannot_run_is_refused_before_it_begins(part: str, settings: dict[str, Any], told: str) -> None:
    experiment = experiments.load(f"zeroth/{part}")
    with pytest.raises(ConfigError, match=told):
        Run.of(experiment, experiment.configure(settings), "report", "cpu").check()


def test_an_estimate_is_what_a_step_takes_away_and_leaves_the_weights() -> None:
    problem = _estimates._quadratic(estimators.Config(task="quadratic", size=6))
    before = flat(problem.params)
    estimator = Estimator("mezo", {"eps": 0.1}, problem.params, 0)
    mean = sum(estimator.draw(problem.loss) for _ in range(4000)) / 4000
    assert torch.equal(flat(problem.params), before)
    assert float((mean - problem.gradient).norm() / problem.gradient.norm()) < 4 * math.sqrt(7 / 4000)


def test_the_matrix_has_the_gradient_of_the_whole_network() -> None:
    config = estimators.Config("rank", task="digits")
    problem = _estimates.matrix(config)
    built, (x, y) = _estimates._network(config)
    whole = torch.autograd.grad(built.criterion(built.model(x.double()), (x, y)), [built.model.layers[2].weight])
    assert torch.allclose(problem.gradient, flat(whole))


def test_the_official_lozo_is_ours_where_v_is_kept() -> None:
    """Between changes of V both move along their own perturbation; at a change only ours does."""
    random = torch.Generator().manual_seed(0)
    w = torch.empty(9, 7, dtype=torch.float64).normal_(generator=random)
    rule = _rules.OfficialLOZO([w], lr=1e-3, interval=3)
    angles = []
    for _ in range(6):
        _, seen, used = rule.step(lambda: (w * w).sum())
        angles.append(cosine(flat(seen), flat(used)))
    assert [abs(a) > 0.999 for a in angles] == [False, True, True, False, True, True]
    ours = LOZO([torch.zeros(2, 2, requires_grad=True)], lr=1e-3, scale="official")
    assert ours.scale == "official"


def test_the_walk_is_a_walk_and_an_alias_is_no_anchor() -> None:
    w = torch.empty(1000).normal_(generator=torch.Generator().manual_seed(1)).bfloat16()
    before = w.clone()
    for step in range(20):
        _rules.walk(w, 1e-3, step)
    assert 0 < float((w != before).double().mean()) < 1
    p = torch.ones(50, dtype=torch.float64)
    (correction,) = _rules.aliased_correction([p], lambda: (p * p).sum(), 1e-4, (1, 2))
    assert torch.equal(p, torch.ones(50, dtype=torch.float64))
    assert float(correction.norm()) > 1  # a real anchor at the same place would give 0
    (nothing,) = _rules.aliased_correction([p], lambda: (p * p).sum(), 1e-4, (3, 3))
    assert not nothing.any()  # the same direction cancels


def test_a_cast_model_computes_in_its_precision_and_answers_in_float32() -> None:
    model = Cast(torch.nn.Linear(3, 2), torch.bfloat16)
    out = model(torch.ones(4, 3))
    assert out.dtype == torch.float32
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert Cast(torch.nn.Linear(3, 2), torch.float64)(torch.ones(4, 3)).dtype == torch.float64


def test_the_toy_can_be_learnt_and_calibrated() -> None:
    built = _toy.Toy().build(0, 16)
    optimizer = torch.optim.Adam(built.model.parameters(), lr=0.01)
    for _ in range(60):
        batch = next(built.batches)
        optimizer.zero_grad()
        built.criterion(built.forward(built.model, batch), batch).backward()
        optimizer.step()
    assert built.test()["test_accuracy"] > 0.9
    plain, fair = built.zero_shot("test"), built.zero_shot("test", "content-free")
    assert plain["auc"] == fair["auc"]  # a prior moves the threshold, not the order
