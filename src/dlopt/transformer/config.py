"""The shape of a Transformer: one frozen description from which every model is built."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES = {
    "norm": ("layer", "rms"),
    "norm_position": ("pre", "post", "sandwich"),
    "feedforward": ("relu", "gelu", "swish", "glu", "bilinear", "reglu", "geglu", "swiglu"),
    "positions": ("sinusoid", "learned", "shaw", "rope", "alibi", "none"),
    "attention": ("full", "local", "strided", "fixed"),
    "mixing": ("heads", "layers"),
    "init": ("xavier", "normal", "scaled"),
}
COUNTS = ("vocabulary", "width", "layers", "encoder_layers", "heads", "kv_heads", "hidden", "window", "stride",
          "summary", "max_length", "shaw_clip")  # fmt: skip
FACTORISED = ("strided", "fixed")


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a `Decoder` or a `Seq2Seq`. Sizes are counts; a field that is None takes the value stated here.

    vocabulary: number of tokens. width: channels of a token. layers: of the decoder. encoder_layers: of the encoder of
    a `Seq2Seq`; None: as many. heads: attention heads, a divisor of width. kv_heads: key/value heads, a divisor of
    heads; None: as many. hidden: channels between the two matrices of a plain feed-forward layer; None: 4 width. Gated
    layers take two thirds of it, to the nearest multiple of 8, so that their three matrices hold as many parameters.

    norm: "layer" (LayerNorm) or "rms" (RMSNorm). norm_position, with F a sub-layer: "pre" x + F(norm(x)), and a norm
    after the last layer; "post" norm(x + F(x)); "sandwich" x + norm(F(norm(x))), and a norm after the last layer.
    feedforward: plain ("relu", "gelu", "swish") or gated ("glu", "bilinear", "reglu", "geglu", "swiglu").
    positions: of self-attention; cross-attention has none. "sinusoid" and "learned" are added to the embeddings,
    "shaw" (relative tables up to +-shaw_clip), "rope" (base rope_base) and "alibi" act in every layer.

    attention: the pattern of the decoder's self-attention, always causal. "full"; "local": the last `window` positions,
    the own one counted; "strided": the last `window` (None: stride + 1, as in the paper) and every stride-th position
    back from the own one; "fixed": the own block of `stride` positions and the last `summary` positions of every block.
    mixing: whether the two parts of "strided" and "fixed" share the heads of each layer or take layers in turn.
    An encoder sees everything.

    max_length: most positions with "learned"; no other scheme has a limit. tied: one table embeds source, target and
    output. dropout: on the embeddings and on the output of each sub-layer, as in the paper. attention_dropout: on the
    attention weights; torch has no fast kernel for it on a CPU. bias: in linear layers and LayerNorm. init: of the
    matrices; "xavier": normal, variance 2 / (in + out); "normal": standard deviation 0.02; "scaled": the same, and
    divided by sqrt(number of sub-layers) where a matrix writes to the residual stream, as in GPT-2. Embeddings have
    variance 1 / width and enter multiplied by sqrt(width). pad: token that a `Seq2Seq` ignores in sources. norm_eps:
    added to the variance. plain: attention written out instead of torch's kernels, with equal results.

    Raises ValueError with a sentence for a value out of range or a combination that cannot work.
    """

    vocabulary: int
    width: int = 256
    layers: int = 4
    encoder_layers: int | None = None
    heads: int = 4
    kv_heads: int | None = None
    hidden: int | None = None
    norm: str = "layer"
    norm_position: str = "pre"
    feedforward: str = "gelu"
    positions: str = "sinusoid"
    attention: str = "full"
    window: int | None = None
    stride: int | None = None
    summary: int | None = None
    mixing: str = "heads"
    max_length: int = 512
    shaw_clip: int = 16
    rope_base: float = 10_000.0
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    bias: bool = False
    init: str = "xavier"
    pad: int = 0
    norm_eps: float = 1e-5
    plain: bool = False

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if value is None and _default(name) is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("dropout", "attention_dropout", "rope_base", "norm_eps"):
            if not isinstance(getattr(self, name), int | float) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("tied", "bias", "plain"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("rope_base", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not isinstance(self.pad, int) or not 0 <= self.pad < self.vocabulary:
            raise ValueError(f"pad must be a token from 0 to {self.vocabulary - 1}, got {self.pad}")
        self._check_heads()
        self._check_pattern()

    def _check_heads(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of the {self.heads} heads")
        if self.heads % self.groups:
            raise ValueError(f"kv_heads {self.kv_heads} must divide the {self.heads} heads")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"rope turns pairs of channels, but a head has {self.head_width} of them, an odd number")
        if self.positions == "sinusoid" and self.width % 2:
            raise ValueError(f"sinusoid positions are pairs of channels, but the width is {self.width}, an odd number")

    def _check_pattern(self) -> None:
        pattern = self.attention
        if self.positions == "shaw" and pattern != "full":
            raise ValueError(
                f"shaw positions weigh every pair of positions, so they need full attention, not {pattern}"
            )
        needed = {"local": ("window",), "strided": ("stride",), "fixed": ("stride", "summary")}.get(pattern, ())
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{pattern} attention needs a {name}")
        for name in ("window", "stride", "summary"):
            value = getattr(self, name)
            if value is not None and name not in needed and not (name == "window" and pattern == "strided"):
                raise ValueError(f"{pattern} attention has no {name}, so {name}={value} would have no effect")
            if value is not None and value > self.max_length + (name == "window"):
                raise ValueError(
                    f"{name} {value} is longer than max_length {self.max_length}: raise max_length if texts are "
                    "longer, else use full attention"
                )
        if pattern == "fixed" and self.summary > self.stride:  # type: ignore[operator]
            raise ValueError(f"summary {self.summary} must be at most the stride {self.stride}")
        if pattern in FACTORISED and self.mixing == "heads" and self.heads % 2:
            raise ValueError(f"{pattern} attention with mixing='heads' halves the heads, but there are {self.heads}")
        if self.mixing == "layers" and pattern not in FACTORISED:
            raise ValueError(f"mixing='layers' is for strided and fixed attention, not for {pattern}")
        if self.mixing == "layers" and self.layers < 2:
            raise ValueError("mixing='layers' alternates two patterns, so it needs at least 2 layers")

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """The inverse of `to_dict`; missing fields take their defaults, unknown ones raise ValueError."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(
                    f"a Transformer has no field {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        if "vocabulary" not in values:
            raise ValueError("a Transformer needs a vocabulary: its number of tokens")
        return cls(**values)


def _default(name: str) -> Any:
    return TransformerConfig.__dataclass_fields__[name].default
