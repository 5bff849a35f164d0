"""H2O, SnapKV, PyramidKV, TOVA and Knorm: their choices against twins by loops, planted tokens, and how queries are
seen."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, LlamaConfig

from dlopt.kvcache import (
    H2OCache,
    KnormCache,
    PyramidKVCache,
    SnapKVCache,
    TOVACache,
    kv_bytes,
    make_cache,
    prefill,
    snapkv,
)
from dlopt.kvcache.pyramid import budgets
from tests.kvcache.models import GQA, build, feed, tokens

CONFIG = LlamaConfig(**{**GQA, "num_hidden_layers": 1})
HEADS, GROUP, D, T = 2, 2, 8, 34
PIECES = [15, 1, 1, 1, 4, 1, 1, 2, *[1] * 8]
SCALE = 1 / math.sqrt(D)


def states(seed):
    """Queries, keys and values of T tokens; the first number of a value is the number of its token."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, h, T, D, generator=generator, dtype=torch.float64) for h in (HEADS * GROUP, HEADS, HEADS))
    v[..., 0] = torch.arange(T)
    return 2 * q, k, v


def serve(cache, q, k, v, pieces):
    """What a layer's attention does; then [[tokens kept by head]] after each piece."""
    history, start = [], 0
    for size in pieces:
        part = slice(start, start + size)
        keys, values = cache.update(k[:, :, part], v[:, :, part], 0)
        mask = torch.ones(size, keys.shape[2]).tril(keys.shape[2] - size).bool()
        grown = (t.repeat_interleave(GROUP, dim=1) for t in (keys, values))
        out = scaled_dot_product_attention(q[:, :, part], *grown, attn_mask=mask)
        assert type(out) is torch.Tensor
        history.append(cache.layers[0].store.values[0, :, :, 0].long().tolist())
        start += size
    return history


def share(q, k, query, kept):
    """{token: attention} of one query vector over the kept tokens up to it."""
    logits = {j: float(q[query] @ k[j]) * SCALE for j in kept if j <= query}
    top = max(logits.values())
    total = sum(math.exp(x - top) for x in logits.values())
    return {j: math.exp(x - top) / total for j, x in logits.items()}


def best(kept, score, count, recent):
    """The `recent` newest and the best of the others, in order."""
    others = sorted(kept[:-recent], key=lambda j: -score[j])[: count - recent]
    return sorted(others) + kept[-recent:]


def twin_h2o(q, k, head, pieces, budget, recent):
    kept, score, history, start = [], dict.fromkeys(range(T), 0.0), [], 0
    for size in pieces:
        new = range(start, start + size)
        kept = [*kept, *new]
        for query in new:
            for g in range(GROUP):
                for j, p in share(q[0, head * GROUP + g], k[0, head], query, kept).items():
                    score[j] += p
        kept = best(kept, score, budget, recent) if len(kept) > budget else kept
        history.append(kept)
        start += size
    return history


def twin_tova(q, k, head, pieces, budget):
    kept, history, start = [list(range(0)) for _ in range(HEADS)], [], 0
    for size in pieces:
        kept = [[*mine, *range(start, start + size)] for mine in kept]
        start += size
        # all heads keep the same tokens
        score = dict.fromkeys(kept[0], 0.0)
        for h in range(HEADS * GROUP):
            for j, p in share(q[0, h], k[0, h // GROUP], start - 1, kept[0]).items():
                score[j] += p
        if len(score) > budget:
            kept = [best(mine, score, budget, 1) for mine in kept]
        history.append(kept[head])
    return history


def window_twin(q, k, head, kept, newest, budget, window, kernel, pool):
    queries = newest[-window:]
    score = dict.fromkeys(kept, 0.0)
    for query in queries:
        for g in range(GROUP):
            for j, p in share(q[0, head * GROUP + g], k[0, head], query, kept).items():
                score[j] += p
    before = [score[j] for j in kept[:-window]]
    half = kernel // 2
    padded = [0.0] * half + before + [0.0] * half
    near = [padded[i : i + kernel] for i in range(len(before))]
    pooled = [max(x) if pool == "max" else sum(x) for x in near]
    return best(kept, dict(zip(kept, pooled + [0.0] * window, strict=True)), budget, window)


def twin_snapkv(q, k, head, pieces, budget, window, kernel, pool, evict):
    kept, history, start = [], [], 0
    for size in pieces:
        new = list(range(start, start + size))
        kept = [*kept, *new]
        if len(kept) > budget and (start == 0 if evict == "prompt" else size > 1):
            kept = window_twin(q, k, head, kept, new, budget, window, kernel, pool)
        history.append(kept)
        start += size
    return history


def twin_knorm(k, head, pieces, budget, recent):
    kept, history, start = [], [], 0
    norms = {j: -float(k[0, head, j].square().sum()) for j in range(T)}
    for size in pieces:
        kept = [*kept, *range(start, start + size)]
        kept = best(kept, norms, budget, recent) if len(kept) > budget else kept
        history.append(kept)
        start += size
    return history


CASES = {
    "h2o": (lambda: H2OCache(CONFIG, 9, 4), lambda q, k, h: twin_h2o(q, k, h, PIECES, 9, 4)),
    "tova": (lambda: TOVACache(CONFIG, 9), lambda q, k, h: twin_tova(q, k, h, PIECES, 9)),
    "snapkv": (
        lambda: SnapKVCache(CONFIG, 9, 3, 3),
        lambda q, k, h: twin_snapkv(q, k, h, PIECES, 9, 3, 3, "avg", "prompt"),
    ),
    "snapkv max, blocks": (
        lambda: SnapKVCache(CONFIG, 8, 3, 5, "max", "blocks"),
        lambda q, k, h: twin_snapkv(q, k, h, PIECES, 8, 3, 5, "max", "blocks"),
    ),
    "knorm": (lambda: KnormCache(CONFIG, 9, 2), lambda q, k, h: twin_knorm(k, h, PIECES, 9, 2)),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_choices_equal_a_dense_recomputation(name, seed):
    make, twin = CASES[name]
    q, k, v = states(seed)
    found = serve(make(), q, k, v, PIECES)
    for head in range(HEADS):
        assert [step[head] for step in found] == twin(q, k, head)
    assert found[-1][0] != list(range(T - len(found[-1][0]), T)), "a window would pass this test"


@pytest.mark.parametrize("name", ["h2o", "tova", "snapkv", "pyramid"])
def test_a_planted_heavy_hitter_is_kept(name):
    q, k, v = states(3)
    direction = torch.zeros(D, dtype=torch.float64)
    direction[1] = 1
    q = 0.2 * q + 6 * direction  # every query looks along one direction, and token 5 lies there
    k = k - (k @ direction)[..., None] * direction
    k[:, :, 5] = 4 * direction
    make = {**{key: case[0] for key, case in CASES.items()}, "pyramid": lambda: PyramidKVCache(CONFIG, 9, 3, 3)}
    assert all(5 in step for step in serve(make[name](), q, k, v, PIECES)[-1])
    assert len(serve(make[name](), q, k, v, [T])[-1][0]) == 9


def test_scores_of_h2o_are_sums_over_queries_and_heads():
    q, k, v = states(4)
    cache = H2OCache(CONFIG, 40, 4)  # evicts nothing
    serve(cache, q, k, v, PIECES)
    logits = (q @ k.repeat_interleave(GROUP, 1).transpose(2, 3)) * SCALE
    dense = logits.masked_fill(~torch.ones(T, T).tril().bool(), -math.inf).softmax(-1)
    expected = dense.view(1, HEADS, GROUP, T, T).sum((2, 3))
    torch.testing.assert_close(cache.layers[0].store.scores, expected)
    assert expected.sum().item() == pytest.approx(HEADS * GROUP * T)


def test_long_prompts_are_scored_in_pieces(monkeypatch):
    q, k, v = states(5)
    caches = [H2OCache(CONFIG, 9, 4) for _ in range(2)]
    expected = serve(caches[0], q, k, v, [T])
    monkeypatch.setattr("dlopt.kvcache.h2o.LOGITS", 3 * HEADS * GROUP * T)
    assert serve(caches[1], q, k, v, [T]) == expected
    torch.testing.assert_close(caches[0].layers[0].store.scores, caches[1].layers[0].store.scores)


def test_budgets_of_a_pyramid():
    for layers, budget, window, beta in [(30, 320, 64, 20), (7, 21, 4, 3), (2, 6, 2, 4), (1, 9, 3, 20), (4, 12, 4, 1)]:
        found = budgets(layers, budget, window, beta)
        assert sum(found) == layers * budget
        assert found == sorted(found, reverse=True)
        assert min(found) >= window
        if layers > 1:
            assert found[-1] == window + (budget - window) // beta
    assert budgets(4, 12, 4, 1) == [12] * 4
    model = build("llama-gqa")
    cache = PyramidKVCache(model, 6, 2, 3, beta=4)
    feed(model, cache, tokens(1, 20), [14, 1, 1, 3, 1])
    assert [layer.store.length for layer in cache.layers] == [9 + 6, 3 + 6]
    assert (
        cache.nbytes().total == kv_bytes(model, "pyramid:budget=6,window=2,beta=4", 20, generated=6).total * 2
    )  # float64


@pytest.mark.parametrize("family", ["llama-gqa", "gpt2", "gpt-neox", "qwen3"])
@pytest.mark.parametrize("spec", ["h2o:budget=6,recent=3", "pyramid:budget=6,window=2,kernel=3,beta=4"])
def test_eager_and_sdpa_show_the_same_queries(spec, family):
    ids, found, stores = tokens(2, 24), [], []
    for attention in ("sdpa", "eager"):
        model = build(family, attention)
        cache = make_cache(spec, model)
        found.append(feed(model, cache, ids, [14, 1, 1, 4, 2, 1, 1]))
        stores.append([layer.store.keys for layer in cache.layers])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    for one, other in zip(*stores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_positions_go_on_counting_what_was_seen():
    model, ids = build("llama-gqa"), tokens(1, 20)
    cache, full = TOVACache(model, 40), DynamicCache(config=model.config)
    assert torch.equal(feed(model, cache, ids, [15, 5]), feed(model, full, ids, [15, 5]))
    small = TOVACache(model, 7)
    feed(model, small, ids, [15, 5])
    assert (small.get_seq_length(), small.layers[0].store.length) == (20, 7)
    # a kept key is the one that the full cache has, turned to its original place
    kept, whole = small.layers[0].store.keys, full.layers[0].keys
    for head in range(2):
        assert all((whole[0, head] == key).all(-1).any() for key in kept[0, head])


def test_a_prompt_in_pieces_stays_near_the_budget():
    model, ids = build("llama-gqa"), tokens(1, 60)
    cache = SnapKVCache(model, 8, 3, 3, evict="blocks")
    prefill(model, ids, cache, chunk=10)
    assert cache.layers[0].store.length == 8


def test_the_window_is_scored_in_pieces_where_it_is_large(monkeypatch):
    model, ids = build("llama-gqa"), tokens(2, 40)
    caches = [SnapKVCache(model, 16, 8, 3) for _ in range(2)]
    feed(model, caches[0], ids, [40])
    monkeypatch.setattr(snapkv, "LOGITS", 3 * 2 * 4 * 40)  # three queries at a time
    feed(model, caches[1], ids, [40])
    for ours, theirs in zip(caches[1].layers, caches[0].layers):
        assert torch.equal(ours.store.keys, theirs.store.keys)


def test_attentions_that_show_no_queries_are_refused():
    config = LlamaConfig(**GQA)
    config._attn_implementation = "flash_attention_2"
    for make in (H2OCache, SnapKVCache, PyramidKVCache, TOVACache):
        with pytest.raises(ValueError, match="'flash_attention_2' shows its queries to nobody"):
            make(config)
    KnormCache(config)  # needs none
    cache = H2OCache(CONFIG, 9, 4)
    new = torch.zeros(1, HEADS, 3, D)
    cache.update(new, new, 0)
    with pytest.raises(RuntimeError, match="never reached the cache"):
        cache.update(new, new, 0)
    with pytest.raises(RuntimeError, match="never reached the cache"):
        cache.crop(0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: H2OCache(CONFIG, budget=4, recent=4), "budget must be at least 5, not 4"),
        (lambda: H2OCache(CONFIG, recent=0), "recent must be at least 1, not 0"),
        (lambda: SnapKVCache(CONFIG, budget=64, window=64), "budget must be at least 65, not 64"),
        (lambda: SnapKVCache(CONFIG, kernel=4), "kernel must be odd, so that it has a middle, not 4"),
        (lambda: SnapKVCache(CONFIG, pool="sum"), "pool must be one of avg, max, not 'sum'"),
        (lambda: SnapKVCache(CONFIG, evict="never"), "evict must be one of prompt, blocks, not 'never'"),
        (lambda: PyramidKVCache(CONFIG, beta=0), "beta must be at least 1, not 0"),
        (lambda: TOVACache(CONFIG, budget=1), "budget must be at least 2, not 1"),
        (lambda: KnormCache(CONFIG, budget=3, recent=3), "budget must be at least 4, not 3"),
    ],
)
def test_bad_input_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
