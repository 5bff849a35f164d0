"""Where a run happened: machine, versions, settings, and the source that ran. All JSON-serialisable.

No host name, user name or path goes in: records are published.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import dlopt

PACKAGE = Path(dlopt.__file__).resolve().parent
OTHERS = ("scipy", "scikit-learn", "transformers")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, machine, threads, load and determinism flags, as read now: call it at the start of a run.

    `load` is the 1, 5 and 15 minute load average (None where the system has none). `cores` counts the machine's
    logical cores, `cores_usable` those that this process may run on.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": str(np.__version__),
        "dlopt": dlopt.__version__,
        "packages": {other: found for other in OTHERS if (found := _version(other))},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "threads": {
            "torch": torch.get_num_threads(),
            "torch_interop": torch.get_num_interop_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS"),
        },
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "device": name,
        "cuda": torch.version.cuda,
        "deterministic": {
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        },
    }


def source_state(root: Path | str = PACKAGE) -> dict[str, Any]:
    """{"revision": commit or None, "dirty": bool or None} of the git work tree that tracks files below `root`.

    dirty: something below `root` differs from the commit or is untracked and not ignored. Both are None outside
    git, without a commit, or where git tracks nothing below `root` (an installed copy inside somebody's project).
    The default looks at dlopt's own package, so that results written by a run do not make it dirty.
    """
    revision = _git(root, "rev-parse", "--verify", "HEAD")
    if not revision or not _git(root, "ls-files", "--", "."):
        return {"revision": None, "dirty": None}
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", ".")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def code_hash(files: Iterable[Path | str | ModuleType] | None = None) -> str:
    """sha256 over the sources of a run: `files` (paths or modules), or every dlopt module loaded now.

    Names and contents enter, in the order of names and each file once. Names are relative to the package dlopt
    (other files: the bare name), so that the hash does not depend on where the code is installed.
    `ValueError` for a module without a source file, `FileNotFoundError` for a missing file.
    """
    if files is None:
        # copied first: a finalizer or a thread may import something while the list is made
        loaded = sys.modules.copy()
        files = [m for n, m in loaded.items() if n.split(".")[0] == "dlopt" and getattr(m, "__file__", None)]
    sources = {_source(file) for file in files}
    digest = hashlib.sha256()
    for name, content in sorted((_relative(path), path.read_bytes()) for path in sources):
        # a fixed-length digest per part, so that no two lists of files run together into one stream
        digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _source(file: Path | str | ModuleType) -> Path:
    if not isinstance(file, ModuleType):
        return Path(file).resolve()
    if not getattr(file, "__file__", None):
        raise ValueError(f"the module {file.__name__} has no source file to hash")
    return Path(str(file.__file__)).resolve()


def _relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name


def _git(root: Path | str, *command: str) -> str | None:
    # GIT_DIR and its kin are set inside hooks and would point elsewhere; status shall not take git's lock
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clean["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, env=clean, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
