"""Beam search: one beam is greedy, enough beams are exhaustive."""

import itertools
import math

import pytest
import torch

from dlopt.transformer.config import TransformerConfig
from dlopt.transformer.decoding import DecoderStep, Seq2SeqStep, beam_search, generate
from dlopt.transformer.model import Decoder, Seq2Seq
from tests.transformer.settings import PAIRS, config
from tests.transformer.test_model import padded, shaken, tokens

TIGHT = {"rtol": 0, "atol": 1e-10}
EOS = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small():
    """A decoder with 4 tokens and clear preferences."""
    model = shaken(Decoder(TransformerConfig(4, 16, 2, heads=4, positions="rope"))).eval()
    with torch.no_grad():
        model.embed.tokens.weight.mul_(3)
    return model


def doubles(numbers):
    return torch.tensor(list(numbers), dtype=torch.float64)


def every(length, vocabulary=4, eos=EOS):
    """All sequences that end with eos or at the length."""
    for n in range(1, length + 1):
        for text in itertools.product(range(vocabulary), repeat=n):
            if eos not in text[:-1] and (n == length or text[-1] == eos):
                yield text


def exhaustive(log_prob, length, alpha, eos=EOS):
    found = [(log_prob(text) / ((5 + len(text)) / 6) ** alpha, log_prob(text), text) for text in every(length, eos=eos)]
    return sorted(found, reverse=True)


def of(model, prompt):
    """Log-probability of a continuation, by one whole forward pass."""

    def log_prob(text):
        whole = torch.cat((prompt, torch.tensor(text)))
        out = model(whole[None])[0].log_softmax(-1)
        return sum(out[len(prompt) - 1 + i, t].item() for i, t in enumerate(text))

    return log_prob


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("eos", [EOS, None])
def test_enough_beams_are_exhaustive(alpha, eos):
    model, rows = small(), [torch.tensor([0, 1, 2]), torch.tensor([2])]
    prompt, mask = padded(rows)
    found = beam_search(model, prompt, 3, 70, length_penalty=alpha, eos=eos, pad_mask=mask)
    for i, row in enumerate(rows):
        expected = exhaustive(of(model, row), 3, alpha, -1 if eos is None else eos)
        n = len(expected)
        assert (found.scores[i, n:] == -math.inf).all()
        torch.testing.assert_close(found.scores[i, :n], doubles(e[0] for e in expected), **TIGHT)
        torch.testing.assert_close(found.log_probs[i, :n], doubles(e[1] for e in expected), **TIGHT)
        for text, (_, _, best) in zip(found.tokens[i], expected, strict=False):
            assert text.tolist() == [*best, *[0] * (3 - len(best))]


@pytest.mark.parametrize("eos", [1, None])
@pytest.mark.parametrize(("positions", "pattern"), PAIRS[:8])
def test_one_beam_is_greedy(positions, pattern, eos):
    model = shaken(Decoder(config(positions, pattern))).eval()
    prompt, mask = padded([tokens(n) for n in (5, 1, 8, 3)])
    found = beam_search(model, prompt, 8, 1, eos=eos, pad_mask=mask)
    plain = generate(model, prompt, 8, temperature=0, eos=eos, pad_mask=mask)
    width = plain.tokens.shape[1]
    assert torch.equal(found.tokens[:, 0, :width], plain.tokens)
    assert not found.tokens[:, 0, width:].any()
    torch.testing.assert_close(found.log_probs[:, 0], plain.log_probs.sum(1), **TIGHT)


def test_more_beams_find_what_greedy_misses():
    """Greedy takes 0 (0.6) and then 0.3 at best; the best pair is 1, 1 (0.4 * 0.9)."""

    class Step:
        first = True

        def __call__(self, new):
            if self.first:
                self.first = False
                return torch.tensor([[0.6, 0.4, 1e-9, 1e-9]]).log()
            table = torch.tensor([[0.3, 0.25, 0.25, 0.2], [0.05, 0.9, 0.03, 0.02]]).log()
            return table[new[:, -1].clamp(max=1)]

        def reorder(self, rows):
            self.rows = rows.tolist()

    found = beam_search(Step(), torch.zeros(1, 1, dtype=torch.long), 2, 2, length_penalty=0)
    assert found.tokens[0].tolist() == [[1, 1], [0, 0]]
    assert found.log_probs[0].exp().tolist() == pytest.approx([0.36, 0.18])
    assert beam_search(Step(), torch.zeros(1, 1, dtype=torch.long), 2, 1).tokens[0].tolist() == [[0, 0]]


@pytest.mark.parametrize("beams", [2, 4])
def test_rows_of_a_batch_do_not_meet(beams):
    model = shaken(Seq2Seq(config("rope"))).eval()
    sources, starts = [tokens(n) for n in (6, 2, 4)], tokens(3, 1)
    source, _ = padded(sources, left=False)
    found = beam_search(Seq2SeqStep(model, source), starts, 6, beams, eos=2, no_repeat_ngram=2)
    for i, s in enumerate(sources):
        alone = beam_search(Seq2SeqStep(model, s[None]), starts[i : i + 1], 6, beams, eos=2, no_repeat_ngram=2)
        assert torch.equal(found.tokens[i], alone.tokens[0])
        torch.testing.assert_close(found.scores[i], alone.scores[0], **TIGHT)
        for text, log_prob in zip(found.tokens[i], found.log_probs[i], strict=True):
            words = text.tolist()
            words = words[: words.index(2) + 1] if 2 in words else words
            target = torch.tensor([*starts[i].tolist(), *words])
            out = model(s[None], target[None])[0].log_softmax(-1)
            expected = sum(out[n, w] for n, w in enumerate(words))
            torch.testing.assert_close(log_prob, expected, **TIGHT)


def test_length_penalty_prefers_longer_text():
    """eos at once has 0.3; five times the other token 0.6^5 = 0.08, which wins once it is divided by (10/6)^5."""

    class Step:
        def __call__(self, new):
            return torch.tensor([0.6, 0.05, 0.05, 0.3]).log().expand(len(new), -1)

        def reorder(self, rows):
            pass

    for alpha, best in ((0.0, [3, 1, 1, 1, 1]), (5.0, [0] * 5)):
        found = beam_search(Step(), torch.tensor([[1]]), 5, 8, length_penalty=alpha, eos=EOS, pad=1)
        assert found.tokens[0, 0].tolist() == best
        length = 1 if alpha == 0 else 5
        expected = found.log_probs[0, 0] / ((5 + length) / 6) ** alpha
        assert found.scores[0, 0].item() == pytest.approx(expected.item())


def test_a_second_best_eos_does_not_end_a_single_beam():
    class Step:
        def __call__(self, new):
            return torch.tensor([0.5, 0.1, 0.0, 0.4]).log().expand(len(new), -1)

        def reorder(self, rows):
            pass

    found = beam_search(Step(), torch.tensor([[1]]), 3, 1, eos=EOS)
    assert found.tokens.tolist() == [[[0, 0, 0]]]
    assert found.log_probs.item() == pytest.approx(3 * math.log(0.5))


def test_processors_restrict_without_renormalising():
    model, prompt = small(), torch.tensor([[0, 1]])

    def odd(logits, text):
        return logits.masked_fill(torch.arange(4) % 2 == 0, -math.inf)

    found = beam_search(model, prompt, 3, 70, processors=[odd], length_penalty=0.0, eos=EOS)
    expected = [e for e in exhaustive(of(model, prompt[0]), 3, 0.0) if all(t % 2 for t in e[2])]
    assert found.scores.isfinite().sum() == len(expected)
    torch.testing.assert_close(found.log_probs[0, : len(expected)], doubles(e[1] for e in expected), **TIGHT)


def test_wrong_requests_are_refused():
    model, prompt = small(), torch.zeros(1, 1, dtype=torch.long)
    for beams in (0, -2):
        with pytest.raises(ValueError, match="beams must be at least 1"):
            beam_search(model, prompt, 3, beams)
    with pytest.raises(ValueError, match="length_penalty must be at least 0"):
        beam_search(model, prompt, 3, 2, length_penalty=-1)
    with pytest.raises(ValueError, match="step with reorder"):
        beam_search(lambda new: torch.zeros(1, 4), prompt, 3, 2)
    with pytest.raises(ValueError, match="pass Seq2SeqStep"):
        beam_search(Seq2Seq(config()), prompt, 3, 2)
    with pytest.raises(ValueError, match="max_new_tokens"):
        beam_search(DecoderStep(model), prompt, 0, 2)
    with pytest.raises(ValueError, match="no continuation of row 0 is allowed"):
        beam_search(model, prompt, 3, 2, processors=[lambda logits, text: torch.full_like(logits, -math.inf)])


class Flat:
    """A step that finds all tokens alike, for any rows."""

    def __call__(self, new):
        return torch.zeros(len(new), 4)

    def reorder(self, rows):
        pass


def test_processors_never_see_forbidden_text():
    """Fewer texts are allowed than there are beams, and rows end at different times."""
    allowed = {0: [(1, 2, EOS)], 2: [(1, 1, 1, EOS), (1, 2, 1, 0)]}  # by the prompt

    def only(logits, text):
        out = torch.full_like(logits, -math.inf)
        for i, (first, *rest) in enumerate(text.tolist()):
            done = [words for words in allowed[first] if words[: len(rest)] == tuple(rest[: len(words)])]
            assert done, f"{rest} is forbidden after {first}"
            for words in done:
                out[i, words[len(rest)] if len(rest) < len(words) else 0] = 0
        return out

    found = beam_search(Flat(), torch.tensor([[0], [2]]), 4, 3, processors=[only], eos=EOS)
    assert found.tokens[0].tolist() == [[1, 2, EOS, 0], [0] * 4, [0] * 4]
    assert {tuple(text) for text in found.tokens[1].tolist()} == {*allowed[2], (0, 0, 0, 0)}
    assert found.log_probs.isfinite().sum(1).tolist() == [1, 2]
    with pytest.raises(ValueError, match="no continuation of row 1 is allowed"):
        beam_search(
            Flat(), torch.tensor([[0], [2]]), 4, 3,
            processors=[lambda logits, text: logits.masked_fill((text[:, :1] == 2) & (text.shape[1] > 2), -math.inf)],
        )  # fmt: skip
