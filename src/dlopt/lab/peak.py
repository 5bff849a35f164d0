"""What is alive during a computation: the peak of live tensors, and what autograd saves for the backward pass.

Both count distinct storages, whole, as `dlopt.memory.tensor_bytes` does, and are exact on the CPU and on meta
tensors: they follow every storage from the operator that makes it to the moment it is freed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


def parts(tensor: Tensor) -> list[Tensor]:
    """The plain strided tensors that hold a tensor's bytes: itself, or the pieces of a sparse or wrapper tensor."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [piece for name in names for piece in parts(getattr(tensor, name))]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The plain tensors in a tensor, a module (parameters and buffers) or any nesting of containers of these."""
    for leaf in tree_leaves(tree if isinstance(tree, Tensor | nn.Module | Mapping) else list(tree)):
        if isinstance(leaf, nn.Module):
            for owned in (*leaf.parameters(), *leaf.buffers()):
                yield from parts(owned)
        elif isinstance(leaf, Tensor):
            yield from parts(leaf)


@dataclass(frozen=True)
class PeakReport:
    """Live tensor bytes around one call. peak: the most alive at once. start, end: before the call and just after
    it, its result still held. created: sum of all that was allocated on the way. operator: the ATen operator that
    reached the peak, empty if the peak is the start. device: "cpu", "meta" or a CUDA device.
    """

    peak: int
    start: int
    end: int
    created: int
    operator: str
    device: str

    @property
    def rise(self) -> int:
        """peak - start: what the call needs on top of what was there."""
        return self.peak - self.start


def peak_live(fn: Callable[[], object], held: Any = (), device: torch.device | str = "cpu") -> PeakReport:
    """Run `fn()` once and report the peak of live tensor bytes on `device`.

    On "cpu" (and "meta") every operator is watched, in forward and backward: a storage counts from the operator
    that returns it until it is freed, once however many views it has, and an in-place operator adds nothing.
    `start` holds the tensors of `held` (tensors, modules, or nestings; give an iterator if `fn` shall be able to
    free them) and each tensor from outside that `fn` touches.

    Not seen: buffers inside one ATen kernel (an im2col workspace), memory of NumPy, and operators run by other
    threads. A module compiled by `torch.compile` is seen only at its borders.

    On "cuda" the numbers are those of PyTorch's allocator (`torch.cuda.max_memory_allocated`): all tensors of the
    process count and sizes are rounded up to 512 bytes; `held` is ignored and `operator` stays empty.
    """
    device = torch.device(device)
    if device.type == "cuda":
        report = _cuda_peak(fn, device)
    else:
        ledger = _Ledger(device.type)
        ledger.hold(held)
        del held  # an iterator's last tensor must be free to go
        with ledger:
            result = fn()
        report = ledger.report()
        del result
    return report


def _cuda_peak(fn: Callable[[], object], device: torch.device) -> PeakReport:  # pragma: no cover - needs a GPU
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    made = torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0)
    result = fn()
    torch.cuda.synchronize(device)
    peak, end = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    created = torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0) - made
    del result
    return PeakReport(peak, start, end, created, "", str(device))


class _Ledger(TorchDispatchMode):
    """Follows storages by weak references. `change` is live bytes relative to the start, so an outside tensor that
    is first touched late raises the start, and with it the whole curve, as it must."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.start = self.change = self.highest = self.created = 0
        self.operator = ""
        self.sizes: dict[int, int] = {}
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def hold(self, held: Any) -> None:
        for tensor in tensors_in(held):
            self._see(tensor, fresh=False)

    def report(self) -> PeakReport:
        self.alive.clear()  # no more callbacks
        return PeakReport(
            self.start + self.highest, self.start, self.start + self.change, self.created, self.operator, self.kind
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # torch.tensor and torch.from_numpy fill their memory unseen, and come by here first
        fresh = func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)
        for tensor in tensors_in((args, kwargs)):
            self._see(tensor, fresh)
        out = func(*args, **kwargs)
        for tensor in tensors_in((args, kwargs, out)):  # arguments again: resize_ and out= change their size
            self._see(tensor, fresh=True)
        if self.change > self.highest:
            self.highest, self.operator = self.change, str(func)
        return out

    def _see(self, tensor: Tensor, fresh: bool) -> None:
        if tensor.device.type != self.kind:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.sizes:
            self.alive[key] = weakref.ref(storage, partial(self._gone, key))
            if not fresh:
                self.start += size
                self.sizes[key] = size
                return
        growth = size - self.sizes.get(key, 0)
        self.sizes[key] = size
        self.change += growth
        self.created += max(growth, 0)

    def _gone(self, key: int, reference: object) -> None:
        self.change -= self.sizes.pop(key)
        del self.alive[key]


def saved_for_backward(fn: Callable[[], object], weights: Any = ()) -> int:
    """Bytes that autograd saves for the backward pass while `fn()` runs: the most that are saved at once.

    Counted through `torch.autograd.graph.saved_tensors_hooks`, distinct storages once. Left out, since they are
    held anyway: the leaves that receive a gradient (weights, and inputs that require one), found in the graph of
    what `fn` returns, and the tensors of `weights`. Give the model as `weights` if it has frozen weights or
    buffers, or if `fn` runs the backward pass and returns no loss: these cannot be told from activations.
    The input batch is counted when it is saved, as for a first linear layer.

    What `torch.utils.checkpoint` saves by hooks of its own is not seen here; `peak_live` sees it.
    """
    book = _Saves()
    known = _keys(weights)
    with torch.autograd.graph.saved_tensors_hooks(partial(_Saved, book), _Saved.get):
        result = fn()
    known |= _keys(weights) | _keys(_leaves(result))
    del result
    return book.peak(known)


class _Saves:
    """The order of saves and releases, to be replayed once it is known which storages are weights."""

    def __init__(self) -> None:
        self.events: list[tuple[int, int]] = []
        self.uses: dict[int, int] = {}
        self.sizes: dict[int, int] = {}

    def save(self, storage: torch.UntypedStorage) -> int:
        key = storage._cdata
        self.uses[key] = self.uses.get(key, 0) + 1
        if self.uses[key] == 1:
            self.sizes[key] = storage.nbytes()
            self.events.append((key, self.sizes[key]))
        return key

    def release(self, key: int) -> None:
        self.uses[key] -= 1
        if not self.uses[key]:
            self.events.append((key, -self.sizes[key]))

    def peak(self, without: set[int]) -> int:
        highest = now = 0
        for key, change in self.events:
            if key not in without:
                now += change
                highest = max(highest, now)
        return highest


class _Saved:
    """One tensor that autograd keeps; lives exactly as long as autograd keeps it."""

    def __init__(self, book: _Saves, tensor: Tensor) -> None:
        self.tensor, self.book = tensor, book
        self.keys = [book.save(part.untyped_storage()) for part in parts(tensor)]

    def get(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        for key in self.keys:
            self.book.release(key)


def _keys(tree: Any) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors_in(tree)}


def _leaves(result: object) -> list[Tensor]:
    """The leaves that get a gradient when the tensors in `result` are differentiated."""
    stack = [leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    seen, leaves = set(stack), []
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):  # an AccumulateGrad node
            leaves.append(node.variable)
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                stack.append(after)
    return leaves
