"""The growing index against a search that reads everything."""

import random

import pytest

from dlopt.speculative import PromptLookup, ReferenceDrafter, Sampling
from dlopt.speculative.ngrams import NgramIndex


def search(text, documents, shortest, longest, latest):
    """(document, place of the next token, n), naively: the longest n, then the first or last place."""
    for n in range(min(longest, len(text)), shortest - 1, -1):
        hits = [
            (number, i)
            for number, document in enumerate(documents)
            for i in range(n, len(document))
            if document[i - n : i] == text[-n:]
        ]
        if hits:
            return (*hits[-1 if latest else 0], n)
    return None


@pytest.mark.parametrize("latest", [True, False])
@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 3), (2, 4)])
def test_prompt_lookup_equals_a_search(latest, shortest, longest):
    rng = random.Random(longest)
    drafter = PromptLookup(longest, 6, shortest, latest=latest)
    for _ in range(20):
        text = [rng.randrange(4) for _ in range(rng.randrange(1, 12))]
        session = drafter.begin(text, Sampling())
        for _ in range(12):
            draft = session.propose(4)
            found = search(text, [text], shortest, longest, latest)
            assert draft.tokens == ([] if found is None else text[found[1] : found[1] + 4]) or (
                found is None and not draft.tokens
            )
            if found is not None:
                assert draft.level >= found[2]
                place, n = found[1], draft.level
                assert text[place - n : place] == text[-n:]
            new = [rng.randrange(4) for _ in range(rng.randrange(1, 4))]
            session.observe(new)
            text = text + new


@pytest.mark.parametrize("latest", [True, False])
def test_llma_searches_the_documents_for_the_output_alone(latest):
    rng = random.Random(3)
    documents = [[rng.randrange(5) for _ in range(rng.randrange(1, 9))] for _ in range(6)]
    drafter = ReferenceDrafter(documents, 2, 5, 3, latest=latest)
    session, output = drafter.begin([0, 1, 2, 3, 4] * 3, Sampling()), []
    assert not session.propose(9).tokens  # no output yet, whatever the prompt says
    drafted = 0
    for _ in range(60):
        new = [rng.randrange(5)]
        session.observe(new)
        output += new
        found = search(output, documents, 2, 3, latest)
        draft = session.propose(9)
        expected = [] if found is None else documents[found[0]][found[1] : found[1] + 5]
        assert list(draft.tokens) == expected  # never beyond its document
        if found is not None:
            drafted += 1
            assert draft.level >= found[2]
            assert draft.level <= found[1]  # nor does its match reach back over the border
    assert drafted > 10


def test_llma_takes_the_prompt_if_there_is_no_document():
    session = ReferenceDrafter(length=3).begin([5, 6, 7, 8, 9], Sampling())
    session.observe([6])
    assert session.propose(9).tokens == [7, 8, 9]
    assert session.propose(2).tokens == [7, 8]


def test_an_index_does_not_find_its_own_end():
    index = NgramIndex(1, 3)
    index.extend([1, 2, 3])
    assert index.find([1, 2, 3]) is None
    index.extend([1])
    assert index.find(index.tokens) == (1, 1)
    with pytest.raises(ValueError, match="1 <= shortest <= longest, got 2 and 1"):
        NgramIndex(2, 1)
