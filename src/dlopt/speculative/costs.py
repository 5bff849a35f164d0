"""v(k): the seconds in which the target runs k tokens at once. Measured in about a second, or loaded from a file.

The textbook speed-up of speculative decoding takes v(k) = v(1). On real machines that is wrong (a jump where a matrix
times a vector becomes a matrix times a matrix, or a slope), so it is measured.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dlopt.speculative.reader import logits_kept

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Costs:
    """Seconds of one pass of the target by the number of tokens of a row in it.

    lengths: increasing, from 1. seconds: above 0, one for each. where: what they were measured on, in words.
    """

    lengths: tuple[int, ...]
    seconds: tuple[float, ...]
    where: str = ""

    def __post_init__(self) -> None:
        if not self.lengths or self.lengths[0] != 1 or sorted(set(self.lengths)) != list(self.lengths):
            raise ValueError(f"lengths of a cost table must increase from 1, got {self.lengths}")
        if len(self.seconds) != len(self.lengths) or not all(s > 0 for s in self.seconds):
            raise ValueError(f"a cost table needs {len(self.lengths)} seconds above 0, got {self.seconds}")

    def at(self, k: int) -> float:
        """v(k), on straight lines between the lengths; beyond the last one the last slope goes on, never downwards."""
        if k < 1:
            raise ValueError(f"a pass has at least 1 token, got {k}")
        if len(self.lengths) == 1:
            return self.seconds[0]
        pairs = list(zip(self.lengths, self.seconds))
        for (a, left), (b, right) in pairwise(pairs):
            if k <= b:
                return left + (right - left) * (k - a) / (b - a)
        (a, left), (b, right) = pairs[-2:]
        return right + max(right - left, 0.0) / (b - a) * (k - b)

    def as_dict(self) -> dict[str, Any]:
        return {"lengths": list(self.lengths), "seconds": list(self.seconds), "where": self.where}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Costs:
        """From `as_dict`, also out of JSON."""
        return cls(tuple(map(int, found["lengths"])), tuple(map(float, found["seconds"])), str(found["where"]))

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Costs:
        """Read what `save` wrote. ValueError with a sentence if the file is something else."""
        try:
            return cls.of(json.loads(Path(path).read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a cost table: {error}") from error


@torch.no_grad()
def calibrate(model: Any, *, rows: int = 1, context: int = 128, seconds: float = 1.0) -> Costs:
    """Measure v(k) of a model: the shortest of a few passes over `context` cached tokens, the lengths taken in turn.

    The shortest, since other work on the machine only ever adds time: with two or three passes a median lets one
    that was disturbed distort the curve, and with it every choice of the gate.

    rows: of a batch. seconds: stop after about so long, but never before two passes of each length; at most 7 of each.
    Lengths that would not fit into the model's context are left out.
    """
    from transformers import DynamicCache

    if rows < 1 or context < 1 or not seconds > 0:
        raise ValueError(f"rows and context must be at least 1 and seconds above 0, got {rows}, {context}, {seconds}")
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    context = max(1, min(context, limit - LENGTHS[-1]))
    lengths = tuple(k for k in LENGTHS if k == 1 or context + k <= limit)
    cache = DynamicCache(config=model.config)
    ids = torch.zeros((rows, context), dtype=torch.long, device=model.device)
    last = {"logits_to_keep": 1} if logits_kept(model) else {}
    model(input_ids=ids, past_key_values=cache, use_cache=True, **last)
    cache.activate_past_recording()

    def timed(k: int) -> float:
        begun = time.perf_counter()
        model(input_ids=ids.new_zeros((rows, k)), past_key_values=cache, use_cache=True)
        synchronize(model)
        took = time.perf_counter() - begun
        cache.crop(-k)
        return took

    for k in lengths[:2]:
        timed(k)  # warms up
    times: dict[int, list[float]] = {k: [] for k in lengths}
    start = time.perf_counter()
    for turn in range(7):
        for k in lengths:
            times[k].append(timed(k))
        if turn >= 1 and time.perf_counter() - start > seconds:
            break
    return Costs(lengths, tuple(min(times[k]) for k in lengths), describe(model, rows))


def describe(model: Any, rows: int = 1) -> str:
    """What a cost table is true for, in words."""
    return (
        f"{type(model).__name__}, {model.num_parameters()} parameters, {str(model.dtype).removeprefix('torch.')}, "
        f"{model.device}, {torch.get_num_threads()} threads, {rows} rows"
    )


def synchronize(model: Any) -> None:
    """Wait for an accelerator, so that a clock tells the truth."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


_known: weakref.WeakKeyDictionary[Any, dict[str, Costs]] = weakref.WeakKeyDictionary()


def costs_of(model: Any, rows: int = 1) -> Costs:
    """`calibrate`, once in the life of a model object for each device, dtype, number of threads and of rows."""
    tables = _known.setdefault(model, {})
    key = describe(model, rows)
    if key not in tables:
        tables[key] = calibrate(model, rows=rows)
    return tables[key]


def use(model: Any, table: Costs, rows: int = 1) -> None:
    """Let `costs_of` give this table for the model as it is now, instead of measuring."""
    _known.setdefault(model, {})[describe(model, rows)] = table
