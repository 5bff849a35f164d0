"""Where the files of data sets are, and whether they are the pinned ones.

Search order: the folder named by DLOPT_DATA, then `cache_dir()/data`. A checksum that was verified once is remembered
by (path, size, modification time) in `cache_dir()/verified.json`, so large files are hashed once, not at every start.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import importlib
import json
import lzma
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np

_seen: dict[str, list[Any]] = {}  # what this process has verified; kept even where the cache cannot be written


class DataUnavailable(RuntimeError):
    """A data set is not here, is not the pinned one, or could not be fetched. The message says what to do."""


@dataclass(frozen=True)
class File:
    """One file of a data set.

    path: relative to the DLOPT_DATA folder, and to the cache. sha256: pinned, of the file as stored or, where `packed`
    is "bz2" or "gz", of the unpacked bytes: two compressors make two files of one text. urls: public homes, tried in
    order by `download`; none means that there is no download.
    """

    path: str
    sha256: str
    urls: tuple[str, ...] = ()
    packed: str = ""


def cache_dir() -> Path:
    """The folder for fetched and derived files: DLOPT_CACHE, else the user's cache folder of this system."""
    if chosen := os.environ.get("DLOPT_CACHE"):
        return Path(chosen).expanduser()
    return Path(require("platformdirs", "the user's cache folder (or set DLOPT_CACHE)").user_cache_dir("dlopt", False))


def folders() -> list[tuple[str, Path]]:
    """[(what it is, folder)] in search order. The folders need not exist."""
    found = [("the cache", cache_dir() / "data")]
    if chosen := os.environ.get("DLOPT_DATA"):
        found.insert(0, ("DLOPT_DATA", Path(chosen).expanduser()))
    return found


def locate(name: str, files: Iterable[File], help: str = "") -> dict[str, Path]:
    """{relative path: verified file} for the files of data set `name`.

    Raises `DataUnavailable` where a file is missing or not the pinned one. help: how to get a set without a download.
    """
    wanted = list(files)
    found, missing = {}, []
    for file in wanted:
        places = [folder / file.path for _, folder in folders()]
        path = next((p for p in places if p.is_file()), None)
        if path is None:
            missing.append(file.path)
        else:
            verify(path, file)
            found[file.path] = path
    if missing:
        looked = " and ".join(
            f"{folder} ({what}{'' if folder.is_dir() else ', no such folder'})" for what, folder in folders()
        )
        if all(file.urls for file in wanted):
            hosts = sorted({urlsplit(file.urls[0]).netloc for file in wanted})
            how = f"Fetch it with `dlopt data get {name}` (from {', '.join(hosts)})"
        else:
            how = f"It has no public download{': ' + help if help else ''}"
        raise DataUnavailable(
            f"data set {name!r} is not here: looked for {', '.join(missing)} in {looked}. {how}, or set DLOPT_DATA "
            "to a folder that has it."
        )
    return found


def verify(path: Path, file: File) -> None:
    """Raise `DataUnavailable` unless `path` has the pinned checksum."""
    state = path.stat()
    key, mark = str(path.resolve()), [state.st_size, state.st_mtime_ns, file.sha256]
    if _seen.get(key) == mark or _remembered().get(key) == mark:
        _seen[key] = mark
        return
    try:
        found = digest(path, file.packed)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataUnavailable(f"{path} cannot be read ({error}); replace or delete it") from error
    if found != file.sha256:
        of = f"unpacked {file.packed} text" if file.packed else "file"
        raise DataUnavailable(
            f"{path} is not the pinned {of}: its sha256 is {found}, expected {file.sha256}. Replace or delete it."
        )
    _seen[key] = mark
    # without a writable cache the next process hashes again
    with contextlib.suppress(OSError), writing(cache_dir() / "verified.json") as out:
        out.write(json.dumps({**_remembered(), key: mark}, indent=0).encode())


def digest(path: Path, packed: str = "") -> str:
    """The sha256, in hex, of a file, or of what is packed in it."""
    opener: Callable[..., IO[bytes]] = {"": open, "bz2": bz2.open, "gz": gzip.open}[packed]  # type: ignore[dict-item]
    total = hashlib.sha256()
    with opener(path, "rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


@contextlib.contextmanager
def writing(target: Path):
    """Open a temporary file beside `target` for writing; renamed to `target` at the end, removed on an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
    try:
        with os.fdopen(handle, "w+b") as out:
            yield out
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def decoded(key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that `make` computes, kept as `cache_dir()/decoded/KEY.npy`. The key must name all that it depends on.

    A cached file that cannot be read is made again. Where the cache cannot be written, a warning says so.
    """
    path = cache_dir() / "decoded" / f"{key}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        return np.load(path, allow_pickle=False)
    array = make()
    try:
        with writing(path) as out:
            np.save(out, array, allow_pickle=False)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}), so it is decoded anew each time", stacklevel=2)
    return array


def require(module: str, purpose: str, extra: str = "lab") -> ModuleType:
    """Import a module of an extra of dlopt; an `ImportError` that says what to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {module.split('.')[0]}: pip install 'dlopt[{extra}]'") from error


def _remembered() -> dict[str, list[Any]]:
    try:
        found = json.loads((cache_dir() / "verified.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
