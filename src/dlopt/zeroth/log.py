"""A zeroth-order run as (seed, scalars) rows, and its final weights from the initial ones and these rows."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlopt.zeroth.perturb import Trained

FORMAT = 2  # 2: directions are drawn in pieces; several methods
METHODS = ("mezo", "mezo_svrg", "lozo")  # modules here that have a `replayer`


@dataclass
class Log:
    """header: what the rows are true of. rows: one dict per step that was not skipped, in order, with
    `lr` and `weight_decay` (one per param group) and what else its method needs (MeZO: the `seed` of the step and
    `scalars`, one per direction). Plain JSON values, some 150 bytes a step in a file.
    """

    header: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write as JSON, to a temporary name first; floats are written so that they come back exactly."""
        temporary = Path(f"{path}.tmp")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Log:
        """Read what `save` wrote; ValueError if the file is not a log."""
        try:
            data = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            if not isinstance(data.header, dict) or not isinstance(data.rows, list):
                raise ValueError("its header is no object or its rows are no list")
            if not all(isinstance(row, dict) and {"lr", "weight_decay"} <= set(row) for row in data.rows):
                raise ValueError("one of its rows lacks lr or weight_decay")
            return data
        except (ValueError, TypeError) as error:
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
    from the log's.

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
    named = _named(model_or_params)
    _same("names of trained tensors", header["names"], list(named))
    trained = [
        Trained(name, index, named[name], group)
        for name, index, group in zip(header["names"], header["indices"], header["groups"], strict=True)
    ]
    _same("shapes", header["shapes"], [list(t.tensor.shape) for t in trained])
    _same("dtypes", header["dtypes"], [str(t.tensor.dtype) for t in trained])
    if strict:
        _same("version of torch", header["torch"], str(torch.__version__))
        _same("device", header["device"], _device(trained))
    _same("sha256 of the initial weights", header["initial"], checksum(t.tensor for t in trained))
    module = importlib.import_module(f"dlopt.zeroth.{header['method']}")
    apply = module.replayer(header["options"], trained)
    for row in log.rows:
        apply(row)
    return len(log.rows)


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
