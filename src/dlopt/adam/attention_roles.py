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
    """{projection: (role, blocks)}, and a sentence about each attention with unsettled matrices of unknown role."""
    found: dict[Tensor, tuple[str, Blocks]] = {}
    covered, with_heads = set(settled), set()
    for prefix, module in model.named_modules():
        known = _class_of(module)
        if known is None:
            continue
        roles = known.roles(module) if callable(known.roles) else known.roles
        _check(_qualified(module), roles)
        for path, role in roles.items():
            owner = get(module, path)
            tensor = getattr(owner, "weight", None) if isinstance(owner, nn.Module) else owner
            if not isinstance(tensor, Tensor):
                continue
            if role not in ("value", "output"):
                with_heads.add(module)
            covered |= {tensor, *(owner.parameters() if isinstance(owner, nn.Module) else ())}  # adapters, too
            if tensor not in settled:
                where = f"{prefix}.{path}".lstrip(".")
                found[tensor] = role, _cut(module, known, tensor, role, output_axis(owner), scheme, where)
    open_ = []
    for prefix, module in model.named_modules():
        sentence = f"{prefix or 'the model'} is a {_qualified(module)}"
        if _class_of(module) is not None:
            # a subclass may have other projections. Beside queries or keys, a parameter of no known layer is none (a
            # table of positions); `partition` warns of it
            rest = [path for path, t in _matrices(module)[0].items() if t not in covered]
            if module in with_heads:
                rest = [path for path in rest if "." in path and is_matrix(get(module, path.rpartition(".")[0]))]
            if rest:
                open_.append(f"{sentence}, whose roles leave out {', '.join(rest)}")
        elif _looks_like_attention(module) and _has_projections(module, *_matrices(module), covered):
            open_.append(sentence)
    return found, open_


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _class_of(module: nn.Module) -> _Attention | None:
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__)
    return next((_known[name] for name in names if name in _known), None)


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


def is_matrix(owner: Any) -> bool:
    """Whether a module is a layer of a type whose weights are matrices with an output in each row (or column)."""
    return isinstance(owner, nn.Linear | nn.Bilinear | nn.RNNBase | nn.RNNCellBase) or is_conv1d(owner)


def is_conv1d(owner: Any) -> bool:
    """Whether a module is the Conv1D of transformers, a linear layer with a transposed weight."""
    return any((c.__module__, c.__qualname__) == ("transformers.pytorch_utils", "Conv1D") for c in type(owner).__mro__)


def get(module: nn.Module, path: str) -> Any:
    """An attribute by dotted path, or None."""
    try:
        return operator.attrgetter(path)(module)
    except AttributeError:
        return None


_COUNTS = ("num_heads", "n_heads", "n_head", "num_attention_heads")  # `heads` may be a list of layers


def _looks_like_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    if any(word in name for word in ("attention", "attn", "mha", "multihead")):
        return True
    return any(hasattr(module, a) for a in (*_COUNTS, "head_dim")) or isinstance(get(module, "heads"), int)


def _has_many_heads(module: nn.Module) -> bool:
    counts = (get(module, path) for path in (*_COUNTS, "heads", "config.num_attention_heads"))
    return any(isinstance(count, int) and count > 1 for count in counts)


def _has_projections(
    module: nn.Module, matrices: Mapping[str, Tensor], holds: bool, covered: Collection[Tensor] = ()
) -> bool:
    """Whether what looks like attention has matrices that may be its projections; the arguments are `_matrices`'."""
    # what holds attention may be a whole model, of which only the layers right inside can be projections
    own = [path for path, t in matrices.items() if t.dim() == 2 and (path.count(".") < 2 or not holds)]
    # one matrix alone may be a gate or an output, unless there are heads which it could be cut into
    return sum(matrices[path] not in covered for path in own) > (holds or not _has_many_heads(module))


def _matrices(module: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """{path: tensor of two or more dimensions} of all layers but embeddings, without those that belong to other
    attention inside the module; and whether there is any such attention."""
    own = {} if isinstance(module, nn.Embedding) else dict(module.named_parameters(recurse=False))
    own, holds = {path: t for path, t in own.items() if t.dim() > 1}, False
    for name, child in module.named_children():
        theirs, deeper = _matrices(child)
        looks = _looks_like_attention(child) and _has_projections(child, theirs, deeper)
        if looks or _class_of(child) is not None:
            holds = True
        else:
            holds = holds or deeper
            own |= {f"{name}.{path}": t for path, t in theirs.items()}
    return own, holds


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
