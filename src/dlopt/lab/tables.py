"""What the command line prints: tables of methods, runs and records. No pandas, no torch."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dlopt.catalog import Method
from dlopt.lab.record import Record, columns, load_all
from dlopt.lab.run import describe
from dlopt.lab.study import StagePlan


class Unwritable(OSError):
    """A folder in which results cannot be written."""


def _console() -> Console:
    # a pipe has no width: do not cut columns there
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _table(*headers: str, title: str = "", right: Sequence[str] = ()) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return table


def plain(headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """A table of texts."""
    table = _table(*headers, title=title)
    for row in rows:
        table.add_row(*(escape(text(v)) for v in row))
    _console().print(table)


def frame(data: Any) -> None:
    """A pandas table on the terminal; nothing for None."""
    if data is not None:
        plain([str(c) for c in data.columns], list(data.itertuples(index=False)))


def catalogue(methods: Mapping[str, Method], experiments: Sequence[str], as_json: bool) -> None:
    """All methods by topic, then the experiments."""
    if as_json:
        rows = [
            {"name": m.name, "topic": m.topic, "kind": m.kind, "cite": m.cite, "summary": m.summary,
             "object": f"{m.module}.{m.attribute}", "search": m.search, "needs": m.needs, "origin": m.origin}
            for m in methods.values()
        ]  # fmt: skip
        print(json.dumps({"methods": rows, "experiments": list(experiments)}, ensure_ascii=False, indent=1))
        return
    table = _table("topic", "method", "kind", "object", "summary")
    for m in methods.values():
        origin = "" if m.origin == "dlopt" else f" (from {m.origin})"
        table.add_row(m.topic, m.name, m.kind, f"{m.module}.{m.attribute}", escape(m.summary + origin))
    console = _console()
    console.print(table)
    console.print("experiments: " + (", ".join(experiments) or "none"))


def run_table(plans: Sequence[StagePlan], jobs: int) -> None:
    """Stages x runs with what is done and the estimated time; nothing is run."""
    numbers = ("runs", "done", "left", "minutes")
    table = _table("stage", "what", "methods", *numbers, "longest run", title="Run table", right=numbers)
    total = 0.0
    for plan in plans:
        methods = dict.fromkeys(str(getattr(run.config, "method", "")) for run in plan.runs)
        methods |= dict.fromkeys(w.label.split(" ")[0] for w in plan.pending)
        all_runs = len(plan.runs) + len(plan.pending)
        longest = max([r.minutes for r in plan.runs] + [w.minutes for w in plan.pending], default=0.0)
        about = escape(plan.stage.about)
        table.add_row(plan.stage.name, about, ", ".join(methods), str(all_runs), str(len(plan.records)),
                      str(all_runs - len(plan.records)), f"{plan.minutes:.1f}", f"{longest:.2g} min")  # fmt: skip
        total += plan.minutes
    console = _console()
    console.print(table)
    waiting = sum(len(plan.pending) for plan in plans)
    if waiting:
        console.print(f"{waiting} runs get their hyper-parameters from an earlier stage when it is complete")
    console.print(f"estimated {total:.1f} minutes of one core, {total / jobs:.1f} minutes with {jobs} at a time")


def summary(plans: Sequence[StagePlan], metric: str) -> int:
    """How a study stands after a command; the number of runs that failed. Stages that `--only` emptied are left out."""
    failed = 0
    for plan in plans:
        if len(plans) > 1 and not (plan.runs or plan.pending or plan.records):
            continue
        counts = Counter(record.status for record in plan.records.values())
        failed += counts["failed"]
        left = len(plan.left) + len(plan.pending)
        line = ", ".join(f"{n} {status}" for status, n in counts.items())
        print(f"{plan.stage.name}: {line or 'nothing recorded'}" + (f", {left} left" if left else ""))
        for run in plan.runs:
            record = plan.records.get(run.key)
            if record is not None and record.status in ("failed", "skipped"):
                print(f"  {describe(run)}: {record.status}: {record.reason}")
        for waiting in plan.pending:
            print(f"  {waiting.label}: {waiting.reason}")
    return failed


def overview(results: Path) -> None:
    """Counts by experiment and status, and the runs at work."""
    records, broken = load_all(results) if results.exists() else ([], [])
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(record.experiment, Counter())[record.status] += 1
    statuses = ("done", "diverged", "failed", "skipped")
    table = _table("experiment", *statuses, right=statuses)
    for name, count in sorted(counts.items()):
        table.add_row(name, *(str(count[s]) for s in statuses))
    _console().print(table)
    for problem in broken:
        print(f"left out: {problem}")
    for folder in sorted(p.parent for p in results.glob("*/.work")):
        running(folder)


def running(folder: Path) -> None:
    """A line for each run that has a checkpoint or a worker."""
    for path in sorted(folder.glob(".work/*/progress.json")):
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        state = "running" if _alive(told["pid"]) else "paused"
        print(f"{state} {told['label']}: {told['done']} of {told['total']}, {told['seconds']:.0f} s so far")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def show(
    results: Path, what: str | None, only: Mapping[str, Sequence[Any]], sort: str | None,
    names: Sequence[str] | None, form: str,
) -> None:  # fmt: skip
    """Records as a table, JSON or CSV; or one record whole, if `what` begins a key."""
    folder = results
    if what is not None and (results / what.split("/")[0]).is_dir():
        folder = results / what.split("/")[0]
    elif what is not None:
        _show_one(one(results, what), form)
        return
    records, broken = load_all(folder) if folder.exists() else ([], [])
    for problem in broken:
        print(f"left out: {problem}", file=sys.stderr)
    if not records:
        raise LookupError(f"there are no records in {folder}")
    records = [r for r in records if what is None or "/" not in what or r.experiment == what]
    rows = columns(records)
    all_names = dict.fromkeys(name for row in rows for name in row)
    for name in [*(names or ()), *([sort] if sort else ()), *only]:
        if name not in all_names and f"config.{name}" not in all_names:
            raise LookupError(f"no record has the column {name!r}; there are {', '.join(all_names)}")

    def value(row: Mapping[str, Any], name: str) -> Any:
        return row.get(name, row.get(f"config.{name}"))

    rows = [row for row in rows if all(value(row, name) in values for name, values in only.items())]
    if sort:
        rows.sort(key=lambda row: _order(value(row, sort)))
    chosen = list(names or _telling(records, rows))
    if form == "json":
        print(json.dumps([{n: value(row, n) for n in (names or all_names)} for row in rows], ensure_ascii=False))
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(chosen)
        writer.writerows([value(row, n) for n in chosen] for row in rows)
    else:
        last = [n.rsplit(".", 1)[-1] for n in chosen]
        headers = [short if last.count(short) == 1 else n for n, short in zip(chosen, last)]
        _lines([headers, *([text(value(row, n)) for n in chosen] for row in rows)])
        print(f"{len(rows)} records")


def _lines(rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; rich takes seconds for a thousand rows."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _telling(records: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns worth a place: key, status, method, what some run changed, and short figures."""
    changed: dict[str, None] = {}
    for record in records:
        changed |= dict.fromkeys(f"config.{n}" for n in record.overrides if n not in ("params", "method"))
        changed |= dict.fromkeys(f"params.{n}" for n in record.overrides.get("params", {}))
    figures = [n for n in dict.fromkeys(n for row in rows for n in row) if n.startswith("summary.")]
    short = [n for n in figures if all(len(text(row.get(n))) <= 12 for row in rows)]
    several = [n for n in short if len({text(row.get(n)) for row in rows}) > 1 or len(rows) == 1]
    return ["key", "status", "config.method", *sorted(changed, reverse=True), *several[:8]]


def _order(value: Any) -> tuple[int, float, str]:
    """For sorting a column of mixed values: numbers, then texts and lists, then what is missing."""
    if isinstance(value, bool | int | float):
        return 0, value, ""
    return (2, 0.0, "") if value is None else (1, 0.0, text(value))


def text(value: Any) -> str:
    if hasattr(value, "mean") and hasattr(value, "low") and hasattr(value, "high"):
        return f"{value.mean:.4g} ± {(value.high - value.low) / 2:.2g}"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def one(results: Path, key: str) -> Record:
    """The record whose key begins so; a LookupError if there is none, or more than one."""
    records, broken = load_all(results) if results.exists() else ([], [])
    found = [r for r in records if r.key.startswith(key)]
    if len(found) != 1:
        why = [str(b) for b in broken if f"/{key}" in str(b)]
        many = f"{len(found)} records have a key that begins with" if found else "there is no topic or record called"
        raise LookupError(why[0] if why and not found else f"{many} {key!r} in {results}")
    return found[0]


def _show_one(record: Record, form: str) -> None:
    from dataclasses import asdict

    content = asdict(record)
    if form == "json":
        print(json.dumps(content, ensure_ascii=False))
        return
    for name, value in content.items():
        if name == "curve":
            print(f"curve: {len(next(iter(value.values()), []))} rows of {', '.join(value)}")
        else:
            print(f"{name}: {json.dumps(value, ensure_ascii=False)}")


def writable(folder: Path) -> None:
    """Raise `Unwritable` unless files can be made in the folder; makes nothing itself that would stay."""
    probe = folder
    try:
        while not os.path.lexists(probe):
            probe = probe.parent
        if not probe.is_dir():
            raise Unwritable(f"{probe} is not a folder, so results cannot be written to {folder}")
        test = probe / f".dlopt-{os.getpid()}.tmp"
        test.touch()
        test.unlink()
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(f"cannot write in {probe}: {error.strerror}; choose another folder with --results") from error
