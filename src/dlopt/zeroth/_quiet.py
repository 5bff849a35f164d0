"""Around the forward passes of a step: what a model does beside computing its loss is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def quiet(model: nn.Module | None, devices: Iterable[torch.device], train_mode: bool) -> Iterator[Callable[[], None]]:
    """Around the forwards of one step: modes and buffers of the model come back as they were.

    Yields a function to call before each forward: it sets torch's global generators to where they stood at the
    start, so that a dropout mask or a batch drawn inside the closure is the same in all forwards of a step.
    """
    cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    states = torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in cuda]
    modules = list(model.modules()) if model is not None else []
    modes = [(m, m.training) for m in modules]
    buffers = [(m, n, b) for m in modules for n, b in m._buffers.items()]
    copies = {i: b.clone() for i, b in {id(b): b for _, _, b in buffers if b is not None}.items()}
    # the fused attention path is taken only where no hooks are; without it both ways of shifting compute the same
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if not train_mode:
        for module in modules:
            module.training = False  # not eval(): some adapters merge their weights there

    def restart() -> None:
        torch.set_rng_state(states[0])
        for d, state in zip(cuda, states[1], strict=True):
            torch.cuda.set_rng_state(state, d)
        # autocast keeps low-precision copies of weights, and would use them after the weights were shifted
        torch.clear_autocast_cache()

    try:
        yield restart
    finally:
        torch.clear_autocast_cache()
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training
        for module, name, buffer in buffers:
            module._buffers[name] = buffer  # it may have been replaced, or set where there was none
            if buffer is None:
                continue
            if all(stride for stride, n in zip(buffer.stride(), buffer.shape, strict=True) if n > 1):
                buffer.copy_(copies[id(buffer)])  # else an expanded view, which nobody can write to
