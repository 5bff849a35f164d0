"""Random directions drawn again from integers whenever they are needed, so that none has to be kept.

The direction of one tensor depends on four integers only: the run's seed, the step, which of the step's directions
it is, and the tensor's index. It is drawn in pieces of fixed length, each from a seed of its own, and added to the
weights piece by piece: no direction is ever whole in memory, pieces are shared out to threads, and neither the number
of threads nor the order of tensors can matter. torch's global generators are never touched.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

DIRECTIONS = ("gaussian", "rademacher", "sphere")
PIECE = 1 << 15  # numbers: small enough for a core's cache and for torch not to split it among threads itself
DEVICE_PIECE = 1 << 22  # on an accelerator, where every kernel that is launched costs
Terms = Sequence[tuple[int, float]]  # (seed of a tensor's direction, what it is multiplied by)


def mix(*integers: int) -> int:
    """One integer in [0, 2^63) from several: a hash, so that neighbouring seeds and steps share nothing."""
    text = ",".join(map(str, integers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def noise_dtype(dtype: torch.dtype) -> torch.dtype:
    """Directions of half-precision weights are drawn and added in float32; the sum is rounded once."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def draw(direction: str, like: Tensor, seed: int) -> Tensor:
    """A direction shaped like a tensor, on its device, in `noise_dtype`, contiguous whatever `like` is.

    "gaussian" and "sphere": N(0, 1) numbers (a sphere still has to be multiplied by `sphere_factor`).
    "rademacher": -1 or 1.
    """
    z = torch.zeros(like.shape, dtype=noise_dtype(like.dtype), device=like.device)
    add(direction, z, [(seed, 1.0)])
    return z


def add(
    direction: str,
    w: Tensor,
    terms: Terms,
    rate: float = 1.0,
    decay: float = 0.0,
    *,
    source: Tensor | None = None,
    start: int = 0,
    size: int | None = None,
) -> None:
    """w += rate (sum over terms of scale z(seed) + decay w), computed in `noise_dtype` and rounded once.

    source: what stands for w on the right-hand side; by default w itself. start, size: w is that part of a tensor of
    `size` numbers which begins at its number `start` (in row-major order); it gets the numbers that it would get
    within the whole. Where nothing is added, -0.0 stays.
    """
    terms = [(seed, rate * scale) for seed, scale in terms if rate * scale != 0]
    decay *= rate
    source = w if source is None else source
    if not w.numel() or (not terms and not decay):
        if source is not w:
            w.copy_(source)
        return
    if not w.is_contiguous():
        whole = source.contiguous() if not source.is_contiguous() else source.clone()
        add(direction, whole, terms, 1.0, decay, start=start, size=size)
        w.copy_(whole)
        return
    flat, given = w.detach().view(-1), source.detach().reshape(-1)
    step = _piece(w.device)
    size = flat.numel() if size is None else size
    stop = start + flat.numel()
    pieces = range(start // step, -(-stop // step))
    inference, stopped = torch.is_inference_mode_enabled(), threading.Event()

    def work(numbers: range, buffers: Sequence[Tensor], generator: torch.Generator) -> None:
        with torch.inference_mode(inference):  # a mode belongs to its thread
            piecewise(numbers, buffers, generator)

    def piecewise(numbers: range, buffers: Sequence[Tensor], generator: torch.Generator) -> None:
        total, other = buffers[0], buffers[-1]
        for number in numbers:
            if stopped.is_set():
                return
            low = number * step
            length = min(step, size - low)
            padded = _padded(length)
            first, last = max(low, start), min(low + length, stop)
            here, inside = slice(first - start, last - start), slice(first - low, last - low)
            part, old = flat[here], given[here]
            if not terms:
                total.zero_()
            for k, (seed, scale) in enumerate(terms):
                z = (other if k else total)[:padded]
                _fill(direction, z, scale, generator.manual_seed(mix(seed, number)))
                if k:
                    total[:padded].add_(z)
            if decay:
                total[inside].add_(other[inside].copy_(old).mul_(decay))
            # product and sum apart: a fused multiply-add would round differently from one machine to the next
            if part.dtype == total.dtype:
                torch.add(old, total[inside], out=part)
            else:
                part.copy_(total[inside].add_(old))

    workers = max(1, min(torch.get_num_threads(), len(pieces) // 2)) if w.device.type == "cpu" else 1
    numbers = _padded(min(step, size)), 2 if len(terms) > 1 or decay else 1
    jobs = []
    for k in range(workers):
        buffers = [torch.empty(numbers[0], dtype=noise_dtype(w.dtype), device=w.device) for _ in range(numbers[1])]
        jobs.append((pieces[k::workers], buffers, torch.Generator(device=w.device)))
    others = [_pool(workers - 1).submit(work, *job) for job in jobs[1:]]
    try:
        work(*jobs[0])
        for other in others:
            other.result()
    except BaseException:
        stopped.set()  # nobody writes to w after this function was left
        concurrent.futures.wait(others)
        raise


def scratch(tensors: Iterable[Tensor], terms: int = 1, decay: float = 0.0) -> int:
    """Bytes of the buffers that `add` needs at most for one of these tensors, on the CPU, with torch's threads."""
    most = 0
    for p in tensors:
        pieces = -(-p.numel() // PIECE)
        workers = max(1, min(torch.get_num_threads(), pieces // 2))
        each = _padded(min(PIECE, p.numel())) * noise_dtype(p.dtype).itemsize
        most = max(most, workers * each * (2 if terms > 1 or decay else 1))
    return most


def sphere_factor(tensors: Iterable[tuple[int, Tensor]], seed: int) -> float:
    """sqrt(d) / norm(z) over all (index, tensor) together: brings z to the sphere on which E[z z^T] = I."""
    d, squares = 0, 0.0
    for index, p in tensors:
        d += p.numel()
        step, n = _piece(p.device), p.numel()
        z = torch.empty(_padded(min(step, n)), dtype=noise_dtype(p.dtype), device=p.device)
        generator = torch.Generator(device=p.device)
        for number in range(-(-n // step)):
            length = min(step, n - number * step)
            _fill("sphere", z[: _padded(length)], 1.0, generator.manual_seed(mix(mix(seed, index), number)))
            squares += float(torch.linalg.vector_norm(z[:length], dtype=torch.float64)) ** 2
    return math.sqrt(d / squares) if d else 1.0  # without numbers every direction is the empty one


class Directions:
    """The n directions of one step, over all trained (index, tensor) pairs."""

    def __init__(self, direction: str, n: int, step_seed: int, tensors: Sequence[tuple[int, Tensor]]) -> None:
        self.direction = direction
        self.seeds = [mix(step_seed, k) for k in range(n)]
        # the radius of a joint sphere is known only after a pass over all tensors
        self.factors = [sphere_factor(tensors, s) if direction == "sphere" else 1.0 for s in self.seeds]

    def shift(
        self, k: int, scale: float, index: int, w: Tensor, source: Tensor, start: int = 0, size: int | None = None
    ) -> None:
        """w = source + scale times direction k of the tensor with that index; `start` and `size` as for `add`."""
        terms = [(mix(self.seeds[k], index), scale * self.factors[k])]
        add(self.direction, w, terms, source=source, start=start, size=size)

    def mean(self, scalars: Sequence[float]) -> list[tuple[int, float]]:
        """[(seed, scale)] of the mean over k of scalars[k] z_k; `descend` takes them, of several steps too."""
        found = zip(self.seeds, scalars, self.factors, strict=True)
        return [(seed, scalar * factor / len(scalars)) for seed, scalar, factor in found]


def descend(direction: str, terms: Terms, index: int, p: Tensor, lr: float, weight_decay: float) -> None:
    """p -= lr (sum of scale z(seed) + weight_decay p) for the tensor with that index."""
    add(direction, p, [(mix(seed, index), scale) for seed, scale in terms], -lr, weight_decay)


def _fill(direction: str, z: Tensor, scale: float, generator: torch.Generator) -> None:
    """scale times a direction into a flat buffer whose length is a multiple of 64."""
    if direction != "rademacher":
        z.normal_(generator=generator).mul_(scale)
        return
    # 64 signs from one random integer: shifted so that each of its bits comes to stand where a float has its sign
    words = torch.empty(z.numel() // 64, dtype=torch.int64, device=z.device)
    words.random_(-(2**63), None, generator=generator)
    if scale < 0:
        words.bitwise_not_()
    width = 8 * z.element_size()
    whole = torch.int32 if width == 32 else torch.int64
    shifts = torch.arange(width, dtype=whole, device=z.device).unsqueeze(1)
    torch.bitwise_left_shift(words.view(whole), shifts, out=z.view(whole).view(width, -1))
    torch.copysign(torch.tensor(abs(scale), dtype=z.dtype, device=z.device), z, out=z)


def _piece(device: torch.device) -> int:
    return PIECE if device.type == "cpu" else DEVICE_PIECE


def _padded(n: int) -> int:
    return -(-n // 64) * 64


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="dlopt-zeroth")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
