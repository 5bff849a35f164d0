"""The file of a `Datastore`: a header with checksums, then plain arrays that are mapped into memory.

Layout: mark (16 bytes) | length of the header (8, little-endian) | SHA-256 of the header (32) | header, JSON | arrays,
each at a multiple of 64 bytes, little-endian. Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MARK = b"dlopt-datastore\n"
FORMAT = 1
_FIXED = len(MARK) + 8 + 32
_ALIGN = 64


def write(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a store; what stood at `path` is replaced only when the new file is complete."""
    laid: dict[str, dict[str, Any]] = {}
    where = 0
    for name, array in arrays.items():
        laid[name] = {"dtype": array.dtype.str, "count": len(array), "offset": where, "sha256": _digest(array)}
        where = _up(where + array.nbytes)
    header = json.dumps({"format": FORMAT, **facts, "arrays": laid}, sort_keys=True).encode()
    begin = MARK + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest() + header
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            file.write(begin.ljust(_up(len(begin)), b"\0"))
            for array in arrays.values():
                array.tofile(file)
                file.write(b"\0" * (_up(array.nbytes) - array.nbytes))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, verify: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header, arrays mapped into memory). verify: read all of it once and compare the checksums of the arrays too."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(_FIXED)
        if begin[: len(MARK)] != MARK:
            raise ValueError(f"{path} is not a datastore: it does not begin with {MARK!r}")
        length = int.from_bytes(begin[len(MARK) : len(MARK) + 8], "little")
        if len(begin) < _FIXED or length > size - _FIXED:
            raise ValueError(f"{path} is cut off: it has {size} bytes, and its header does not end in them")
        raw = file.read(length)
    if hashlib.sha256(raw).digest() != begin[len(MARK) + 8 :]:
        raise ValueError(f"{path} is damaged: its header does not have its checksum; build it again")
    header = json.loads(raw)
    if header["format"] != FORMAT:
        raise ValueError(f"{path} has format {header['format']!r}, this version reads {FORMAT}; build it again")
    start = _up(_FIXED + length)
    sizes = {name: np.dtype(a["dtype"]).itemsize * a["count"] for name, a in header["arrays"].items()}
    whole = start + max(_up(a["offset"] + sizes[name]) for name, a in header["arrays"].items())
    if size != whole:
        raise ValueError(f"{path} has {size} bytes, its header promises {whole}: it was cut off or added to")
    arrays = {}
    for name, a in header["arrays"].items():
        mapped = np.memmap(path, np.dtype(a["dtype"]), "r", start + a["offset"], (a["count"],))
        arrays[name] = np.asarray(mapped)  # a plain view: indexing a memmap object is several times slower
        if verify and _digest(arrays[name]) != a["sha256"]:
            raise ValueError(f"{path} is damaged: its {name} do not have their checksum; build it again")
    return header, arrays


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.view(np.uint8)).hexdigest()
