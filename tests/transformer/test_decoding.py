"""Greedy and sampled decoding, and their filters, against plain loops over uncached forward passes."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from scipy import stats

from dlopt.transformer.decoding import DecoderStep, Seq2SeqStep, beam_search, generate
from dlopt.transformer.filters import no_repeat_ngram, repetition_penalty, top_k, top_p
from dlopt.transformer.model import Decoder, Seq2Seq
from tests.transformer.settings import PAIRS, POSITIONS, VOCABULARY, config
from tests.transformer.test_model import padded, shaken, tokens

TIGHT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def greedy(logits_of, prompt, count):
    """Tokens and log-probabilities by whole forward passes."""
    out, log_probs = prompt, []
    for _ in range(count):
        last = logits_of(out[None])[0, -1].log_softmax(-1)
        out = torch.cat((out, last.argmax()[None]))
        log_probs.append(last.max())
    return out[len(prompt) :], torch.stack(log_probs)


def fixed(logits):
    """A step whose next token does not depend on anything."""
    return lambda new: logits.expand(new.shape[0], -1)


@pytest.mark.parametrize(("positions", "pattern"), PAIRS)
def test_greedy_batch_with_padding_equals_rows_alone(positions, pattern):
    model = shaken(Decoder(config(positions, pattern))).eval()
    rows = [tokens(n) for n in (5, 1, 8)]
    prompt, mask = padded(rows)
    found = generate(model, prompt, 9, temperature=0, pad_mask=mask)
    assert not found.drawn.any()
    for i, row in enumerate(rows):
        expected, log_probs = greedy(model, row, 9)
        assert torch.equal(found.tokens[i], expected)
        torch.testing.assert_close(found.log_probs[i], log_probs, **TIGHT)


@pytest.mark.parametrize("positions", POSITIONS)
def test_greedy_seq2seq_equals_whole_passes(positions):
    model = shaken(Seq2Seq(config(positions))).eval()
    sources, starts = [tokens(n) for n in (6, 4)], [tokens(1), tokens(3)]
    source, _ = padded(sources, left=False)
    prompt, mask = padded(starts)
    found = generate(Seq2SeqStep(model, source, pad_mask=mask), prompt, 7, temperature=0, pad_mask=mask)
    for i, (s, start) in enumerate(zip(sources, starts, strict=True)):
        expected, log_probs = greedy(lambda t, s=s: model(s[None], t), start, 7)
        assert torch.equal(found.tokens[i], expected)
        torch.testing.assert_close(found.log_probs[i], log_probs, **TIGHT)


def test_log_probs_are_those_of_the_model_and_of_the_draw():
    model, prompt = shaken(Decoder(config())).eval(), tokens(3, 4)
    found = generate(model, prompt, 6, temperature=0.7, top_k=5, generator=torch.Generator().manual_seed(3))
    whole = model(torch.cat((prompt, found.tokens), dim=1))[:, 3:-1]
    plain = whole.log_softmax(-1).gather(2, found.tokens[..., None]).squeeze(2)
    torch.testing.assert_close(found.log_probs, plain, **TIGHT)
    kept = top_k((whole / 0.7).flatten(0, 1), 5).log_softmax(-1).view_as(whole)
    torch.testing.assert_close(found.drawn, kept.gather(2, found.tokens[..., None]).squeeze(2), **TIGHT)
    again = generate(model, prompt, 6, temperature=0.7, top_k=5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found.tokens, again.tokens)


@pytest.mark.parametrize(
    ("options", "power", "kept"),
    [
        ({}, 1.0, range(6)),
        ({"temperature": 0.5}, 2.0, range(6)),
        ({"temperature": 2.0}, 0.5, range(6)),
        ({"top_k": 3}, 1.0, range(3)),
        ({"top_p": 0.7}, 1.0, range(3)),  # 0.4 + 0.25 = 0.65 is not enough
        ({"top_p": 0.649}, 1.0, range(2)),
        ({"temperature": 0.5, "top_k": 4, "top_p": 0.9}, 2.0, range(3)),  # 0.596, 0.233, 0.084, 0.037 of the four
    ],
)
def test_samples_follow_the_distribution(options, power, kept):
    shares = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    count = 20_000
    found = generate(fixed(shares.log()), torch.zeros(count, 1, dtype=torch.long), 1, generator=generator, **options)
    weights = torch.tensor([s**power if i in kept else 0 for i, s in enumerate(shares.tolist())], dtype=torch.float64)
    expected = weights / weights.sum() * count
    seen = torch.bincount(found.tokens.flatten(), minlength=6)
    assert not seen[weights == 0].any()
    alive = weights > 0
    assert stats.chisquare(seen[alive], expected[alive] * seen.sum() / expected[alive].sum()).pvalue > 1e-3


def test_sampling_from_a_model_follows_its_distribution():
    model = shaken(Decoder(config())).eval()
    prompt = tokens(1, 3).expand(4000, -1)
    found = generate(model, prompt, 2, generator=torch.Generator().manual_seed(0))
    first = model(prompt[:1])[0, -1].softmax(-1)
    pairs = Counter(map(tuple, found.tokens.tolist()))
    observed, expected = [], []
    for a in range(VOCABULARY):
        second = model(torch.cat((prompt[0], torch.tensor([a])))[None])[0, -1].softmax(-1)
        for b in range(VOCABULARY):
            observed.append(pairs[a, b])
            expected.append(4000 * (first[a] * second[b]).item())
    small = [i for i, e in enumerate(expected) if e < 5]  # rare pairs as one class
    large = [i for i, e in enumerate(expected) if e >= 5]
    observed = [observed[i] for i in large] + [sum(observed[i] for i in small)]
    expected = [expected[i] for i in large] + [sum(expected[i] for i in small)]
    assert stats.chisquare(observed, [e * sum(observed) / sum(expected) for e in expected]).pvalue > 1e-3


def test_top_k_and_top_p_keep_the_right_sets():
    logits = torch.randn(50, 9, dtype=torch.float64)
    for k in (1, 4, 9):
        for row, kept in zip(logits, top_k(logits, k), strict=True):
            best = sorted(range(9), key=lambda i: -row[i].item())[:k]
            assert set(kept.isfinite().nonzero().flatten().tolist()) == set(best)
            torch.testing.assert_close(kept[best], row[best], rtol=0, atol=0)
    for p in (1e-9, 0.3, 0.8, 0.999):
        for row, kept in zip(logits, top_p(logits, p), strict=True):
            share, total, best = row.softmax(-1).tolist(), 0.0, []
            for i in sorted(range(9), key=lambda i: -share[i]):
                best.append(i)
                total += share[i]
                if total >= p:
                    break
            assert set(kept.isfinite().nonzero().flatten().tolist()) == set(best)
            torch.testing.assert_close(kept[best], row[best], rtol=0, atol=0)
    assert top_p(logits, 1.0).isfinite().all()
    assert top_k(torch.zeros(1, 5), 2).isfinite().sum() == 2  # equal ones are not all kept
    assert top_p(torch.tensor([[0.0, -math.inf, 0.0]]), 1.0).isfinite().tolist() == [[True, False, True]]


def test_repetition_control_is_its_definition():
    logits, text = torch.randn(20, 6, dtype=torch.float64), torch.randint(6, (20, 7))
    real = torch.rand(20, 7) < 0.7
    real[:, -3:] = True
    for mask in (None, real):
        out = repetition_penalty(logits, text, 1.5, mask)
        for n in (1, 2, 3):
            banned = no_repeat_ngram(logits, text, n, mask)
            for row in range(20):
                words = text[row].tolist()
                use = [True] * 7 if mask is None else mask[row].tolist()
                grams = {tuple(words[i : i + n]) for i in range(8 - n) if all(use[i : i + n])}
                for token in range(6):
                    bad = (*words[8 - n :], token) in grams
                    assert (banned[row, token] == -math.inf).item() == bad
                    old = logits[row, token].item()
                    if token in [w for w, u in zip(words, use, strict=True) if u]:
                        old = old / 1.5 if old > 0 else old * 1.5
                    assert out[row, token].item() == pytest.approx(old)
    assert torch.equal(no_repeat_ngram(logits, text, 8), logits)


def test_no_ngram_is_generated_twice_and_padding_does_not_count():
    model = shaken(Decoder(config("rope"))).eval()
    rows = [tokens(6), tokens(2)]
    prompt, mask = padded(rows)
    options = {"temperature": 0, "no_repeat_ngram": 2, "repetition_penalty": 1.3}
    found = generate(model, prompt, 12, pad_mask=mask, **options)
    for row, new in zip(rows, found.tokens, strict=True):
        assert torch.equal(generate(model, row[None], 12, **options).tokens[0], new)
        words = torch.cat((row[-1:], new)).tolist()
        grams = list(pairwise(words))
        assert len(grams) == len(set(grams))


def test_processors_see_all_tokens_and_come_in_order():
    seen = []

    def note(logits, text):
        seen.append(text.tolist())
        return logits.masked_fill(torch.arange(5) == 4, -math.inf)

    def count_up(logits, text):
        assert logits[0, 4] == -math.inf  # the one before has run
        allowed = torch.full_like(logits, -math.inf)
        allowed[:, text.shape[1] % 4] = 0
        return allowed

    found = generate(fixed(torch.tensor([0.0, 0, 0, 0, 9])), torch.tensor([[4, 2]]), 3, processors=[note, count_up])
    assert found.tokens.tolist() == [[2, 3, 0]]
    assert seen == [[[4, 2]], [[4, 2, 2]], [[4, 2, 2, 3]]]
    assert found.log_probs[0, 0].item() == pytest.approx(-math.log(4 + math.exp(9)))  # the model's own
    assert not found.drawn.any()  # a forced choice


def test_eos_ends_a_row_and_all_rows_end_the_loop():
    script = torch.tensor([[3, 1, 2, 2], [1, 1, 1, 3], [1, 3, 1, 1]])
    calls = []

    def step(new):
        calls.append(new.tolist())
        return torch.eye(5)[script[:, len(calls) - 1]] * 50

    streamed = []
    found = generate(
        step, torch.ones(3, 1, dtype=torch.long), 10, temperature=0, eos=3, pad=4, stream=lambda t: streamed.append(t)
    )
    assert found.tokens.tolist() == [[3, 4, 4, 4], [1, 1, 1, 3], [1, 3, 4, 4]]
    assert (found.log_probs[0, 1:] == 0).all()
    assert torch.equal(torch.stack(streamed, 1), found.tokens)
    assert len(calls) == 4
    assert calls[1] == [[3], [1], [1]]  # one new token a row


def test_a_row_that_ended_may_be_stuck():
    def step(new):
        return torch.tensor([[0.0, -math.inf], [0.0, 9.0]])

    def block(logits, text):
        return logits.masked_fill((text == 1).any(1, keepdim=True), -math.inf)

    prompt = torch.zeros(2, 1, dtype=torch.long)
    found = generate(step, prompt, 3, temperature=0, processors=[block], eos=1)
    assert found.tokens.tolist() == [[0, 0, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="every token is forbidden after 1 new tokens in row 1"):
        generate(step, prompt, 3, temperature=0, processors=[block])


PROMPT = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": math.nan}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 6}, "from 1 to the vocabulary's 5 tokens"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"prompt_ids": PROMPT[0]}, "prompt must be integer tokens"),
        ({"prompt_ids": PROMPT[:, :0]}, "prompt must be integer tokens"),
        ({"prompt_ids": PROMPT.float()}, "prompt must be integer tokens"),
        ({"pad_mask": torch.ones(2, 2, dtype=torch.bool)}, "must have the prompt's shape"),
        ({"pad_mask": torch.tensor([[True, True, False]] * 2)}, "padded on the left"),
        ({"pad_mask": torch.tensor([[True, False, True]] * 2)}, "padded on the left"),
        ({"pad_mask": torch.ones(2, 3)}, "must be bool"),
        ({"step": fixed(torch.full((5,), math.nan))}, "hold NaN"),
        ({"step": lambda new: torch.zeros(1, 5)}, "logits .b, v. for 2 rows"),
        ({"step": Seq2Seq(config())}, "pass Seq2SeqStep"),
        ({"step": Decoder(config(dropout=0.1))}, "call model.eval"),
    ],
)
def test_wrong_requests_are_refused(options, sentence):
    arguments = {"step": fixed(torch.zeros(5)), "prompt_ids": PROMPT, "max_new_tokens": 2, **options}
    with pytest.raises(ValueError, match=sentence):
        generate(**arguments)


def test_a_step_can_be_continued_by_hand():
    model, prompt = shaken(Decoder(config())).eval(), tokens(1, 4)
    step = DecoderStep(model)
    with torch.no_grad():
        first = step(prompt)
        step(tokens(1, 3))
        step.cache.crop(3)
        torch.testing.assert_close(step(prompt[:, 3:]), first, **TIGHT)


def test_half_precision_is_decoded_in_float32():
    model, prompt = Decoder(config()).bfloat16().eval(), tokens(2, 3)
    assert generate(model, prompt, 4).log_probs.dtype == torch.float32
    assert beam_search(model, prompt, 4, 2).scores.dtype == torch.float32


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-320])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.tensor([-3.0, 2.0, -math.inf, 1.9])
    found = generate(fixed(logits), PROMPT, 4, temperature=temperature, top_p=0.9, eos=0)
    assert found.tokens.tolist() == [[1] * 4] * 2
    assert not found.drawn.any()
