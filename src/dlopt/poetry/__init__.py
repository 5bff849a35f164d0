"""Regulated verse: corpus, vocabulary, prosody and decoding under its rules. Import by name, or a part from its file.

`from dlopt.poetry import check, tones, prepare, Vocabulary, ProsodyConstraint, Request`. What needs OpenCC imports it
when it is first used (the extra `poetry`).
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "check": "checker",
    "Report": "checker",
    "Fault": "checker",
    "tones": "rhymebook",
    "rhymes": "rhymebook",
    "FORMS": "patterns",
    "arrangements": "patterns",
    "traditional": "script",
    "simplified": "script",
    "prepare": "corpus",
    "Corpus": "corpus",
    "Couplets": "corpus",
    "Vocabulary": "vocabulary",
    "ProsodyConstraint": "constrained",
    "Request": "request",
    "acrostic": "request",
    "continuation": "request",
}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"dlopt.poetry.{_NAMES[name]}"), name)
    raise AttributeError(f"dlopt.poetry has no {name!r}; it has {', '.join(sorted(_NAMES))}")


def __dir__() -> list[str]:
    return sorted(_NAMES)
