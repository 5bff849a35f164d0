"""Attention over packed codes equals attention over the floats they stand for, and leaves nothing behind."""

import pytest
import torch

from dlopt.kvcache import KIVICache, SinkCache, packed_attention
from dlopt.kvcache.packed_attention import packed
from dlopt.kvcache.sealed import sealed
from tests.kvcache.models import build, feed, padded, tokens

PIECES = [13, 1, 1, 4, 1, 9, 1, 1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("family", ["llama", "llama-gqa", "gpt2"])
def test_packed_equals_plain(family, bits, monkeypatch):
    monkeypatch.setattr(packed_attention, "BLOCK", 256)  # so that a dozen tokens are several blocks
    monkeypatch.setattr(packed_attention, "LOGITS", 512)
    # float64: in float32, rounding in one layer moves codes of the next to their neighbours
    model, ids = build(family), tokens(2, sum(PIECES))
    made = {"bits": bits, "group": 4, "residual": 8}
    plain = feed(model, KIVICache(model, **made), ids, PIECES)
    with packed(model):
        cache = KIVICache(model, **made)
        found = feed(model, cache, ids, PIECES)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[:, :13], plain[:, :13])
    # both go on from what the other left
    more = tokens(2, 3, seed=4)
    with packed(model):
        inside = feed(model, cache, more, [1, 2])
    cache.load_state_dict(state := cache.state_dict())
    assert state["layers"][0]["seen"] == sum(PIECES) + 3
    assert torch.isfinite(inside).all()
    assert torch.isfinite(feed(model, cache, more, [3])).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_one_layer_to_1e_6(bits):
    """No model in between: the same queries against codes and against floats, in float32, with and without pads."""
    config = build("llama-gqa").config
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, 40, 8, generator=generator) for h in (4, 2, 2))
    for mask2d in (None, torch.arange(38) >= torch.tensor([[5], [0]])):
        cache = KIVICache(config, bits=bits, group=4, residual=8, attention_mask=mask2d)
        cache.update(k[:, :, :38], v[:, :, :38], 0)
        layer = cache.layers[0]
        layer.store.append(k[:, :, 38:], v[:, :, 38:], rows := type(layer.rows)(40, layer.pads))
        keys, values = (t.repeat_interleave(2, 1) for t in layer.store.dense(rows, torch.float32))
        mask = (torch.ones(2, 40).tril(38).bool() & rows.valid(40)[:, None])[:, None]
        found = packed_attention.attend(layer.store, rows, q[:, :, 38:], mask, 0.3)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, 38:], keys, values, attn_mask=mask, scale=0.3
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_padded_batch_packed_equals_rows_alone():
    model, lengths = build("llama-gqa"), [3, 21, 14]
    ids, mask = padded(lengths)
    ids = torch.cat([ids, tokens(3, 8, seed=5)], 1)
    made = {"bits": 2, "group": 4, "residual": 8}
    pieces = [21, 1, 1, 3, 1, 2]
    with packed(model):
        whole = torch.nn.functional.pad(mask, (0, 8), value=1)
        found = feed(model, KIVICache(model, **made, attention_mask=mask), ids, pieces, whole)
        for row, length in enumerate(lengths):
            alone = ids[row : row + 1, 21 - length :]
            expected = feed(model, KIVICache(model, **made), alone, [length, *pieces[1:]])
            torch.testing.assert_close(found[row : row + 1, 21 - length :], expected, rtol=1e-5, atol=1e-5)


def test_generate_and_other_caches_inside():
    model, ids = build("llama-gqa"), tokens(1, 15)
    made = {"bits": 4, "group": 4, "residual": 4}
    ask = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(ids, past_key_values=KIVICache(model, **made), **ask)
    sinks = feed(model, SinkCache(model, 2, 5), ids, [13, 1, 1])
    with packed(model):
        assert torch.equal(model.generate(ids, past_key_values=KIVICache(model, **made), **ask), plain)
        assert torch.equal(feed(model, SinkCache(model, 2, 5), ids, [13, 1, 1]), sinks)


def test_no_float_copy_of_the_cache_is_made(monkeypatch):
    monkeypatch.setattr(packed_attention, "BLOCK", 512)
    model, ids = build("llama-gqa", dtype=torch.float32), tokens(1, 400)
    copies = []
    for context in (packed(model), None):
        if context:
            with context:
                cache = KIVICache(model, group=4, residual=8)
                feed(model, cache, ids, [200, 200])
                cache.layers[0].transient = 0
                feed(model, cache, tokens(1, 1), [1])
        else:
            cache = KIVICache(model, group=4, residual=8)
            feed(model, cache, ids, [200, 200])
            cache.layers[0].transient = 0
            feed(model, cache, tokens(1, 1), [1])
        copies.append(cache.layers[0].transient)
    assert copies[1] >= 2 * 2 * 400 * 8 * 4  # keys and values of a layer as floats
    assert copies[0] == 4 * (4 * 401 + 512)  # logits of 4 heads and one block


def test_nothing_is_left_on_the_model_even_after_an_error():
    model = build("llama-gqa")
    before = (model.config._attn_implementation, sorted(vars(model.config)), [sorted(vars(m)) for m in model.modules()])

    def fail():
        with packed(model):
            assert model.config._attn_implementation == "dlopt_packed"
            feed(model, KIVICache(model, group=4), tokens(1, 12), [12])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    after = (model.config._attn_implementation, sorted(vars(model.config)), [sorted(vars(m)) for m in model.modules()])
    assert before == after


def test_what_packed_attention_cannot_serve_is_named():
    model = build("llama-gqa")
    with packed(model):
        cache = KIVICache(model, group=4, residual=8, key_axis="token")
        with pytest.raises(ValueError, match='\'dlopt_packed\' serves key_axis="channel" and value_axis="token" alone'):
            feed(model, cache, tokens(1, 3), [3])
        keys = sealed(torch.zeros(1, 2, 3, 8), None)
    assert keys.shape == (1, 2, 3, 8)
    with pytest.raises(RuntimeError, match="these keys are packed"):
        keys.transpose(1, 2)
    with pytest.raises(RuntimeError, match="these keys are packed"):
        torch.nn.functional.scaled_dot_product_attention(torch.zeros(1, 2, 1, 8), keys, torch.zeros(1, 2, 3, 8))
