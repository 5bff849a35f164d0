"""The Transformer from basic modules: norms, positions, attention, feed-forward. Import a part from its own file.

`Decoder` and `Seq2Seq` are built from a `TransformerConfig`; `decoder` and `seq2seq` build them from its fields.
`generate` and `beam_search` decode, with a `Cache` that callers may also drive by hand.
"""

from __future__ import annotations

import importlib
from typing import Any

from dlopt.catalog import exports

_PARTS = {
    "TransformerConfig": "config",
    "Decoder": "model",
    "Seq2Seq": "model",
    "Memory": "model",
    "parameter_count": "model",
    "Cache": "cache",
    "DecoderStep": "decoding",
    "Seq2SeqStep": "decoding",
    "generate": "decoding",
    "beam_search": "decoding",
}
_method, _names = exports("transformer")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return getattr(importlib.import_module(f"dlopt.transformer.{_PARTS[name]}"), name)
    return _method(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_PARTS])
