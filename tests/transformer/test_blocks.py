"""The parts of the Transformer against their formulas, in float64."""

import math

import pytest
import torch
from torch import nn

from dlopt.transformer.attention import Attention, plain_attention, repeat_heads
from dlopt.transformer.feedforward import SwiGLU, matched_hidden
from dlopt.transformer.norm import RMSNorm
from dlopt.transformer.positions import RoPE, rotate

TIGHT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def tables(width, positions):
    return RoPE(width)(torch.as_tensor(positions), torch.float64)


def test_rms_norm_is_its_formula():
    norm = RMSNorm(6, eps=1e-3).double()
    nn.init.normal_(norm.weight)
    x = double(2, 5, 6)
    for row, out in zip(x.view(-1, 6), norm(x).view(-1, 6), strict=True):
        expected = [v / math.sqrt(sum(u * u for u in row.tolist()) / 6 + 1e-3) for v in row.tolist()]
        torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64) * norm.weight, **TIGHT)
    torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (6,), norm.weight, 1e-3), **TIGHT)
    assert not norm(torch.zeros(6, dtype=torch.float64)).any()


def test_rms_norm_of_half_precision_does_not_overflow():
    norm = RMSNorm(4).half()
    x = torch.full((4,), 1000.0, dtype=torch.float16)  # its square is over 65,504
    assert norm(x).tolist() == [1.0] * 4
    assert norm(x).dtype == torch.float16


@pytest.mark.parametrize("offset", [0, 1, 7, 100_000])
def test_rope_scores_depend_on_the_offset_only(offset):
    q, k = double(8), double(8)
    scores = []
    for start in (0, 3, 1000):
        cosine, sine = tables(8, [start, start + offset])
        rotated_q, rotated_k = rotate(q, (cosine[:1], sine[:1])), rotate(k, (cosine[1:], sine[1:]))
        scores.append((rotated_q * rotated_k).sum())
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), **TIGHT)


def test_rope_layout_is_half_split_and_position_zero_is_the_identity():
    x = double(1, 3, 8)
    out = rotate(x, tables(8, [0, 1, 2]))
    torch.testing.assert_close(out[:, 0], x[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1), **TIGHT)
    for i in range(4):  # channel i turns with channel i + 4
        angle = 2 * 10_000 ** (-2 * i / 8)
        a, b = x[0, 2, i].item(), x[0, 2, i + 4].item()
        assert out[0, 2, i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-12)
        assert out[0, 2, i + 4].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-12)


def test_rope_equals_the_interleaved_layout_after_a_permutation():
    x = double(5, 6)
    angle = torch.arange(5)[:, None].double() * 10_000.0 ** (-torch.arange(0, 6, 2).double() / 6)
    turned = torch.view_as_real(torch.view_as_complex(x.view(5, 3, 2)) * torch.polar(torch.ones_like(angle), angle))
    order = [0, 2, 4, 1, 3, 5]  # interleaved channels to half-split
    torch.testing.assert_close(rotate(x[:, order], tables(6, range(5))), turned.reshape(5, 6)[:, order], **TIGHT)


@pytest.mark.parametrize("width", [0, 3])
def test_rope_refuses_an_odd_width(width):
    with pytest.raises(ValueError, match="must be even"):
        RoPE(width)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sdpa_equals_the_plain_path(kv_heads, causal):
    layer = Attention(16, 4, kv_heads, causal=causal).double()
    x, rotation = double(2, 7, 16), tables(4, range(7))
    fast = layer(x, rotation)
    fast.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.plain = True
    layer.zero_grad()
    plain = layer(x, rotation)
    plain.square().sum().backward()
    torch.testing.assert_close(fast, plain, **TIGHT)
    for gradient, p in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, p.grad, **TIGHT)


def test_plain_attention_is_its_formula():
    q, k, v = double(1, 1, 3, 2), double(1, 1, 3, 2), double(1, 1, 3, 2)
    out, weights = plain_attention(q, k, v)
    for i in range(3):
        e = [
            math.exp(sum(q[0, 0, i, c].item() * k[0, 0, j, c].item() for c in range(2)) / math.sqrt(2))
            for j in range(i + 1)
        ]
        share = torch.tensor([*(value / sum(e) for value in e), *[0.0] * (2 - i)], dtype=torch.float64)
        torch.testing.assert_close(weights[0, 0, i], share, **TIGHT)
        torch.testing.assert_close(out[0, 0, i], share @ v[0, 0], **TIGHT)


@pytest.mark.parametrize("plain", [True, False])
def test_later_tokens_do_not_change_earlier_outputs(plain):
    layer = Attention(8, 2, plain=plain).double()
    x, rotation = double(1, 6, 8), tables(4, range(6))
    changed = x.clone()
    changed[:, 4:] = double(1, 2, 8)
    before, after = layer(x, rotation), layer(changed, rotation)
    torch.testing.assert_close(before[:, :4], after[:, :4], **TIGHT)
    assert (before[:, 4:] - after[:, 4:]).abs().min(dim=-1).values.gt(0).all()
    free = Attention(8, 2, causal=False, plain=plain).double()
    assert not torch.allclose(free(x)[:, :4], free(changed)[:, :4])


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_equal_repeated_heads(kv_heads):
    grouped, full = Attention(16, 4, kv_heads).double(), Attention(16, 4).double()
    with torch.no_grad():
        full.q_proj.weight.copy_(grouped.q_proj.weight)
        full.o_proj.weight.copy_(grouped.o_proj.weight)
        for name in ("k_proj", "v_proj"):
            small = getattr(grouped, name).weight.view(kv_heads, 1, 4, 16)
            getattr(full, name).weight.copy_(small.expand(-1, 4 // kv_heads, -1, -1).reshape(16, 16))
    x, rotation = double(2, 5, 16), tables(4, range(5))
    torch.testing.assert_close(grouped(x, rotation), full(x, rotation), **TIGHT)


def test_repeat_heads_keeps_groups_together():
    x = torch.arange(2.0).view(1, 2, 1, 1)
    assert repeat_heads(x, 2).flatten().tolist() == [0, 0, 1, 1]
    assert repeat_heads(x, 1) is x


def test_dropout_of_attention_acts_in_training_only():
    layer = Attention(8, 2, dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((10, 4), "multiple of the 4 heads"), ((8, 4, 3), "must divide"), ((8, 4, 4, True, 1.0), "dropout")],
)
def test_attention_refuses_wrong_shapes(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Attention(*arguments)


def test_swiglu_is_its_formula_and_matches_the_parameters_of_a_plain_layer():
    layer, x = SwiGLU(6, 5).double(), double(3, 6)
    gate, up = x @ layer.gate_proj.weight.T, x @ layer.up_proj.weight.T
    torch.testing.assert_close(layer(x), (gate / (1 + (-gate).exp()) * up) @ layer.down_proj.weight.T, **TIGHT)
    assert matched_hidden(768) == 2048  # the paper's 3072 * 2/3
    assert SwiGLU(48).up_proj.weight.shape == (128, 48)
