"""A record beside its repetition: what differs, times aside."""

from __future__ import annotations

from typing import Any

from dlopt.lab.progress import result_line
from dlopt.lab.record import Record
from dlopt.lab.tables import text


def compare(old: Record, new: Record) -> bool:
    """Print what differs between a record and its repetition, times aside; True if nothing does."""
    a, b = old.timeless(), new.timeless()
    print(f"recorded: {result_line(old)}\nrepeated: {result_line(new)}")
    same = True
    for part in ("status", "config", "summary", "bytes", "curve"):
        if a[part] == b[part]:
            continue
        same = False
        if not isinstance(a[part], dict):
            print(f"{part}: {a[part]} was recorded, {b[part]} now")
            continue
        for name in dict.fromkeys([*a[part], *b[part]]):
            if a[part].get(name) != b[part].get(name):
                where, then, now = _difference(a[part].get(name), b[part].get(name))
                print(f"{part}.{name}{where}: {then} was recorded, {now} now")
    if same:
        print("equal in config, status, summary, bytes and curve (times aside)")
    else:
        before, after = old.environment, new.environment
        for name in sorted(set(before) & set(after)):
            if before[name] != after[name] and name not in ("load", "load_average"):
                print(f"environment.{name}: {before[name]} then, {after[name]} now")
    return same


def _difference(a: Any, b: Any) -> tuple[str, str, str]:
    """Where two values differ first, and what stands there, with as many digits as it takes to tell them apart."""
    where = ""
    if isinstance(a, list | str) and isinstance(b, list | str) and len(a) == len(b):
        i = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
        where, a, b = f"[{i}]", a[i], b[i]
    then, now = text(a)[:60], text(b)[:60]
    return (where, then, now) if then != now else (where, repr(a), repr(b))
