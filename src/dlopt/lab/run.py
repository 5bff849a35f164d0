"""Executes one run: claims it, runs it or goes on from its checkpoint, and writes its record.

A run in progress keeps its claim, checkpoint and progress in `<results>/<topic>/.work/<key>/`. The claim is an
lock held by the working process: when that process dies, in whatever way, the claim is free at once.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import random
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlopt import catalog
from dlopt.lab.experiment import Run, resolved
from dlopt.lab.log import Diverged, Log, Paused, Skipped
from dlopt.lab.record import Record, RecordCorrupt, RecordUnwritable, load, plain, set_aside


@dataclass(frozen=True)
class Settings:
    """How runs are executed; none of this is part of a run's key.

    folder: the topic's folder of records. threads: per worker, recorded. deadline: `time.time()` after which runs
    pause at a checkpoint. retry: also run what has a record with status "failed".
    """

    folder: Path
    threads: int = 1
    deadline: float | None = None
    checkpoint_seconds: float = 30.0
    retry: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one run. state: "recorded", "paused", or "busy" (another process works on it)."""

    run: Run
    state: str
    record: Record | None = None
    note: str = ""


@contextlib.contextmanager
def claim(work: Path) -> Iterator[bool]:
    """Hold the claim on a run's folder; yields False at once if another process holds it.

    A POSIX record lock, not `flock`: children that a run forks (loader workers, git) would inherit an `flock` and hold
    the claim of a dead worker. It binds processes, not threads: a process works on one run at a time.
    """
    while True:
        path = work / "claim"
        try:
            work.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:
            continue  # the folder was removed in between by the process that finished the run
        except FileExistsError:
            if any(p.is_file() or (p.is_symlink() and not p.exists()) for p in (work, *work.parents)):
                raise  # a file, or a link to nothing, stands in the folder's place
            continue  # removed between the attempt to make it and the look at what is there
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            os.close(handle)
            yield False
            return
        # the file may have been removed, by a process that finished, between opening and locking it
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                break
        os.close(handle)
    try:
        yield True
    finally:
        os.close(handle)


def recorded(run: Run, folder: Path) -> Record | None:
    """The run's record, if there is a whole one. Changes nothing."""
    try:
        return load(folder / f"{run.key}.json")
    except (FileNotFoundError, RecordCorrupt):
        return None


def finished(run: Run, settings: Settings) -> Record | None:
    """The record that makes this run unnecessary, if there is one. Changes nothing."""
    record = recorded(run, settings.folder)
    again = record is not None and (record.status == "skipped" or (record.status == "failed" and settings.retry))
    return None if again else record


def _make_room(path: Path) -> None:
    """Set a broken file aside. Only for the holder of the claim: else another process may just have mended it."""
    try:
        load(path)
    except FileNotFoundError:
        return
    except RecordCorrupt as error:
        print(f"{error}; it is kept as {set_aside(path).name} and the run is done anew")


def execute(run: Run, settings: Settings) -> Outcome:
    """Do one run to its end, to the deadline, or not at all if it is done or claimed."""
    if settings.deadline is not None and time.time() >= settings.deadline:
        return Outcome(run, "paused", note="not begun")
    work = settings.folder / ".work" / run.key
    try:
        with claim(work) as mine:
            if not mine:
                return Outcome(run, "busy")
            record = finished(run, settings)
            if record is None:
                _make_room(settings.folder / f"{run.key}.json")
                record = _perform(run, settings, work)
                record.save(settings.folder)
            shutil.rmtree(work, ignore_errors=True)
            return Outcome(run, "recorded", record)
    except Paused as pause:
        return Outcome(run, "paused", note=str(pause))
    except RecordUnwritable:
        raise
    except OSError as error:
        where = error.filename or settings.folder
        raise RecordUnwritable(error.errno, f"cannot work in {settings.folder}: {where}: {error.strerror}") from error


def _perform(run: Run, settings: Settings, work: Path) -> Record:
    from dlopt.lab import meter  # imports torch

    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    environment, source = meter.environment(run.device), meter.source_state()
    status, reason, summary = "done", "", {}
    log = Log(run.key, work, run.device, settings.deadline, settings.checkpoint_seconds, label=describe(run))
    missing = catalog.find(run.config.method).missing() if hasattr(run.config, "method") else ()
    if missing:
        status, reason = "skipped", f"needs {', '.join(missing)}, which is not installed"
    else:
        _prepare(run, settings)
        log.progress(0, 1)
        try:
            summary = plain(dict(run.experiment.run(run.config, log)))  # refuses what no record can hold
        except Diverged as error:
            status, reason = "diverged", str(error)
        except Skipped as error:
            status, reason = "skipped", str(error)
        except (Paused, RecordUnwritable):
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            status, reason = "failed", f"{type(error).__name__} in {where}: {' '.join(str(error).split())[:300]}"
    return Record(
        key=run.key,
        experiment=run.experiment.name,
        version=run.experiment.version,
        config=resolved(run.config),
        overrides=dict(run.overrides),
        identity=dict(run.identity),
        device=run.device,
        status=status,
        reason=reason,
        summary=summary | {"seconds": round(log.elapsed(), 3)},
        curve=log.curve(),
        bytes=log.bytes.as_dict(),
        environment=environment | {"threads": settings.threads},
        source=source | {"code": meter.code_hash()},
        started=started,
    )


def _prepare(run: Run, settings: Settings) -> None:
    """Threads as asked for, and the global generators from the run's seed: tasks and methods have their own."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(settings.threads)
    threadpool_limits(settings.threads)
    seed = int(getattr(run.config, "seed", 0))
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the generator that others may use)
    random.seed(seed)


def describe(run: Run) -> str:
    """A run in one line: method, hyper-parameters, and what else differs from the defaults."""
    parts = [str(getattr(run.config, "method", run.experiment.name))]
    parts += [f"{k}={_short(v)}" for k, v in getattr(run.config, "params", {}).items()]
    parts += [f"{k}={_short(v)}" for k, v in run.overrides.items() if k not in ("method", "params")]
    return " ".join(parts)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
