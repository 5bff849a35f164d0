"""CS Drafting: every random outcome enumerated, a twin without caches, the caches of the drafters, wrong values."""

import math

import numpy as np
import pytest
import torch

from dlopt.speculative import Bigram, CascadeDrafter, MaxGram, Sampling, cascade, generate
from dlopt.speculative.verify import acceptance, residual
from tests.speculative.tiny import PROMPT, PROMPTS, model, texts

V = 3
START = [0, 1, 2, 1, 0]


def outcomes(run):
    """(probability, result) for every way in which run(choose) can go; choose(chances) -> a number."""
    open_ = [[]]
    while open_:
        script, taken, total = open_.pop(), [], [1.0]

        def choose(chances, script=script, taken=taken, total=total):
            if len(taken) < len(script):
                pick = script[len(taken)]
            else:
                pick, *others = [i for i, chance in enumerate(chances) if chance > 0]
                open_.extend([*taken, i] for i in others)
            taken.append(pick)
            total[0] *= chances[pick]
            return pick

        yield run(choose), total


def enumerated(drafter, sampling, limit, read):
    """(probability, draft) for every draft of a cascade behind START."""

    def run(choose):
        session = drafter.begin(START, sampling)
        for reader in session.readers:
            reader.read = lambda text, count, own=reader.model: read(own, text, count)
        session._draw = lambda law, position: choose(law)
        session._coin = lambda chance, position: not choose([chance, 1 - chance])
        return session.propose(limit)

    return [(total[0], draft) for draft, total in outcomes(run)]


def reader():
    """read(model, text, count) without a cache of keys; every answer is remembered."""
    known = {}

    def read(own, text, count):
        key = id(own), tuple(text)
        if key not in known:
            with torch.no_grad():
                known[key] = own(torch.tensor([list(text)])).logits[0]
        return known[key][-count:]

    return read


def first_two(drafts, target):
    """The exact law of the first two tokens that the verifier's rule leaves; target(text) is the law behind a text."""
    out = np.zeros((V, V))

    def step(draft, depth, path):
        """[(probability, token, accepted)] at one node."""
        law = target(path)
        if depth >= len(draft.tokens):
            return [(law[y], y, False) for y in range(V)]
        token = draft.tokens[depth]
        given = None if draft.probs is None else draft.probs[depth]
        if given is None:
            return [(law[y], y, y == token) for y in range(V)]
        kept, rest = acceptance(law, given)[token], residual(law, given)
        return [(kept, token, True), *(((1 - kept) * rest[y], y, False) for y in range(V))]

    for weight, draft in drafts:
        for p, y, accepted in step(draft, 0, START):
            if accepted:
                for q, z, _ in step(draft, 1, [*START, y]):
                    out[y, z] += weight * p * q
            else:
                out[y] += weight * p * target([*START, y])
    return out


@pytest.mark.parametrize("lenience", [1.0, 1.4])
def test_the_text_has_the_law_of_the_target_exactly(lenience, monkeypatch):
    """All outcomes of all drafters and reviews, and of the target's rule, added up: no sampling noise."""
    read, sampling = reader(), Sampling(0.9)
    big, small, target = (model(vocabulary=V, seed=s, layers=1) for s in (5, 6, 7))
    drafter = CascadeDrafter([big, small, MaxGram()], [[3, 1, 1], [2, 1], [2]], lenience)

    def law(text):
        return sampling.law(read(target, text, 1)[0])

    wanted = np.stack([law(START)[y] * law([*START, y]) for y in range(V)])
    drafts = enumerated(drafter, sampling, 3, read)
    assert len(drafts) > 20
    assert sum(weight for weight, _ in drafts) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(first_two(drafts, law), wanted, rtol=0, atol=1e-12)
    # negative control: the reviewer's law reported as if its review had been strict
    monkeypatch.setattr(cascade, "lenient_law", lambda law, given, lenience: law)
    wrong = np.abs(first_two(enumerated(drafter, sampling, 3, read), law) - wanted).sum() / 2
    assert (wrong < 1e-12) if lenience == 1 else (wrong > 1e-3)


def test_a_lenient_law_in_closed_form():
    law, given = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.1, 0.2, 0.6])
    np.testing.assert_allclose(cascade.lenient_law(law, given, 1.0), law, atol=1e-15)
    # kept: .1, .1, .2, 0; the other 0.6 is spread as (.4, .2, 0, 0) / .6
    np.testing.assert_allclose(cascade.lenient_law(law, given, 2.0), [0.5, 0.3, 0.2, 0.0], atol=1e-15)
    sharp = np.array([0.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(cascade.lenient_law(law, sharp, 3.0), [0.25, 0.15, 0.6, 0.0], atol=1e-15)


def twin(models, other, lengths, lenience, text, limit):
    """Greedy CS Drafting from the formulas: [(token, q(x))], with whole passes and no memory."""

    def write(number, text, count):
        if number == len(models):
            session = other.begin(text, Sampling())
            return [(token, 1.0) for token in session.propose(count).tokens]
        chain = []
        while len(chain) < count:
            now = text + [token for token, _ in chain]
            draft = row(number + 1, now, count - len(chain) - 1)
            for token, chance in [*draft, (-1, math.inf)]:
                with torch.no_grad():
                    law = models[number](torch.tensor([now])).logits[0, -1].softmax(-1)
                best = int(law.argmax())
                keep = token == best or (token >= 0 and lenience > 1 and lenience * float(law[token]) > chance)
                chain.append((token if keep else best, float(law[token if keep else best])))
                now = [*now, chain[-1][0]]
                if not keep:
                    break
        return chain

    def row(i, text, limit):
        chain = []
        for number, length in enumerate(lengths[i], i):
            if (count := min(length, limit - len(chain))) > 0:
                chain += write(number, text + [token for token, _ in chain], count)
        return chain

    return [token for token, _ in row(0, text, limit)]


@pytest.mark.parametrize("lenience", [1.0, 4.0])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_greedy_drafts_equal_a_twin_without_caches_after_any_rejection(family, lenience):
    """So every roll-back of the drafters' caches is right, also in a window (8 tokens) that the text has passed."""
    models = [model(family, seed=5), model("llama", seed=6, layers=1)]
    other = Bigram.of_model(models[1], length=9)
    lengths = [[3, 1, 2], [2, 1], [2]]
    drafter = CascadeDrafter([*models, other], lengths, lenience)
    session, text = drafter.begin(PROMPT, Sampling()), list(PROMPT)
    for right in (0, 2, 6, 1, 0, 3):
        drafted = list(session.propose(6).tokens)
        assert len(drafted) == 6
        assert drafted == twin(models, other, lengths, lenience, text, 6)
        added = [*drafted[:right], (drafted[right] + 1) % 24 if right < 6 else 7]
        session.observe(added)
        text += added


def test_lenience_changes_drafts_and_never_the_text():
    target = model()
    plain = [t[len(p) :] for t, p in zip(texts(target), PROMPTS)]
    drafted = set()
    for lenience in (1.0, 50.0):
        drafter = CascadeDrafter([model(seed=5, layers=1), Bigram.of_model(model(seed=9))], [[4, 1], [3]], lenience)
        found = generate(target, PROMPTS, drafter, max_new_tokens=24, eos=None, gate=False)
        assert found.tokens == plain
        drafted.add(tuple(drafter.begin(PROMPT, Sampling()).propose(5).tokens))
    assert len(drafted) == 2


def test_a_cascade_of_the_target_itself_is_always_right():
    target = model()
    drafter = CascadeDrafter([target, model(seed=5, layers=1), MaxGram()], [[3, 0, 0], [2, 1], [2]], 1.0)
    for temperature in (0.0, 1.0):
        options = {"max_new_tokens": 21, "temperature": temperature, "gate": False, "eos": None}
        stats = generate(target, [PROMPT], drafter, **options).stats
        assert stats.accepted == stats.drafted == 15


def test_a_model_reads_no_further_than_its_context():
    short = model("gpt2", seed=4)  # 64 positions
    drafter = CascadeDrafter([short, Bigram([1] * 24)], [[4, 2], [2]])
    prompt = (PROMPT * 20)[:62]
    session = drafter.begin(prompt, Sampling())
    assert len(session.propose(6).tokens) == 5  # three of the model, whose last needs no place, and two bigrams
    session.observe([1, 2, 3, 4])
    assert len(session.propose(6).tokens) == 2


def test_the_order_says_who_writes_first():
    """Max-gram finds three tokens to copy, the model goes on behind them."""
    small = model()
    text = [5, 1, 2, 3, 4, 5, 1]
    copied = MaxGram(length=3).begin(text, Sampling()).after([], 3)
    both = [
        CascadeDrafter([small, MaxGram()], [[2, 3], [0]], order=order).begin(text, Sampling())
        for order in (None, [1, 0])
    ]
    first, second = (list(session.propose(9).tokens) for session in both)
    assert copied == [2, 3, 4]
    assert second[:3] == copied
    with torch.no_grad():
        own = small(torch.tensor([text])).logits[0, -1].argmax()
        behind = small(torch.tensor([text + copied])).logits[0, -1].argmax()
    assert (first[0], second[3], len(second)) == (own, behind, 5)


def test_max_gram_takes_the_longest_match_and_then_bigrams():
    table = [1, 5, -1, 4, 0, 2]
    session = MaxGram(Bigram(table), length=10).begin([3, 1, 2, 5, 1, 2, 4, 3, 1, 2], Sampling())
    draft = session.propose(10)
    # 3, 1, 2 stood at the beginning, with 5, 1, 2, 4, 3, 1, 2 behind it; 2 has no successor
    assert (list(draft.tokens), draft.level) == ([5, 1, 2, 4, 3, 1, 2], 3)
    assert session.after([0], 3) == [1, 5, 2]  # 0 is new: bigrams alone
    assert session.after([5, 1], 4) == [2, 4, 3, 1]
    session.observe([0, 1])
    assert MaxGram().begin([1, 2], Sampling()).propose(3).tokens == []
    counted = Bigram.counted([[1, 2, 1, 3, 1, 2], [3, 0], [3]], 5)
    assert counted.table.tolist() == [-1, 2, 1, 0, -1]  # 3: 1 and 0 once each
    target = model()
    with torch.no_grad():
        wanted = target(torch.arange(24)[:, None]).logits[:, 0].argmax(-1).tolist()
    assert Bigram.of_model(target, batch=7).table.tolist() == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CascadeDrafter([]), "needs at least one drafter"),
        (lambda: CascadeDrafter([MaxGram(), model()]), "models first"),
        (lambda: CascadeDrafter([model(), CascadeDrafter([MaxGram()], [[2]])]), "got CascadeDrafter"),
        (lambda: CascadeDrafter([model(), MaxGram()], order=[0, 0]), "order must name each of the places 0 to 1 once"),
        (lambda: CascadeDrafter([model(), MaxGram()], lenience=0.5), r"lenience must be at least 1 \(1 is strict\)"),
        (lambda: CascadeDrafter([model()]), "lengths must be given for 1 models and 0 other"),
        (lambda: CascadeDrafter([model(), MaxGram()], [[1, 2]]), r"2 rows of \[2, 1\] numbers"),
        (lambda: CascadeDrafter([model(), MaxGram()], [[0, 0], [1]]), "not all 0 in the first row"),
        (lambda: MaxGram(length=0), "length must be at least 1, got 0"),
        (lambda: MaxGram(longest=0), "longest must be at least 1, got 0"),
        (lambda: Bigram([0, 2]), "token ids from 0 to 1, or -1, got 0 to 2"),
        (lambda: Bigram([0.5]), "whole numbers"),
        (lambda: Bigram([0], length=0), "length must be at least 1, got 0"),
        (lambda: Bigram.counted([[5]], 5), "document 0 must be token ids from 0 to 4"),
        (lambda: Bigram.counted([[0]], 0), "vocabulary must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_drafters_that_do_not_fit_the_target_are_refused():
    def fails(drafters, message):
        lengths = [[2] * len(drafters), *([1] * (len(drafters) - i) for i in range(1, len(drafters)))]
        with pytest.raises(ValueError, match=message):
            generate(model(), [PROMPT], CascadeDrafter(drafters, lengths))

    fails([model(vocabulary=25), MaxGram()], "the drafter LlamaForCausalLM one of 25")
    fails([model(), Bigram([0] * 25)], "bigram table is for a vocabulary of 25, the target has 24")
    fails([model(seed=31, layers=1).to("meta"), MaxGram()], "a drafter is on meta")
