"""Shows a study at work: bars with the time left on a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dlopt.lab.record import Record
from dlopt.lab.run import Outcome, describe
from dlopt.lab.study import StagePlan


class Display:
    """Context manager; give `start` and `tell` to `Study.conduct`.

    Running workers report through `<folder>/.work/<key>/progress.json`, which a thread reads twice a second, so the
    display is the same for every engine. metric: the summary figure to show for a finished run.
    """

    def __init__(self, folder: Path, metric: str = "", plain: bool | None = None):
        self.folder = folder
        self.metric = metric
        self.plain = not sys.stderr.isatty() if plain is None else plain
        self._stop = threading.Event()
        self._done = 0
        self._minutes = 0.0
        self._began = 0.0
        self._plan: StagePlan | None = None
        self._keys: set[str] = set()
        self._open: set[str] = set()  # those of them that have not ended: the thread may draw their bars
        self._lock = threading.Lock()

    def __enter__(self) -> Display:
        if not self.plain:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
            self._tasks: dict[str, Any] = {}
            self._thread = threading.Thread(target=self._poll, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if not self.plain:
            self._thread.join()
            self._bars.stop()

    def start(self, plan: StagePlan) -> None:
        """A stage begins."""
        with self._lock:
            self._start(plan)

    def _start(self, plan: StagePlan) -> None:
        self._plan, self._keys = plan, {run.key for run in plan.left}
        self._open = set(self._keys)
        self._done, self._minutes, self._began = 0, 0.0, time.monotonic()
        if not self.plain:
            from rich.markup import escape

            for task in self._tasks.values():
                self._bars.remove_task(task)
            total = sum(run.minutes for run in plan.left) or 1e-9
            text = f"[bold]{plan.stage.name}[/]: {escape(plan.stage.about)}"
            self._tasks = {"": self._bars.add_task(text, total=total)}
        elif plan.left:
            have = len(plan.records)
            known = f", {have} already recorded" if have else ""
            print(f"{plan.stage.name}: {plan.stage.about}; {len(plan.left)} runs{known}", file=sys.stderr, flush=True)

    def tell(self, plan: StagePlan, outcome: Outcome) -> None:
        """A run ended or paused."""
        with self._lock:
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._done += 1
        self._open.discard(outcome.run.key)
        self._minutes += outcome.run.minutes
        text = f"[{self._done}/{len(self._keys)}] {describe(outcome.run)}: {self._result(outcome)}"
        if self.plain:
            print(f"{text}{self._time_left()}", file=sys.stderr, flush=True)
            return
        from rich.markup import escape

        self._bars.console.print(escape(text), highlight=False)
        self._bars.update(self._tasks[""], completed=self._minutes)
        if (task := self._tasks.pop(outcome.run.key, None)) is not None:
            self._bars.remove_task(task)

    def _result(self, outcome: Outcome) -> str:
        record = outcome.record
        if record is None:
            return f"{outcome.state} ({outcome.note})" if outcome.note else outcome.state
        return result_line(record, self.metric)

    def _time_left(self) -> str:
        total = sum(run.minutes for run in self._plan.left) if self._plan else 0.0
        if not self._minutes or self._minutes >= total:
            return ""
        seconds = (time.monotonic() - self._began) * (total - self._minutes) / self._minutes
        return f", about {seconds / 60:.1f} min left in this stage"

    def _poll(self) -> None:
        while not self._stop.wait(0.5):
            with self._lock:
                self._look()

    def _look(self) -> None:
        from rich.markup import escape

        running = 0.0
        minutes = {run.key: run.minutes for run in self._plan.left} if self._plan else {}
        for key in sorted(self._open):
            path = self.folder / ".work" / key / "progress.json"
            try:
                told = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task("  " + escape(told["label"][:60]), total=told["total"])
            self._bars.update(self._tasks[key], completed=told["done"], total=told["total"])
            running += minutes.get(key, 0.0) * told["done"] / max(told["total"], 1)
        if "" in self._tasks:
            self._bars.update(self._tasks[""], completed=self._minutes + running)


def result_line(record: Record, metric: str = "") -> str:
    """How a record ended, in a few words."""
    seconds = record.summary.get("seconds", 0.0)
    if record.status != "done":
        return f"{record.status} ({record.reason})"
    value = record.summary.get(metric)
    shown = f"{metric} {value:.4f}, " if isinstance(value, float) else ""
    return f"{shown}{seconds:.1f} s"
