"""Suffix sorting with NumPy: prefix doubling that touches only what is not in order yet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LONGEST = 2**31 - 2  # elements of a stream: places are int32


def suffix_array(stream: np.ndarray, progress: Callable[[int, int], object] | None = None) -> np.ndarray:
    """The places of all tokens (int32), ordered by what stands from there to the next border.

    stream: uint32 (N,), at most 2^31 - 2 elements, in which 0 is a border; the last element must be one. A border comes
    before every token, and nothing beyond it counts: remainders that are equal up to it stay in order of place. So the
    result is the same on every machine. progress(done, n) is called after every round.

    The first q tokens are packed into one 63-bit key and sorted. Then h = q, 2q, 4q, ...: groups that agree in their
    first h tokens are sorted by the groups of the places h further on (Manber and Myers 1993), and places that are
    settled are not looked at again (Larsson and Sadakane 2007). Rounds: log2(longest repeat / q), each O(m log m) for
    the m places still open. Peak memory: about 50 bytes a token, the result and the stream included.
    """
    if not len(stream) or stream[-1] != 0:
        raise ValueError("a stream must end with a border")
    if len(stream) > LONGEST:
        raise ValueError(f"a stream has at most {LONGEST} elements, got {len(stream)}")
    sa = np.flatnonzero(stream).astype(np.int32)
    n = len(sa)
    borders = np.flatnonzero(stream == 0).astype(np.int32)
    ends = np.repeat(borders, np.diff(borders, prepend=-1))  # for each place, the next border
    depth, key = _first_key(stream, sa, ends)
    order = np.argsort(key, kind="stable")
    sa, key = sa[order], key[order]
    rank = np.zeros(len(stream), np.int32)  # 1 + first slot of the place's group, 0 for borders
    slots = np.arange(n, dtype=np.int32)  # of the open places, whole groups each
    while n:
        head = np.append(True, key[1:] != key[:-1])
        held = sa[slots]
        rank[held] = np.maximum.accumulate(np.where(head, slots, 0)) + 1
        alone = head & np.append(head[1:], True)
        # a group that ends before `depth` holds equal remainders: nothing is left to sort
        slots = slots[~alone & (ends[held] - held >= depth)]
        if progress is not None:
            progress(n - len(slots), n)
        if not len(slots):
            break
        held = sa[slots]
        key = rank[held].astype(np.int64) << 32
        key |= rank[held + depth]
        order = np.argsort(key, kind="stable")
        sa[slots] = held[order]
        key = key[order]
        depth *= 2
    return sa


def _first_key(stream: np.ndarray, places: np.ndarray, ends: np.ndarray) -> tuple[int, np.ndarray]:
    """(q, int64 key of the first q tokens of each place): as many as fit into 63 bits, at most 8."""
    bits = int(stream.max()).bit_length()
    q = min(8, 63 // max(bits, 1))
    key = np.zeros(len(places), np.int64)
    at, last = places.copy(), ends[places]
    for _ in range(q):
        key <<= bits
        key |= stream[at]
        at += 1
        np.minimum(at, last, out=at)
    return q, key
