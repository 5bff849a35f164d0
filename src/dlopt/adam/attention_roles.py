"""What the projections of known attention classes are. Classes are known by qualified name; none is imported."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dlopt.adam.blocks import Blocks

Roles = Mapping[str, str] | Callable[[nn.Module], Mapping[str, str]]
ROLES = ("query", "key", "value", "output", "qkv", "kv", "qkv_by_head")


@dataclass(frozen=True)
class _Attention:
    roles: Roles
    head_dim: str
    kv_heads: str | None


_known: dict[str, _Attention] = {}


def register_attention(
    qualified_name: str, roles: Roles, *, head_dim: str = "head_dim", kv_heads: str | None = None
) -> None:
    """Teach `partition` a class of attention, for it and its subclasses. A later registration wins.

    Args:
        qualified_name: module and class, as in "mypackage.attention.MyAttention"; nothing is imported.
        roles: {path inside the module of a projection with a weight, or of a parameter: role}, or a function of the
            module that returns it. Roles: "query", "key", "value", "output"; and for fused projections "qkv" (all
            queries, then keys, then values), "kv", "qkv_by_head" (query, key, value of head 0, then of head 1, ...).
            Paths that a module lacks are left out.
        head_dim: attribute of the module (dots allowed) with the width of one head.
        kv_heads: attribute with the number of key and value heads; only for a fused "qkv" that may have fewer of them.

    Raises:
        ValueError: for a role that does not exist.
    """
    if not callable(roles):
        _check(qualified_name, roles)
    _known[qualified_name] = _Attention(roles, head_dim, kv_heads)


def attention_roles(
    model: nn.Module, scheme: str, settled: Collection[Tensor] = ()
) -> tuple[dict[Tensor, tuple[str, Blocks]], list[str]]:
    """{projection: (role, blocks)}, and a sentence about each attention of unknown class with unsettled matrices."""
    found: dict[Tensor, tuple[str, Blocks]] = {}
    strangers = []
    for prefix, module in model.named_modules():
        names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__]
        known = next((_known[name] for name in names if name in _known), None)
        if known is not None:
            roles = known.roles(module) if callable(known.roles) else known.roles
            _check(names[0], roles)
            for path, role in roles.items():
                owner = get(module, path)
                tensor = getattr(owner, "weight", None) if isinstance(owner, nn.Module) else owner
                if isinstance(tensor, Tensor) and tensor not in settled:
                    where = f"{prefix}.{path}".lstrip(".")
                    found[tensor] = role, _cut(module, known, tensor, role, output_axis(owner), scheme, where)
        elif _looks_like_attention(module):
            strangers.append((prefix or "the model", names[0], module))
    open_ = [
        f"{prefix} is a {name}"
        for prefix, name, module in strangers
        if sum(t not in found and t not in settled for t in _matrices(module)) > 1
    ]
    return found, open_


def _cut(module: nn.Module, known: _Attention, tensor: Tensor, role: str, axis: int, scheme: str, where: str) -> Blocks:
    length = tensor.shape[axis]
    by_row = 1, length
    if role == "output" or (role == "value" and scheme != "head"):
        return Blocks(axis, (by_row,))
    width = get(module, known.head_dim)
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"{where}: the module's {known.head_dim} should be the width of a head, but is {width}")

    def heads(count: int, name: str) -> tuple[int, int]:
        fine = scheme == "row" or (name == "value" and scheme != "head")
        return (1, count * width) if fine else (width, count)

    n = length // width
    if role == "qkv":
        groups = get(module, known.kv_heads) if known.kv_heads else None
        groups = n // 3 if groups is None else groups
        runs = heads(n - 2 * groups, "query"), heads(groups, "key"), heads(groups, "value")
    elif role == "kv":
        runs = heads(n // 2, "key"), heads(n // 2, "value")
    elif role == "qkv_by_head":
        runs = heads(1, "query"), heads(1, "key"), heads(1, "value")
    else:
        runs = (heads(n, role),)
    blocks = Blocks(axis, runs, n // 3 if role == "qkv_by_head" else 1)
    if not blocks.fits(tensor.shape):
        raise ValueError(f"{where} has {length} outputs, which cannot be cut into heads of width {width} as {role}")
    return blocks


def output_axis(owner: Any) -> int:
    """1 where weights are stored in x out (GPT-2's Conv1D, transposed convolutions), else 0."""
    return int(is_conv1d(owner) or isinstance(owner, nn.modules.conv._ConvTransposeNd))


def is_conv1d(owner: Any) -> bool:
    """Whether a module is the Conv1D of transformers, a linear layer with a transposed weight."""
    return any((c.__module__, c.__qualname__) == ("transformers.pytorch_utils", "Conv1D") for c in type(owner).__mro__)


def get(module: nn.Module, path: str) -> Any:
    """An attribute by dotted path, or None."""
    try:
        return operator.attrgetter(path)(module)
    except AttributeError:
        return None


def _looks_like_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    heads = ("num_heads", "n_heads", "n_head", "num_attention_heads", "head_dim")
    return "attention" in name or "attn" in name or any(hasattr(module, attribute) for attribute in heads)


def _matrices(module: nn.Module) -> list[Tensor]:
    """Weights of two dimensions of the module itself and of its direct children: its projections."""
    return [t for owner in (module, *module.children()) for t in owner.parameters(recurse=False) if t.dim() == 2]


def _check(name: str, roles: Mapping[str, str]) -> None:
    for path, role in roles.items():
        if role not in ROLES:
            raise ValueError(f"{name}: {path} has the role {role!r}; it must be one of {', '.join(ROLES)}")


def _gpt2(module: nn.Module) -> Mapping[str, str]:
    cross = bool(get(module, "is_cross_attention"))
    return {"c_attn": "kv" if cross else "qkv", "q_attn": "query", "c_proj": "output"}


_LLAMA = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
_BART = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
_TORCH = {
    "in_proj_weight": "qkv",
    "q_proj_weight": "query",
    "k_proj_weight": "key",
    "v_proj_weight": "value",
    "out_proj": "output",
}
_MODELS = "transformers.models."

register_attention("torch.nn.modules.activation.MultiheadAttention", _TORCH)
register_attention("dlopt.transformer.attention.Attention", _LLAMA, head_dim="head_width")
for _name in (
    "llama.modeling_llama.Llama", "mistral.modeling_mistral.Mistral", "mixtral.modeling_mixtral.Mixtral",
    "qwen2.modeling_qwen2.Qwen2", "qwen2_moe.modeling_qwen2_moe.Qwen2Moe", "qwen3.modeling_qwen3.Qwen3",
    "qwen3_moe.modeling_qwen3_moe.Qwen3Moe", "smollm3.modeling_smollm3.SmolLM3", "gemma.modeling_gemma.Gemma",
    "gemma2.modeling_gemma2.Gemma2", "gemma3.modeling_gemma3.Gemma3", "olmo2.modeling_olmo2.Olmo2",
):  # fmt: skip
    register_attention(f"{_MODELS}{_name}Attention", _LLAMA)
register_attention(f"{_MODELS}phi.modeling_phi.PhiAttention", {**_LLAMA, "dense": "output"})
for _name in ("opt.modeling_opt.OPT", "bart.modeling_bart.Bart", "whisper.modeling_whisper.Whisper"):
    register_attention(f"{_MODELS}{_name}Attention", _BART)
register_attention(
    f"{_MODELS}phi3.modeling_phi3.Phi3Attention",
    {"qkv_proj": "qkv", "o_proj": "output"},
    kv_heads="config.num_key_value_heads",
)
register_attention(f"{_MODELS}gpt2.modeling_gpt2.GPT2Attention", _gpt2)
register_attention(
    f"{_MODELS}gpt_neox.modeling_gpt_neox.GPTNeoXAttention",
    {"query_key_value": "qkv_by_head", "dense": "output"},
    head_dim="head_size",
)
for _name in ("bert.modeling_bert.Bert", "roberta.modeling_roberta.Roberta"):
    register_attention(
        f"{_MODELS}{_name}SelfAttention",
        {"query": "query", "key": "key", "value": "value"},
        head_dim="attention_head_size",
    )
