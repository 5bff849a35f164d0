"""The models by name, from the fields of `TransformerConfig`."""

from __future__ import annotations

import inspect
from typing import Any

from dlopt.catalog import method
from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.model import Decoder, Seq2Seq


@method(
    "decoder",
    topic="transformer",
    kind="module",
    cite="vaswani2017attention",
    summary="decoder-only Transformer: norm, feed-forward, positions and attention pattern by name",
)
def decoder(vocabulary: int, **options: Any) -> Decoder:
    """`Decoder(TransformerConfig(vocabulary, **options))`."""
    return Decoder(TransformerConfig(vocabulary, **options))


@method(
    "seq2seq",
    topic="transformer",
    kind="module",
    cite="vaswani2017attention",
    summary="encoder-decoder Transformer: norm, feed-forward, positions and attention pattern by name",
)
def seq2seq(vocabulary: int, **options: Any) -> Seq2Seq:
    """`Seq2Seq(TransformerConfig(vocabulary, **options))`."""
    return Seq2Seq(TransformerConfig(vocabulary, **options))


_OPTIONS = inspect.signature(TransformerConfig)  # so that the options of both can be listed and checked
decoder.__signature__ = _OPTIONS  # type: ignore[attr-defined]
seq2seq.__signature__ = _OPTIONS  # type: ignore[attr-defined]
