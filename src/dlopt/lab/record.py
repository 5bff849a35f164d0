"""Records: one JSON file per run, the only truth about it.

A record is named by its key, `<key>.json`. The key is the hash of what decides the result: experiment, version,
the config's non-default values, the identity (sha256) of data and weights, and the device class. A field, a method
or a hyper-parameter that is added with a default leaves every old key as it was.

A file is believed only if its checksum, its name and its key agree; anything else raises `RecordCorrupt`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
STATUSES = ("done", "failed", "diverged", "skipped")


class RecordCorrupt(ValueError):
    """A file that is not a whole, untouched record of this format."""


class RecordUnwritable(OSError):
    """A record could not be written; what was there before is untouched."""


@dataclass(frozen=True)
class Record:
    """One finished run.

    config: every value the run used, the method's defaults included. overrides: only what differs from the
    defaults; it decides the key. identity: {name of data or weights: sha256}. device: "cpu" or "cuda".
    status: one of STATUSES, with a reason where it is not "done". summary: final figures. curve: columns of equal
    length (step, examples, forwards, seconds, loss, ...), null where a column has no value. bytes: by kind.
    Times are the columns and figures whose name contains "seconds"; all others repeat exactly.
    """

    key: str
    experiment: str
    version: int
    config: dict[str, Any]
    overrides: dict[str, Any]
    identity: dict[str, str]
    device: str
    status: str
    reason: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    curve: dict[str, list[Any]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    started: str = ""

    @property
    def method(self) -> str:
        return str(self.config.get("method", ""))

    def timeless(self) -> dict[str, Any]:
        """Config, status, summary, curve and bytes without the columns that hold times: equal for equal runs."""

        def keep(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if "seconds" not in name}

        content = {
            "key": self.key,
            "config": self.config,
            "status": self.status,
            "summary": keep(self.summary),
            "curve": keep(self.curve),
            "bytes": self.bytes,
        }
        found: dict[str, Any] = plain(content)  # as it stands in a file: lists for tuples, null for NaN
        return found

    def save(self, folder: Path) -> Path:
        """Write `<folder>/<key>.json` whole or not at all."""
        path = folder / f"{self.key}.json"
        content = plain(asdict(self)) | {"format": FORMAT}
        content["checksum"] = _checksum(content)
        write_atomic(path, _pretty(content).encode())
        return path


def make_key(
    experiment: str, version: int, overrides: Mapping[str, Any], identity: Mapping[str, str], device: str
) -> str:
    """The key of a run: 16 hexadecimal digits of a sha256 over what decides its result.

    `ValueError` for a setting that is NaN or infinite: its record would hold null, as for None.
    """
    canonical(overrides)  # so that the error, if there is one, names the settings alone
    text = canonical([experiment, version, dict(overrides), dict(identity), device])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: Path) -> Record:
    """Read one record, or raise `RecordCorrupt` saying what is wrong with the file."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise RecordCorrupt(f"{path} is not a whole JSON file ({error})") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordCorrupt(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RecordCorrupt(f"{path} is not a record of format {FORMAT}")
    try:
        whole = content.pop("checksum", None) == _checksum(content)
    except ValueError:  # NaN or infinity, which no record holds
        whole = False
    if not whole:
        raise RecordCorrupt(f"{path} was changed after it was written: its checksum does not fit")
    del content["format"]
    try:
        record = Record(**content)
        key = make_key(record.experiment, record.version, record.overrides, record.identity, record.device)
    except TypeError as error:
        raise RecordCorrupt(f"{path} lacks fields of a record or has others ({error})") from error
    if record.key != key or path.stem != key:
        raise RecordCorrupt(f"{path} belongs to another run: its content has the key {key}")
    if record.status not in STATUSES:
        raise RecordCorrupt(f"{path} has the unknown status {record.status!r}")
    return record


def load_all(folder: Path) -> tuple[list[Record], list[RecordCorrupt]]:
    """All records below a folder in the order of their paths, and what is wrong with those that are none.

    Nothing is changed: `set_aside` moves a broken file out of the way when a run has to write in its place.
    """
    found: list[Record] = []
    broken: list[RecordCorrupt] = []
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            found.append(load(path))
        except FileNotFoundError:
            continue  # set aside by a driver that is at work
        except RecordCorrupt as error:
            broken.append(error)
    return found, broken


def set_aside(path: Path) -> Path:
    """Rename a broken file to the first free `<name>.broken-N`; it is never overwritten or deleted."""
    for n in range(1, 1_000_000):
        target = path.with_name(f"{path.name}.broken-{n}")
        if not target.exists():
            path.rename(target)
            return target
    raise FileExistsError(f"no free name to set {path} aside")


def write_atomic(path: Path, data: bytes) -> None:
    """Write to a temporary name, flush to disk, then rename: readers see the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RecordUnwritable(error.errno, f"cannot write {path}: {error.strerror}; nothing was lost there") from error


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, for hashing. `ValueError` for NaN and infinity."""
    try:
        return _dump(plain(value, lossy=False))
    except ValueError as error:
        raise ValueError(f"{value!r} holds NaN or infinity: take None or a large number instead") from error


def same(a: Any, b: Any) -> bool:
    """Whether two settings mean the same: 1 and 1.0 do, and a list and a tuple."""
    return bool(plain(a, lossy=False) == plain(b, lossy=False))


def columns(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One flat row per record: `key`, `status`, `config.method`, `params.lr`, `summary.accuracy`, `bytes.state`, ..."""
    rows = []
    for r in records:
        row: dict[str, Any] = {"key": r.key, "experiment": r.experiment, "status": r.status, "reason": r.reason}
        for name, value in r.config.items():
            if name == "params":
                row |= {f"params.{k}": v for k, v in value.items()}
            else:
                row[f"config.{name}"] = value
        row |= {f"summary.{k}": v for k, v in r.summary.items()} | {f"bytes.{k}": v for k, v in r.bytes.items()}
        rows.append(row)
    return rows


def plain(value: Any, lossy: bool = True) -> Any:
    """The value as JSON can hold it: tuples as lists, numpy scalars as numbers, NaN and infinity as null if lossy."""
    if isinstance(value, Mapping):
        return {str(k): plain(v, lossy) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, lossy) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) or not lossy else None
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(value.item(), lossy)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot stand in a record")


def _dump(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _checksum(content: Mapping[str, Any]) -> str:
    """Of content that is plain already, as it is in a file: thousands of records are read at once."""
    return hashlib.sha256(_dump({k: v for k, v in content.items() if k != "checksum"}).encode()).hexdigest()


def _pretty(content: Mapping[str, Any]) -> str:
    """JSON with one line per field and per entry of a nested field, so that a change reads well in git."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    parts = []
    for name in [*(f.name for f in fields(Record)), "format", "checksum"]:
        value = content[name]
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {line(k)}: {line(v)}" for k, v in value.items())
            parts.append(f" {line(name)}: {{\n{inner}\n }}")
        else:
            parts.append(f" {line(name)}: {line(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
