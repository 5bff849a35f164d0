"""Sparse patterns: the sets of the paper, and blocked attention against dense masked attention."""

import math

import pytest
import torch

from dlopt.transformer.attention import plain_attention
from dlopt.transformer.positions import alibi_slopes
from dlopt.transformer.scope import Scope
from dlopt.transformer.sparse import Pattern, patterns
from tests.transformer.reference import sees
from tests.transformer.settings import PATTERNS, config

SETS = [
    Pattern(),
    Pattern("local", window=1),
    Pattern("local", window=2),
    Pattern("local", window=5),
    Pattern("local", window=64),
    Pattern("strided", stride=1),
    Pattern("strided", stride=4),
    Pattern("strided", stride=50),
    Pattern("block", stride=1),
    Pattern("block", stride=4),
    Pattern("block", stride=50),
    Pattern("summary", stride=4, summary=1),
    Pattern("summary", stride=4, summary=3),
    Pattern("summary", stride=4, summary=4),
    Pattern("summary", stride=50, summary=2),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_the_sets_of_the_paper(name):
    c = config("none", name)
    at = torch.arange(17)
    for layer in range(2):
        parts = patterns(c, layer)
        for head in range(4):
            seen = parts[head * len(parts) // 4].seen(at[:, None], at)
            for i in range(17):
                assert seen[i].tolist() == [sees(c, layer, head, i, j) for j in range(17)], (layer, head, i)


@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("t", [1, 3, 8, 21, 24])
@pytest.mark.parametrize("pattern", SETS, ids=lambda p: f"{p.kind}-{p.window}-{p.stride}-{p.summary}")
def test_blocked_equals_dense_masked_forward_and_backward(pattern, t, alibi):
    slopes = torch.tensor(alibi_slopes(3), dtype=torch.float64) if alibi else None
    at = torch.arange(t)
    mask = Scope(at, at, slopes=slopes).mask((pattern,), 3, torch.float64)
    wide = [torch.randn(2, 3, t, 4).double() for _ in range(3)]
    direction = torch.randn(2, 3, t, 4).double()

    def run(f, dtype):
        x = [w.to(dtype, copy=True).requires_grad_() for w in wide]
        out = f(*x)
        out.backward(direction.to(dtype))
        return [out, *(torch.zeros_like(w) if w.grad is None else w.grad for w in x)]

    dense = run(lambda q, k, v: plain_attention(q, k, v, False, 0.0, mask)[0], torch.float64)
    for dtype, gap in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        bias = None if slopes is None else slopes.to(dtype)
        for a, b in zip(run(lambda q, k, v, s=bias: pattern.blocked(q, k, v, s), dtype), dense, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=gap * max(1.0, b.abs().max().item()))


def test_windows_of_paper_and_code_differ_by_one():
    (paper, _), (code, _) = (
        patterns(config("none", "strided"), 0),
        patterns(config("none", "strided, window of the code"), 0),
    )
    assert (paper.window, code.window) == (4, 3)
    at = torch.arange(9)
    assert paper.seen(at[8], at).nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert code.seen(at[8], at).nonzero().flatten().tolist() == [6, 7, 8]


def test_two_steps_reach_everything():
    """The reason for the factorisation: any j <= i is seen by something that i sees."""
    at = torch.arange(40)
    for c in (config("none", "strided"), config("none", "fixed")):
        first, second = (p.seen(at[:, None], at).double() for p in patterns(c, 0))
        both = ((first + second) @ (first + second)) > 0
        causal = at[:, None] >= at
        assert not (both & ~causal).any()
        if c.attention == "strided":
            assert both[causal].all()
        else:  # an earlier block is reached through its last positions, which see all of it
            assert (both | ~causal)[4:].all()


def test_dropout_of_blocked_attention_keeps_the_mean():
    q, k, v = (torch.randn(400, 2, 9, 4) for _ in range(3))
    for pattern in (Pattern("local", window=3), Pattern("strided", stride=2), Pattern("summary", stride=3, summary=1)):
        dropped, whole = pattern.blocked(q, k, torch.ones_like(v), dropout=0.5), torch.ones_like(v)
        assert not torch.allclose(dropped, whole)
        assert dropped.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"kind": "dilated"}, "one of full, local"),
        ({"kind": "local"}, "window must be at least 1"),
        ({"kind": "strided"}, "stride must be at least 1"),
        ({"kind": "summary", "stride": 4}, "summary must be at least 1"),
        ({"kind": "summary", "stride": 4, "summary": 5}, "at most the stride"),
    ],
)
def test_patterns_refuse_what_cannot_be(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Pattern(**arguments)


def test_padded_queries_see_themselves():
    real = torch.tensor([[False, False, True, True]])
    at = (real.cumsum(1) - 1).clamp(min=0)
    seen = Scope(at, at, real=real).seen(Pattern())[0, 0]
    assert seen.tolist() == [
        [True, False, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert not math.isnan(
        plain_attention(*(torch.randn(1, 1, 4, 2) for _ in range(3)), False, 0.0, seen)[0].sum().item()
    )
