"""Runs that are killed, shared, paused, broken: whatever happens, the record equals that of a quiet run."""

import contextlib
import dataclasses
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from dlopt.lab import meter
from dlopt.lab import run as runs
from dlopt.lab.experiment import ConfigError, Run
from dlopt.lab.log import Log, Paused
from dlopt.lab.record import RecordCorrupt, RecordUnwritable, load, load_all
from dlopt.lab.run import Settings, claim, execute
from dlopt.lab.study import Study, collect, rerun
from dlopt.lab.train import random_state, train
from tests.lab.toy import Config, experiment

fork = multiprocessing.get_context("fork")


def a_run(**values):
    return Run.of(experiment, Config(**values), "s", "cpu")


def quiet(tmp_path, run):
    return execute(run, Settings(tmp_path / "quiet")).record.timeless()


def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    """kill -9 at 20 random moments of a run: before its first step, between steps, inside a checkpoint or the record.

    A kill that comes after the run's end shows nothing, so trials go on until 20 have hit a run at work.
    """
    run = a_run(pause=0.004, steps=30)
    quiet(tmp_path, run)  # imports and warm caches
    (tmp_path / "quiet" / f"{run.key}.json").unlink()
    started = time.perf_counter()
    expected = quiet(tmp_path, run)
    length = time.perf_counter() - started
    chance, hits, resumed, trial = random.Random(4), 0, 0, 0
    while hits < 20:
        trial += 1
        assert trial < 1000, f"only {hits} of {trial} kills hit a run at work"
        settings = Settings(tmp_path / str(trial), checkpoint_seconds=0.0)
        worker = fork.Process(target=execute, args=(run, settings))
        worker.start()
        time.sleep(chance.uniform(0.0, length))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        if (settings.folder / f"{run.key}.json").exists():
            length *= 0.95  # the machine is faster than it was when the quiet run was timed
            continue
        hits += 1
        started = (settings.folder / ".work" / run.key / "checkpoint.pt").exists()
        resumed += started
        length *= 1.0 if started else 1.1  # and slower, if most kills come before the first step
        outcome = execute(run, settings)  # the claim of the dead worker is free at once
        assert outcome.state == "recorded"
        assert outcome.record.timeless() == expected
        assert [p.name for p in settings.folder.iterdir() if p.suffix == ".json"] == [f"{run.key}.json"]
        assert not (settings.folder / ".work" / run.key).exists()
    assert resumed >= 1, "some runs must go on from a checkpoint"


def test_kill_after_kill_comes_to_the_same_end(tmp_path):
    """One run killed again and again, each time a little further on."""
    run = a_run(pause=0.004, steps=60)
    expected = quiet(tmp_path, run)
    settings, chance = Settings(tmp_path / "killed", checkpoint_seconds=0.0), random.Random(1)
    for _ in range(10):
        worker = fork.Process(target=execute, args=(run, settings))
        worker.start()
        time.sleep(chance.uniform(0.02, 0.15))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert execute(run, settings).record.timeless() == expected


def test_a_claim_is_held_by_one_and_freed_by_death(tmp_path):
    ready = fork.Event()

    def hold():
        with claim(tmp_path / "run") as mine:
            assert mine
            ready.set()
            time.sleep(60)

    worker = fork.Process(target=hold)
    worker.start()
    assert ready.wait(20)
    with claim(tmp_path / "run") as mine:
        assert not mine
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with claim(tmp_path / "run") as mine:
        assert mine


def test_children_of_a_killed_worker_do_not_hold_its_claim(tmp_path):
    """A worker that had started a child, such as a loader's worker or git, and was then killed."""
    child = fork.Value("i", 0)

    def hold():
        with claim(tmp_path / "run"):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            child.value = pid
            time.sleep(60)

    worker = fork.Process(target=hold)
    worker.start()
    while not child.value:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    try:
        with claim(tmp_path / "run") as mine:
            assert mine
        os.kill(child.value, 0)  # it was alive all the while
    finally:
        os.kill(child.value, signal.SIGKILL)


def test_two_drivers_on_one_folder_share_the_runs(tmp_path):
    changes = {"pause": 0.02, "steps": 10}
    settings = Settings(tmp_path / "shared")
    counts = fork.Queue()

    def drive():
        made = []
        Study(slow, "smoke", changes=changes).conduct(settings, tell=lambda plan, outcome: made.append(outcome))
        counts.put(len(made))

    both = fork.Barrier(2)

    def numbered(run, log):
        if not (settings.folder / f"{os.getpid()}.count").exists():
            both.wait(60)  # each driver has a run in hand before one goes on, whatever else the machine does
        with (settings.folder / f"{os.getpid()}.count").open("a") as file:
            file.write("x")
        return experiment.run(run, log)

    slow = dataclasses.replace(experiment, run=numbered)
    settings.folder.mkdir()
    drivers = [fork.Process(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
        assert driver.exitcode == 0
    work = [len(p.read_text()) for p in settings.folder.glob("*.count")]
    records, broken = load_all(settings.folder)
    assert not broken
    assert len(records) == 5
    assert sum(work) == 5, "no run is done twice"
    assert len(work) == 2, "both drivers work"


def test_a_driver_takes_over_what_a_killed_one_had_claimed(tmp_path):
    settings = Settings(tmp_path / "shared", checkpoint_seconds=0.0)
    study = Study(experiment, "smoke", changes={"pause": 0.02})
    first = fork.Process(target=study.conduct, args=(settings,))
    first.start()
    time.sleep(0.4)
    second = fork.Process(target=study.conduct, args=(settings,))
    second.start()
    time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    second.join(60)
    first.join()
    assert second.exitcode == 0
    assert collect(study, settings.folder).complete


@pytest.mark.parametrize("damage", ["truncated", "edited", "foreign"])
def test_a_broken_record_is_named_set_aside_and_made_anew(tmp_path, capsys, damage):
    run = a_run()
    settings = Settings(tmp_path)
    path = tmp_path / f"{run.key}.json"
    good = execute(run, settings).record
    text = path.read_text()
    broken = {
        "truncated": text[: len(text) // 2],
        "edited": text.replace('"forwards": 30', '"forwards": 29'),
        "foreign": '{"not": "ours"}',
    }[damage]
    assert broken != text
    path.write_text(broken)
    again = execute(run, settings).record
    assert again.timeless() == good.timeless()
    assert (tmp_path / f"{path.name}.broken-1").read_text() == broken
    assert path.name in capsys.readouterr().out
    assert load(path).timeless() == good.timeless()


def test_a_broken_checkpoint_is_named_set_aside_and_the_run_starts_anew(tmp_path, capsys):
    run = a_run(pause=0.01)
    expected = quiet(tmp_path, run)
    settings = Settings(tmp_path / "r", deadline=time.time() + 0.15)
    assert execute(run, settings).state == "paused"
    path = settings.folder / ".work" / run.key / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-700])
    assert execute(run, dataclasses.replace(settings, deadline=None)).record.timeless() == expected
    assert "checkpoint.pt cannot be read" in capsys.readouterr().out


def test_pieces_make_the_same_run(tmp_path):
    run = a_run(pause=0.005, steps=40)
    expected = quiet(tmp_path, run)
    settings, pieces = Settings(tmp_path / "pieces"), 0
    # pieces grow, so that the run ends however slow the machine is at the moment
    while (
        outcome := execute(run, dataclasses.replace(settings, deadline=time.time() + 0.06 * 1.1**pieces))
    ).state == "paused":
        pieces += 1
    assert pieces >= 2
    assert outcome.record.timeless() == expected


def test_nothing_begins_after_the_deadline(tmp_path):
    outcome = execute(a_run(), Settings(tmp_path / "late", deadline=time.time() - 1))
    assert (outcome.state, outcome.note) == ("paused", "not begun")
    assert not (tmp_path / "late").exists()


def test_failures_and_divergence_are_rows_with_reasons(tmp_path):
    failed = execute(a_run(fail="error"), Settings(tmp_path)).record
    assert failed.status == "failed"
    assert failed.reason == "RuntimeError in toy.py:33: this run was told to fail"
    diverged = execute(a_run(fail="diverge"), Settings(tmp_path)).record
    assert diverged.status == "diverged"
    assert diverged.reason == "the training loss is nan at step 2 of 30"
    assert diverged.curve["step"][0] == 0
    # a failed run is left alone until asked for; a done one is never repeated
    again = execute(a_run(fail="error"), Settings(tmp_path)).record
    assert again.started == failed.started
    os.utime(tmp_path / f"{failed.key}.json", (0, 0))
    execute(a_run(fail="error"), Settings(tmp_path, retry=True))
    assert (tmp_path / f"{failed.key}.json").stat().st_mtime > 0


def test_a_full_disk_while_checkpointing_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import torch

    run, settings = a_run(pause=0.002), Settings(tmp_path / "r", checkpoint_seconds=0.0)
    expected = quiet(tmp_path, run)
    real, calls = torch.save, []

    def filling(content, path):
        calls.append(path)
        if len(calls) > 3:
            path.write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed")
        real(content, path)

    monkeypatch.setattr(torch, "save", filling)
    with pytest.raises(RecordUnwritable, match=r"cannot write the checkpoint .* the last one is kept"):
        execute(run, settings)
    monkeypatch.undo()
    work = settings.folder / ".work" / run.key
    assert (work / "checkpoint.pt").exists()
    assert not list(work.glob("*.tmp"))
    assert not list(settings.folder.glob("*.json"))
    assert execute(run, settings).record.timeless() == expected


def test_inline_and_joblib_engines_make_equal_records(tmp_path):
    study = Study(experiment, "smoke")
    for engine, jobs in (("inline", 1), ("joblib", 2)):
        study.conduct(Settings(tmp_path / engine), engine, jobs)
    a, b = ({r.key: r.timeless() for r in load_all(tmp_path / engine)[0]} for engine in ("inline", "joblib"))
    assert len(a) == 5
    assert a == b


def test_a_finished_study_runs_nothing_again(tmp_path):
    study, settings = Study(experiment, "smoke"), Settings(tmp_path)
    study.conduct(settings)
    told = []
    plans = study.conduct(settings, tell=lambda plan, outcome: told.append(outcome))
    assert told == []
    assert all(not p.left and not p.pending for p in plans)
    results = collect(study, tmp_path)
    assert results.complete
    assert {name: len(records) for name, records in results.stages.items()} == {"tune": 3, "report": 2}


def test_a_wrong_config_stops_a_stage_before_its_first_run(tmp_path):
    study = Study(experiment, "smoke", changes={"steps": 0})
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        study.conduct(Settings(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_a_record_can_be_reproduced_and_a_changed_version_says_so(tmp_path):
    record = execute(a_run(seed=5), Settings(tmp_path / "a")).record
    again = rerun(experiment, record, Settings(tmp_path / "b")).record
    assert again.timeless() == record.timeless()
    with pytest.raises(ConfigError, match="made by version 1 of toy, which is 2 today"):
        rerun(dataclasses.replace(experiment, version=2), record, Settings(tmp_path / "c"))
    other = dataclasses.replace(experiment, identity=lambda cfg: {"toy": "1" * 64})
    with pytest.raises(ConfigError, match="cannot be reproduced here"):
        rerun(other, record, Settings(tmp_path / "c"))


def test_a_method_whose_packages_are_missing_is_a_row_with_a_reason(tmp_path, monkeypatch):
    from dlopt import catalog

    monkeypatch.setattr(catalog.Method, "missing", lambda self: ("transformers",))
    record = execute(a_run(), Settings(tmp_path)).record
    assert (record.status, record.reason) == ("skipped", "needs transformers, which is not installed")
    monkeypatch.undo()
    assert execute(a_run(), Settings(tmp_path)).record.status == "done"


def test_a_claim_outlives_the_folders_removal_by_others(tmp_path, monkeypatch):
    """Another process finishes the run and removes its folder while this one finds that the folder is there."""
    real, trials = type(tmp_path).mkdir, []

    def racing(self, *args, **kwargs):
        trials.append(self)
        if len(trials) == 1:
            raise FileExistsError(17, "File exists", str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(type(tmp_path), "mkdir", racing)
    with claim(tmp_path / "run") as mine:
        assert mine
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError), claim(tmp_path / "file"):
        pass


@pytest.mark.parametrize("place", ["a link to nothing", "a file"])
def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path, place):
    if place == "a file":
        (tmp_path / "r").write_text("")
    else:
        (tmp_path / "r").symlink_to(tmp_path / "unmounted")
    with pytest.raises(RecordUnwritable, match=f"cannot work in {tmp_path}/r/toy"):
        execute(a_run(), Settings(tmp_path / "r" / "toy"))


def test_a_record_that_another_driver_has_just_mended_is_not_set_aside(tmp_path, monkeypatch):
    """Two drivers find one broken record; the other sets it aside and has written it anew before this one acts."""
    study, settings = Study(experiment, "smoke"), Settings(tmp_path)
    run = study.plan(tmp_path)[0].runs[0]
    (tmp_path / f"{run.key}.json").write_text("{broken")
    real = runs.load

    def slow(path):
        try:
            return real(path)
        except RecordCorrupt:
            monkeypatch.undo()
            assert execute(run, settings).state == "recorded"
            raise

    monkeypatch.setattr(runs, "load", slow)
    told = []
    study.conduct(settings, tell=lambda plan, outcome: told.append(outcome))
    assert [p.name for p in tmp_path.glob("*.broken-*")] == [f"{run.key}.json.broken-1"]
    assert len(told) == 5


def test_a_pause_before_the_first_step_leaves_one_row_for_it(tmp_path):
    run = a_run()
    expected = quiet(tmp_path, run)

    def late(cfg, log):
        log.deadline = 0.0  # what is built before training took all the time there was
        return experiment.run(cfg, log)

    other = dataclasses.replace(run, experiment=dataclasses.replace(experiment, run=late))
    settings = Settings(tmp_path / "r")
    outcome = execute(other, settings)
    assert (outcome.state, outcome.note) == ("paused", "paused at step 0 of 30")
    assert execute(run, settings).record.timeless() == expected


class Drawing:
    """Batches whose iterator draws from the global generator when it is made, as a DataLoader's does."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        torch.rand(1)
        return self

    def __next__(self):
        self.number += 1
        return float(torch.rand(1)) + self.number

    def state_dict(self, consumed):
        return {"number": consumed}

    def load_state_dict(self, state):
        self.number = state["number"]


def losses(work, pauses, evaluate=None, device="cpu", state=None):
    """The batches that six steps got, with pauses after so many steps of each piece."""
    got = []
    for pause in [*pauses, 0]:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (global on purpose)
        random.seed(0)
        log = Log("key", work, device)
        todo = [pause]

        def step(batch, todo=todo, log=log):
            got.append(batch + random.random() + float(np.random.rand()))  # noqa: NPY002
            todo[0] -= 1
            log.deadline = 0.0 if todo[0] == 0 else None
            return {"loss": batch}

        with contextlib.suppress(Paused):
            train(step, Drawing(), state or {}, steps=6, log=log, evaluate=evaluate, eval_every=2)
    return got, log


def test_an_iterator_that_draws_when_made_resumes_exactly(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, _ = losses(tmp_path / "a", [])
    pieces, _ = losses(tmp_path / "b", [2, 1, 2])
    assert pieces == whole


def test_evaluation_moves_no_generator_and_may_return_numbers_of_numpy(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def evaluate():
        random.random(), torch.rand(3)
        return {"val_loss": np.float64(1.0) + 0 * np.random.rand(), "val_count": np.int64(2)}  # noqa: NPY002

    without, _ = losses(tmp_path / "a", [])
    with_it, log = losses(tmp_path / "b", [3], evaluate)
    assert with_it == without
    assert [v for v in log.curve()["val_loss"] if v is not None] == [1.0] * 4
    assert "cannot be read" not in capsys.readouterr().out


class Keeper:
    """A stateful object that owns a tensor."""

    def __init__(self):
        self.tensor = torch.Generator().manual_seed(1).get_state()

    def state_dict(self):
        return {"tensor": self.tensor}

    def load_state_dict(self, state):
        self.tensor = state["tensor"]


def test_tensors_come_back_to_the_device_they_were_on(tmp_path):
    """A generator's state lives on the CPU also in a run on a GPU; "meta" stands in for one here."""
    keeper = Keeper()
    losses(tmp_path, [2], device="meta", state={"keeper": keeper})
    torch.Generator().set_state(keeper.tensor)


def test_a_run_on_the_cpu_needs_no_gpu_to_go_on(monkeypatch):
    """Its checkpoint was made on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.zeros(16, dtype=torch.uint8)])
    assert random_state("cpu")["cuda"] == []
    assert len(random_state("cuda")["cuda"]) == 1


def test_a_checkpoint_of_other_parts_is_set_aside(tmp_path, capsys):
    """The code changed between two pieces of a run: a part of the state was added."""
    first, _ = losses(tmp_path, [], state={"keeper": Keeper()})
    again, _ = losses(tmp_path, [2], state={"keeper": Keeper()})
    assert (tmp_path / "checkpoint.pt").exists()
    capsys.readouterr()
    other, _ = losses(tmp_path, [], state={"keeper": Keeper(), "more": Keeper()})
    assert other == first
    assert "holds the states of keeper, where the run has keeper, more today" in capsys.readouterr().out
    assert (tmp_path / "checkpoint.pt.broken-1").exists()


def test_a_summary_that_no_record_can_hold_is_a_failure_with_a_reason(tmp_path):
    wrong = dataclasses.replace(experiment, run=lambda cfg, log: {"weights": torch.zeros(3)})
    record = execute(Run.of(wrong, Config(), "s", "cpu"), Settings(tmp_path)).record
    assert record.status == "failed"
    assert "cannot stand in a record" in record.reason


def test_the_environment_is_that_of_the_runs_start_and_device(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(meter, "environment", lambda device: order.append(device) or {"device": f"name of {device}"})
    told = dataclasses.replace(experiment, run=lambda cfg, log: order.append("run") or {})
    record = execute(Run.of(told, Config(), "s", "meta"), Settings(tmp_path)).record
    assert order == ["meta", "run"]
    assert record.environment["device"] == "name of meta"


def test_a_driver_reads_each_record_once(tmp_path, monkeypatch):
    study, settings, read = Study(experiment, "smoke"), Settings(tmp_path), []
    study.conduct(settings)
    real = runs.load
    monkeypatch.setattr(runs, "load", lambda path: read.append(path) or real(path))
    study.conduct(settings)
    assert len(read) == 5
