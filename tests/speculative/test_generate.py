"""The engine: ends inside drafts, trees, batches, caches, streaming, and sentences for bad input."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from dlopt.kvcache.baselines import FullCache, WindowCache
from dlopt.kvcache.kivi import KIVICache
from dlopt.kvcache.sinks import SinkCache
from dlopt.speculative import Draft, PromptLookup, Sampling, TokenRecycling, generate
from dlopt.speculative.draft import chain
from tests.speculative.tiny import PROMPT, PROMPTS, Scripted, model, oracle, random_tree, texts, tree

GREEDY = {"max_new_tokens": 24, "eos": None, "gate": False}


def new(whole, prompts=PROMPTS):
    return [text[len(prompt) :] for text, prompt in zip(whole, prompts)]


# ---------------------------------------------------------------- plain decoding


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_plain_decoding_is_that_of_transformers(family):
    target = model(family)
    theirs = target.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert generate(target, PROMPT, **GREEDY).sequences.tolist() == theirs.tolist()


def test_plain_sampling_draws_one_token_after_the_other_by_its_position():
    target, sampling = model(), Sampling(1.1, top_k=9, seed=5)
    text = list(PROMPT)
    with torch.no_grad():
        for _ in range(10):
            text.append(sampling.draw(sampling.law(target(torch.tensor([text])).logits[0, -1]), len(text)))
    found = generate(target, PROMPT, max_new_tokens=10, temperature=1.1, top_k=9, seed=5, eos=None)
    assert found.sequences.tolist() == [text]
    halfway = generate(target, text[:11], max_new_tokens=5, temperature=1.1, top_k=9, seed=5, eos=None)
    assert halfway.sequences.tolist() == [text]  # positions count from the first token of the row


def test_one_prompt_list_or_tensor_with_padding_are_the_same():
    target = model()
    expected = generate(target, PROMPTS, **GREEDY)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    found = generate(target, ids, attention_mask=mask, **GREEDY)
    assert found.tokens == expected.tokens
    assert torch.equal(found.sequences, expected.sequences)
    assert found.sequences.shape == (3, width + 24)
    assert generate(target, torch.tensor(PROMPT), **GREEDY).tokens == expected.tokens[:1]


# ---------------------------------------------------------------- drafts of all kinds


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_right_and_wrong_and_no_drafts_give_the_same_text(family, attention):
    target = model(family, attention=attention)
    whole = texts(target)
    drafters = {
        "right": oracle(whole, 4),
        "wrong": oracle(whole, 4, shift=1),
        "none": Scripted(lambda text, limit: Draft()),
        "now and then": Scripted(lambda text, limit: Draft([text[-1]] * min(limit, len(text) % 4))),
        "tree": tree(whole, 3),
        "drawn tree": random_tree(0, 3),
    }
    for name, drafter in drafters.items():
        alone = generate(target, [PROMPT], drafter, **GREEDY)
        assert alone.tokens == new(whole)[:1], name
        assert generate(target, PROMPTS, drafter, **GREEDY).tokens == new(whole), name
        if name == "right":
            assert alone.stats.rounds == np.ceil(23 / 5)
            assert alone.stats.tokens_per_round == 23 / 5
            assert alone.stats.widths == {5: 4, 3: 1}
        if name == "wrong":
            assert (alone.stats.rounds, alone.stats.accepted) == (23, 0)
        if name == "tree":
            assert (alone.stats.accepted, alone.stats.offered[0]) == (17, 6)  # 5 of depth 3, and one of 2 at the end


@pytest.mark.parametrize("rows", [1, 3])
def test_sampled_text_is_the_same_with_fixed_drafts_and_reproducible_with_drawn_ones(rows):
    target, prompts = model(), PROMPTS[:rows]
    options = {"temperature": 1.0, "top_p": 0.95, "seed": 11, "max_new_tokens": 16, "eos": None}
    whole = texts(target, prompts, 16, temperature=1.0, top_p=0.95, seed=11)
    for drafter in (oracle(whole, 4), oracle(whole, 4, shift=1), tree(whole, 3)):
        assert generate(target, prompts, drafter, gate=False, **options).tokens == new(whole, prompts)
    drawn = [generate(target, prompts, random_tree(1, 2), gate=False, **options).tokens for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_batch_is_its_rows_alone_also_with_drawn_trees_and_after_squeezing():
    target, rows = model(), [[i, i + 1, i % 3] for i in range(1, 8)]
    whole = texts(target, rows, 100)

    def script(text, limit):  # the rows drift far apart: one is never right, one always is
        right = next(t for t in whole if t[: len(text)] == text)[len(text) :][: min(limit, 6)]
        return Draft([(t + (text[0] != 3)) % 24 for t in right])

    found = generate(target, rows, Scripted(script), max_new_tokens=100, eos=None, gate=False)
    assert found.tokens == new(whole, rows)
    options = {"max_new_tokens": 12, "temperature": 1.0, "eos": None, "gate": False}

    def drafted(text, limit):  # drawn by the text alone, so that a row drafts the same with and without others
        return random_tree(sum(text), 2).script(text, limit)

    drafter = Scripted(drafted, stochastic=True)
    alone = [generate(target, [row], drafter, seed=4 + i, **options).tokens[0] for i, row in enumerate(rows)]
    assert generate(target, rows, drafter, seed=4, **options).tokens == alone
    assert generate(target, rows, drafter, seed=[4 + i for i in range(7)], **options).tokens == alone


def test_sessions_are_told_everything_in_order():
    target, calls = model(), []

    class Curious:
        one_row = True

        def begin(self, prompt, sampling):
            self.text = list(prompt)
            calls.append(("begin", list(prompt), sampling.seed))
            return self

        def attach(self, model, cache):
            calls.append(("attach", model is target, cache.get_seq_length()))

        def learn(self, inputs, logits):
            calls.append(("learn", list(inputs), tuple(logits.shape)))

        def propose(self, limit):
            return Draft([0, 1][:limit])

        def observe(self, tokens):
            calls.append(("observe", list(tokens)))

    plain = generate(target, PROMPTS[:2], max_new_tokens=3, eos=None).tokens
    found = generate(target, PROMPTS[:2], Curious(), max_new_tokens=3, seed=6, eos=None, gate=False)
    assert found.tokens == plain
    assert found.stats.rows == 2
    assert calls[:4] == [
        ("begin", PROMPT, 6),
        ("learn", [2], (1, 24)),
        ("observe", plain[0][:1]),
        ("attach", True, len(PROMPT)),
    ]
    assert calls[4] == ("learn", [plain[0][0], 0], (2, 24))
    assert [call[2] for call in calls if call[0] == "begin"] == [6, 7]  # rows one after the other, each its own seed
    with pytest.raises(ValueError, match="decodes rows one by one, so it cannot fill one cache"):
        generate(target, PROMPTS, Curious(), DynamicCache(), max_new_tokens=3)


# ---------------------------------------------------------------- ends


def test_an_end_token_inside_a_draft_ends_the_row_there():
    target = model()
    whole = texts(target)
    for place in (2, 5, 7):
        ends = {text[len(prompt) + place] for text, prompt in zip(whole, PROMPTS)}
        plain = generate(target, PROMPTS, **GREEDY | {"eos": ends})
        assert any(len(tokens) < 24 for tokens in plain.tokens)
        for drafter in (oracle(whole, 4), tree(whole, 4), PromptLookup()):
            found = generate(target, PROMPTS, drafter, **GREEDY | {"eos": ends})
            assert found.tokens == plain.tokens
            assert torch.equal(found.sequences, plain.sequences)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_limit_inside_a_draft(count):
    target = model()
    whole = texts(target)
    for drafter in (oracle(whole, 4), tree(whole, 4)):
        assert (
            new(texts(target, count=count))
            == generate(target, PROMPTS, drafter, **GREEDY | {"max_new_tokens": count}).tokens
        )


def test_the_context_is_used_to_its_end():
    target = model("gpt2")  # 64 learned positions
    prompt = list(range(24)) * 2
    whole = texts(target, [prompt], 16)
    assert generate(target, [prompt], tree(whole, 6), **GREEDY | {"max_new_tokens": 16}).tokens == new(whole, [prompt])


def test_stop_strings_and_sequences_inside_a_draft():
    class Letters:
        def decode(self, ids, skip_special_tokens):
            return "".join(chr(97 + i) for i in ids)

    target = model()
    whole = texts(target)
    tokens = new(whole)[0]
    stop = "".join(chr(97 + t) for t in tokens[5:8])
    for drafter in (None, oracle(whole, 5), tree(whole, 5)):
        found = generate(target, [PROMPT], drafter, stop=stop, tokenizer=Letters(), **GREEDY)
        assert found.tokens == [tokens[: "".join(chr(97 + t) for t in tokens).index(stop) + 3]]
        assert generate(target, [PROMPT], drafter, stop=[tokens[5:8]], **GREEDY).tokens == found.tokens
    assert generate(target, [PROMPT], oracle(whole, 5), stop=[PROMPT[-1:]], **GREEDY).tokens[
        0
    ]  # the prompt never stops


def test_streaming_tells_where_tokens_come_from():
    target, seen = model(), []
    whole = texts(target)
    tokens = new(whole)[0]
    drafter = Scripted(
        lambda text, limit: Draft([tokens[len(text) - 6], (tokens[len(text) - 5] + (len(text) // 2 % 2)) % 24][:limit])
    )
    found = generate(target, [PROMPT], drafter, stream=seen.append, **GREEDY | {"eos": tokens[14]})
    assert [t for part in seen for t in part.tokens] == found.tokens[0]
    assert seen[0] == (0, tokens[:1], 0, 0, "plain")
    assert {part.kind for part in seen} >= {"plain", "bonus", "corrected"}
    assert sum(part.accepted for part in seen) == found.stats.accepted
    assert sum(part.drafted for part in seen) == found.stats.drafted
    for part in seen[1:]:
        assert part.accepted == len(part.tokens) - (part.kind != "accepted")
        assert (part.kind == "bonus") == (part.accepted == part.drafted and part.kind != "accepted")
    last = generate(target, [PROMPT], oracle(whole, 5), stream=seen.append, **GREEDY | {"eos": tokens[2]})
    assert seen[-1] == (0, last.tokens[0][1:], 2, 5, "accepted")


# ---------------------------------------------------------------- caches


def test_the_cache_holds_the_text_afterwards_and_can_be_gone_on_with():
    target = model()
    whole = texts(target)
    for drafter in (None, oracle(whole, 4), oracle(whole, 4, shift=1), tree(whole, 3), PromptLookup()):
        cache = DynamicCache()
        first = generate(target, [PROMPT], drafter, cache, **GREEDY | {"max_new_tokens": 9})
        assert cache.get_seq_length() == len(PROMPT) + 8
        fresh = DynamicCache()
        with torch.no_grad():
            target(torch.tensor([whole[0][: len(PROMPT) + 8]]), past_key_values=fresh)
        torch.testing.assert_close(cache.layers[1].keys, fresh.layers[1].keys, rtol=0, atol=1e-7)
        torch.testing.assert_close(cache.layers[1].values, fresh.layers[1].values, rtol=0, atol=1e-7)
        again = generate(target, first.sequences, drafter, cache, **GREEDY | {"max_new_tokens": 15})
        assert first.tokens[0] + again.tokens[0] == new(whole)[0]


CACHES = {
    "full": lambda c: FullCache(c),
    "window": lambda c: WindowCache(c, window=7),
    "sinks": lambda c: SinkCache(c, sinks=2, window=6, positions="original"),
    "kivi by block": lambda c: KIVICache(c, bits=4, group=8, residual=8, flush="block"),
    "kivi by token": lambda c: KIVICache(c, bits=2, group=8, residual=8),
    "kivi of 16 bits": lambda c: KIVICache(c, bits=16),
    "sliding layers": lambda c: DynamicCache(config=c),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_compressed_cache_gives_the_text_it_gives_without_drafts(name):
    target = model("mistral" if name == "sliding layers" else "llama")
    make, prompt = CACHES[name], PROMPTS[2] + PROMPTS[0]
    options = {"max_new_tokens": 40, "eos": None, "gate": False}
    cache = make(target.config)
    plain = generate(target, [prompt], cache=cache, **options)
    full = generate(target, [prompt], **options)
    if name in ("full", "kivi of 16 bits", "sliding layers"):
        assert plain.tokens == full.tokens
    for shift, length in ((0, 5), (0, 2), (1, 3)):
        drafted = make(target.config)
        drafter = oracle([prompt + plain.tokens[0]], length, shift)
        found = generate(target, [prompt], drafter, drafted, **options)
        assert found.tokens == plain.tokens
        if not shift and name != "kivi by token":
            assert found.stats.accepted > 20
        for ours, theirs in zip(drafted.layers, cache.layers):
            assert ours.get_seq_length() == theirs.get_seq_length()
            if name != "sliding layers":
                for key, tensor in theirs.tensors().items():
                    if tensor.is_floating_point():
                        torch.testing.assert_close(ours.tensors()[key], tensor, rtol=0, atol=1e-4)
                    else:
                        assert torch.equal(ours.tensors()[key], tensor)


TURNS = [name for name in CACHES if name != "full"]


@pytest.mark.parametrize("second", [PromptLookup(), None], ids=["drafted", "plain"])
@pytest.mark.parametrize("name", TURNS)
def test_a_cache_goes_on_after_a_drafted_turn(name, second):
    """The first turn is drafted, the next brings new tokens of its own: as if no draft had ever been."""
    target = model("mistral" if name == "sliding layers" else "llama")
    options = {"max_new_tokens": 20, "eos": None, "gate": False}
    prompt, more = PROMPTS[2] + PROMPTS[0], list(range(5, 16))

    def turns(first, then):
        cache = CACHES[name](target.config)
        answer = generate(target, [prompt], first, cache, **options).tokens[0]
        longer = generate(target, [prompt + answer + more], then, cache, **options).tokens[0]
        return answer, longer, [layer.keys.shape for layer in cache.layers if layer.keys is not None], cache

    plain, drafted = turns(None, None), turns(PromptLookup(), second)
    assert drafted[:2] == plain[:2]
    if second is None:
        assert drafted[2] == plain[2]
        assert not any(getattr(layer, "record_past", False) for layer in drafted[3].layers)


def test_a_cache_that_came_recording_stays_so_and_commits_its_prompt():
    target = model()
    options = {"max_new_tokens": 12, "eos": None, "gate": False}
    plain, cache = (CACHES["sinks"](target.config) for _ in range(2))
    cache.activate_past_recording()
    prompt = PROMPTS[2] + PROMPTS[0]
    found = generate(target, [prompt], PromptLookup(), cache, **options)
    assert found.tokens == generate(target, [prompt], None, plain, **options).tokens
    assert all(layer.record_past for layer in cache.layers)


def test_decoding_that_breaks_off_leaves_the_cache_as_it_was_set():
    target = model()
    cache = CACHES["window"](target.config)

    def stop(part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(target, [PROMPT], PromptLookup(), cache, max_new_tokens=8, eos=None, gate=False, stream=stop)
    assert not any(layer.record_past for layer in cache.layers)


def test_windows_that_the_cache_does_not_show_are_seen():
    """`DynamicCache()` keeps all tokens of a model that looks back through a window."""
    target = model("mistral")
    options = {"max_new_tokens": 20, "eos": None, "gate": False}
    plain = generate(target, [PROMPT], **options).tokens
    assert generate(target, [PROMPT], TokenRecycling(4, 15, 4), DynamicCache(), **options).tokens == plain
    with pytest.raises(ValueError, match="a batch needs a model of full attention, MistralForCausalLM looks back thr"):
        generate(target, PROMPTS, None, DynamicCache(), **options)


def test_a_tree_becomes_its_path_of_first_children():
    draft = Draft([1, 2, 3, 4, 5, 6], [-1, -1, 0, 0, 1, 3], level=2)
    assert chain(draft) == Draft([1, 3], None, None, 2)
    assert chain(Draft([7, 8], [-1, 0])) == Draft([7, 8])
    assert chain(Draft([7, 8])) == Draft([7, 8])
    laws = [np.eye(9)[t] for t in (1, 2, 3)]
    assert [law.argmax() for law in chain(Draft([1, 2, 3], [-1, -1, 1], laws)).probs] == [1]


def test_caches_that_cannot_verify_a_draft_are_refused():
    target = model()
    lookup = PromptLookup()
    options = {"max_new_tokens": 4, "gate": False}
    with pytest.raises(ValueError, match="the sinks of this cache move with every token"):
        generate(target, [PROMPT], lookup, SinkCache(target.config, 2, 6), **options)
    assert generate(target, [PROMPT], cache=SinkCache(target.config, 2, 6), **options).tokens[0]
    with pytest.raises(ValueError, match="StaticLayer cannot take back the tokens of a draft exactly"):
        generate(target, [PROMPT], lookup, StaticCache(config=target.config, max_cache_len=32), **options)
    forgetful = FullCache(target.config)
    forgetful.method = "made up"
    with pytest.raises(ValueError, match="the cache 'made up' keeps other tokens after a block than after single ones"):
        generate(target, [PROMPT], lookup, forgetful, **options)
    with pytest.raises(ValueError, match="a batch needs the full cache"):
        generate(target, PROMPTS, lookup, FullCache(target.config), **options)
    with pytest.raises(ValueError, match=r"cache must be a transformers\.Cache, got list"):
        generate(target, [PROMPT], cache=[], **options)
    with pytest.raises(ValueError, match="EncoderDecoderCache is no cache of a decoder alone"):
        generate(target, [PROMPT], lookup, EncoderDecoderCache(DynamicCache(), DynamicCache()), **options)
    held = DynamicCache()
    generate(target, [PROMPT], cache=held, **options)
    with pytest.raises(ValueError, match="the cache holds 9 tokens, the prompt has 6"):
        generate(target, [PROMPT], lookup, held, **options)
    with pytest.raises(ValueError, match="the cache holds 9 tokens already; a batch must start with an empty one"):
        generate(target, PROMPTS, lookup, held, **options)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": []}, "a prompt is empty"),
        ({"input_ids": [[1], []]}, "a prompt is empty"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "a prompt is empty"),
        ({"input_ids": [[1, 24]]}, "row 0 has a token outside the model's vocabulary of 24"),
        ({"input_ids": [1] * 120}, "a prompt of 120 tokens and 24 new ones pass the model's context of 128 tokens"),
        ({"attention_mask": torch.ones(1, 3)}, "must have the shape of input_ids"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}, "must be 0 at padding on the left"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": [1, 2]}, "seed must be one number, or one for each of the 1 rows, got 2"),
        ({"stop": "x"}, "stop strings need tokenizer="),
        ({"stop": [""]}, "stop must not have an empty string"),
        ({"drafter": 3}, "drafter must have begin"),
        ({"drafter": PromptLookup}, "drafter must have begin"),
        ({"input_ids": [[1.5]]}, "input_ids must be whole numbers"),
        ({"input_ids": torch.ones(1, 3)}, "input_ids must be whole numbers"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens must be at least 1, got 2\.5"),
        ({"eos": "none"}, "eos is \"model\", None, or token ids, got 'none'"),
        ({"stop": [3]}, "stop takes strings and sequences of token ids, got the number 3"),
        ({"processors": [lambda ids, scores: scores - np.inf]}, "no token can be drawn: every token is forbidden"),
        ({"processors": [lambda ids, scores: scores * np.nan]}, "no token can be drawn: the logits are not finite"),
        (
            {"drafter": Scripted(lambda text, limit: Draft([24]))},
            "ScriptedSession drafted a token outside the target's voc",
        ),
        ({"drafter": Scripted(lambda text, limit: Draft([1, 2], [0, -1]))}, "parents must be 2 indices"),
        (
            {"drafter": Scripted(lambda text, limit: Draft([1] * (limit + 1)))},
            "drafted a path of 23 tokens, the limit was 22",
        ),
        ({"drafter": Scripted(lambda text, limit: Draft([1], None, []))}, "probs must have one entry for each"),
        ({"drafter": Scripted(lambda text, limit: Draft([1], None, [np.eye(24)[0]]))}, "token 1 has probability 0"),
    ],
)
def test_bad_input_gets_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        generate(model(), **{"input_ids": [PROMPT], "max_new_tokens": 24, "gate": False} | options)


def test_logits_that_are_no_numbers_are_refused():
    target = model(seed=9)
    target.lm_head.weight.data[3] = np.nan
    with pytest.raises(ValueError, match="no token can be drawn: the logits are not finite"):
        generate(target, [PROMPT], PromptLookup(), max_new_tokens=4, gate=False)


def test_seeds_of_other_kinds_of_integers_are_the_same():
    target, options = model(), {"max_new_tokens": 6, "temperature": 1.0, "eos": None}
    assert (
        generate(target, PROMPTS, seed=np.int64(3), **options).tokens
        == generate(target, PROMPTS, seed=3, **options).tokens
    )


def test_models_that_cannot_be_decoded_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    target = model(seed=9)
    target.train()
    with pytest.raises(ValueError, match="the model is in training mode"):
        generate(target, [PROMPT])
    target.eval()
    other = T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).eval()
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        generate(other, [[1]])
