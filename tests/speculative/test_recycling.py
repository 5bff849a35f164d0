"""Token recycling against a twin that walks the matrix path by path."""

import itertools
import random

import pytest
import torch

from dlopt.speculative import Sampling, TokenRecycling, generate
from dlopt.speculative.draft import checked
from dlopt.speculative.recycling import likeliest
from tests.speculative.tiny import PROMPT, model


def twin(matrix, last, template, limit):
    """The tokens at the end of every path of the template that the matrix can walk, with the path before them."""
    found = []
    for path in template:
        token, walked = last, []
        for rank in path:
            successors = matrix.get(token, [])
            if rank >= len(successors):
                break
            token = successors[rank]
            walked.append(token)
        if len(walked) == len(path) <= limit:
            found.append(walked)
    return found


def full(draft):
    walked = []
    for token, parent in zip(draft.tokens, draft.parents):
        walked.append([*(walked[parent] if parent >= 0 else []), token])
    return walked


@pytest.mark.parametrize(("k", "nodes", "depth"), [(8, 80, 6), (2, 5, 3), (1, 4, 6), (3, 1000, 2)])
def test_the_template_holds_the_smallest_sums(k, nodes, depth):
    every = [path for n in range(1, depth + 1) for path in itertools.product(range(min(k, 8)), repeat=n)]
    every = [path for path in every if sum(path) + len(path) <= 8]  # the tail of a large one is left out
    ordered = sorted(every, key=lambda path: (sum(path) + len(path), len(path), path))
    found = likeliest(k, nodes, depth)
    assert found == ordered[:nodes]


def test_the_default_tree_has_the_shape_that_is_stated():
    depths = [depth for _, _, depth in TokenRecycling().template]
    assert [depths.count(d) for d in range(1, 8)] == [7, 21, 30, 15, 6, 1, 0]


@pytest.mark.parametrize("template", [None, [[0], [2], [0, 1], [2, 0], [0, 1, 1]]])
def test_drafts_equal_a_twin(template):
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    drafter = TokenRecycling(3, 12, 4, template=template)
    paths = likeliest(3, 12, 4) if template is None else template
    session, matrix, last = drafter.begin([1, 2], Sampling()), {}, 2
    assert not session.propose(9).tokens  # nothing learned yet
    drafted = 0
    for _ in range(40):
        limit = rng.randrange(1, 6)
        draft = checked(session.propose(limit), limit, 9, session)
        assert (full(draft) if draft.tokens else []) == twin(matrix, last, paths, limit)
        drafted += len(draft.tokens)
        inputs = [last, *draft.tokens]
        logits = torch.randn(len(inputs), 9, generator=generator)
        session.learn(inputs, logits)
        seen = set()
        for token, row in zip(inputs, logits.tolist()):
            if token not in seen:  # the first is the root, or the likelier node
                matrix[token] = sorted(range(9), key=lambda t: -row[t])[:3]
            seen.add(token)
        assert session.matrix == matrix
        last = rng.randrange(9)
        session.observe([rng.randrange(9), last])
    assert drafted > 100


def test_a_vocabulary_smaller_than_k():
    session = TokenRecycling().begin([0], Sampling())
    session.learn([0], torch.tensor([[1.0, 3.0, 2.0]]))
    assert session.propose(1).tokens == [1, 2, 0]


def test_a_matrix_is_shared_only_if_it_is_given():
    target, matrix = model(), {}
    options = {"max_new_tokens": 12, "gate": False, "eos": None}
    plain = generate(target, [PROMPT], max_new_tokens=12, eos=None).tokens
    first = generate(target, [PROMPT], TokenRecycling(matrix=matrix), **options)
    assert matrix
    assert all(len(row) == 8 for row in matrix.values())
    second = generate(target, [PROMPT], TokenRecycling(matrix=matrix), **options)
    assert first.tokens == second.tokens == plain
    # what was learned from the same text is not worse the second time, and rounds are saved
    assert second.stats.rounds <= first.stats.rounds < 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"template": []}, "at least one path"),
        ({"template": [[]]}, r"template: \[\] must be new"),
        ({"template": [[0], [1, 0]]}, r"\[1, 0\] must be new, come after its parent"),
        ({"template": [[0], [0]]}, r"\[0\] must be new"),
        ({"k": 2, "template": [[2]]}, "ranks from 0 to 1"),
        ({"template": [[-1]]}, "ranks from 0 to 7"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenRecycling(**options)
