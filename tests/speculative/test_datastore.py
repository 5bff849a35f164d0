"""The datastore against searches that read everything, its file, and the drafts of REST."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt.speculative import DatastoreDrafter, Sampling, generate
from dlopt.speculative.datastore import Datastore, identity
from dlopt.speculative.draft import checked
from dlopt.speculative.store_file import MARK
from dlopt.speculative.suffix_array import suffix_array
from tests.speculative.tiny import PROMPT, model

DOCUMENTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=6)
PATTERN = st.lists(st.integers(0, 3), max_size=5)


def starts(documents, pattern):
    """(document, place behind the match) of every occurrence, found by reading all."""
    n = len(pattern)
    return [
        (number, i + n)
        for number, document in enumerate(documents)
        for i in range(len(document) - n + (n > 0))
        if list(document[i : i + n]) == list(pattern)
    ]


def found(store, documents, first, last, skip=0):
    """The same from a range of suffixes."""
    begins = np.cumsum([0] + [len(d) + 1 for d in documents])
    places = store.suffixes[first:last].tolist()
    numbers = [int(np.searchsorted(begins, place, "right")) - 1 for place in places]
    return [(number, place - int(begins[number]) + skip) for number, place in zip(numbers, places)]


def brute_trie(documents, pattern, length):
    """{path: count} of what follows a pattern."""
    counts = Counter()
    for number, place in starts(documents, pattern):
        after = documents[number][place : place + length]
        counts.update(tuple(after[: d + 1]) for d in range(len(after)))
    return dict(counts)


def paths(trie):
    """{path: count} of a trie, and that parents come first."""
    full = []
    for i, (token, parent) in enumerate(zip(trie.tokens.tolist(), trie.parents.tolist())):
        assert -1 <= parent < i
        full.append((*(full[parent] if parent >= 0 else ()), token))
    assert len(set(full)) == len(full)
    return dict(zip(full, trie.counts.tolist()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DOCUMENTS, st.lists(PATTERN, min_size=1, max_size=4), st.integers(1, 4), st.sampled_from([1, 2**30]))
def test_a_store_equals_a_naive_search(documents, patterns, length, scale):
    # large ids leave room for one token in the first key, so that all the rest is doubling
    documents, patterns = ([[scale * t for t in row] for row in rows] for rows in (documents, patterns))
    store = Datastore.build(documents, 3 * scale)
    # suffixes in order: by what they hold up to the border, equal ones by place
    order = sorted((document[i:], n, i) for n, document in enumerate(documents) for i in range(len(document)))
    assert found(store, documents, 0, store.tokens) == [(n, i) for _, n, i in order]
    for pattern in [[], *patterns, documents[-1][-3:]]:
        first, last = store.search(pattern)
        assert sorted(found(store, documents, first, last, len(pattern))) == starts(documents, pattern)
        assert paths(store.continuations(pattern, 1000, length)) == brute_trie(documents, pattern, length)
        n, first, last = store.longest(pattern, 4, 2)
        known = [k for k in range(2, min(4, len(pattern)) + 1) if starts(documents, pattern[-k:])]
        assert n == max(known, default=0)
        if n:
            assert (first, last) == store.search(pattern[-n:])


@pytest.mark.parametrize("vocabulary", [2, 300, 100_000, 2**32 - 2])
def test_ids_beyond_16_bits(vocabulary):
    """Every packing of the first key, down to one token of 32 bits in it."""
    rng = np.random.default_rng(0)
    some = np.append(rng.integers(0, vocabulary, 6), vocabulary - 1)
    documents = [rng.choice(some, size).tolist() for size in (200, 1, 90, 350)]
    store = Datastore.build(documents, vocabulary)
    order = sorted((document[i:], n, i) for n, document in enumerate(documents) for i in range(len(document)))
    assert found(store, documents, 0, store.tokens) == [(n, i) for _, n, i in order]
    for size in (1, 2, 3):
        pattern = documents[3][-size:]
        assert sorted(found(store, documents, *store.search(pattern), size)) == starts(documents, pattern)
        assert paths(store.continuations(pattern, 1000, 3)) == brute_trie(documents, pattern, 3)
    assert vocabulary - 1 in store.continuations([], 1000, 1).tokens


def test_long_repeats_are_sorted_too():
    """Equal documents and one token over and over: the most rounds that there can be."""
    documents = [[1, 2, 3] * 20, [7] * 100, [1, 2, 3] * 20, [7] * 99]
    done = []
    store = Datastore.build(iter(documents), 8, progress=lambda *counts: done.append(counts))
    order = sorted((document[i:], n, i) for n, document in enumerate(documents) for i in range(len(document)))
    assert found(store, documents, 0, store.tokens) == [(n, i) for _, n, i in order]
    assert [n for n, _ in done] == sorted(n for n, _ in done)
    assert done[-1] == (319, 319)
    assert (store.tokens, store.documents, store.nbytes) == (319, 4, 4 * (319 + 323))
    first, last = store.search([7] * 99)
    assert last - first == 3


def test_nothing_reaches_over_a_border():
    store = Datastore.build([[1, 2], [3, 4], [1, 2, 5]], 9)
    assert len(set(store.search([2, 3]))) == 1
    assert paths(store.continuations([1, 2], 10, 4)) == {(5,): 1}
    assert paths(store.continuations([4], 10, 4)) == {}
    assert store.longest([2, 3], 4) == (1, *store.search([3]))


def test_many_hits_are_thinned_out_evenly():
    rng = np.random.default_rng(1)
    document = rng.choice(5, 4000, p=[0.5, 0.3, 0.1, 0.06, 0.04]).tolist()
    store = Datastore.build([document], 5)
    whole, part = (paths(store.continuations([0], limit, 2)) for limit in (10_000, 200))
    total = sum(count for path, count in whole.items() if len(path) == 1)
    assert sum(count for path, count in part.items() if len(path) == 1) == 200
    for path, count in whole.items():
        assert abs(part.get(path, 0) - 200 * count / total) <= 1 + 1e-9


def test_a_saved_store_is_mapped_and_equal(tmp_path):
    path = tmp_path / "some.store"
    store = Datastore.build([[5, 70_000, 6], np.array([5, 70_000]), torch.tensor([1])], 80_000, tokenizer="one")
    store.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["some.store"]
    for verify in (True, False):
        again = Datastore.load(path, verify=verify)
        assert again.stream.base is not None  # a view of the file, not a copy
        assert not again.stream.flags.writeable
        for name in ("stream", "suffixes"):
            assert np.array_equal(getattr(again, name), getattr(store, name))
        assert (again.vocabulary, again.documents, again.tokenizer) == (80_000, 3, "one")
        assert paths(again.continuations([5, 70_000], 9, 2)) == {(6,): 1}
    again.save(path)  # over itself, from the mapped file
    assert np.array_equal(Datastore.load(path).suffixes, store.suffixes)


def test_broken_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "some.store"
    Datastore.build([[1, 2, 3, 1, 2]], 5).save(path)
    good = path.read_bytes()

    def refused(content, message, verify=True):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Datastore.load(path, verify)

    refused(b"", "is not a datastore")
    refused(b"PK\x03\x04" + good, "is not a datastore")
    refused(good[: len(MARK) + 4], "is cut off")
    refused(good[:100], "is cut off")
    for verify in (True, False):
        refused(good[:-1], "its header promises", verify)
        refused(good[:-64], "its header promises", verify)
        refused(good + b"\0", "its header promises", verify)
    at = good.index(b'"vocabulary": 5')
    refused(good[:at] + good[at:].replace(b"5", b"6", 1), "header does not have its checksum", False)
    begin = len(good) - 128  # two arrays of one block each
    for name, where in (("stream", begin), ("suffixes", begin + 64)):
        refused(good[:where] + bytes([good[where] ^ 1]) + good[where + 1 :], f"{name} do not have their checksum")
    header = json.dumps({"format": 2}).encode()
    other = MARK + len(header).to_bytes(8, "little") + hashlib.sha256(header).digest() + header
    refused(other, "has format 2, this version reads 1")
    with pytest.raises(FileNotFoundError):
        Datastore.load(tmp_path / "none.store")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Datastore.build([], 5), "at least one document"),
        (lambda: Datastore.build([[1], []], 5), "document 1 must be a sequence of at least one token id"),
        (lambda: Datastore.build([1, 2], 5), "document 0 must be a sequence"),
        (lambda: Datastore.build([[1.5]], 5), "document 0 must hold whole numbers, got float64"),
        (lambda: Datastore.build([[1, 5]], 5), "from 1 to 5; they must be from 0 to 4"),
        (lambda: Datastore.build([[-1]], 5), "from -1 to -1"),
        (lambda: Datastore.build([[1]], 2**32 - 1), "vocabulary must be from 1 to 4294967294"),
        (lambda: Datastore.build([[1]], 5).search([-1]), "token ids are at least 0, got -1"),
        (lambda: Datastore.build([[1]], 5).continuations([1], 0, 1), "limit and length must be at least 1, got 0 and"),
        (lambda: suffix_array(np.array([1, 2], np.uint32)), "must end with a border"),
        (lambda: DatastoreDrafter(Datastore.build([[1]], 5), 2, 3), "1 <= shortest <= longest, got 3 and 2"),
        (lambda: DatastoreDrafter(Datastore.build([[1]], 5), nodes=0), "nodes must be at least 1, got 0"),
        (lambda: DatastoreDrafter(Datastore.build([[1]], 5), hits=0), "hits must be at least 1, got 0"),
        (lambda: DatastoreDrafter(Datastore.build([[1]], 5), length=0), "length must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def naive_draft(documents, text, drafter, limit):
    """{path: count} that may be drafted, how many of them, and the matched length, from reading all documents."""
    for n in range(min(drafter.longest, len(text)), drafter.shortest - 1, -1):
        counts = brute_trie(documents, text[-n:], min(drafter.length, limit))
        if counts:
            return counts, min(drafter.nodes, len(counts)), n
    return {}, 0, 0


def test_rest_drafts_the_most_frequent_continuations_as_a_tree(tmp_path):
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 4, size).tolist() for size in rng.integers(1, 40, 12)]
    Datastore.build(documents, 4).save(tmp_path / "some.store")
    drafter = DatastoreDrafter(tmp_path / "some.store", longest=4, shortest=2, length=3, nodes=9)
    session, text = drafter.begin([0], Sampling()), [0]
    assert not session.propose(5).tokens  # shorter than the shortest match
    empty = 0
    for step in range(60):
        new = rng.integers(0, 5, 1 + step % 3).tolist()  # 4 is in no document
        session.observe(new)
        text += new
        limit = 1 + step % 4
        draft = session.propose(limit)
        counts, size, n = naive_draft(documents, text, drafter, limit)
        checked(draft, limit, 4, session)
        assert (len(draft.tokens), draft.level) == (size, n)
        if not size:
            empty += 1
            continue
        drafted = []
        for token, parent in zip(draft.tokens, draft.parents):
            drafted.append((*(drafted[parent] if parent >= 0 else ()), token))
        assert len(set(drafted)) == size
        ours = [counts[path] for path in drafted]
        assert ours == sorted(counts.values(), reverse=True)[:size]  # the most frequent, in falling order
        assert draft.probs is None
    assert 5 < empty < 55


def test_rest_falls_back_where_the_longest_match_ends_its_document():
    drafter = DatastoreDrafter(Datastore.build([[1, 2, 3], [9, 3, 4]], 10), shortest=1)
    draft = drafter.begin([1, 2, 3], Sampling()).propose(5)
    assert (draft.tokens, draft.level) == ([4], 1)


def test_a_store_of_another_vocabulary_or_tokenizer_is_refused():
    class Words:
        def __init__(self, *words):
            self.words = words

        def get_vocab(self):
            return {word: i for i, word in enumerate(self.words)}

    target = model()
    with pytest.raises(ValueError, match="the datastore has a vocabulary of 25, the target only 24"):
        generate(target, [PROMPT], DatastoreDrafter(Datastore.build([[1]], 25)))
    drafter = DatastoreDrafter(Datastore.build([PROMPT], 24, tokenizer=Words("a", "b")))
    with pytest.raises(ValueError, match=r"another tokenizer \(2 tokens, sha256 .* than the target's \(2 tokens"):
        generate(target, [PROMPT], drafter, tokenizer=Words("b", "a"))
    generate(target, [PROMPT], drafter, tokenizer=Words("a", "b"), max_new_tokens=2, gate=False)
    assert identity(Words("a", "b")) == drafter.datastore.tokenizer
    assert identity(None) is None
