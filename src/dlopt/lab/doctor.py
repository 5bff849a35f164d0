"""`dlopt doctor`: what is installed on this machine, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

EXTRAS = {
    "lab": ("joblib", "pandas", "PIL", "platformdirs", "psutil", "pyarrow", "rich", "sklearn", "scipy", "typer"),
    "report": ("altair", "ipykernel", "jupytext", "matplotlib", "mplfonts", "nbclient", "typst", "vl_convert"),
    "llm": ("transformers", "safetensors"),
    "app": ("fastapi", "uvicorn"),
    "cluster": ("submitit", "dask"),
}


def report() -> int:
    """Print one line per check; 1 if torch or an extra of the lab is missing, else 0."""
    import torch

    wrong = 0
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores, "
          f"{torch.get_num_threads()} torch threads")  # fmt: skip
    print(
        f"CUDA: {torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no device; GPU studies cannot run'}"
    )
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        needed = extra in ("lab", "report")
        wrong += bool(missing and needed)
        told = f"missing {', '.join(missing)}: pip install 'dlopt[{extra}]'" if missing else "complete"
        print(f"extra {extra}: {told}" + ("" if needed or not missing else " (only if you use it)"))
    if importlib.util.find_spec("mplfonts"):
        from dlopt.lab import fonts

        print(f"Chinese font for figures: {fonts.find()}")
    data = os.environ.get("DLOPT_DATA")
    there = f"{data}{'' if Path(data).is_dir() else ' (is not a folder!)'}" if data else "not set; the cache is used"
    print(f"DLOPT_DATA: {there}")
    print(f"git: {shutil.which('git') or 'missing; records will not name the source revision'}")
    return 1 if wrong else 0
