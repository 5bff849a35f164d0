"""290 Tang poems that travel with the package (`sample.json`): for tests and smoke runs, where no data folder is."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any


def sample_poems() -> list[dict[str, Any]]:
    """Records as the data set `tang-poems` has them (title, author, paragraphs); all are regular by the checker."""
    found: list[dict[str, Any]] = json.loads(_bytes())["poems"]
    return found


def fingerprint() -> dict[str, str]:
    """{file: sha256}: which poems these are."""
    return {"poetry/sample.json": hashlib.sha256(_bytes()).hexdigest()}


def _bytes() -> bytes:
    return files("dlopt.poetry").joinpath("sample.json").read_bytes()
