"""A made-up record in the shape of a real one; the numbers mean nothing."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from dlopt.lab.experiment import Experiment, resolved
from dlopt.lab.record import Record, plain


def record(
    experiment: Experiment,
    cfg: Any,
    summary: Mapping[str, Any],
    curve: Mapping[str, Any],
    status: str = "done",
    *,
    seconds: float = 30.0,
    **more: Any,
) -> Record:
    """The record of a run that ended like this: only one that is done has figures, one that never ran has no curve.

    more: other fields of the record.
    """
    done = status == "done"
    fields = {
        "key": f"{zlib.crc32(repr(cfg).encode()):016x}",
        "experiment": experiment.name,
        "version": 1,
        "config": plain(resolved(cfg)),
        "overrides": {},
        "identity": {},
        "device": "cpu",
        "status": status,
        "reason": "" if done else "made up",
        "summary": plain({**(summary if done else {}), "seconds": seconds}),
        "curve": {} if status in ("failed", "skipped") else plain(curve),
    }
    return Record(**{**fields, **more})
