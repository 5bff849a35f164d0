"""The bars of a terminal: they follow the runs that are open, and no run that has ended."""

import dataclasses
import json
import time

import pytest

from dlopt.lab import progress
from dlopt.lab.progress import Display
from dlopt.lab.run import Outcome
from dlopt.lab.study import Study
from tests.lab.toy import experiment


@pytest.fixture
def plan(tmp_path):
    """A stage whose first run has told how far it is."""
    plan = Study(experiment, "smoke").plan(tmp_path)[0]
    work = tmp_path / ".work" / plan.runs[0].key
    work.mkdir(parents=True)
    told = {"done": 5, "total": 10, "label": "sgd [lr]", "pid": 1, "seconds": 1.0}
    (work / "progress.json").write_text(json.dumps(told))
    return plan


def bars(display):
    return [task.description for task in display._bars.tasks]


def test_a_run_that_paused_keeps_no_bar(tmp_path, plan):
    with Display(tmp_path, plain=False) as display:
        display._stop.set()  # the thread stands still: the test looks in its place
        display.start(plan)
        display._look()
        assert bars(display) == ["[bold]tune[/]: three trials", r"  sgd \[lr]"]
        assert display._bars.tasks[0].completed == pytest.approx(0.005)
        display.tell(plan, Outcome(plan.runs[0], "paused"))
        display._look()
        assert bars(display) == ["[bold]tune[/]: three trials"]
        assert display._bars.tasks[0].completed == pytest.approx(0.01)


def test_a_run_that_ends_while_the_thread_looks_waits_for_it(tmp_path, plan, monkeypatch):
    with Display(tmp_path, plain=False) as display:
        display.start(plan)
        asked = []

        class Slow:
            @staticmethod
            def loads(text):
                asked.append(display._lock.acquire(blocking=False))
                return json.loads(text)

        monkeypatch.setattr(progress, "json", Slow)
        while not asked:
            time.sleep(0.01)
        assert not asked[0], "tell could remove the bar that is being drawn"


def test_brackets_in_a_stages_line_are_no_markup(tmp_path, plan):
    odd = dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, about="rates [a, b]"))
    with Display(tmp_path, plain=False) as display:
        display.start(odd)
        assert bars(display) == [r"[bold]tune[/]: rates \[a, b]"]
