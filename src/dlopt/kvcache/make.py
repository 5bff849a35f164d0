"""Caches by name: `make_cache("kivi:bits=2,residual=32", model)`, and their bytes by formula."""

from __future__ import annotations

import ast
import importlib
from typing import Any

import torch
from torch import Tensor

from dlopt.catalog import Method, methods, suggest
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.shape import shape_of, text_config, whole
from dlopt.memory import Bytes


def parse(spec: str) -> tuple[Method, dict[str, Any]]:
    """A spec string "name" or "name:option=value,..." as the catalogue's entry and checked options.

    Values are Python literals (2, 0.5, True, None) or bare words.

    Raises:
        ValueError: for an unknown name or option, with what exists; for a part that is not option=value.
    """
    name, _, rest = spec.partition(":")
    caches = methods(kind="cache")
    if name not in caches:
        raise ValueError(f"no cache is called {name!r}{suggest(name, caches)}; there are {', '.join(caches)}")
    known = [option for option in caches[name].parameters() if option != "attention_mask"]
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ValueError(f"{part!r} in the cache {spec!r} is not of the form option=value")
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the cache {name!r} has no option {option!r}{suggest(option, known)}; {has}")
        if option in options:
            raise ValueError(f"the cache {spec!r} gives {option} twice")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = value
    return caches[name], options


def make_cache(spec: str, model: Any, attention_mask: Tensor | None = None) -> KVCache:
    """The cache that a spec string names, for a model (or its config).

    attention_mask: (B, T) of the prompts, where rows are padded at the left.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> make_cache("sinks:sinks=2,window=6", config).params
        {'sinks': 2, 'window': 6, 'positions': 'cache'}
    """
    entry, options = parse(spec)
    return entry.load()(model, **options, attention_mask=attention_mask)


def kv_bytes(
    config: Any,
    method: str,
    tokens: int,
    *,
    batch: int = 1,
    dtype: torch.dtype | None = None,
    generated: int = 0,
) -> Bytes:
    """Bytes that a cache keeps after `tokens` columns of `batch` rows, by kind, from the method's formula.

    Args:
        config: a transformers model or its config. method: a spec string, as in `make_cache`.
        tokens: columns in all, of which the last `generated` came one by one after the prompt (methods that compress
            the prompt alone ask for that). dtype: of the model's keys and values; default: the config's, else float32.

    `nbytes()` of a cache that has seen so many tokens, none of them padding, counts the same; the transient is not part
    of it.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> kv_bytes(config, "full", 100, dtype=torch.bfloat16).total
        25600
    """
    entry, options = parse(method)
    whole("tokens", tokens)
    if whole("generated", generated) > tokens:
        raise ValueError(f"generated must be at most tokens = {tokens}, not {generated}")
    entry.load()(config, **options)  # refuses what no cache could be made of
    module = importlib.import_module(entry.module)
    formula = getattr(module, f"memory_{entry.name}", None) or module.memory
    dtype = dtype or getattr(text_config(config), "dtype", None) or torch.float32
    return formula(shape_of(config), tokens, dtype, batch=whole("batch", batch, 1), generated=generated, **options)
