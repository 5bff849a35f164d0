"""Packed batches: logits are those of each text alone, and batches resume exactly."""

import io
from itertools import islice

import pytest
import torch

from dlopt.tasks.packing import PackedBatches, check_model, chunks, pack, packed_logits
from tests.tasks import tiny


def texts(count=7, vocabulary=50, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (1 + (5 * i) % 9,), generator=draw) for i in range(count)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_each_text_alone(attention):
    model = tiny.llama(50, attention=attention)
    check_model(model)
    tokens, lengths = pack(texts())
    with torch.no_grad():
        found = packed_logits(model, tokens, lengths, torch.arange(len(tokens)), "cpu")
        alone = torch.cat([model(text[None]).logits[0] for text in texts()])
        last = packed_logits(model, tokens, lengths, torch.cumsum(lengths, 0) - 1, "cpu")
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, found[torch.cumsum(lengths, 0) - 1], rtol=1e-5, atol=1e-6)
    assert (found.std(0) > 0.1).all()  # not all alike


def test_learned_positions_start_anew_in_each_text():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=50, n_positions=12, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
        model = GPT2LMHeadModel(config).eval()
    tokens, lengths = pack(texts())
    assert len(tokens) > 12  # a position that went on would have no embedding
    with torch.no_grad():
        found = packed_logits(model, tokens, lengths, torch.arange(len(tokens)), "cpu")
        alone = torch.cat([model(text[None]).logits[0] for text in texts()])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_half_precision_weights_give_float32_logits_close_to_the_texts_alone():
    model = tiny.llama(50).to(torch.bfloat16)
    tokens, lengths = pack(texts())
    with torch.no_grad():
        found = packed_logits(model, tokens, lengths, torch.arange(len(tokens)), "cpu")
        alone = torch.cat([model(text[None]).logits[0] for text in texts()]).float()
    assert found.dtype == torch.float32
    assert (found - alone).abs().mean() < 0.02 * alone.abs().mean()


def test_gradients_are_those_of_each_text_alone():
    grads = []
    for packed in (True, False):
        model = tiny.llama(50)
        tokens, lengths = pack(texts())
        if packed:
            packed_logits(model, tokens, lengths, torch.cumsum(lengths, 0) - 1, "cpu").square().sum().backward()
        else:
            sum(model(text[None]).logits[0, -1].square().sum() for text in texts()).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-3 * float(grad.abs().max()))


def test_batches_hold_the_texts_and_their_notes():
    held = texts(7)
    batches = PackedBatches(held, torch.arange(7) * 10, 3, seed=0)
    assert batches.per_epoch == 2
    seen = []
    for tokens, lengths, notes in islice(batches, 2):
        for text, note in zip(tokens.split(lengths.tolist()), notes):
            assert torch.equal(text, held[note // 10])
            seen.append(int(note))
    assert len(set(seen)) == 6


def test_batches_resume_at_every_offset():
    def make(seed=1):
        return PackedBatches(texts(), torch.arange(7), 3, seed)

    whole = list(islice(make(), 9))
    for consumed in range(9):
        first = make()
        for _ in range(min(9, consumed + 2)):
            next(first)
        saved = io.BytesIO()
        torch.save(first.state_dict(consumed), saved)
        saved.seek(0)
        second = make()
        second.load_state_dict(torch.load(saved, weights_only=True))
        for a, b in zip(islice(second, 9 - consumed), whole[consumed:], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(make(2).batch(0)[0], whole[0][0])
    with pytest.raises(ValueError, match="seed"):
        make(2).load_state_dict(make().state_dict())


def test_chunks_keep_to_their_size_and_lose_nothing():
    held = [torch.zeros(n) for n in (3, 3, 3, 20, 1, 9, 1)]
    found = list(chunks(held, 10))
    assert found == [[0, 1, 2], [3], [4, 5], [6]]
    assert list(chunks([], 10)) == []


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        PackedBatches([torch.zeros(0)], torch.zeros(1), 1, 0)

    class Other(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids

    with pytest.raises(ValueError, match="Other does not take position_ids, logits_to_keep"):
        check_model(Other())
    model = tiny.llama(50)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="this model has 'flash_attention_2'"):
        check_model(model)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("sliding_window", 8, "full attention in every layer; .* has sliding_attention"),
        ("layer_types", ["full_attention", "conv"], "has conv"),
        ("layer_types", ["linear_attention", "full_attention"], "has linear_attention"),
    ],
)
def test_layers_that_would_not_keep_texts_apart_are_refused(setting, value, message):
    model = tiny.llama(50)
    check_model(model)
    setattr(model.config, setting, value)
    with pytest.raises(ValueError, match=message):
        check_model(model)
