"""One matrix for every drafter of the catalogue: what it drafts may change the speed, never the text."""

import numpy as np
import pytest

from dlopt import catalog
from dlopt.speculative import (
    Best,
    Bigram,
    CascadeDrafter,
    DatastoreDrafter,
    LayerSkipDrafter,
    MaxGram,
    ModelDrafter,
    PlainDecoding,
    PromptLookup,
    ReferenceDrafter,
    SuffixDrafter,
    TokenRecycling,
    generate,
)
from dlopt.speculative.costs import Costs
from dlopt.speculative.datastore import Datastore
from dlopt.speculative.sampling import Sampling
from dlopt.speculative.suffix import SuffixHistory
from tests.speculative.test_generate import CACHES
from tests.speculative.test_verify import fits
from tests.speculative.tiny import PROMPT, PROMPTS, model, texts

COUNT = 14


def small(target):
    """A drafting model for a target."""
    return model("llama", vocabulary=target.config.vocab_size, seed=5, layers=1)


def other(target):
    """A larger drafting model."""
    return model("llama", vocabulary=target.config.vocab_size, seed=6)


def grams(target):
    """Max-gram with bigrams of a drafting model."""
    return MaxGram(Bigram.of_model(small(target)))


THREE = [[2, 1, 2], [2, 1], [2]]


def store(target):
    """A datastore that holds the end of what the target writes, and something else."""
    return Datastore.build([*(t[3:] for t in texts(target)), [1, 2, 3]], target.config.vocab_size)


def history(target):
    """Earlier outputs, the target's own."""
    found = SuffixHistory()
    for text in texts(target):
        found.add(text[4:])
    return found


# {name in the catalogue: {variant: target model -> drafter}}; a new method adds a line
BUILD = {
    "plain-decoding": {"": lambda target: PlainDecoding()},
    "prompt-lookup": {
        "": lambda target: PromptLookup(),
        "first match, as in transformers": lambda target: PromptLookup(2, 10, latest=False),
    },
    "llma": {
        "": lambda target: ReferenceDrafter([t[2:] for t in texts(target)], length=6),
        "prompt": lambda target: ReferenceDrafter(),
    },
    "speculative-sampling": {
        "": lambda target: ModelDrafter(small(target), 3),
        "shared": lambda target: ModelDrafter(small(target), 3, coupling="shared"),
        "itself": lambda target: ModelDrafter(target, 3),
    },
    "best-of-drafts": {
        "": lambda target: Best([PromptLookup(), ModelDrafter(small(target), 2, coupling="shared")]),
    },
    "rest": {
        "": lambda target: DatastoreDrafter(store(target), longest=4, length=5, nodes=12),
    },
    "suffix-decoding": {
        "": lambda target: SuffixDrafter(),
        "history, one path": lambda target: SuffixDrafter(history(target), max_spec_factor=2.0, tree=False),
    },
    "token-recycling": {
        "": lambda target: TokenRecycling(4, 15, 4),
    },
    "bigram": {
        "": lambda target: Bigram.of_model(small(target)),
    },
    "max-gram": {
        "": lambda target: MaxGram(Bigram.counted(texts(target), target.config.vocab_size)),
    },
    "cascade": {
        "lenient": lambda target: CascadeDrafter([small(target), grams(target)], [[3, 2], [2]], 3.0),
        "two models": lambda target: CascadeDrafter([other(target), small(target), grams(target)], THREE, 2.0),
        "lookup first": lambda target: CascadeDrafter([small(target), grams(target)], [[3, 2], [2]], order=[1, 0]),
        "strict": lambda target: CascadeDrafter([other(target), small(target)], [[3, 1], [2], []], 1.0),
    },
    "draft-and-verify": {
        "": lambda target: LayerSkipDrafter(target, attention=[0], length=3),
        "no exit": lambda target: LayerSkipDrafter(target, [1], [0, 1], length=3, threshold=0.0, adaptive=False),
    },
}
CASES = [(name, variant) for name, variants in BUILD.items() for variant in variants]
every = pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n} {v}".strip() for n, v in CASES])


def stochastic(drafter):
    return bool(getattr(drafter.begin([1], Sampling(1.0)), "stochastic", False))


def test_every_drafter_of_the_catalogue_is_here():
    ours = [m.name for m in catalog.methods("speculative", "drafter").values() if m.origin == "dlopt"]
    assert sorted(ours) == sorted(BUILD)


@every
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_text_is_that_of_plain_decoding(name, variant, family):
    target = model(family)
    drafter = BUILD[name][variant](target)
    plain = [t[len(p) :] for t, p in zip(texts(target, count=COUNT), PROMPTS)]
    together = generate(target, PROMPTS, drafter, max_new_tokens=COUNT, eos=None, gate=False)
    assert together.tokens == plain
    alone = generate(target, [PROMPT], drafter, max_new_tokens=COUNT, eos=None, gate=Costs((1, 8), (1.0, 1.2)))
    assert alone.tokens == plain[:1]
    assert alone.stats.tokens == COUNT
    assert alone.stats.accepted <= alone.stats.drafted


@every
@pytest.mark.parametrize("cache", ["kivi by block", "sinks", "full"])
def test_every_drafter_on_compressed_caches(name, variant, cache):
    target = model()
    drafter = BUILD[name][variant](target)
    options = {"max_new_tokens": COUNT, "eos": None, "gate": False}
    prompt = PROMPTS[2] + PROMPTS[0]
    plain = generate(target, [prompt], None, CACHES[cache](target.config), **options).tokens
    assert generate(target, [prompt], drafter, CACHES[cache](target.config), **options).tokens == plain


@every
def test_sampled_text_is_that_of_plain_sampling_if_drafts_are_deterministic(name, variant):
    target = model()
    drafter = BUILD[name][variant](target)
    options = {"max_new_tokens": COUNT, "temperature": 1.2, "top_p": 0.9, "seed": 3, "eos": None}
    together = generate(target, PROMPTS, drafter, gate=False, **options)
    if not stochastic(drafter):
        assert together.tokens == generate(target, PROMPTS, **options).tokens
    row = 1  # of the batch, alone, with its own seed
    alone = generate(target, [PROMPTS[row]], drafter, gate=False, **options | {"seed": 3 + row})
    assert alone.tokens == together.tokens[row : row + 1]


@every
def test_sampled_text_has_the_law_of_the_target(name, variant):
    if name != "plain-decoding" and not stochastic(BUILD[name][variant](model())):
        pytest.skip("token for token the text of plain sampling, whose law is tested")
    target = model(vocabulary=5)
    drafter = BUILD[name][variant](target)
    prompt, rows = [1, 2, 1, 2, 1], 1000 if name == "plain-decoding" else 300
    options = {"temperature": 0.9, "top_p": 0.95}
    found = np.zeros((5, 5))
    drawn = generate(target, [prompt] * rows, drafter, max_new_tokens=3, gate=False, eos=None, **options).tokens
    law, sampling = np.zeros((5, 5)), Sampling(**options)

    def after(text):
        import torch

        with torch.no_grad():
            return sampling.law(target(torch.tensor([text])).logits[0, -1])

    for a, pa in enumerate(after(prompt)):
        for b, pb in enumerate(after([*prompt, a])):
            law[b] += pa * pb * after([*prompt, a, b])
    for _, b, c in drawn:  # the second and third token: the first comes from the prefill
        found[b, c] += 1
    p, variation = fits(found, law)
    assert p > 1e-3
    assert variation < np.sqrt(25 / rows)


@every
def test_a_drafter_keeps_nothing_of_a_request(name, variant):
    target = model()
    drafter = BUILD[name][variant](target)
    options = {"max_new_tokens": 8, "temperature": 1.0, "gate": False, "eos": None}
    once = generate(target, [PROMPT], drafter, **options)
    generate(target, [PROMPTS[2]], drafter, **options)
    again = generate(target, [PROMPT], drafter, **options)
    assert (again.tokens, again.stats.drafted) == (once.tokens, once.stats.drafted)


def test_a_model_that_drafts_for_itself_is_always_right():
    """Nothing is lost in its own roll-back either, and the pass after a full draft catches up."""
    target = model()
    for temperature in (0.0, 1.0):
        for coupling in ("residual", "shared"):
            drafter = ModelDrafter(target, 3, coupling=coupling)
            stats = generate(
                target, [PROMPT], drafter, max_new_tokens=21, temperature=temperature, gate=False, eos=None
            ).stats
            assert stats.accepted == stats.drafted == 15
            assert stats.rounds == 5
            assert stats.offered == stats.taken == [5, 5, 5]
    mixed = Best([PromptLookup(length=1), ModelDrafter(target, 3)])  # whichever is taken, both caches stay right
    stats = generate(target, [PROMPT], mixed, max_new_tokens=21, gate=False, eos=None).stats
    assert stats.accepted == stats.drafted


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_drafting_model_forgets_what_was_rejected(name):
    """After any mixture of accepted and corrected tokens it drafts what a session that begins there drafts."""
    drafter = ModelDrafter(model(name, seed=5, layers=1), 3)
    session, text = drafter.begin(PROMPT, Sampling()), list(PROMPT)
    for right in (0, 2, 3, 1, 0, 3, 2):
        drafted = session.propose(3).tokens
        assert drafted == drafter.begin(text, Sampling()).propose(3).tokens
        added = [*drafted[:right], (drafted[right] + 1) % 24 if right < 3 else 7]
        session.observe(added)
        text += added


def test_processors_apply_to_a_drafting_model_as_to_the_target():
    target, asked = model(), []

    def ban(ids, scores):
        asked.append(ids.shape[1])
        return scores.index_fill(1, ids[0, -2:], -float("inf"))

    options = {"max_new_tokens": 13, "temperature": 0.8, "top_k": 5, "processors": [ban], "eos": None}
    found = generate(target, [PROMPT], ModelDrafter(target, 3), gate=False, **options)
    assert found.stats.accepted == found.stats.drafted
    assert all(len({*window}) == 3 for window in zip(found.tokens[0], found.tokens[0][1:], found.tokens[0][2:]))
    assert len(asked) == 13 + found.stats.drafted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptLookup(0), "max_ngram must be at least 1, got 0"),
        (lambda: PromptLookup(length=0), "length must be at least 1, got 0"),
        (lambda: PromptLookup(length=2.5), r"length must be a whole number, got 2\.5"),
        (lambda: ModelDrafter(model(), True), "length must be a whole number, got True"),
        (lambda: PromptLookup(2, min_ngram=3), "min_ngram must be from 1 to max_ngram = 2, got 3"),
        (lambda: ReferenceDrafter([]), "documents of token ids, at least one"),
        (lambda: ReferenceDrafter([[1], []]), "none of them empty"),
        (lambda: ReferenceDrafter(min_ngram=0), "min_ngram must be at least 1, got 0"),
        (lambda: ReferenceDrafter(length=0), "length must be at least 1, got 0"),
        (lambda: ReferenceDrafter(min_ngram=6), "max_ngram must be at least min_ngram = 6, got 5"),
        (lambda: ModelDrafter(model(), 0), "length must be at least 1, got 0"),
        (lambda: ModelDrafter(model(), coupling="x"), "coupling must be one of residual, shared, got 'x'"),
        (lambda: Best([]), "Best needs at least one drafter"),
        (lambda: Best([ModelDrafter(model())]).begin([1], Sampling(1.0)), "deterministic drafts only"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_drafter_of_another_vocabulary_is_refused_by_name():
    target, other = model(), model(vocabulary=25)
    with pytest.raises(
        ValueError, match="LlamaForCausalLM has a vocabulary of 24, the drafter LlamaForCausalLM one of 25"
    ):
        generate(target, [PROMPT], ModelDrafter(other))

    class Words:
        def __init__(self, *words):
            self.words = words

        def get_vocab(self):
            return {word: i for i, word in enumerate(self.words)}

    drafter = ModelDrafter(small(target), tokenizer=Words("a", "c", "b"))
    with pytest.raises(ValueError, match="differ in 2 tokens, first 'b'; a drafter needs the target's tokenizer"):
        generate(target, [PROMPT], drafter, tokenizer=Words("a", "b", "c"))
    with pytest.raises(ValueError, match="differ in 2 tokens"):
        generate(target, [PROMPT], Best([drafter]), tokenizer=Words("a", "b", "c"))
    generate(target, [PROMPT], drafter, tokenizer=Words("a", "c", "b"), max_new_tokens=2, gate=False)


def test_a_drafter_on_another_device_is_refused():
    other = model(vocabulary=24, seed=6, layers=1).to("meta")
    with pytest.raises(ValueError, match="the drafter is on meta, the target on cpu; move one of them"):
        generate(model(), [PROMPT], ModelDrafter(other))
