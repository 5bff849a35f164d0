"""StreamingLLM: the first few tokens and a window of the newest, endless text at constant memory (Xiao et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dlopt.catalog import method
from dlopt.kvcache.frame import KVCache
from dlopt.kvcache.layer import appended
from dlopt.kvcache.rotary import Rotation, rotation_of
from dlopt.kvcache.rows import Rows, pick
from dlopt.kvcache.shape import Shape, text_config, whole
from dlopt.memory import Bytes

POSITIONS = ("cache", "original")


class Sinks:
    """The tokens of one layer: the first `sinks` of each row and its last `window`, keys as the model gave them.

    Turned sinks are made anew from the stored ones at every pass, so rounding never adds up.
    """

    kinds: ClassVar = {"keys": "residual", "values": "residual"}
    facts: ClassVar = ()
    waits: ClassVar = False

    def __init__(self, sinks: int, window: int, rotation: Rotation | None):
        self.sinks, self.window, self.rotation = sinks, window, rotation
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Nothing to learn."""

    def append(self, keys: Tensor, values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        self.keys, self.values = appended((self.keys, self.values), (keys, values))
        if self.rotation is None or rows.seen == self.length:
            return self.keys, self.values
        # a row that lost nothing turns by 0, whatever stands in its first columns
        turned = self.rotation.turn(self.keys[:, :, : self.sinks], rows.lost(self.length))
        return torch.cat([turned, self.keys[:, :, self.sinks :]], dim=2), self.values

    def commit(self, rows: Rows) -> None:
        keep, length = self.sinks + self.window, self.length
        if length <= keep:
            return
        if rows.pads is None:
            late = length - self.window
            self.keys, self.values = (
                torch.cat([t[:, :, : self.sinks], t[:, :, late:]], dim=2) for t in (self.keys, self.values)
            )
            return
        held = rows.held(length, self.keys.device)
        columns = torch.arange(length - keep, length, device=self.keys.device).repeat(len(held), 1)
        # rows with more than `keep` tokens have their sinks where their tokens begin, left of the window
        columns[:, : self.sinks] -= (held - keep).clamp_min(0)[:, None]
        self.keys, self.values = pick(self.keys, columns), pick(self.values, columns)

    def drop(self, count: int, rows: Rows) -> None:
        left = self.length - count
        self.keys, self.values = self.keys[:, :, :left].clone(), self.values[:, :, :left].clone()

    def reversible(self, count: int, rows: Rows) -> bool:
        return rows.seen == self.length


@method(
    "sinks",
    topic="kvcache",
    kind="cache",
    cite="xiao2024streamingllm",
    summary="the first tokens and a window of the newest, sinks moved up",
    needs=("transformers",),
)
def SinkCache(
    config: Any,
    sinks: int = 4,
    window: int = 252,
    positions: str = "cache",
    attention_mask: Tensor | None = None,
) -> KVCache:
    r"""StreamingLLM (arXiv 2309.17453): attention sinks and a sliding window.

    A pass of q tokens attends to everything stored and to itself; then each row keeps its first `sinks` and its last
    `window` tokens. Positions are those inside the cache::

        stored   s_0 .. s_{S-1}   w_0 .. w_{W-1}          new tokens
        position 0   .. S-1       S   .. S+W-1            S+W ..

    Only distances count for rotary positions, so instead of moving the window back by the n tokens that were lost, the
    S sink keys are turned forward by n: O(S) work a pass, and the keys of the window stay as they are.

    Args:
        config: a transformers model or its config.
        sinks: S, first tokens that are kept for ever, at least 0 (0 is the plain window of `WindowCache`).
        window: W, newest tokens that are kept, at least 1.
        positions: "cache" as above (needs rotary positions; the paper's); "original" leaves all keys where they were,
            so that sinks grow distant: equal in quality below the trained length, not beyond it.
        attention_mask: (B, T) of the prompts, where rows are padded at the left. Pads are never sinks.

    Bytes: 2 layers heads size (S + W) numbers, however long the stream. A prompt of more than S + W tokens attends in
    full and is evicted after; `dlopt.kvcache.prefill(chunk=)` bounds that. A pass of several tokens is not the same as
    several passes of one, in which the first tokens leave earlier and sinks turn with each.

    The model turns new keys by their place in the whole stream, in float32: about 1e-2 radians of error at 1e5 tokens.

    Raises:
        ValueError: at construction, for values outside their range, and with positions="cache" for models without
            rotary positions (GPT-2) and for frequencies that change with the length (rope types dynamic, longrope).

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)
        >>> SinkCache(config, sinks=2, window=6).nbytes().total  # nothing seen yet
        0
    """
    sinks, window = whole("sinks", sinks), whole("window", window, 1)
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
    rotation = rotation_of(config) if positions == "cache" and sinks else None
    # some models leave the positions of some layers out (SmolLM3): there is nothing to turn there
    with_rope = getattr(text_config(config), "no_rope_layers", None)
    params = {"sinks": sinks, "window": window, "positions": positions}
    return KVCache(
        "sinks",
        params,
        config,
        lambda layer: Sinks(sinks, window, rotation if with_rope is None or with_rope[layer] else None),
        attention_mask,
    )


def memory(
    shape: Shape,
    tokens: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    generated: int = 0,
    sinks: int = 4,
    window: int = 252,
    positions: str = "cache",
) -> Bytes:
    """Bytes kept after `tokens` columns."""
    return Bytes(residual=shape.numbers(min(tokens, sinks + window), batch) * dtype.itemsize)
