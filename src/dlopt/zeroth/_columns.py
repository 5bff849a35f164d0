"""Rows of a log as columns of plain JSON values, in which what repeats stands once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any


def pack(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks of rows with the same keys, each {key: a column}.

    A column has `values` and how many `times` in a row each stands (left out where it is always once). Of integers
    the differences are kept, since steps count up.
    """
    blocks = []
    for keys, group in groupby(rows, key=tuple):
        found = list(group)
        block: dict[str, Any] = {}
        for key in keys:
            values = [row[key] for row in found]
            differences = all(type(v) is int for v in values)
            if differences:
                values = [values[0], *(after - before for before, after in pairwise(values))]
            # by their text: 0.0 == -0.0
            runs = [(v[0], len(v)) for v in (list(g) for _, g in groupby(values, key=json.dumps))]
            block[key] = {"values": [v for v, _ in runs]}
            if len(runs) < len(values):
                block[key]["times"] = [n for _, n in runs]
            if differences:
                block[key]["differences"] = True
        blocks.append(block)
    return blocks


def unpack(blocks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that `pack` was given."""
    rows: list[dict[str, Any]] = []
    for block in blocks:
        columns = []
        for column in block.values():
            times = column.get("times", [1] * len(column["values"]))
            # a list of its own for each row
            copies = ([list(v) if isinstance(v, list) else v for _ in range(n)]
                      for v, n in zip(column["values"], times, strict=True))  # fmt: skip
            values = [v for run in copies for v in run]
            columns.append(list(accumulate(values)) if column.get("differences") else values)
        rows += [dict(zip(block, values, strict=True)) for values in zip(*columns, strict=True)]
    return rows
