"""Norm places, feed-forwards, positions and Shaw's attention against their formulas, in float64."""

import math

import pytest
import torch
from torch import nn

from dlopt.transformer.feedforward import GATED, PLAIN, FeedForward, gated_hidden
from dlopt.transformer.norm import Residual, RMSNorm, make_norm
from dlopt.transformer.positions import alibi_slopes, sinusoid
from dlopt.transformer.shaw import Shaw

TIGHT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("position", ["pre", "post", "sandwich"])
def test_residual_is_its_formula(position):
    residual, f = Residual("layer", position, 6, eps=1e-3, bias=True).double(), nn.Linear(6, 6).double()
    for p in residual.parameters():
        nn.init.normal_(p)

    def norm(layer, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * layer.weight + layer.bias

    x = double(3, 6)
    expected = {
        "pre": lambda: x + f(norm(residual.norm, x)),
        "post": lambda: norm(residual.norm, x + f(x)),
        "sandwich": lambda: x + norm(residual.after, f(norm(residual.norm, x))),
    }[position]()
    torch.testing.assert_close(residual(x, f), expected, **TIGHT)


def test_residual_drops_the_sublayer_only():
    residual = Residual("rms", "pre", 1000, dropout=0.5)
    y = residual(torch.full((1000,), 7.0), torch.ones_like)
    assert set(y.tolist()) == {7.0, 9.0}
    assert set(residual.eval()(torch.full((1000,), 7.0), torch.ones_like).tolist()) == {8.0}


def test_norms_by_name():
    assert isinstance(make_norm("rms", 4), RMSNorm)
    assert make_norm("layer", 4).bias is None
    assert make_norm("layer", 4, bias=True).bias is not None
    with pytest.raises(ValueError, match="layer or rms"):
        make_norm("batch", 4)
    with pytest.raises(ValueError, match="pre, post or sandwich"):
        Residual("rms", "mid", 4)


SCALARS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "swish": lambda x: x / (1 + math.exp(-x)),
    "glu": lambda x: 1 / (1 + math.exp(-x)),
    "bilinear": lambda x: x,
}
SCALARS |= {"reglu": SCALARS["relu"], "geglu": SCALARS["gelu"], "swiglu": SCALARS["swish"]}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [*PLAIN, *GATED])
def test_feed_forward_is_its_formula(kind, bias):
    layer, x = FeedForward(6, 20, kind, bias).double(), double(2, 3, 6)

    def linear(module, x):
        return x @ module.weight.T + (module.bias if bias else 0)

    up = linear(layer.up_proj, x)
    if kind in PLAIN:
        middle = up.detach().clone().apply_(SCALARS[kind])
    else:
        middle = linear(layer.gate_proj, x).detach().apply_(SCALARS[kind]) * up
    torch.testing.assert_close(layer(x), linear(layer.down_proj, middle), **TIGHT)


@pytest.mark.parametrize("width", [64, 128, 256, 512])
@pytest.mark.parametrize("bias", [True, False])
def test_gated_layers_hold_as_many_parameters_as_plain_ones(width, bias):
    def count(kind):
        return sum(p.numel() for p in FeedForward(width, None, kind, bias).parameters())

    plain = {count(kind) for kind in PLAIN}
    gated = {count(kind) for kind in GATED}
    assert len(plain) == len(gated) == 1
    rounding = 4 * 3 * width  # at most half of 8 hidden channels, each of three rows
    assert abs(plain.pop() - gated.pop()) <= rounding + 2 * 4 * width * bias
    assert gated_hidden(3072) == 2048  # Shazeer 2020
    assert gated_hidden(4) == 8
    assert gated_hidden(24) == 16


def test_feed_forward_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="relu, gelu, swish, glu"):
        FeedForward(4, 8, "elu")


def test_sinusoids_are_their_formula_and_linear_in_an_offset():
    waves = sinusoid(torch.arange(50), 8, torch.float64)
    for p in (0, 1, 49):
        for i in range(4):
            angle = p / 10_000 ** (2 * i / 8)
            assert waves[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert waves[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)
    products = waves @ waves.T  # depend on the distance only
    torch.testing.assert_close(products.diagonal(7), products[0, 7].expand(43), **TIGHT)
    with pytest.raises(ValueError, match="even"):
        sinusoid(torch.arange(3), 5)


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16) == [2.0 ** (-i / 2) for i in range(1, 17)]
    assert alibi_slopes(12) == [*alibi_slopes(8), *[2.0**-e for e in (0.5, 1.5, 2.5, 3.5)]]
    assert alibi_slopes(1) == [2.0**-8]
    assert len(alibi_slopes(7)) == 7
    with pytest.raises(ValueError, match="at least 1"):
        alibi_slopes(0)


def gathered(layer, q, k, v, offsets, seen):
    """The definition, with its (t, s, d) tensors of relative vectors."""
    clip = layer.clip
    a_k, a_v = (table[offsets.clamp(-clip, clip) + clip] for table in (layer.keys, layer.values))
    scores = (q[:, :, :, None] * (k[:, :, None] + a_k)).sum(-1) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return (weights[..., None] * (v[:, :, None] + a_v)).sum(-2), weights


@pytest.mark.parametrize("clip", [1, 3, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_shaw_equals_the_gather_forward_and_backward(clip, causal):
    layer = Shaw(5, clip).double()
    inputs = [double(2, 3, t, 5).requires_grad_() for t in (7, 9, 9)]
    offsets = torch.arange(9) - torch.arange(2, 9)[:, None]  # the last 7 of 9 positions
    seen = offsets <= 0 if causal else torch.ones(7, 9, dtype=torch.bool)
    results = []
    for run in (layer(*inputs, offsets, seen), gathered(layer, *inputs, offsets, seen)):
        tensors = [*inputs, layer.keys, layer.values]
        (run[0].square().sum() + run[1].square().sum()).backward()
        results.append([*run, *(x.grad for x in tensors)])
        for x in tensors:
            x.grad = None
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def test_shaw_refuses_no_clip():
    with pytest.raises(ValueError, match="shaw_clip"):
        Shaw(4, 0)
