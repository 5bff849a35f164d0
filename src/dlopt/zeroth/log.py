"""A zeroth-order run as (seed, scalars) rows, and its final weights from the initial ones and these rows."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.zeroth._columns import pack, unpack
from dlopt.zeroth.perturb import Trained

FORMAT = 2  # 2: directions are drawn in pieces; several methods
METHODS = ("mezo", "mezo_svrg", "lozo")  # modules here that have `replayer`, `check_row` and REPLAYED


@dataclass
class Log:
    """header: what the rows are true of. rows: one dict per step that was not skipped, in order, with its `step`, how
    many were `skipped` before it, `lr` and `weight_decay` (one per param group) and what else its method needs (MeZO:
    `scalars`, one per direction; seeds follow from the run's seed and the step). final: sha256 of the weights after
    the last row, or "". Plain JSON values; 10 to 20 bytes a step of MeZO in a file, as lr is constant or follows a
    schedule.
    """

    header: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    final: str = ""

    def save(self, path: str | Path, final: nn.Module | Iterable[Any] | None = None) -> None:
        """Write as compressed JSON, to a temporary name first; floats come back exactly.

        final: what the optimizer was given, with its weights after the last row; `replay` then checks that it arrives
        at them. Once rows are added or taken away, `log.final` must be emptied.
        """
        digest = self.final
        if final is not None:
            if not self.rows:
                raise ValueError("the log has no rows yet, so it leads to no final weights")
            digest = checksum(t.tensor for t in _fitting(self.header, final))
        packed = {"header": self.header, "final": digest, "count": len(self.rows), "blocks": pack(self.rows)}
        text = json.dumps(packed, separators=(",", ":"))
        temporary = Path(f"{path}.tmp")
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Log:
        """Read what `save` wrote, now or in earlier versions; ValueError if the file is not a log."""
        try:
            raw = Path(path).read_bytes()
            data = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
            if isinstance(data, dict) and "blocks" in data:
                rows = unpack(data.pop("blocks"))
                if len(rows) != data.pop("count"):
                    raise ValueError("it has not as many rows as were saved")
                data["rows"] = rows
            log = cls(**data)  # earlier versions wrote header and rows as they are
            if not isinstance(log.header, dict) or not isinstance(log.rows, list):
                raise ValueError("its header is no object or its rows are no list")
            if not all(isinstance(row, dict) and {"lr", "weight_decay"} <= set(row) for row in log.rows):
                raise ValueError("one of its rows lacks lr or weight_decay")
            return log
        except (ValueError, TypeError, KeyError, AttributeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a log of a zeroth-order run: {error}") from error


def describe(method: str, trained: Sequence[Trained], options: dict[str, Any]) -> dict[str, Any]:
    """The header for a run that starts from these tensors as they are now."""
    return {
        "format": FORMAT,
        "method": method,
        "names": [t.name for t in trained],
        "indices": [t.index for t in trained],
        "groups": [t.group for t in trained],
        "shapes": [list(t.tensor.shape) for t in trained],
        "dtypes": [str(t.tensor.dtype) for t in trained],
        "options": options,
        "torch": str(torch.__version__),
        "device": _device(trained),
        "initial": checksum(t.tensor for t in trained),
    }


def checksum(tensors: Iterable[Tensor]) -> str:
    """sha256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def replay(model_or_params: nn.Module | Iterable[Any], log: Log, *, strict: bool = True) -> int:
    """Bring initial weights to where the logged run ended, bit for bit, without data or forward passes.

    model_or_params: what the optimizer was given, with its initial weights (tensors, (name, tensor) pairs or a
    model); changed in place. strict=False lets another version of torch or another device pass, where random
    numbers may differ. Returns the number of steps replayed.

    Raises ValueError, and changes nothing, where names, shapes, dtypes, versions, device or initial weights differ
    from the log's, where one of its rows is damaged or missing, or where its final weights, if they were saved with
    it, are not reached (to tell, a copy of the initial weights is held meanwhile).

    Example:
        >>> import torch
        >>> from dlopt.zeroth import MeZO
        >>> from dlopt.zeroth.log import replay
        >>> weight, again = torch.zeros(3), torch.zeros(3)
        >>> weight.requires_grad_(), again.requires_grad_()
        (tensor([0., 0., 0.], requires_grad=True), tensor([0., 0., 0.], requires_grad=True))
        >>> optimizer = MeZO([weight], lr=0.1, log=True)
        >>> for _ in range(5):
        ...     loss = optimizer.step(lambda: (weight - 1).square().sum())
        >>> replay([again], optimizer.log)
        5
        >>> torch.equal(weight, again)
        True
    """
    header = log.header
    if not log.rows:
        return 0
    if header.get("format") != FORMAT:
        raise ValueError(f"the log has format {header.get('format')!r}, this version reads {FORMAT}")
    if header.get("method") not in METHODS:
        raise ValueError(f"the log is of {header.get('method')!r}, and can be replayed for {', '.join(METHODS)}")
    trained = _fitting(header, model_or_params)
    if strict:
        _same("version of torch", header.get("torch"), str(torch.__version__))
        _same("device", header.get("device"), _device(trained))
    _same("sha256 of the initial weights", header.get("initial"), checksum(t.tensor for t in trained))
    module = importlib.import_module(f"dlopt.zeroth.{header['method']}")
    options = header.get("options")
    if not isinstance(options, dict) or not set(module.REPLAYED) <= set(options):
        raise ValueError(f"the log's header is damaged: its options must hold {', '.join(module.REPLAYED)}")
    _check_rows(log, module)
    initial = [t.tensor.clone() for t in trained] if log.final else []
    apply = module.replayer(options, trained)
    for row in log.rows:
        apply(row)
    if log.final and checksum(t.tensor for t in trained) != log.final:
        for t, before in zip(trained, initial, strict=True):
            t.tensor.copy_(before)
        raise ValueError(
            "the log does not lead to the final weights that were saved with it: it is damaged. Where rows were added "
            'or taken away on purpose, empty log.final = ""'
        )
    return len(log.rows)


def numbers(values: Any) -> bool:
    """Whether these are numbers, at least one, all finite."""
    good = isinstance(values, (list, tuple)) and len(values) > 0
    return good and all(type(v) in (int, float) and abs(v) < math.inf for v in values)


def _check_rows(log: Log, module: Any) -> None:
    """Raise ValueError for the first row that `step` could not have written at its place."""
    groups = max(log.header["groups"]) + 1
    before = {name: log.header[name] for name in ("step", "skipped") if name in log.header}
    if not all(type(v) is int for v in before.values()):
        raise ValueError(f"the log's header is damaged: its counters are {before}")
    first = True
    for number, row in enumerate(log.rows):
        try:
            for name in ("lr", "weight_decay"):
                if not numbers(row.get(name)) or len(row[name]) < groups:
                    raise ValueError(f"its {name} must be finite numbers, one per param group ({groups})")
            module.check_row(log.header["options"], row)
            _follows(row, before, first)
        except ValueError as error:
            raise ValueError(f"row {number} of the log is damaged: {error}") from None
        before, first = row, False


def _follows(row: dict[str, Any], before: dict[str, Any], first: bool) -> None:
    """Rows count their steps, and the skipped ones between them; earlier versions wrote neither or the step alone."""
    for name in ("step", "skipped"):
        if name in before and name not in row:
            raise ValueError(f"it lacks {name}")
        if name in row and (type(row[name]) is not int or row[name] < 0):
            raise ValueError(f"{name}={row[name]!r} must be an integer, at least 0")
        if name in row and name in before and row[name] < before[name] + (name == "step" and not first):
            raise ValueError(f"{name}={row[name]} comes after {before[name]}")
    if {"step", "skipped"} <= set(before):
        missing = (row["step"] - row["skipped"]) - (before["step"] - before["skipped"]) - (not first)
        if missing:
            raise ValueError(f"its step is {row['step']}, so {abs(missing)} rows are missing or too many before it")


def _fitting(header: dict[str, Any], model_or_params: nn.Module | Iterable[Any]) -> list[Trained]:
    """The trained tensors that a log's header names; ValueError where it does not fit."""
    for name, kind in (("names", str), ("indices", int), ("groups", int), ("shapes", list), ("dtypes", str)):
        values = header.get(name)
        if not isinstance(values, list) or not values or not all(type(v) is kind for v in values):
            raise ValueError(f"the log's header is damaged: {name} is {values!r}")
        if len(values) != len(header["names"]) or (name == "groups" and min(values) < 0):
            raise ValueError(f"the log's header is damaged: {name} does not fit its {len(header['names'])} names")
    named = _named(model_or_params)
    _same("names of trained tensors", header["names"], list(named))
    trained = [
        Trained(name, index, named[name], group)
        for name, index, group in zip(header["names"], header["indices"], header["groups"], strict=True)
    ]
    _same("shapes", header["shapes"], [list(t.tensor.shape) for t in trained])
    _same("dtypes", header["dtypes"], [str(t.tensor.dtype) for t in trained])
    return trained


def _named(model_or_params: nn.Module | Iterable[Any]) -> dict[str, Tensor]:
    if isinstance(model_or_params, nn.Module):
        model_or_params = model_or_params.named_parameters()
    named = {}
    for i, entry in enumerate(model_or_params):
        name, tensor = entry if isinstance(entry, tuple) else (str(i), entry)
        if tensor.requires_grad:
            named[name] = tensor
    return named


def _device(trained: Sequence[Trained]) -> str:
    """Kinds of devices in a form that also tells those apart whose random streams differ."""
    kinds = {t.tensor.device.type for t in trained}
    names = {"cpu": torch.backends.cpu.get_cpu_capability()}
    if "cuda" in kinds:
        names["cuda"] = torch.cuda.get_device_name()
    return ", ".join(f"{kind} {names.get(kind, '')}".strip() for kind in sorted(kinds))


def _same(what: str, logged: Any, here: Any) -> None:
    if logged != here:
        if isinstance(logged, list) and len(logged) == len(here):
            logged, here = next((a, b) for a, b in zip(logged, here, strict=True) if a != b)
        raise ValueError(f"the log does not fit: {what} were {logged} when it was written and are {here} here")
