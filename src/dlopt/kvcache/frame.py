"""What every method here returns: a `transformers.Cache` of layers with stores, with its bytes and its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from dlopt.kvcache.layer import Layer
from dlopt.kvcache.rows import pads_of
from dlopt.kvcache.shape import check_attention, shape_of, text_config
from dlopt.memory import Bytes, human, tensor_bytes

FORMAT = 2  # of state_dict


class KVCache(Cache):
    """A cache of one of the methods, for one model's shape. `SinkCache(config, ...)` and the like make it.

    Args:
        method: name in the catalogue. params: its options, plain values: what `describe` and a saved state tell.
        model: a transformers model or its config.
        make_store: make_store(layer number) -> `Store`.
        attention_mask: (B, T) mask of the prompt, needed where rows are padded at the left. A cache never sees the mask
            that the model gets, so it must be told here.

    Left padding works with the plain `model(...)` too; as with every cache, models with absolute positions (GPT-2) need
    `position_ids` then, which `generate` sets by itself.
    """

    def __init__(
        self,
        method: str,
        params: dict[str, Any],
        model: Any,
        make_store: Callable[[int], Any],
        attention_mask: Tensor | None = None,
    ):
        self.method, self.params = method, params
        self.config, self.shape = text_config(model), shape_of(model)
        check_attention(self.config)
        pads = pads_of(attention_mask)
        super().__init__(
            layers=[Layer(lambda i=i: make_store(i), pads) for i in range(self.shape.layers)]  # type: ignore[misc]
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values of a layer and return what its attention reads; shapes are (B, H, tokens, D)."""
        got = (key_states.shape[1], key_states.shape[3], value_states.shape[3])
        if layer_idx >= self.shape.layers or got != (self.shape.heads, self.shape.dim, self.shape.dim):
            raise ValueError(
                f"this cache is for a model with {self.shape}; layer {layer_idx} of another model brought {got[0]} "
                f"heads of size {got[1]} (keys) and {got[2]} (values)"
            )
        if layer_idx == 0:
            check_attention(self.config)  # it can be changed on a living model
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(columns of the mask, position of the first): those of the longest layer, since all layers get one mask.

        A model asks for it before every pass, so here it shows if the last one did not reach all layers.
        """
        reached = sum(layer.get_seq_length() == self.layers[0].get_seq_length() for layer in self.layers)
        if reached < self.shape.layers:
            raise ValueError(
                f"this cache is for a model with {self.shape}, and the last pass reached {reached} of its layers: the "
                "model is another one, or the pass broke off; reset() begins anew"
            )
        return max(layer.get_mask_sizes(query_length) for layer in self.layers)

    def reset(self, attention_mask: Tensor | None = None) -> None:
        """Forget all tokens. With `attention_mask`, take the pads of a new batch."""
        pads = pads_of(attention_mask)
        for layer in self.layers:
            if attention_mask is not None:
                layer.made_with = pads
            layer.reset()

    def nbytes(self) -> Bytes:
        """Bytes that are kept, by kind, counted from the tensors' storages, and the largest transient so far.

        `transient` is the largest copy that one layer ever gave to attention beside what it kept (a prompt before
        eviction, codes as floats): it lives for one layer at a time and is not part of `total`. What attention and
        scoring compute on the way (logits, at most 16 MiB of float32 at a time where a cache recomputes them) is not
        in it.
        """
        count: dict[str, int] = {}
        for layer in self.layers:
            for name, tensor in layer.tensors().items():
                kind = layer.store.kinds[name]
                count[kind] = count.get(kind, 0) + tensor_bytes([tensor])
        return Bytes(**count, transient=max(layer.transient for layer in self.layers))

    def describe(self) -> str:
        """One line: method, options, model shape, tokens, bytes by kind."""
        options = ", ".join(f"{name}={value}" for name, value in self.params.items())
        bytes_ = self.nbytes()
        kinds = ", ".join(f"{kind} {human(count)}" for kind, count in bytes_.as_dict().items())
        columns = [layer.store.length if layer.is_initialized else 0 for layer in self.layers]
        stored = f"{min(columns)} to {max(columns)}" if min(columns) < max(columns) else f"{columns[0]}"
        return (
            f"{self.method}({options}) for {self.shape}: {self.get_seq_length()} tokens seen, {stored} stored in "
            f"{human(bytes_.total)}" + (f" ({kinds})" if kinds else "")
        )

    def __repr__(self) -> str:
        return self.describe()

    def state_dict(self) -> dict[str, Any]:
        """The whole state in plain values and tensors: `torch.save` it, `torch.load(weights_only=True)` it."""
        layers = [layer.state_dict() for layer in self.layers]
        return {
            "format": FORMAT,
            "method": self.method,
            "params": self.params,
            "shape": str(self.shape),
            "rope": self._rope(),
            "layers": layers,
        }

    def _rope(self) -> str:
        """How the model turns its keys: those of another one would be read wrongly."""
        found = getattr(self.config, "rope_parameters", None) or {}
        return ", ".join(f"{name}={found[name]}" for name in sorted(found))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state; the cache must have been made with the same method, options, shape and rotations."""
        mine = {"format": FORMAT, "method": self.method, "params": self.params, "shape": str(self.shape),
                "rope": self._rope()}  # fmt: skip
        for name, value in mine.items():
            if state.get(name) != value:
                raise ValueError(f"the saved cache has {name} {state.get(name)!r}, this one has {value!r}")
        layers = state.get("layers")
        if not isinstance(layers, list) or len(layers) != len(self.layers):
            raise ValueError(f"the saved cache must have a list of {len(self.layers)} layers")
        for number, saved in enumerate(layers):
            for name, tensor in saved["tensors"].items():
                heads = self.shape.queries if name == "queries" else self.shape.heads
                if tensor.shape[:2] != (saved["batch"], heads):
                    raise ValueError(
                        f"{name} of layer {number} of the saved cache has shape {tuple(tensor.shape)}, which is not "
                        f"{saved['batch']} rows of {heads} heads"
                    )
        for layer, saved in zip(self.layers, layers):
            layer.load_state_dict(saved)
