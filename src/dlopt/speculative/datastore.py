"""A store of token sequences in which every occurrence of a pattern is found by binary search (for REST)."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlopt.speculative.store_file import read, write
from dlopt.speculative.suffix_array import LONGEST, suffix_array

_WIDEST = 2**32 - 2  # token ids: they are stored plus 1 in 32 bits


class Trie(NamedTuple):
    """Continuations of a pattern, merged where they begin alike; int64 arrays, one entry for each node.

    tokens: ids. parents: index of the node before, smaller than its own, -1 at the top. counts: how many continuations
    pass through; no node has fewer than one of its children. Nodes stand by depth, then in the order of their tokens.
    """

    tokens: np.ndarray
    parents: np.ndarray
    counts: np.ndarray


class Datastore:
    """Documents of token ids, one stream and its suffix array: 8 bytes a token, mapped into memory when loaded.

    No match and no continuation reaches from one document into another. Made by `build` or `load`, never changed
    afterwards, so threads and processes may share it.

    vocabulary: every token id is below it. documents: how many. tokens: how many, in all of them. tokenizer: the
    identity of the tokenizer that made them, or None.

    Example:
        >>> from dlopt.speculative.datastore import Datastore
        >>> store = Datastore.build([[1, 2, 3, 1, 2, 4], [1, 2, 3]], vocabulary=8)
        >>> first, last = store.search([1, 2])
        >>> last - first
        3
        >>> trie = store.continuations([1, 2], limit=10, length=2)
        >>> trie.tokens.tolist(), trie.parents.tolist(), trie.counts.tolist()
        ([3, 4, 1], [-1, -1, 0], [2, 1, 1])
    """

    def __init__(
        self, stream: np.ndarray, suffixes: np.ndarray, vocabulary: int, documents: int, tokenizer: str | None
    ) -> None:
        self.stream, self.suffixes = stream, suffixes  # stream: ids plus 1, 0 ends a document
        self.vocabulary, self.documents, self.tokenizer = vocabulary, documents, tokenizer

    @property
    def tokens(self) -> int:
        return len(self.suffixes)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, in memory or mapped."""
        return self.stream.nbytes + self.suffixes.nbytes

    @classmethod
    def build(
        cls,
        documents: Iterable[Any],
        vocabulary: int,
        tokenizer: Any = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Datastore:
        """Sort all suffixes of the documents.

        documents: sequences, arrays or CPU tensors of token ids, none of them empty; a generator is read once.
        vocabulary: 1 to 2^32 - 2; ids are below it. tokenizer: the one that made the ids, or its `identity`; the store
        then refuses to serve another. progress(done, all) counts tokens that have found their place.

        ValueError names the first document that is empty, not whole numbers or out of range. Time: see `suffix_array`.
        Peak memory: about 50 bytes a token, at most 2^31 - 2 tokens and documents together.
        """
        if not 1 <= vocabulary <= _WIDEST:
            raise ValueError(f"vocabulary must be from 1 to {_WIDEST}, got {vocabulary}")
        parts, size = [], 0
        for number, document in enumerate(documents):
            parts.append(_stored(document, number, vocabulary))
            size += len(parts[-1])
            if size > LONGEST:
                raise ValueError(f"a datastore holds at most {LONGEST} tokens and documents; split the corpus")
        if not parts:
            raise ValueError("a datastore needs at least one document")
        count, stream = len(parts), np.concatenate(parts)
        parts.clear()
        return cls(stream, suffix_array(stream, progress), vocabulary, count, identity(tokenizer))

    def save(self, path: str | PathLike[str]) -> None:
        """Write one file, complete or not at all."""
        facts = {"vocabulary": self.vocabulary, "documents": self.documents, "tokenizer": self.tokenizer}
        arrays = {"stream": self.stream.astype("<u4", copy=False), "suffixes": self.suffixes.astype("<i4", copy=False)}
        write(Path(path), facts, arrays)

    @classmethod
    def load(cls, path: str | PathLike[str], verify: bool = True) -> Datastore:
        """Map a file of `save` into memory. ValueError, with a sentence, if it is cut off, damaged or something else.

        verify: compare the checksums of the arrays, which reads the whole file once; the header's is always compared.
        """
        header, arrays = read(Path(path), verify)
        facts = (header[name] for name in ("vocabulary", "documents", "tokenizer"))
        return cls(arrays["stream"], arrays["suffixes"], *facts)

    def search(self, pattern: Sequence[int]) -> tuple[int, int]:
        """(first, last): suffixes[first:last] are the places where the pattern begins, all of them.

        An empty range if it occurs nowhere; everything for an empty pattern. Two binary searches over the suffixes.
        """
        if len(pattern) and min(pattern) < 0:
            raise ValueError(f"token ids are at least 0, got {min(pattern)}")
        wanted = [int(token) + 1 for token in pattern]
        stream, place_of, length = self.stream, self.suffixes.item, len(wanted)

        def head(slot: int) -> list[int]:
            place = place_of(slot)
            return stream[place : place + length].tolist()

        # whatever a head has beyond a border does not matter: a pattern has no 0, so the order is decided before
        slots = range(len(self.suffixes))
        first = bisect_left(slots, wanted, key=head)
        return first, bisect_right(slots, wanted, lo=first, key=head)

    def longest(self, text: Sequence[int], longest: int, shortest: int = 1) -> tuple[int, int, int]:
        """(n, first, last) for the longest end of a text, `shortest` to `longest` tokens, that occurs; n = 0: none."""
        best, low, high = (0, 0, 0), shortest, min(longest, len(text))
        while low <= high:  # if an end of the text occurs, every shorter end does
            n = (low + high) // 2
            first, last = self.search(text[len(text) - n :])
            if first < last:
                best, low = (n, first, last), n + 1
            else:
                high = n - 1
        return best

    def continuations(self, pattern: Sequence[int], limit: int, length: int) -> Trie:
        """What follows a pattern: `follow` after `search`."""
        return self.follow(*self.search(pattern), len(pattern), limit, length)

    def follow(self, first: int, last: int, skip: int, limit: int, length: int) -> Trie:
        """The trie of up to `length` tokens after the first `skip` tokens of suffixes[first:last].

        limit: of more occurrences than that, so many are taken at even distances in the sorted order, which keeps the
        shares of all continuations to within one occurrence each. Those that reach the end of their document end there.
        """
        if limit < 1 or length < 1:
            raise ValueError(f"limit and length must be at least 1, got {limit} and {length}")
        total = last - first
        if total < 1:
            return Trie(*(np.zeros(0, np.int64) for _ in range(3)))
        slots = first + (np.arange(limit) * total // limit if total > limit else np.arange(total))
        places = self.suffixes[slots].astype(np.int64)[:, None] + np.arange(skip, skip + length)
        rows = self.stream[np.minimum(places, len(self.stream) - 1)]  # the last element is a border
        rows = rows * np.logical_and.accumulate(rows != 0, axis=1)  # nothing beyond a border
        return _merged(rows)


def _merged(rows: np.ndarray) -> Trie:
    """The trie of sorted rows (hits, length), in which 0 ends a row."""
    fresh = np.ones(rows.shape, bool)  # a row that differs from the one before in this column or an earlier one
    fresh[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    above = np.full(len(rows), -1)
    levels: list[tuple[np.ndarray, ...]] = []
    known = 0
    for d in range(rows.shape[1]):
        starts = np.flatnonzero(fresh[:, d])
        sizes = np.diff(starts, append=len(rows))
        token = rows[starts, d].astype(np.int64) - 1
        alive = token >= 0
        levels.append((token[alive], above[starts[alive]], sizes[alive]))
        above = np.repeat(np.where(alive, known + np.cumsum(alive) - 1, -1), sizes)
        known += len(levels[-1][0])
    return Trie(*(np.concatenate(column).astype(np.int64) for column in zip(*levels)))


def _stored(document: Any, number: int, vocabulary: int) -> np.ndarray:
    """A document as it stands in the stream: ids plus 1, then a border."""
    ids = np.asarray(document)
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"document {number} must be a sequence of at least one token id, got shape {ids.shape}")
    if ids.dtype.kind not in "iu":
        raise ValueError(f"document {number} must hold whole numbers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"document {number} has token ids from {ids.min()} to {ids.max()}; they must be from 0 to {vocabulary - 1}"
        )
    stored = np.zeros(len(ids) + 1, np.uint32)
    stored[:-1] = ids
    stored[:-1] += 1
    return stored


def identity(tokenizer: Any) -> str | None:
    """What a tokenizer is known by: the size and a checksum of its vocabulary. A string is passed on, None too."""
    if tokenizer is None or isinstance(tokenizer, str):
        return tokenizer
    entries = sorted((int(i), token) for token, i in tokenizer.get_vocab().items())
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    return f"{len(entries)} tokens, sha256 {digest[:32]}"
