"""Keys that tell which queries they meet: how a cache sees the queries though only keys and values reach it.

A `transformers.Cache` is asked to `update` with keys and values; what it returns goes to the model's attention. It
returns its keys as a `Watched` tensor, which by torch's own protocol (`__torch_function__`) hears of each operation on
it. Where the operation is attention, the queries and the scaling are told to the layer, and from there on all tensors
are plain. Nothing is set on the model, its config or transformers, so threads may share a model, and the numbers are
those of the same operations on plain tensors, to the bit.

Understood are `scaled_dot_product_attention` (attn_implementation "sdpa" and all that end there), and matmul, scaling,
mask and softmax ("eager"). Fused kernels outside torch (flash attention) never ask; the next pass then raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlopt.kvcache.shape import text_config

SDPA = inspect.Signature(
    [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("query", "key", "value", "attn_mask")]
    + [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
)
UNSEEN = (
    "the queries of the last pass never reached the cache: this model's attention is neither sdpa nor the eager one of "
    'matmul, scaling and softmax; load it with attn_implementation="sdpa"'
)


def check_watched(config: Any) -> None:
    """Refuse, by name, an attention that would read the keys outside torch's operations."""
    name = getattr(text_config(config), "_attn_implementation", None)
    if name is not None and name.startswith("flash"):
        raise ValueError(
            f"the attention implementation {name!r} shows its queries to nobody, and this cache chooses by them; load "
            'the model with attn_implementation="sdpa" or "eager"'
        )


class Watched(Tensor):
    """Keys, or logits made from them, on their way through attention.

    tell: called once with the (B, Hq, q, D) queries and the factor of their products. queries: set once the logits are
    made.
    scaling: what the logits were multiplied with so far.
    """

    tell: Callable[[Tensor, float], None]
    queries: Tensor | None
    scaling: float

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        with torch._C.DisableTorchFunctionSubclass():
            if name == "scaled_dot_product_attention":
                return _attend(func, args, kwargs)
            source = next((a for a in args if isinstance(a, Watched)), None)
            if source is None:  # in a list (cat) or a keyword: no part of attention
                return func(*args, **kwargs)
            queries, scaling = source.queries, source.scaling
            if queries is None and name == "matmul" and args[1] is source:
                queries = args[0]
            elif queries is not None and name in ("mul", "rmul", "imul"):
                scaling *= float(args[1] if args[0] is source else args[0])
            elif queries is not None and name in ("div", "truediv", "itruediv"):
                scaling /= float(args[1])
            elif queries is not None and name in ("add", "iadd", "radd"):
                args = tuple(a if a is source else _cut(a, source.shape[-1]) for a in args)
            elif queries is not None and name == "softmax":
                found = func(*args, **kwargs)
                source.tell(queries.detach(), scaling)
                return found
            return _carry(func(*args, **kwargs), source.tell, queries, scaling)


def watched(keys: Tensor, tell: Callable[[Tensor, float], None]) -> Tensor:
    """The keys as `Watched`."""
    return _carry(keys, tell, None, 1.0)


def _carry(found: Any, tell: Callable[[Tensor, float], None], queries: Tensor | None, scaling: float) -> Any:
    if not isinstance(found, Tensor):
        return found
    marked = found.as_subclass(Watched)
    marked.tell, marked.queries, marked.scaling = tell, queries, scaling
    return marked


def _attend(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    call = SDPA.bind(*args[:4], **kwargs).arguments
    options = call.pop("options", {})
    key = call["key"]
    call["attn_mask"] = _cut(call.get("attn_mask"), key.shape[-2])
    found = func(call["query"], key, call["value"], call["attn_mask"], *args[4:], **options)
    scaling = options.get("scale")
    if isinstance(key, Watched):
        key.tell(call["query"].detach(), call["query"].shape[-1] ** -0.5 if scaling is None else scaling)
    return found


def _cut(mask: Any, length: int) -> Any:
    """The rightmost `length` columns of a mask that was made for the longest layer (`dlopt.kvcache.rows` says why)."""
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] > length > 1:
        return mask[..., -length:]
    return mask
