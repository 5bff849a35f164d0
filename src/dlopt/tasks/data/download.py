"""Fetching a data set from its public home: the one place of dlopt's data that contacts a host."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.client
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from dlopt import __version__
from dlopt.tasks.data.files import DataUnavailable, File, cache_dir, folders, verify, writing
from dlopt.tasks.data.registry import Dataset, find

LIMIT = 1 << 30  # bytes; no set here is larger, and a server that never stops must not fill the disk

Progress = Callable[[str, int, int | None], None]


class _Refused(Exception):
    """One address did not give the pinned file; the text says why."""


def download(
    dataset: str | Dataset, *, base: str | None = None, progress: Progress | None = None, timeout: float = 30.0
) -> list[Path]:
    """Fetch the files of a data set into the cache, and return where they are.

    A file that is here already and has the pinned checksum is not fetched again. Each file is written under a
    temporary name, compared with its checksum, then renamed, so a failed or interrupted download leaves nothing.

    base: an address that stands for scheme and host of the homes ("http://127.0.0.1:8000"), for mirrors and tests.
    progress: called as progress(path, bytes so far, bytes in all or None). timeout: seconds without an answer.
    Raises `DataUnavailable` if there is no public home, or none of them gives the pinned file.
    """
    spec = find(dataset)
    if not spec.files or not all(file.urls for file in spec.files):
        raise DataUnavailable(f"data set {spec.name!r} has no public download{': ' + spec.help if spec.help else ''}.")
    return [_present(file) or _fetch(spec.name, file, base, progress, timeout) for file in spec.files]


def _present(file: File) -> Path | None:
    for _, folder in folders():
        path = folder / file.path
        if path.is_file():
            try:
                verify(path, file)
            except DataUnavailable:
                continue  # a broken copy is what the user wants replaced
            return path
    return None


def _fetch(name: str, file: File, base: str | None, progress: Progress | None, timeout: float) -> Path:
    target = cache_dir() / "data" / file.path
    urls = file.urls if base is None else (base.rstrip("/") + urlsplit(file.urls[0]).path,)
    failures = []
    for url in urls:
        try:
            with writing(target) as out:
                _receive(url, out, file, progress, timeout)
            return target
        except _Refused as error:
            failures.append(f"{url} {error}")
        except OSError as error:
            raise DataUnavailable(
                f"{file.path} of {name!r} cannot be written to {cache_dir()}: {error.strerror or error}. Free some "
                "space, or set DLOPT_CACHE to a folder that can be written."
            ) from error
    raise DataUnavailable(
        f"{file.path} of {name!r} could not be fetched: {'; '.join(failures)}. Nothing was kept. Try again later, "
        f"or put the file there by hand: {target}"
    )


def _receive(url: str, out: IO[bytes], file: File, progress: Progress | None, timeout: float) -> None:
    """Write the pinned file to `out`, or raise `_Refused`. An `OSError` from here is one of writing."""
    done, total, summed = 0, None, hashlib.sha256()
    if urlsplit(url).scheme not in ("http", "https"):
        raise _Refused("is not an http address")
    try:
        response = urlopen(Request(url, headers={"User-Agent": f"dlopt/{__version__}"}), timeout=timeout)
    except HTTPError as error:
        error.close()
        raise _Refused(f"answered {error.code} {error.reason}") from error
    except (URLError, OSError, http.client.HTTPException) as error:
        raise _Refused(f"could not be reached ({getattr(error, 'reason', error)})") from error
    with response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        while True:
            try:
                block = response.read(1 << 16)
            except (OSError, http.client.HTTPException) as error:
                raise _Refused(f"broke off after {done:,} bytes ({error})") from error
            if not block:
                break
            done += len(block)
            if done > LIMIT:
                raise _Refused(f"sent more than {LIMIT:,} bytes, which is no file of this data set")
            summed.update(block)
            out.write(block)
            if progress:
                progress(file.path, done, total)
    if total is not None and done != total:
        raise _Refused(f"broke off after {done:,} of {total:,} bytes")
    found = _repack(out, file.packed) if file.packed else summed.hexdigest()
    if found != file.sha256:
        raise _Refused(f"gave another file: its sha256 is {found}, expected {file.sha256}")


def _repack(out: IO[bytes], packed: str) -> str:
    """Replace what was received, plain or compressed, by the packed form; return the sha256 of the unpacked bytes."""
    out.seek(0)
    received = out.read()
    try:
        if received.startswith(b"BZh"):
            received = bz2.decompress(received)
        elif received.startswith(b"\x1f\x8b"):
            received = gzip.decompress(received)
        elif received.startswith(b"\xfd7zXZ"):
            received = lzma.decompress(received)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise _Refused(f"gave a broken archive ({error})") from error
    out.seek(0)
    out.truncate()
    out.write(bz2.compress(received) if packed == "bz2" else gzip.compress(received, mtime=0))
    return hashlib.sha256(received).hexdigest()
