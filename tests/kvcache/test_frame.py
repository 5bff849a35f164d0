"""Bad input to caches, in sentences; spec strings; rows and their pads."""

import subprocess
import sys

import pytest
import torch
from transformers import (
    BloomConfig,
    DeepseekV3Config,
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    T5Config,
)

from dlopt.kvcache import FullCache, QuantCache, SinkCache, WindowCache, kv_bytes, make_cache, prefill
from dlopt.kvcache.rows import Rows, pads_of, pick
from tests.kvcache.models import GQA, build, feed, tokens

CONFIG = LlamaConfig(**GQA)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SinkCache(CONFIG, sinks=-1), "sinks must be at least 0, not -1"),
        (lambda: SinkCache(CONFIG, window=0), "window must be at least 1, not 0"),
        (lambda: SinkCache(CONFIG, window=2.5), "window must be an integer, not 2.5"),
        (lambda: SinkCache(CONFIG, positions="new"), "positions must be one of cache, original, not 'new'"),
        (lambda: WindowCache(CONFIG, window=True), "window must be an integer, not True"),
        (lambda: QuantCache(CONFIG, code="int3"), "code must be one of int8, int4, fp8, identity, not 'int3'"),
        (lambda: QuantCache(GPT2Config(n_embd=36, n_head=4), code="int4"), "head size 9"),
        (lambda: FullCache(T5Config()), "t5 is an encoder-decoder"),
        (lambda: FullCache(MistralConfig(sliding_window=16)), "mistral has sliding_attention"),
        (lambda: FullCache(DeepseekV3Config()), r"deepseek_v3 has latent attention \(MLA\)"),
        (lambda: FullCache(BloomConfig()), "bloom has ALiBi biases"),
        (lambda: FullCache(3), "not for a int"),
        (lambda: FullCache(CONFIG, torch.ones(3)), r"shape \(batch, tokens\), not \(3,\)"),
        (lambda: FullCache(CONFIG, torch.tensor([[0, 1], [1, 0]])), "row 1 of attention_mask has zeros that are not"),
        (lambda: make_cache("sink", CONFIG), "no cache is called 'sink' .did you mean sinks.*there are full, "),
        (lambda: make_cache("sinks:windw=3", CONFIG), "no option 'windw' .did you mean window.*it has sinks, window"),
        (lambda: make_cache("full:bits=2", CONFIG), "has no option 'bits'; it has none"),
        (lambda: make_cache("sinks:window", CONFIG), "'window' in the cache 'sinks:window' is not of the form"),
        (lambda: make_cache("sinks:sinks=2,sinks=3", CONFIG), "gives sinks twice"),
        (lambda: kv_bytes(CONFIG, "full", -1), "tokens must be at least 0"),
        (lambda: kv_bytes(CONFIG, "full", 3, generated=4), "generated must be at most tokens = 3"),
        (lambda: kv_bytes(CONFIG, "sinks:window=0", 4), "window must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(("grouped", "heads"), [(False, 1), (True, 4)])
def test_falcon_names_its_heads_in_its_own_way(grouped, heads):
    config = FalconConfig(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2,
                          new_decoder_architecture=grouped, multi_query=True, alibi=False)  # fmt: skip
    cache = FullCache(config)
    assert cache.shape.heads == heads
    ids = tokens(1, 9)
    model = FalconForCausalLM(config).eval()
    assert torch.equal(feed(model, cache, ids, [6, 3]), feed(model, DynamicCache(config=config), ids, [6, 3]))


def test_attentions_that_cannot_be_served_are_named():
    config = LlamaConfig(**GQA, attn_implementation="flex_attention")
    with pytest.raises(ValueError, match="'flex_attention' cannot be served"):
        FullCache(config)
    model = build("llama-gqa", "eager")
    cache = FullCache(model)
    model.config._attn_implementation = "paged|sdpa"  # changed after the cache was made
    try:
        with pytest.raises(ValueError, match=r"'paged\|sdpa' cannot be served"):
            cache.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8), 0)
    finally:
        model.config._attn_implementation = "eager"


def test_wrong_batches_and_crops():
    model = build("llama-gqa")
    cache = FullCache(model, torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="attention_mask has 2 rows, the batch has 3"):
        feed(model, cache, tokens(3, 4), [4])
    cache = FullCache(model)
    feed(model, cache, tokens(2, 4), [4])
    with pytest.raises(ValueError, match="holds 2 rows, the new tokens have 1"):
        feed(model, cache, tokens(1, 1), [1])
    with pytest.raises(ValueError, match="0 or minus the number"):
        cache.crop(1)
    with pytest.raises(ValueError, match="cannot take back 5 tokens: the cache has seen 4"):
        cache.crop(-5)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        prefill(model, tokens(1, 4), FullCache(model), chunk=0)
    with pytest.raises(ValueError, match=r"must cover the 4 tokens of the cache and the 2 new ones, shape \(2, 6\)"):
        prefill(model, tokens(2, 2), cache, attention_mask=torch.ones(2, 2))


def test_options_of_a_spec_are_values():
    cache = make_cache("sinks:sinks=3, window = 9,positions=original", CONFIG)
    assert cache.params == {"sinks": 3, "window": 9, "positions": "original"}
    assert make_cache("sinks", CONFIG).params == {"sinks": 4, "window": 252, "positions": "cache"}


def test_rows():
    rows = Rows(10, (0, 4, 9))
    assert rows.held(6).tolist() == [6, 6, 1]
    assert rows.lost(6) == (4, 0, 0)
    assert rows.valid(6).sum(1).tolist() == [6, 6, 1]
    assert rows.valid(6)[2].tolist() == [False] * 5 + [True]
    assert Rows(10).held(6).tolist() == [6]
    assert Rows(3, (5,)).held(3).tolist() == [0]  # a row that has not begun
    assert pads_of(torch.tensor([[0, 0, 1], [1, 1, 1]])) == (2, 0)
    assert pads_of(torch.ones(2, 3)) is None
    x = torch.arange(24).reshape(1, 2, 4, 3)
    assert torch.equal(pick(x, torch.tensor([[3, 1]])), x[:, :, [3, 1]])
    assert torch.equal(pick(x, torch.tensor([[[0], [2]]]))[0, 1, 0], x[0, 1, 2])


def test_the_catalogue_knows_caches_without_transformers():
    code = "import sys, dlopt.catalog as c, dlopt.kvcache; c.methods(kind='cache'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
