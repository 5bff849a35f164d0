"""KIVI on a pretrained model: how far its predictions move, and packed attention in float32."""

import pytest
import torch
from transformers import DynamicCache

from dlopt.kvcache import KIVICache, kv_bytes
from dlopt.kvcache.packed_attention import packed

PROMPT, NEW = 640, 40


@pytest.mark.llm
@torch.no_grad()
def test_predictions_after_a_coded_prompt(smollm2):
    from pydoc_data.topics import topics

    model, tokenizer = smollm2
    ids = tokenizer(topics["assignment"], return_tensors="pt").input_ids[:, : PROMPT + NEW]
    assert ids.shape[1] == PROMPT + NEW
    full = DynamicCache(config=model.config)
    model(ids[:, :PROMPT], past_key_values=full, logits_to_keep=1)
    states = [(layer.keys, layer.values) for layer in full.layers]

    def predictions(cache):
        return model(ids[:, PROMPT:], past_key_values=cache).logits[0].log_softmax(-1)

    def kivi(bits, **options):
        cache = KIVICache(model, bits=bits, **options)
        for number, state in enumerate(states):  # a prompt attends in full, so its keys are those of the full cache
            cache.update(*state, number)
        return cache

    expected = predictions(full)
    # 0.151 and 0.005 on this text, where 2 bits with exact float32 scales give 0.154: the bound guards against a worse
    # coding. The goal of 0.12 for 2 bits is set for a 24-shot prompt of OpenbookQA and is not judged here.
    for bits, most, smaller in [(2, 0.2, 2.9), (4, 0.01, 2.4)]:
        cache = kivi(bits)
        spec = f"kivi:bits={bits}"
        assert cache.nbytes().total == kv_bytes(model, spec, PROMPT, dtype=torch.float32).total
        assert kv_bytes(model, "full", PROMPT, dtype=torch.float32).total / cache.nbytes().total > smaller
        found = predictions(cache)
        divergence = (expected.exp() * (expected - found)).sum(-1).mean()
        assert divergence < most
        cache = kivi(bits)
        with packed(model):
            torch.testing.assert_close(predictions(cache), found, rtol=0, atol=5e-3)
    # the axes matter: values per channel or keys per token are far worse at 2 bits
    swapped = predictions(kivi(2, key_axis="token", value_axis="channel"))
    assert (expected.exp() * (expected - swapped)).sum(-1).mean() > 2 * (
        expected.exp() * (expected - predictions(kivi(2)))
    ).sum(-1).mean()


@pytest.mark.llm
@torch.no_grad()
def test_the_value_of_the_first_token_is_short(smollm2):
    """Per channel it would share a scale with others, and its error, as large as itself, would get much attention."""
    from pydoc_data.topics import topics

    model, tokenizer = smollm2
    ids = tokenizer(topics["assignment"], return_tensors="pt").input_ids[:, :128]
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, logits_to_keep=1)
    lengths = torch.stack([layer.values[0].norm(dim=-1) for layer in cache.layers])  # layers x heads x tokens
    share = lengths[..., 0] / lengths[..., 4:].median(-1).values
    assert share.median() < 0.5
    assert (share < 0.8).float().mean() > 0.8
