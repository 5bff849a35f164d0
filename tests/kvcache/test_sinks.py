"""Attention sinks: against the paper's scheme by brute force, rotary layouts, endless streams."""

import pytest
import torch
from transformers import CohereConfig, GlmConfig, GPT2Config, LlamaConfig, SmolLM3Config

from dlopt.kvcache import FullCache, SinkCache, WindowCache
from dlopt.kvcache.rotary import rotation_of
from dlopt.kvcache.shape import text_config
from tests.kvcache.models import COMMON, GQA, build, feed, tokens


def attention_parts(layer, hidden, dim):
    """(queries, keys, values) of (1, n, m) hidden states before any rotation, (1, H, n, d) each."""
    if hasattr(layer, "attention"):  # GPT-NeoX
        fused = layer.attention.query_key_value(hidden).unflatten(-1, (-1, 3 * dim)).transpose(1, 2)
        return fused.chunk(3, dim=-1)
    own = layer.self_attn
    parts = [f(hidden).unflatten(-1, (-1, dim)) for f in (own.q_proj, own.k_proj, own.v_proj)]
    if hasattr(own, "q_norm"):
        parts[:2] = own.q_norm(parts[0]), own.k_norm(parts[1])
    return [part.transpose(1, 2) for part in parts]


def turned(module, x, place):
    """Rotary positions by the model's own angles and the formula, written out: pairs (i, i + d_r / 2)."""
    cos, sin = module(x, place[None])
    dim, half = cos.shape[-1], cos.shape[-1] // 2
    left, right = x[..., :half], x[..., half:dim]
    first = left * cos[..., :half] - right * sin[..., :half]
    second = right * cos[..., half:] + left * sin[..., half:]
    return torch.cat([first, second, x[..., dim:]], -1)


@torch.no_grad()
def brute_force(model, ids, pieces, sinks, window):
    """StreamingLLM as in the paper: keys are kept without positions and get those inside the cache at every pass."""
    base = getattr(model, "model", None) or model.gpt_neox
    neox = hasattr(base, "embed_in")
    dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    kept, logits, start = [None] * len(base.layers), [], 0
    for size in pieces:
        x = (base.embed_in if neox else base.embed_tokens)(ids[:, start : start + size])
        start += size
        for number, layer in enumerate(base.layers):
            q, k, v = attention_parts(layer, layer.input_layernorm(x), dim)
            if kept[number] is not None:
                k, v = torch.cat([kept[number][0], k], 2), torch.cat([kept[number][1], v], 2)
            length = k.shape[2]
            place = torch.arange(length)
            score = (
                turned(base.rotary_emb, q, place[-size:])
                @ turned(base.rotary_emb, k.repeat_interleave(q.shape[1] // k.shape[1], 1), place).mT
            )
            score = (score * dim**-0.5).masked_fill(place > place[-size:, None], -torch.inf)
            out = score.softmax(-1) @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
            out = out.transpose(1, 2).flatten(2)
            if neox:
                x = x + layer.attention.dense(out) + layer.mlp(layer.post_attention_layernorm(x))
            else:
                x = x + layer.self_attn.o_proj(out)
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            lost = max(0, length - sinks - window)
            stay = torch.cat([place[:sinks], place[sinks + lost :]])
            kept[number] = k[:, :, stay], v[:, :, stay]
        x = (base.final_layer_norm if neox else base.norm)(x)
        logits.append(model.get_output_embeddings()(x))
    return torch.cat(logits, 1)


FAMILIES = ["llama", "llama-gqa", "llama-yarn", "llama-llama3", "llama-linear", "qwen2", "qwen3", "gpt-neox"]


@pytest.mark.parametrize("pieces", [[1] * 30, [11, 1, 1, 5, 1, 8, 1, 1, 1]], ids=["tokens", "blocks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_inside_the_cache(family, pieces):
    model, ids = build(family), tokens(1, 30)
    found = feed(model, SinkCache(model, sinks=3, window=7), ids, pieces)
    expected = brute_force(model, ids, pieces, 3, 7)
    # angles of float32 differ by their rounding between a place in the stream and the place in the cache: 1e-6 of the
    # logits' size, which this model has made large
    assert (found - expected).abs().max() < 1e-6 * max(1, expected.abs().max())
    # the test can fail: original positions and the bare window are far away
    others = SinkCache(model, sinks=3, window=7, positions="original"), WindowCache(model, window=10)
    for other in others:
        assert (feed(model, other, ids, pieces) - expected).abs().max() > 1e-2


def test_original_positions_are_a_mask_over_the_full_pass():
    model, ids = build("gpt2"), tokens(1, 25)
    found = feed(model, SinkCache(model, sinks=2, window=4, positions="original"), ids, [1] * 25)
    place = torch.arange(25)
    # a query sees what was kept before it came (the sinks, the last 4) and itself
    seen = (place <= place[:, None]) & ((place < 2) | (place >= place[:, None] - 4))
    with torch.no_grad():
        expected = model(ids, attention_mask=seen[None, None]).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_what_is_kept():
    model, ids = build("llama"), tokens(1, 12)
    cache, full = SinkCache(model, sinks=2, window=3), FullCache(model)
    feed(model, cache, ids, [12])  # the prompt attends in full, so keys of both layers are the full cache's
    feed(model, full, ids, [12])
    for mine, whole in zip(cache.layers, full.layers, strict=True):
        assert torch.equal(mine.store.keys, whole.store.keys[:, :, [0, 1, 9, 10, 11]])
        assert torch.equal(mine.store.values, whole.store.values[:, :, [0, 1, 9, 10, 11]])
    # before eviction a layer handed 12 columns to attention; 8 bytes, 4 heads of 8 numbers, keys and values
    assert cache.nbytes().transient == 12 * 2 * 4 * 8 * 8
    assert cache.get_mask_sizes(1, 0) == (6, 7)


def test_pads_are_never_sinks():
    model = build("llama")
    mask = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])
    ids = tokens(2, 12) * mask
    cache, full = SinkCache(model, sinks=2, window=3, attention_mask=mask), FullCache(model)
    feed(model, cache, ids, [12], mask)
    feed(model, full, ids, [12], mask)
    for mine, whole in zip(cache.layers, full.layers, strict=True):
        assert torch.equal(mine.store.keys[0], whole.store.keys[0][:, [5, 6, 9, 10, 11]])
        assert torch.equal(mine.store.keys[1], whole.store.keys[1][:, [0, 1, 9, 10, 11]])


def test_a_stream_of_20000_tokens_has_constant_bytes():
    model = build("llama-gqa", dtype=torch.float32)
    cache = SinkCache(model, sinks=4, window=60)
    feed(model, cache, tokens(1, 500), [500])
    first = cache.nbytes()
    assert first.total == 2 * 2 * 2 * 8 * 64 * 4
    for number in range(39):
        logits = feed(model, cache, tokens(1, 500, seed=number), [500])
    for number in range(10):
        logits = feed(model, cache, tokens(1, 1, seed=number), [1])
        assert cache.nbytes().total == first.total
    assert cache.get_seq_length() == 20_010
    assert logits.isfinite().all()
    # a piece of 500 meets 64 stored columns instead of none: that is all that the transient may grow
    assert cache.nbytes().transient <= first.transient * 564 / 500 + 2 * 2 * 8 * 4 * 4
    # keys as they came stand in the store, so nothing was turned twice
    again = SinkCache(model, sinks=4, window=60)
    feed(model, again, tokens(1, 500), [500])
    assert torch.equal(again.layers[0].store.keys[:, :, :4], cache.layers[0].store.keys[:, :, :4])


@pytest.mark.parametrize(
    ("config", "neighbours", "turning"),
    [
        (LlamaConfig(**GQA), False, 8),
        (build("gpt-neox").config, False, 4),
        (CohereConfig(**COMMON), True, 8),
        (GlmConfig(**COMMON, head_dim=8), True, 4),
    ],
    ids=["llama", "gpt-neox", "cohere", "glm"],
)
def test_layouts_are_read_from_the_models_code(config, neighbours, turning):
    rotation = rotation_of(config)
    assert rotation.neighbours == neighbours
    assert 2 * len(rotation.frequencies) == turning
    keys = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    once = rotation.turn(rotation.turn(keys, (5, 0)), (7, 3))
    torch.testing.assert_close(once, rotation.turn(keys, (12, 3)), rtol=0, atol=1e-12)
    assert torch.equal(rotation.turn(keys, (0, 4))[0], keys[0])
    assert torch.equal(once[..., turning:], keys[..., turning:])


def test_models_that_cannot_move_their_keys():
    with pytest.raises(
        ValueError, match=r'configuration of gpt2 tells of no rotary positions.*use positions="original"'
    ):
        SinkCache(GPT2Config(n_embd=32, n_head=4))
    SinkCache(GPT2Config(n_embd=32, n_head=4), sinks=0)  # no sinks, nothing to move
    dynamic = LlamaConfig(**GQA, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ValueError, match=r"rotary frequencies of llama change with the length \(rope type dynamic\)"):
        SinkCache(dynamic)
    SinkCache(dynamic, positions="original")


def test_layers_without_positions_keep_their_sinks_as_they_are():
    config = SmolLM3Config(**GQA, no_rope_layers=[1, 0])
    cache = SinkCache(config)
    assert text_config(config).no_rope_layers == [1, 0]
    assert [layer.store.rotation is None for layer in cache.layers] == [False, True]
