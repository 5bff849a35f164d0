"""Keys that only packed attention may read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

PACKED = "dlopt_packed"  # name of the attention implementation


class Sealed(Tensor):
    """The new keys of a pass, standing for all that a layer has coded. Any use of them as a tensor raises.

    `layer` leads packed attention to the codes. Had another attention read these keys, it would have attended to the
    new tokens alone; this makes that an error instead of wrong numbers.
    """

    layer: Any

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "__get__":  # shape, dtype, device
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(
            f"these keys are packed, and the model does not run the attention {PACKED!r} that reads them: make the "
            "cache from the model's own config (or from the model)"
        )


def sealed(keys: Tensor, layer: Any) -> Tensor:
    """The keys as `Sealed`, with their layer."""
    found = keys.detach().as_subclass(Sealed)
    found.layer = layer
    return found
