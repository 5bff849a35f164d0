"""Notebooks: from `notebooks/<topic>.py` (jupytext percent format, in git) to an executed .ipynb.

The kernel is the interpreter that runs this code: no kernel has to be installed. Ids, metadata and the kernel's name
are fixed, so that a notebook changes only where its outputs do.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from dlopt.lab.record import write_atomic
from dlopt.lab.typeset import ReportError

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
TIMEOUT = 600  # seconds for one cell


def execute(topic: str, root: Path, out: Path | None = None, *, results: Path | None = None) -> Path:
    """Execute notebooks/<topic>.py and write it with its outputs to `out`, by default notebooks/<topic>.ipynb.

    results: the folder of records; cells find it in the environment variable DLOPT_RESULTS. The cells run in `root`.
    Raises `ReportError` that names the cell and the error if one fails; nothing is written then.
    """
    source = root / "notebooks" / f"{topic}.py"
    if not source.is_file():
        raise ReportError(f"there is no notebook source {source}; write one in jupytext's percent format")
    try:
        import jupytext
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    except ImportError as error:
        raise ReportError(f"notebooks need {error.name}: pip install 'dlopt[report]'") from error

    book = jupytext.read(source, fmt="py:percent")
    # tqdm misses widgets that a file of outputs has no use for, and would say so with a path of this machine
    silent = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found")))
    environment = os.environ | {
        "DLOPT_RESULTS": str((results or root / "results").absolute()),
        "PYTHONWARNINGS": silent,
    }
    with tempfile.TemporaryDirectory(prefix="dlopt-kernel-") as folder:
        client = NotebookClient(
            book, timeout=TIMEOUT, km=_manager(Path(folder)), record_timing=False, resources=_at(root)
        )
        try:
            client.execute(cleanup_kc=True, env=environment)
        except CellExecutionError as error:
            raise ReportError(f"{_cell(book, source)} fails: {error.ename}: {error.evalue}") from error
        except CellTimeoutError as error:
            raise ReportError(f"{_cell(book, source)} takes more than {TIMEOUT} s") from error
        except DeadKernelError as error:
            raise ReportError(f"{_cell(book, source)}: the Python process ended, for lack of memory perhaps") from error
    book.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = nbformat.from_dict({})
    nbformat.validate(book)
    target = out or source.with_suffix(".ipynb")
    write_atomic(target, nbformat.writes(book).encode())
    return target


def _manager(folder: Path) -> Any:
    """A kernel manager that knows one kernel: this interpreter."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    spec = folder / KERNEL["name"]
    spec.mkdir()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({**KERNEL, "argv": command}))
    known = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    # sockets in our own folder: nobody else on the machine can talk to the kernel, as they could over TCP
    where = {"transport": "ipc", "ip": str(folder / "socket")}
    return AsyncKernelManager(kernel_name=KERNEL["name"], kernel_spec_manager=known, **where)


def _at(root: Path) -> dict[str, Any]:
    return {"metadata": {"path": str(root)}}


def _cell(book: Any, source: Path) -> str:
    """The cell that was the last to begin, by its number and first line."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    number = max((i for i, cell in enumerate(code) if cell.get("outputs") or cell.get("execution_count")), default=0)
    first = next((line for line in code[number].source.splitlines() if line.strip()), "")
    return f"{source.parent.name}/{source.name}: code cell {number + 1} ({first.strip()!r})"
