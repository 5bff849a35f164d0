"""Per-token codes: error bounds, twins written out, edges."""

import pytest
import torch

from dlopt.kvcache import FullCache, QuantCache
from dlopt.kvcache.quant import dequantize, quantize
from tests.kvcache.models import build, feed, tokens

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = [
    torch.randn(2, 3, 5, 16, generator=GENERATOR),
    torch.randn(2, 3, 5, 16, generator=GENERATOR) * torch.logspace(-20, 20, 16),
    torch.full((1, 1, 2, 16), 3.0),
    torch.zeros(1, 1, 2, 16),
    # scales that bfloat16 rounds down as far as it can: just below the middle of 1 and 1 + 2^-7
    torch.linspace(-1, 1, 16).reshape(1, 1, 1, 16)
    * torch.tensor([127.0, 7, 448])[:, None, None]
    * (1 + 2**-8 - 2**-20),
    torch.full((1, 1, 1, 16), 1e-44),
    torch.full((1, 1, 1, 16), 3e38),
    torch.randn(1, 2, 9, 16, generator=GENERATOR).bfloat16(),
    torch.randn(1, 2, 9, 16, generator=GENERATOR).clamp(-1, 1).mul(6e4).half(),
    torch.randn(1, 2, 9, 16, generator=GENERATOR).double(),
]


@pytest.mark.parametrize("x", VECTORS, ids=range(len(VECTORS)))
@pytest.mark.parametrize("code", ["int8", "int4", "fp8"])
def test_the_error_is_bounded(x, code):
    codes, scale = quantize(x, code)
    assert codes.dtype == torch.uint8
    assert scale.dtype == torch.bfloat16
    back = dequantize(codes, scale, code, torch.float64)
    assert back.shape == x.shape
    error, unit = (back - x.double()).abs(), scale.double()
    slack = unit * 1e-5  # float32 arithmetic
    if code == "fp8":
        assert (error <= (2**-4 * x.double().abs()).maximum(2**-10 * unit) + slack).all()
    else:
        assert (error <= unit / 2 + slack).all()
        largest = {"int8": 127, "int4": 7}[code]
        spread = x.double().abs().amax(-1, keepdim=True)
        # not wasteful either: the largest number has one of the largest codes
        assert (unit <= spread / largest * (1 + 2**-6) + 2e-38).all()


def test_int4_by_hand():
    x = torch.tensor([7.0, -7.0, 1.0, -3.0])
    codes, scale = quantize(x, "int4")
    assert scale.tolist() == [1.0]
    # 7 -> 7, -7 -> -7, 1 -> 1, -3 -> -3; plus 8; the first of a pair in the low half
    assert codes.tolist() == [15 + 16 * 1, 9 + 16 * 5]
    assert dequantize(codes, scale, "int4", torch.float32).tolist() == [7, -7, 1, -3]


@pytest.mark.parametrize(("code", "most"), [("int8", 2e-2), ("int4", 0.6), ("fp8", 0.2)])
def test_attention_sees_codes_of_the_past_and_itself_in_full(code, most):
    model, ids = build("llama-gqa"), tokens(2, 12)
    cache, full = QuantCache(model, code=code), FullCache(model)
    found = feed(model, cache, ids[:, :9], [9])
    assert torch.equal(found, feed(model, full, ids[:, :9], [9]))  # a prompt meets no codes
    for mine, whole in zip(cache.layers, full.layers, strict=True):
        new = torch.zeros(2, 2, 1, 8, dtype=torch.float64)
        keys, values = mine.update(new, new)
        twin = [dequantize(*quantize(t, code), code, t.dtype) for t in (whole.store.keys, whole.store.values)]
        assert torch.equal(keys, torch.cat([twin[0], new], 2))
        assert torch.equal(values, torch.cat([twin[1], new], 2))
        error = (twin[0] - whole.store.keys).abs().max() / whole.store.keys.abs().max()
        assert 0 < error < most


def test_waiting_tokens_are_dropped_before_codes():
    model, ids = build("llama-gqa"), tokens(1, 9)
    cache = QuantCache(model)
    feed(model, cache, ids[:, :5], [5])
    cache.activate_past_recording()
    feed(model, cache, ids[:, 5:8], [3])
    assert cache.layers[0].store.keys.shape[2] == 3
    cache.crop(-4)  # all three, and one token that has codes
    assert cache.layers[0].store.keys is None
    assert (cache.layers[0].store.length, cache.get_seq_length()) == (4, 4)
