"""What a model's configuration says about its cache, and which models and attentions these caches can serve."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

SERVED = ("eager", "sdpa", "flash_attention", "dlopt")  # beginnings of the names of attention implementations


@dataclass(frozen=True)
class Shape:
    """layers: attention layers. heads: key-value heads of each. dim: size of a head. queries: query heads."""

    layers: int
    heads: int
    dim: int
    queries: int

    def numbers(self, tokens: int, batch: int = 1) -> int:
        """How many numbers the keys and values of `tokens` columns are, over all layers and rows."""
        return 2 * self.layers * self.heads * self.dim * tokens * batch

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.heads} key-value heads of size {self.dim}"


def whole(name: str, value: Any, low: int = 0) -> int:
    """`value` as an int of at least `low`; a ValueError with the value if it is not one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer, not {value!r}")
    if number < low:
        raise ValueError(f"{name} must be at least {low}, not {number}")
    return number


def text_config(model: Any) -> Any:
    """The configuration of the decoder of a model, or of a configuration."""
    config = getattr(model, "config", model)
    if not hasattr(config, "get_text_config"):
        raise ValueError(f"a cache is made for a transformers model or its config, not for a {type(model).__name__}")
    return config.get_text_config(decoder=True)


def shape_of(model: Any) -> Shape:
    """The `Shape` of a causal language model whose layers all attend to everything before them.

    Raises:
        ValueError: for encoder-decoders, for layers of another kind (sliding, linear, shared, latent), for ALiBi,
            whose biases are counted from columns that an evicting cache does not keep.
    """
    config = text_config(model)
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder-decoder; these caches serve causal language models alone")
    if kind in ("bloom", "mpt") or getattr(config, "alibi", False):
        raise ValueError(f"{kind} has ALiBi biases, which are laid over all columns; these caches do not count those")
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(f"{kind} has latent attention (MLA), whose cache holds no keys and values of heads")
    types = getattr(config, "layer_types", None)
    if types is None:
        sliding = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
        types = ["sliding_attention" if sliding else "full_attention"] * config.num_hidden_layers
    other = sorted(set(types) - {"full_attention"})
    if other or getattr(config, "kv_sharing_modes", None) or getattr(config, "num_kv_shared_layers", 0):
        found = ", ".join(other) or "layers that share their keys"
        raise ValueError(f"{kind} has {found}; these caches serve models whose layers are all full_attention")
    queries = config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or queries
    if kind == "falcon":  # names of its own; its newer form spreads grouped keys over all heads before they are kept
        heads = 1 if config.multi_query and not config.new_decoder_architecture else queries
    dim = getattr(config, "head_dim", None) or config.hidden_size // queries
    return Shape(config.num_hidden_layers, heads, dim, queries)


def check_attention(model: Any) -> None:
    """Refuse, by name, an attention implementation whose masks these caches cannot serve."""
    name = getattr(text_config(model), "_attn_implementation", None)
    if name is not None and not name.startswith(SERVED):
        raise ValueError(
            f"the attention implementation {name!r} cannot be served: it keeps keys elsewhere or fixes the length of "
            'its mask; load the model with attn_implementation="sdpa", "eager" or a flash_attention'
        )
