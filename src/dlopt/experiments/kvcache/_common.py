"""What the parts of topic `kvcache` share: the methods that meet, at which budgets, and filled caches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dlopt import catalog
from dlopt.experiments.kvcache import _models
from dlopt.kvcache import kv_bytes
from dlopt.lab.record import Record

SINKS = 4
WINDOW = 32  # of SnapKV and PyramidKV, at most half of the budget
KIVI_RESIDUAL = 32  # 128 in the paper; 32 where it tests short prompts
# those that forget tokens take a budget of tokens, the others keep all
EVICTING = ("window", "sinks", "h2o", "snapkv", "pyramid", "tova", "knorm")
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "kivi-2": ("kivi", {"bits": 2, "residual": KIVI_RESIDUAL}),
    "kivi-4": ("kivi", {"bits": 4, "residual": KIVI_RESIDUAL}),
    "int8": ("quant", {"code": "int8"}),
    "int4": ("quant", {"code": "int4"}),
}
KEEPING = ("full", *QUANTIZED)
NAMES = {
    "full": "完整缓存",
    "window": "滑动窗口",
    "sinks": "StreamingLLM",
    "sinks:original": "StreamingLLM（原位置）",
    "kivi-2": "KIVI-2",
    "kivi-4": "KIVI-4",
    "kivi-8": "KIVI-8",
    "int8": "int8",
    "int4": "int4",
    "fp8": "fp8",
    "h2o": "H2O",
    "snapkv": "SnapKV",
    "pyramid": "PyramidKV",
    "tova": "TOVA",
    "knorm": "Knorm",
}


def evicting(series: str, budget: int) -> dict[str, Any]:
    """The settings `method` and `params` of a method that keeps `budget` tokens, everything else as in its paper."""
    window = min(WINDOW, budget // 2)
    params: dict[str, dict[str, Any]] = {
        "window": {"window": budget},
        "sinks": {"sinks": SINKS, "window": budget - SINKS},
        "sinks:original": {"sinks": SINKS, "window": budget - SINKS, "positions": "original"},
        "h2o": {"budget": budget, "recent": budget // 2},
        "snapkv": {"budget": budget, "window": window},
        "pyramid": {"budget": budget, "window": window},
        "tova": {"budget": budget},
        "knorm": {"budget": budget},
    }
    return {"method": series.partition(":")[0], "params": params[series]}


def keeping(series: str) -> dict[str, Any]:
    """The settings of a method that keeps every token."""
    if series == "full":
        return {"method": "full", "params": {}}
    method, params = QUANTIZED[series]
    return {"method": method, "params": dict(params)}


def settings(series: str, budget: int) -> dict[str, Any]:
    """The settings of either kind."""
    return keeping(series) if series in KEEPING else evicting(series, budget)


def series_of(config: Mapping[str, Any]) -> str:
    """The series that a config belongs to, whatever its budget."""
    method, params = str(config["method"]), config.get("params", {})
    if method == "kivi":
        return f"kivi-{params.get('bits', 2)}"
    if method == "quant":
        return str(params.get("code", "int8"))
    return "sinks:original" if method == "sinks" and params.get("positions") == "original" else method


def series(record: Record) -> str:
    """The series of a record."""
    return series_of(record.config)


def budget_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that a method keeps of a long text; None if it keeps all."""
    method, params = str(config["method"]), config.get("params", {})
    if method == "sinks":
        return int(params["sinks"]) + int(params["window"])
    found = params.get("window") if method == "window" else params.get("budget")
    return None if found is None else int(found)


def check_cache(method: str, params: Mapping[str, Any], model: str) -> None:
    """A ValueError unless it is a cache that can be made for the model; `DataUnavailable` if that is not here."""
    entry = catalog.find(method)
    if entry.kind != "cache":
        raise ValueError(f"{method} is not a cache but a method of kind {entry.kind!r}")
    if "attention_mask" in params:
        raise ValueError("params.attention_mask cannot be set: prompts have no pads here")
    entry.check(params)
    make(method, params, _models.config(model))


def spec(method: str, params: Mapping[str, Any]) -> str:
    """The spec string of a cache."""
    options = ",".join(f"{name}={value}" for name, value in params.items() if value is not None)
    return f"{method}:{options}" if options else method


def make(method: str, params: Mapping[str, Any], model: Any) -> Any:
    """An empty cache for a model."""
    return catalog.find(method).load()(model, **params)


def again(cache: Any, model: Any, method: str, params: Mapping[str, Any]) -> Any:
    """A cache of its own that holds the same."""
    copy = make(method, params, model)
    copy.load_state_dict(cache.state_dict())
    return copy


@torch.no_grad()
def fill(model: Any, cache: Any, tokens: Sequence[int] | Tensor) -> Tensor:
    """Read a prompt in one pass; the logits (vocabulary,) behind it."""
    ids = torch.as_tensor(tokens, device=next(model.parameters()).device)[None]
    return model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def continued(model: Any, cache: Any, logits: Tensor, count: int, stop: int | None = None) -> list[int]:
    """Up to `count` tokens, each the likeliest one, one pass a token; `stop` ends the text and is not part of it."""
    found: list[int] = []
    for number in range(count):
        token = int(logits.argmax())
        if token == stop:
            break
        found.append(token)
        if number + 1 < count:
            logits = fill(model, cache, [token])
    return found


def sizes(model: Any, cache: Any, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes that are kept, counted, and by formula for a model in 16 bits; and how many times smaller than the full
    cache that is. The cache must not have generated yet."""
    tokens, spelled = cache.get_seq_length(), spec(method, params)
    small, full = (kv_bytes(model, name, tokens, dtype=torch.bfloat16).total for name in (spelled, "full"))
    counted = cache.nbytes()
    return {
        "tokens": tokens,
        "stored_bytes": counted.total,
        "transient_bytes": counted.transient,
        "formula_bytes": kv_bytes(model, spelled, tokens, dtype=next(model.parameters()).dtype).total,
        "bytes_16bit": small,
        "full_bytes_16bit": full,
        "smaller": full / small,
    }


class Clock:
    """CPU seconds of this process on the CPU, wall seconds of the device else: `with Clock(device) as spent: ...`."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.seconds = 0.0

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def __enter__(self) -> Clock:
        self._since = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = self._now() - self._since
