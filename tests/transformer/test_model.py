"""Decoder and Seq2Seq: against the reference twin, causal, cached, padded, in every combination."""

import json

import pytest
import torch
from torch import nn

from dlopt.transformer.cache import Cache
from dlopt.transformer.config import CHOICES, TransformerConfig
from dlopt.transformer.model import Decoder, Seq2Seq, parameter_count
from tests.transformer.reference import Reference
from tests.transformer.settings import PAIRS, POSITIONS, VOCABULARY, config

TIGHT = {"rtol": 0, "atol": 1e-10}
T = 10  # no multiple of any block


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tokens(*shape):
    return torch.randint(1, VOCABULARY, shape)


def shaken(model):
    """The model in float64, with norms and biases that are not 1 and 0."""
    model = model.double()
    for name, p in model.named_parameters():
        if p.ndim == 1:
            nn.init.normal_(p, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    return model


def padded(rows, left=True, width=None):
    """(tokens, mask): rows of different lengths, padded with 0 on one side."""
    width = width or max(len(r) for r in rows)
    out, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        out[i, where], mask[i, where] = row, True
    return out, mask


@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
def test_decoder_is_the_reference(positions, pattern):
    model, x = shaken(Decoder(config(positions, pattern, bias=True))), tokens(2, T)
    out = model(x)
    for row, logits in zip(x, out, strict=True):
        torch.testing.assert_close(logits, Reference(model).decoder(row), **TIGHT)


@pytest.mark.parametrize("norm", CHOICES["norm"])
@pytest.mark.parametrize("norm_position", CHOICES["norm_position"])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_the_reference(norm, norm_position, bias):
    model = shaken(Decoder(config(norm=norm, norm_position=norm_position, bias=bias)))
    x = tokens(1, 6)
    torch.testing.assert_close(model(x)[0], Reference(model).decoder(x[0]), **TIGHT)


@pytest.mark.parametrize("feedforward", CHOICES["feedforward"])
def test_feed_forwards_are_the_reference(feedforward):
    model, x = shaken(Decoder(config(feedforward=feedforward, bias=True))), tokens(1, 4)
    torch.testing.assert_close(model(x)[0], Reference(model).decoder(x[0]), **TIGHT)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_seq2seq_is_the_reference(positions, tied):
    model = shaken(Seq2Seq(config(positions, encoder_layers=1, tied=tied, norm_position="sandwich", bias=True)))
    source, target = tokens(2, 7), tokens(2, 5)
    for s, t, logits in zip(source, target, model(source, target), strict=True):
        torch.testing.assert_close(logits, Reference(model).seq2seq(s, t), **TIGHT)


def test_post_norm_seq2seq_is_torchs_transformer():
    c = TransformerConfig(VOCABULARY, 16, 2, heads=4, norm_position="post", feedforward="relu", bias=True)
    model = shaken(Seq2Seq(c))
    shape = {"dim_feedforward": 64, "dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, **shape), 2, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, **shape), 2)
    theirs = nn.Transformer(16, 4, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    with torch.no_grad():
        for ours, stack in ((model.encoder, encoder), (model.decoder, decoder)):
            for mine, layer in zip(ours.layers, stack.layers, strict=True):
                attentions = [(mine.self_attn, layer.self_attn)]
                residuals = [mine.self_attn_residual, mine.mlp_residual]
                if stack is decoder:
                    attentions.append((mine.cross_attn, layer.multihead_attn))
                    residuals.insert(1, mine.cross_attn_residual)
                for a, b in attentions:
                    b.in_proj_weight.copy_(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]))
                    b.in_proj_bias.copy_(torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]))
                    b.out_proj.load_state_dict(a.o_proj.state_dict())
                layer.linear1.load_state_dict(mine.mlp.up_proj.state_dict())
                layer.linear2.load_state_dict(mine.mlp.down_proj.state_dict())
                for i, residual in enumerate(residuals, 1):
                    getattr(layer, f"norm{i}").load_state_dict(residual.norm.state_dict())
    source, target = tokens(2, 7), tokens(2, 5)
    s, _ = model.embed.enter(source, None, None, causal=False)
    t, _ = model.embed.enter(target, None, None, causal=True)
    hidden = theirs(s, t, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64))
    expected = hidden @ model.embed.tokens.weight.T
    torch.testing.assert_close(model(source, target), expected, **TIGHT)


@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
@pytest.mark.parametrize("plain", [True, False])
def test_a_later_token_changes_no_earlier_output(positions, pattern, plain):
    model, x = shaken(Decoder(config(positions, pattern, plain=plain))), tokens(2, T)
    before = model(x)
    for at in (1, 4, 8):
        other = x.clone()
        other[:, at] = 1 + x[:, at] % (VOCABULARY - 1)
        after = model(other)
        torch.testing.assert_close(after[:, :at], before[:, :at], **TIGHT)
        assert (after[:, at] - before[:, at]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
def test_plain_and_fast_agree_with_gradients(positions, pattern):
    fast = shaken(Decoder(config(positions, pattern)))
    plain = Decoder(config(positions, pattern, plain=True)).double()
    plain.load_state_dict(fast.state_dict())
    x = tokens(2, T)
    for model in (fast, plain):
        model(x).square().sum().backward()
    torch.testing.assert_close(fast(x), plain(x), **TIGHT)
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
def test_cached_equals_uncached(positions, pattern, grad):
    model, x, cache = shaken(Decoder(config(positions, pattern))), tokens(2, T), Cache()
    with torch.set_grad_enabled(grad):
        whole = model(x)
        parts = [model(piece, cache) for piece in x.split([4, 1, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **TIGHT)
    assert cache.length == T


@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_seq2seq_equals_uncached_and_shows_no_later_token(positions):
    model, cache = shaken(Seq2Seq(config(positions))), Cache()
    source, target = tokens(2, 7), tokens(2, 6)
    source[0, 5:] = 0
    with torch.no_grad():
        whole, memory = model(source, target), model.encode(source)
        parts = [model.decode(piece, memory, cache) for piece in target.split([2, 1, 3], dim=1)]
        changed = target.clone()
        changed[:, 3] = 1 + target[:, 3] % (VOCABULARY - 1)
        torch.testing.assert_close(model(source, changed)[:, :3], whole[:, :3], **TIGHT)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **TIGHT)


@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
def test_padded_rows_equal_rows_alone_with_and_without_cache(positions, pattern):
    model = shaken(Decoder(config(positions, pattern)))
    rows = [tokens(n) for n in (10, 7, 1)]
    alone = [model(r[None])[0] for r in rows]
    x, mask = padded(rows, left=True, width=12)
    right, _ = padded(rows, left=False, width=12)
    cache = Cache()
    with torch.no_grad():
        at_once, unmasked = model(x, pad_mask=mask), model(right)
        model(x[:, :-1], cache, mask[:, :-1])
        last = model(x[:, -1:], cache)
    assert at_once.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(at_once[i, 12 - len(row) :], alone[i], **TIGHT)
        torch.testing.assert_close(unmasked[i, : len(row)], alone[i], **TIGHT)
        torch.testing.assert_close(last[i, 0], alone[i][-1], **TIGHT)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_padded_sources_and_targets_equal_rows_alone(positions, left):
    model = shaken(Seq2Seq(config(positions)))
    sources, targets = [tokens(n) for n in (7, 5, 1)], [tokens(n) for n in (4, 6, 3)]
    source, _ = padded(sources, left, 8)
    target, mask = padded(targets, left, 7)
    out = model(source, target, target_mask=mask if left else None)
    for i, (s, t) in enumerate(zip(sources, targets, strict=True)):
        where = slice(7 - len(t), 7) if left else slice(0, len(t))
        torch.testing.assert_close(out[i, where], model(s[None], t[None])[0], **TIGHT)


def test_gradients_of_padded_batches_are_finite():
    model = shaken(Decoder(config("alibi", "strided")))
    x, mask = padded([tokens(9), tokens(2)])
    model(x, pad_mask=mask)[mask].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pattern", ["full", "fixed"])
def test_cache_is_cropped_and_reordered(pattern):
    model, x, cache = shaken(Decoder(config("rope", pattern))), tokens(3, T), Cache()
    with torch.no_grad():
        model(x[:, :7], cache)
        cache.crop(4)
        cache.reorder(torch.tensor([2, 0, 0]))
        out = model(x[[2, 0, 0], 4:], cache)
        torch.testing.assert_close(out, model(x)[[2, 0, 0], 4:], **TIGHT)
        cache.crop(0)
        torch.testing.assert_close(model(x, cache), model(x), **TIGHT)
    with pytest.raises(ValueError, match="cannot be cropped to 11"):
        cache.crop(11)
    with pytest.raises(ValueError, match="holds 3 rows, but 2"):
        model(x[:2], cache)
    assert cache.nbytes() >= 2 * 2 * 3 * 2 * T * 4 * 8  # layers, keys and values, rows, heads, positions, channels


def test_an_emptied_cache_takes_another_batch():
    model, x, cache = shaken(Decoder(config())), tokens(3, T), Cache()
    with torch.no_grad():
        model(x, cache)
        cache.crop(0)
        torch.testing.assert_close(model(x[:1], cache), model(x[:1]), **TIGHT)


def test_what_a_graph_remembers_is_not_written_over():
    model, x, cache = shaken(Decoder(config())), tokens(3, T), Cache()
    out = model(x, cache)
    cache.crop(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x[:, 3:4], cache), model(x[:, :4])[:, 3:], **TIGHT)
    out.sum().backward()


@pytest.mark.parametrize(("positions", "pattern"), [p for p in PAIRS if p[0] in ("shaw", "alibi")])
def test_attention_maps_are_the_weights_of_the_model(positions, pattern):
    c = config(positions, pattern, layers=2)
    model, x = shaken(Decoder(c)), tokens(2, T)
    maps = model.attention_maps(x)
    assert [m.shape for m in maps] == [(2, 4, T, T)] * 2
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, T, dtype=torch.float64), **TIGHT)
        assert not weights.triu(1).any()
    if positions == "alibi":  # the first layer's output is its map times its values
        layer = model.decoder.layers[0]
        y = layer.self_attn_residual.norm(model.embed.enter(x, None, None, True)[0])
        v = layer.self_attn.v_proj(y).unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, 1)
        mixed = (maps[0] @ v).transpose(1, 2).flatten(2)
        scope = model.embed.enter(x, None, None, True)[1]
        torch.testing.assert_close(layer.self_attn.o_proj(mixed), layer.self_attn(y, scope=scope), **TIGHT)


def test_attention_maps_of_seq2seq_ignore_padding():
    model = shaken(Seq2Seq(config("shaw", encoder_layers=3)))
    source, target = tokens(2, 6), tokens(2, 4)
    source[1, 4:] = 0
    maps = model.attention_maps(source, target)
    assert {k: (len(v), v[0].shape) for k, v in maps.items()} == {
        "encoder": (3, (2, 4, 6, 6)), "decoder": (2, (2, 4, 4, 4)), "cross": (2, (2, 4, 4, 6)),
    }  # fmt: skip
    for weights in (*maps["encoder"], *maps["cross"]):
        assert not weights[1, ..., 4:].any()
        assert weights[0].min() > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Decoder, Seq2Seq])
def test_parameter_count_and_a_state_that_loads(kind, tied, tmp_path):
    c = config("shaw", tied=tied, encoder_layers=1, feedforward="geglu")
    state = torch.get_rng_state()
    count = parameter_count(c, kind.__name__.lower())
    assert torch.equal(state, torch.get_rng_state())  # counting draws nothing
    model = kind(c)
    assert count == sum(p.numel() for p in model.parameters())
    assert count == sum(t.numel() for t in model.state_dict().values())  # no table is stored twice
    torch.save({"config": c.to_dict(), "model": model.state_dict()}, tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    again = kind(TransformerConfig.from_dict(json.loads(json.dumps(saved["config"]))))
    again.load_state_dict(saved["model"])
    x = (tokens(2, 5),) if kind is Decoder else (tokens(2, 5), tokens(2, 4))
    assert torch.equal(model(*x), again(*x))


def test_parameter_count_by_hand():
    c = TransformerConfig(100, 8, 2, heads=2, kv_heads=1, feedforward="swiglu", norm="rms", positions="rope")
    attention, mlp = 2 * 8 * 8 + 2 * 8 * 4, 3 * 8 * 24  # 24: two thirds of 32 to the nearest multiple of 8
    assert parameter_count(c) == 100 * 8 + 2 * (attention + mlp + 2 * 8) + 8


def last_gradient(layers, norm_position, seed):
    """Norm of the last feed-forward output matrix's gradient at initialisation, as in Xiong et al., section 3."""
    torch.manual_seed(seed)
    c = TransformerConfig(
        1000, 128, layers, heads=4, norm_position=norm_position, feedforward="relu", positions="none", tied=False
    )
    model = Decoder(c)
    x = torch.randint(1000, (8, 33))
    nn.functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
    return model.decoder.layers[-1].mlp.down_proj.weight.grad.norm().item()


@pytest.mark.parametrize(("norm_position", "low", "high"), [("post", 0.8, 1.2), ("pre", 0.3, 0.5)])
def test_gradient_of_the_last_layer_over_depth(norm_position, low, high):
    ratio = sum(last_gradient(16, norm_position, s) for s in (0, 1)) / sum(
        last_gradient(2, norm_position, s) for s in (0, 1)
    )
    assert low < ratio < high, ratio


@pytest.mark.parametrize("init", CHOICES["init"])
def test_initial_scales(init):
    model = Seq2Seq(TransformerConfig(50, 64, 3, encoder_layers=2, hidden=256, init=init, tied=False))
    up, down = model.decoder.layers[0].mlp.up_proj.weight.std(), model.decoder.layers[0].mlp.down_proj.weight.std()
    inner = model.encoder.layers[0].self_attn.o_proj.weight.std()
    expected = {
        "xavier": ((2 / 320) ** 0.5, (2 / 320) ** 0.5, (2 / 128) ** 0.5),
        "normal": (0.02, 0.02, 0.02),
        "scaled": (0.02, 0.02 / 3, 0.02 / 2),  # 3 layers of 3 sub-layers; 2 layers of 2
    }[init]
    assert [up.item(), down.item(), inner.item()] == pytest.approx(expected, rel=0.1)
    assert model.embed.tokens.weight.std().item() == pytest.approx(1 / 8, rel=0.1)


def test_dropout_acts_in_training_only():
    model, x = Decoder(config(dropout=0.2, attention_dropout=0.2)), tokens(1, 5)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), Decoder.forward(model, x))


def test_wrong_inputs_are_refused_with_a_sentence():
    model, two = Decoder(config("learned", max_length=6)), Seq2Seq(config())
    with pytest.raises(ValueError, match="end at max_length 6, but there are 7"):
        model(tokens(1, 7))
    cache = Cache()
    model(tokens(1, 6), cache)
    with pytest.raises(ValueError, match="end at max_length 6"):
        model(tokens(1, 1), cache)
    x, mask = padded([tokens(6), tokens(2)], width=9)
    assert model(x, pad_mask=mask).isfinite().all()  # padding takes no position
    for bad in (tokens(3), torch.zeros(2, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="at least 1 position"):
            model(bad)
    for mask in (torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 3)):
        with pytest.raises(ValueError, match="padding mask must be bool"):
            model(tokens(1, 3), pad_mask=mask)
    with pytest.raises(ValueError, match="nothing but padding"):
        two(torch.zeros(1, 3, dtype=torch.long), tokens(1, 2))
    with pytest.raises(ValueError, match="2 targets cannot attend to 3 sources"):
        two.decode(tokens(2, 2), two.encode(tokens(3, 2)))
    with pytest.raises(ValueError, match="decoder or seq2seq"):
        parameter_count(config(), "encoder")
