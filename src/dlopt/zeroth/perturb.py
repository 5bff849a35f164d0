"""Run a forward pass at shifted weights, and leave the weights as they were, bit for bit.

`Held` keeps one copy of all trained weights, shifts them in place and copies back. `Hooked` writes no weight at all:
forward hooks let a module's parameters point to a shifted copy just before the module runs, and back after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlopt.zeroth._rows import by_rows, forward_by_rows

# shift(index, w, source, start=0, size=None) writes source, shifted, to w, of the same shape. source: the weights of
# that index, or the part of them that begins at their number `start`, of `size` numbers in all
Shift = Callable[..., None]
SPARE = 1 << 20  # bytes from which memory for copies is kept during a step


@dataclass(frozen=True)
class Trained:
    """One trained tensor: its name, its index (which seeds its directions) and the number of its param group."""

    name: str
    index: int
    tensor: Tensor
    group: int


class Held:
    """Shift given tensors in place around a forward pass, from one copy of them all."""

    def __init__(self, trained: Sequence[Trained]) -> None:
        self.trained = trained
        self.copies = [t.tensor.clone() for t in trained]
        self.peak = sum(c.numel() * c.element_size() for c in self.copies)

    def run(self, closure: Callable[[], Any], shift: Shift) -> Any:
        try:
            for t, copy in zip(self.trained, self.copies, strict=True):
                shift(t.index, t.tensor, copy)
            return closure()
        finally:
            self.restore()

    def restore(self) -> None:
        """Bring all weights back; may be called again where an interrupt cut it short."""
        for t, copy in zip(self.trained, self.copies, strict=True):
            t.tensor.copy_(copy)


class Hooked:
    """Shift each module's own tensors only while that module runs.

    watch: look at every operator's inputs for trained weights outside their module's forward. Slow, so callers ask
    for it once; that every trained tensor was reached is checked at every pass. rows: above 0, weights of embeddings
    and linear layers with more rows than that are shifted by rows (see `_rows.py`).
    """

    def __init__(
        self, model: nn.Module, trained: Sequence[Trained], hold: Iterable[str], watch: bool, rows: int = 0
    ) -> None:
        known = {id(t.tensor): t for t in trained}
        self.trained, self.watch, self.rows = trained, watch, rows
        self.owned = {}
        self.apart: dict[nn.Module, Trained] = {}  # modules whose weight is shifted by rows
        for module, own in owners(model, hold).values():
            found = [known[id(p)] for p in own if id(p) in known]
            if by_rows(module, rows) and any(t.tensor is module.weight for t in found):
                self.apart[module] = known[id(module.weight)]
            self.owned[module] = [t for t in found if t is not self.apart.get(module)]
        self.originals: dict[int, Tensor] = {}
        self.copies: dict[int, Tensor] = {}
        self.spare: dict[torch.device, Tensor] = {}  # memory for copies, kept from module to module
        self.depth: dict[int, int] = {}  # how many running modules own a tensor: tied weights, recursive modules
        self.reached: set[int] = set()
        self.handles: list[Any] = []
        self.peak = 0

    def run(self, closure: Callable[[], Any], shift: Shift) -> Any:
        self.reached.clear()
        self.depth = {t.index: 0 for t in self.trained}
        try:
            for module, own in self.owned.items():
                if own:
                    # first before and last after: other hooks of the module see the shifted weights, as its forward
                    self.handles.append(module.register_forward_pre_hook(self._before(own, shift), prepend=True))
                    self.handles.append(module.register_forward_hook(self._after(own), always_call=True))
            for module, t in self.apart.items():
                module.forward = forward_by_rows(self, module, t, self.rows, shift)
            with _Watch(self) if self.watch else nullcontext():
                result = closure()
        finally:
            self.restore()
        missed = [t.name for t in self.trained if t.index not in self.reached]
        if missed:
            raise RuntimeError(_outside(missed, "the forward pass never ran a module that owns"))
        return result

    def restore(self) -> None:
        """Take the hooks away and bring all weights back; may be called again where an interrupt cut it short."""
        for handle in self.handles:
            handle.remove()
        for module in self.apart:
            vars(module).pop("forward", None)  # the class's own again
        for t in self.trained:  # after an exception
            self._put_back(t)
        self.handles.clear()

    @contextmanager
    def shifted(self, t: Trained, copy: Tensor) -> Iterator[None]:
        """Around the time in which rows of a tensor are shifted, `copy` being what they were."""
        self.reached.add(t.index)
        self.depth[t.index] += 1
        self._measure(copy)
        try:
            yield
        finally:
            self.depth[t.index] -= 1

    def _measure(self, *more: Tensor) -> None:
        now = sum(c.numel() * c.element_size() for c in (*self.copies.values(), *more))
        self.peak = max(self.peak, now)

    def _memory(self, tensors: Sequence[Trained]) -> list[Tensor]:
        """Room for a copy of each: in the spare memory where no other copy is in it, since fresh memory is slow."""
        sizes = [-(-t.tensor.numel() * t.tensor.element_size() // 64) * 64 for t in tensors]
        devices = {t.tensor.device for t in tensors}
        if self.copies or len(devices) != 1 or sum(sizes) < SPARE or not all(t.tensor.is_contiguous() for t in tensors):
            return [torch.empty_like(t.tensor) for t in tensors]
        (device,) = devices
        if device not in self.spare or self.spare[device].numel() < sum(sizes):
            self.spare.pop(device, None)
            self.spare[device] = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        pieces = self.spare[device][: sum(sizes)].split(sizes)
        return [
            piece[: t.tensor.numel() * t.tensor.element_size()].view(t.tensor.dtype).view(t.tensor.shape)
            for t, piece in zip(tensors, pieces, strict=True)
        ]

    def _before(self, own: Sequence[Trained], shift: Shift) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            fresh = []
            for t in own:
                self.depth[t.index] += 1
                if self.depth[t.index] == 1:
                    fresh.append(t)
            for t, copy in zip(fresh, self._memory(fresh), strict=True):
                self.reached.add(t.index)
                shift(t.index, copy, t.tensor.detach())
                self.originals[t.index], self.copies[t.index] = t.tensor.data, copy
                t.tensor.data = copy
            self._measure()

        return hook

    def _after(self, own: Sequence[Trained]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._keep(output)
            for t in own:
                if self.depth[t.index] == 1:
                    self._put_back(t)
                self.depth[t.index] = max(self.depth[t.index] - 1, 0)

        return hook

    def _keep(self, output: Any) -> None:
        """Where a module returns a view of its weight, the spare memory that it lies in is not used again."""
        for x in tree_leaves(output):
            spare = self.spare.get(x.device) if isinstance(x, Tensor) else None
            if spare is not None and x.untyped_storage().data_ptr() == spare.untyped_storage().data_ptr():
                del self.spare[x.device]

    def _put_back(self, t: Trained) -> None:
        if t.index in self.originals:
            t.tensor.data = self.originals[t.index]
            self.copies.pop(t.index, None)
            del self.originals[t.index]  # last: an interrupt before it loses nothing


class _Watch(TorchDispatchMode):
    """Raises where an operator reads a trained tensor that is not shifted at that moment."""

    def __init__(self, hooked: Hooked) -> None:
        super().__init__()
        self.hooked = hooked
        self.known = {id(t.tensor): t for t in hooked.trained}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            t = self.known.get(id(leaf))
            if t is not None and not self.hooked.depth[t.index]:
                raise RuntimeError(_outside([t.name], f"{func} used, outside the forward of its module,"))
        return func(*args, **(kwargs or {}))


def _outside(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"{what} the trained weights {shown}, so the perturbation did not reach that use. "
        f"Name them in hold= to keep a copy of them during the whole forward pass, freeze them, or give the "
        f"optimizer model.parameters() instead of the model, which keeps a copy of all weights."
    )


def owners(model: nn.Module, hold: Iterable[str] = ()) -> dict[str, tuple[nn.Module, list[Tensor]]]:
    """{module name: (module, the tensors that its forward hooks shift)}, for every module.

    A module's own parameters; for MultiheadAttention also those of out_proj, which it reads without calling it.
    What is named in `hold` (parameters or modules) goes to the model itself, the module "".
    """
    hold = list(hold)
    held: dict[int, Tensor] = {}
    for wanted in hold:
        inside = {
            id(p): p
            for name, p in model.named_parameters(remove_duplicate=False)
            if name == wanted or name.startswith(wanted + ".")
        }
        if not inside:
            raise ValueError(f"hold names {wanted!r}, but the model has no parameter or module of that name")
        held |= inside
    found = {}
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        if isinstance(module, nn.MultiheadAttention):
            own += list(module.out_proj.parameters())
        own = [p for p in own if id(p) not in held]
        found[name] = (module, own if name else [*held.values(), *own])
    return found


def largest_chain(
    model: nn.Module, trained: Iterable[Tensor], hold: Iterable[str] = (), rows: int = 0, tokens: int = 0
) -> int:
    """Bytes of the copies that `Hooked` holds at most: a module's own tensors and those of modules around it.

    rows, tokens: of a weight that is shifted by rows, only so many are copied: `rows` by a linear layer, by an
    embedding those that `tokens` tokens look up at most, and one part of `rows` rows more.
    """
    ids = {id(p) for p in trained}
    owned = {name: own for name, (_, own) in owners(model, hold).items()}
    largest = 0
    for name, (module, _) in owners(model, hold).items():
        parts = name.split(".") if name else []
        chain = {id(p): p for i in range(len(parts) + 1) for p in owned.get(".".join(parts[:i]), ()) if id(p) in ids}
        total = sum(p.numel() * p.element_size() for p in chain.values())
        if by_rows(module, rows) and id(module.weight) in chain:
            w = module.weight
            copied = min(tokens, len(w)) + rows if isinstance(module, nn.Embedding) else rows
            total -= max(0, len(w) - copied) * w.shape[1] * w.element_size()
        largest = max(largest, total)
    return largest
