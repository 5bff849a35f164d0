"""Runs that are killed, shared, paused, broken: whatever happens, the record equals that of a quiet run."""

import dataclasses
import multiprocessing
import os
import random
import signal
import time

import pytest

from dlopt.lab.experiment import ConfigError, Run
from dlopt.lab.record import RecordUnwritable, load, load_all
from dlopt.lab.run import Settings, claim, execute
from dlopt.lab.study import Study, collect, rerun
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
        assert trial < 300, f"only {hits} of {trial} kills hit a run at work"
        settings = Settings(tmp_path / str(trial), checkpoint_seconds=0.0)
        worker = fork.Process(target=execute, args=(run, settings))
        worker.start()
        time.sleep(chance.uniform(0.0, length))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        if (settings.folder / f"{run.key}.json").exists():
            continue
        hits += 1
        resumed += (settings.folder / ".work" / run.key / "checkpoint.pt").exists()
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


def test_two_drivers_on_one_folder_share_the_runs(tmp_path):
    changes = {"pause": 0.02, "steps": 10}
    settings = Settings(tmp_path / "shared")
    counts = fork.Queue()

    def drive():
        made = []
        Study(slow, "smoke", changes=changes).conduct(settings, tell=lambda plan, outcome: made.append(outcome))
        counts.put(len(made))

    def numbered(run, log):
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
    while (outcome := execute(run, dataclasses.replace(settings, deadline=time.time() + 0.06))).state == "paused":
        pieces += 1
        assert pieces < 40
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
