"""Where trained models of recorded runs lie: outside of the repository, named after the key of the record."""

from __future__ import annotations

import os
from pathlib import Path

from dlopt.tasks.data.files import cache_dir


def artifacts() -> Path:
    """The folder of trained models: DLOPT_ARTIFACTS, else `artifacts` in the cache."""
    chosen = os.environ.get("DLOPT_ARTIFACTS")
    return Path(chosen).expanduser() if chosen else cache_dir() / "artifacts"
