"""What a run tells the lab while it works: rows of its curve, bytes, progress; and where it may checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlopt.lab.record import plain
from dlopt.memory import Bytes

CURVE_POINTS = 200


class Diverged(Exception):
    """The run left the region where it can be compared: a loss that is not finite, or beyond the task's bound."""


class Skipped(Exception):
    """The run cannot be done here, and the message says why: a record of status "skipped", tried again next time."""


class Paused(Exception):
    """The time given to this command is over; the run goes on from its checkpoint next time."""


class Log:
    """One run's log.

    work: folder of its checkpoint and progress. device: "cpu" or "cuda". deadline: `time.time()` after which the
    run stops at a checkpoint. checkpoint_seconds: at least this long between checkpoints.
    """

    def __init__(
        self,
        key: str = "",
        work: Path | None = None,
        device: str = "cpu",
        deadline: float | None = None,
        checkpoint_seconds: float = 30.0,
        label: str = "",
    ):
        self.key = key
        self.work = work
        self.device = device
        self.deadline = deadline
        self.checkpoint_seconds = checkpoint_seconds
        self.label = label
        self.bytes = Bytes()
        from dlopt.lab.counters import Meter  # imports torch

        self.meter = Meter(device)
        self.rows: list[dict[str, Any]] = []
        self._before = 0.0
        self._since = time.perf_counter()
        self._told = 0.0

    def elapsed(self) -> float:
        """Seconds of work on this run, over all the pieces it was done in."""
        return self._before + time.perf_counter() - self._since

    def row(self, step: int, **values: Any) -> None:
        """Add a point to the curve; seconds are added here. NumPy's numbers become Python's, as checkpoints need."""
        self.rows.append({"step": step, **plain(values), "seconds": round(self.elapsed(), 3)})

    def curve(self, points: int = CURVE_POINTS) -> dict[str, list[Any]]:
        """The rows as columns, thinned to about `points` rows: the same rows whatever pieces the run was done in.

        Rows that hold an evaluation (a column `val_...`) and the last one always stay.
        """
        rows = self.rows
        if len(rows) > points:
            keep = {i * len(rows) // points for i in range(points)} | {len(rows) - 1}
            rows = [r for i, r in enumerate(rows) if i in keep or any(name.startswith("val_") for name in r)]
        names = dict.fromkeys(name for r in rows for name in r)
        return {name: [r.get(name) for r in rows] for name in names}

    def progress(self, done: int, total: int) -> None:
        """Tell the driver how far the run is, at most twice a second, through a file (workers share no memory)."""
        now = time.perf_counter()
        if self.work is None or (now - self._told < 0.5 and done < total):
            return
        self._told = now
        told = {"done": done, "total": total, "label": self.label, "pid": os.getpid(), "seconds": self.elapsed()}
        temporary = self.work / f"progress.{os.getpid()}.tmp"
        try:
            temporary.write_text(json.dumps(told))
            os.replace(temporary, self.work / "progress.json")
        except OSError:
            # progress is a courtesy: a full disk is reported where something would be lost
            temporary.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "seconds": self.elapsed(),
            "meter": self.meter.state_dict(),
            "bytes": self.bytes.as_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self._before, self._since = float(state["seconds"]), time.perf_counter()
        self.meter.load_state_dict(state["meter"])
        self.bytes = Bytes(**state["bytes"])
