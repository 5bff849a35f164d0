"""OpenbookQA: the harness's rules on cases worked by hand, prefixes, and scores from a cache that stays as it was."""

import os

import pytest
import torch

from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.kvcache import make_cache
from dlopt.tasks import data
from dlopt.tasks.branches import Packed, groups, likelihoods, predicted, split, stepwise
from dlopt.tasks.data.openbookqa import Question
from dlopt.tasks.openbookqa import Encoded, accuracies, chosen, encoded, pair, parse, prefix
from dlopt.tasks.passkey import found, passkey
from dlopt.tasks.writing import common, first_difference, overlap, repetition, request

CACHES = ("full", "window:window=24", "sinks:sinks=2,window=22", "sinks:sinks=2,window=22,positions=original",
          "kivi:residual=32", "quant", "h2o:budget=24,recent=12", "snapkv:budget=24,window=8",
          "pyramid:budget=24,window=8", "tova:budget=24", "knorm:budget=24")  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return llama().double(), ByteTokenizer()


@pytest.fixture(scope="module")
def asked(tiny):
    book = data.get("openbookqa-sample")
    before = prefix("shots:4", book, tiny[1])
    return before, [encoded(question, before, tiny[1]) for question in book.parts["test"]]


def test_the_rule_on_cases_by_hand():
    # the likeliest is 1; per character -8/4, -6/2, -9/9, -8/8: the third, which ties with the fourth and comes first
    assert chosen([-8.0, -6.0, -9.0, -8.0]) == 1
    assert chosen([-8.0, -6.0, -9.0, -8.0], [4, 2, 9, 8]) == 2
    questions = [Encoded((1,), ((2,), (3,)), (4, 1), 0), Encoded((1,), ((2,), (3,)), (1, 1), 1)]
    got = accuracies(questions, [[-2.0, -1.0], [-3.0, -1.0]])  # 1 is wrong and -2/4 is right; 1 and 1
    assert got == {"accuracy": 0.5, "correct": "01", "accuracy_norm": 1.0, "correct_norm": "11"}


class Words:
    """Tokens are words with the space before them, as in byte-level vocabularies; spaces at an end are one token."""

    bos_token_id = None

    def __call__(self, text, **options):
        import re

        return {"input_ids": [hash(word) % 10**6 for word in re.findall(r" ?[^\s]+|\s+", text)]}


def test_a_continuation_is_cut_as_by_the_harness():
    words = Words()
    context, rest = pair("The Sun is a", " star", words)
    assert (len(context), len(rest)) == (4, 1)
    # a space at the end of the context belongs to the continuation, so that " star" stays one token
    assert pair("The Sun is a ", "star", words) == (context, rest)


def test_prefixes_have_the_shots_and_facts_they_say(tiny):
    book, tokenizer = data.get("openbookqa-sample"), tiny[1]
    shots = prefix("shots:2", book, tokenizer)
    first, second = book.parts["train"][:2]
    assert (
        shots.text == f"{first.stem} {first.choices[first.answer]}\n\n{second.stem} {second.choices[second.answer]}\n\n"
    )
    assert bytes(shots.tokens).decode() == shots.text
    open_book = prefix("book:260", book, tokenizer)
    assert len(open_book.tokens) <= 260
    assert 1 <= len(open_book.facts) < len(book.facts)
    assert all(f"{fact}.\n" in open_book.text for fact in open_book.facts)
    covered = [encoded(q, open_book, tokenizer).covered for q in book.parts["test"]]
    assert covered == [q.fact in open_book.facts for q in book.parts["test"]]
    assert prefix("zero", book, tokenizer).tokens == ()
    for name, told in (("shots", "shots:NUMBER"), ("shots:0", "not 'shots:0'"), ("book:x", "book:TOKENS")):
        with pytest.raises(ValueError, match=told):
            parse(name)
    with pytest.raises(ValueError, match="to make 9 shots"):
        prefix("shots:9", book, tokenizer)
    with pytest.raises(ValueError, match="more than the 20 tokens"):
        prefix("book:20", book, tokenizer)


@pytest.mark.parametrize("spec", CACHES)
def test_packed_scores_are_those_from_a_copy_of_the_cache_row_by_row(spec, tiny, asked):
    model, (before, items) = tiny[0], asked
    cache = make_cache(spec, model)
    with torch.no_grad():
        model(input_ids=torch.tensor([before.tokens]), past_key_values=cache)
        state = cache.state_dict()
        row = Packed(items)
        logs = predicted(model, cache, row)
        for item, lls, pieces in zip(items, likelihoods(row, logs), split(row, logs), strict=True):
            # each choice in a pass of its own behind the stem, from a copy that was repeated for the four
            copy = make_cache(spec, model)
            copy.load_state_dict(state)
            copy.batch_repeat_interleave(len(item.choices))
            longest = max(map(len, item.choices))
            rows = torch.tensor([[*item.stem, *c, *[0] * (longest - len(c))] for c in item.choices])
            plain = model(input_ids=rows, past_key_values=copy).logits.log_softmax(-1)
            for k, choice in enumerate(item.choices):
                start = len(item.stem) - 1
                expected = plain[k, start : start + len(choice)]
                torch.testing.assert_close(pieces[k], expected, rtol=0, atol=1e-9)
                picked = expected.gather(1, torch.tensor(choice)[:, None]).sum()
                assert lls[k] == pytest.approx(float(picked), abs=1e-9)
    # the cache is as it was, to the bit
    after = cache.state_dict()
    for ours, theirs in zip(after["layers"], state["layers"], strict=True):
        assert ours["seen"] == theirs["seen"]
        assert set(ours["tensors"]) == set(theirs["tensors"])
        assert all(torch.equal(t, theirs["tensors"][name]) for name, t in ours["tensors"].items())


def test_stepwise_is_the_same_where_nothing_is_lost_and_not_where_tokens_are(tiny, asked):
    model, (before, items) = tiny[0], asked
    for spec, same in (("full", True), ("window:window=24", False)):
        cache = make_cache(spec, model)
        with torch.no_grad():
            model(input_ids=torch.tensor([before.tokens]), past_key_values=cache)
        copy = make_cache(spec, model)
        copy.load_state_dict(cache.state_dict())
        row = Packed(items[:1])
        packed, step = predicted(model, cache, row), stepwise(model, copy, items[0])
        assert torch.allclose(packed, step, rtol=0, atol=1e-9) == same
        assert packed.shape == step.shape


def test_without_a_prefix_and_in_groups(tiny):
    model, tokenizer = tiny
    book = data.get("openbookqa-sample")
    items = [encoded(q, prefix("zero", book, tokenizer), tokenizer) for q in book.parts["test"]]
    whole = likelihoods(Packed(items), predicted(model, None, Packed(items)))
    pieces = []
    for group in groups(items, 120):
        row = Packed([items[i] for i in group])
        pieces += likelihoods(row, predicted(model, None, row))
    assert len(list(groups(items, 120))) > 1
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(pieces), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="at least one token"):
        Packed([Encoded((), ((1,),), (1,), 0)])


def test_passkeys_stand_at_their_depth(tiny):
    texts = [passkey(tiny[1], 900, depth, seed=3) for depth in (0.0, 0.5, 1.0)]
    places = [bytes(t.body).decode().index(f"The pass key is {t.key}") / len(t.body) for t in texts]
    assert places[0] < 0.25 < places[1] < 0.75 < places[2]
    assert all(len(t.body) + len(t.question) <= 900 for t in texts)
    assert len({t.key for t in texts}) == 1  # the depth does not change the key
    assert bytes(texts[0].answer).decode() == f" {texts[0].key}"
    assert found(f" {texts[0].key}. Remember", texts[0].key) == (True, 1.0)
    assert found("12399", "12345") == (False, 0.6)
    assert found("", "12345") == (False, 0.0)
    with pytest.raises(ValueError, match="depth must be"):
        passkey(tiny[1], 900, 1.5, 0)
    with pytest.raises(ValueError, match="has at least"):
        passkey(tiny[1], 100, 0.5, 0)


def test_texts_are_compared(tiny):
    assert common([1, 2, 3, 4], [2, 9, 4, 1]) == 2
    assert overlap([1, 2, 3], [1, 2, 3]) == 1.0
    assert overlap([1, 2], [3, 4]) == 0.0
    assert overlap([1, 2, 3, 4], [2, 4]) == pytest.approx(2 * 2 / 6)
    assert first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([1]) == 0.0
    prompt, passage = request("copy", "stdlib-text", 1, 50, tiny[1])
    assert bytes(passage).decode() in bytes(prompt).decode()
    with pytest.raises(ValueError, match="summary, copy"):
        request("poem", "stdlib-text", 0, 50, tiny[1])


@pytest.mark.skipif(not os.environ.get("DLOPT_DATA"), reason="DLOPT_DATA is not set")
def test_the_release_as_it_is():
    book = data.get("openbookqa")
    assert [len(book.parts[part]) for part in ("train", "dev", "test")] == [4957, 500, 500]
    assert len(book.facts) == 1326
    assert all(len(q.choices) == 4 and q.fact in book.facts for q in book.parts["test"])
    first = book.parts["test"][0]
    assert first == Question(first.stem, first.choices, 1, "using less resources usually causes money to be saved")
