"""Which weights of a model share one second moment: Adam-mini's blocks, read from modules rather than from names."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dlopt.adam.attention_roles import attention_roles, is_matrix, output_axis, register_attention
from dlopt.adam.blocks import Blocks, Partition, Row, elements, slices, whole

__all__ = ["SCHEMES", "Blocks", "Partition", "Row", "partition", "register_attention"]

SCHEMES = ("paper", "tensor", "row", "head", "element")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_WITH_BIAS = (*_NORMS, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def partition(model: nn.Module, scheme: str = "paper", override: Mapping[str, Any] | None = None) -> Partition:
    """The blocks of every parameter of a model, as a table.

    Args:
        model: roles come from its modules: attention by class (see `register_attention`); Linear, Embedding,
            convolutions, recurrent layers and norms by type. Nothing is concluded from the names of layers.
        scheme: "paper": one block for each head of queries and of keys, each output row of other matrices (values,
            output projections, MLPs; output channels of convolutions), each token of embedding and head, and one for
            each other tensor (norms, biases). For ablations: "tensor" (one for each tensor), "row" (queries and keys
            by row too), "head" (values by head too), "element" (plain Adam).
        override: {pattern of parameter names, such as "*.experts.*": "tensor", "row" (axis 0), "element",
            ("head", width) along axis 0, or `Blocks`}. It wins over the scheme.

    A matrix of a module that is not known (an `nn.Parameter` of one's own) is one block, as in the paper, and a
    warning names it: `override` settles it, also with "tensor".

    Raises:
        ValueError: for attention of an unknown class, or of a known one with other projections (register it, or
            override its matrices), for blocks that do not fit a tensor, or for a pattern that matches nothing.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"partition={scheme!r} is unknown: it must be one of {', '.join(SCHEMES)}")
    settled = _overridden(model, override or {})
    by_modules = scheme in ("paper", "row", "head")
    attention, strangers = attention_roles(model, scheme, settled) if by_modules else ({}, [])
    if strangers and scheme != "row":
        raise ValueError(
            f"attention of unknown class: {'; '.join(strangers)}. Say what its projections are with "
            "register_attention(class, roles), or how each of its matrices is cut with override={name: blocks}"
        )
    heads = _heads(model)
    table, unknown = Partition(), []
    for prefix, module in model.named_modules():
        for name, tensor in module.named_parameters(prefix, recurse=False):
            role, blocks = attention.get(tensor) or _plain(module, tensor, name, heads)
            if scheme == "tensor":
                blocks = whole(tensor)
            elif scheme == "element":
                blocks = elements(tensor)
            blocks = settled.get(tensor, blocks)
            tied = table.find(tensor)
            if tied is None:
                table.add(tensor, name, role, blocks)
            elif tied.blocks != blocks:
                raise ValueError(
                    f"{tied.name} and {name} are one tensor, but are cut into {tied.blocks} and {blocks}: "
                    "settle it with override={name: blocks}"
                )
            if by_modules and role == "other" and tensor.dim() > 1 and tensor not in settled:
                unknown.append(f"{name} of {type(module).__qualname__}")
    if unknown:
        warnings.warn(
            f"one second moment for each of these matrices, since their modules are unknown: {', '.join(unknown)}. "
            "Settle it with override={pattern: blocks}; 'tensor' keeps it as it is",
            stacklevel=2,
        )
    return table


def _heads(model: nn.Module) -> set[Tensor]:
    """Weights of language-model heads: for each shape of an embedding, the last Linear of that shape.

    The last one only, since inner layers have the same shape where vocabulary and width are equal; and none where the
    embedding itself is a head (tied weights).
    """
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = {tuple(w.shape) for w in linears if w in embeddings}
    last = {tuple(w.shape): w for w in linears}
    shapes = {tuple(w.shape) for w in embeddings} - tied
    return {w for shape, w in last.items() if shape in shapes}


def _plain(module: nn.Module, tensor: Tensor, name: str, heads: set[Tensor]) -> tuple[str, Blocks]:
    """Role and blocks of a tensor outside attention, from the type of its module."""
    # an attribute of the module: bias, in_proj_bias, bias_hh_l0; but a table of biases of one's own is a matrix
    if "bias" in name.rpartition(".")[2] and (tensor.dim() < 2 or isinstance(module, _WITH_BIAS) or is_matrix(module)):
        return "bias", whole(tensor)
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return "norm", whole(tensor)
    if tensor.dim() < 2:
        return "other", whole(tensor)
    by_output = slices(tensor, output_axis(module))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding", by_output
    if tensor in heads:
        return "head", by_output
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution", by_output
    if is_matrix(module):
        return "matrix", by_output
    return "other", whole(tensor)


def _overridden(model: nn.Module, override: Mapping[str, Any]) -> dict[Tensor, Blocks]:
    settled = {}
    for pattern, how in override.items():
        # with all names of a tied tensor
        named = model.named_parameters(remove_duplicate=False)
        matched = [(n, t) for n, t in named if fnmatch.fnmatchcase(n, pattern)]
        if not matched:
            raise ValueError(f"override: the model has no parameter {pattern!r}")
        for name, tensor in matched:
            if isinstance(how, Blocks):
                settled[tensor] = how
            elif how == "tensor":
                settled[tensor] = whole(tensor)
            elif how == "element":
                settled[tensor] = elements(tensor)
            elif how == "row" and tensor.dim():
                settled[tensor] = slices(tensor)
            elif isinstance(how, tuple) and len(how) == 2 and how[0] == "head" and tensor.dim() and how[1] > 0:
                settled[tensor] = Blocks(0, ((how[1], tensor.shape[0] // how[1]),))
            else:
                choices = "'tensor', 'row', 'element', ('head', width) or Blocks"
                raise ValueError(f"override: {name} cannot be cut by {how!r}; it must be {choices}")
    return settled
