"""What methods meet on: data (`dlopt.tasks.data`), models (`dlopt.tasks.models`) and the fixed tasks made of both."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def named(name: str, tasks: Mapping[str, T]) -> T:
    """The task of that name; a ValueError that suggests the nearest ones if there is none."""
    if name not in tasks:
        raise ValueError(f"no task is called {name!r}{suggest(name, tasks)}; there are {', '.join(tasks)}")
    return tasks[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the nearest known names, or ''."""
    near = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
