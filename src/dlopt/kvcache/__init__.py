"""Caches of keys and values that need less memory, for any causal model of transformers 5.

Each is passed as `past_key_values`: ``model.generate(**inputs, past_key_values=SinkCache(model.config))``. Import by
name: `from dlopt.kvcache import SinkCache`. Beside the methods stand `make_cache` and `kv_bytes` (by spec string),
`prefill` (long prompts in pieces), `KVCache` (what all methods return), and toy modules of caches by design.
"""

from __future__ import annotations

import importlib
from typing import Any

from dlopt.catalog import exports

_HELPERS = {
    "KVCache": "frame",
    "make_cache": "make",
    "kv_bytes": "make",
    "prefill": "chunked",
    "packed": "packed_attention",
    "steps_until_flush": "kivi",
    "Shape": "shape",
    "shape_of": "shape",
    "LatentAttention": "sharing",
    "SharedLayers": "sharing",
    "latent_bytes": "sharing",
    "shared_bytes": "sharing",
}
_method, _names = exports("kvcache")


def __getattr__(name: str) -> Any:
    if name in _HELPERS:
        return getattr(importlib.import_module(f"dlopt.kvcache.{_HELPERS[name]}"), name)
    return _method(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_HELPERS])
