"""How far long work is: bars on a terminal, lines elsewhere. Progress of runs is told by the study itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID


@contextlib.contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback (file, bytes so far, bytes in all or None) that draws bars on a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield progress


@contextlib.contextmanager
def work_bar() -> Iterator[Callable[[str, int, int, str], None]]:
    """tell(what, done, all, note): bars with the time left on a terminal, a line at every tenth anywhere else."""
    if not sys.stderr.isatty():
        shown: dict[str, int] = {}

        def line(what: str, done: int, total: int, note: str) -> None:
            tenth = 10 * done // max(total, 1)
            if tenth > shown.get(what, -1):
                shown[what] = tenth
                print(f"dlopt: {what}: {done:,} of {total:,} {note}".rstrip(), file=sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: int, total: int, note: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=total, note=escape(note))
            bars.update(tasks[what], completed=done, total=total, note=escape(note))

        yield draw
