"""The pretrained model in float32: greedy text with drafts is plain greedy text, on 32 prompts of eight kinds."""

import os

import pytest

from dlopt.speculative import Best, PromptLookup, ReferenceDrafter, SuffixDrafter, TokenRecycling, generate
from dlopt.tasks import decoding

ASKED = [
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog near the old river bank.",
    "Fix the spelling: Ther are manny reasons why peple like to reed books in the evning before thay sleep.",
]
KINDS = ("translation", "summaries", "qa", "math", "retrieval", "chat", "rewriting", "code")
EACH, TOKENS = 4, 24


@pytest.mark.llm
def test_greedy_text_is_identical_in_fewer_passes(smollm2):
    target, tokenizer = smollm2
    rounds = 0
    for text in ASKED:
        ids = decoding.render(tokenizer, text)
        plain = generate(target, [ids], max_new_tokens=40)
        drafted = generate(target, [ids], PromptLookup(length=7), max_new_tokens=40, gate=False)
        assert drafted.tokens == plain.tokens
        rounds += drafted.stats.rounds - plain.stats.rounds
    assert rounds < -10


@pytest.mark.llm
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("DLOPT_DATA"), reason="DLOPT_DATA is not set")
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_of_many_prompts(kind, smollm2):
    """Four prompts of each kind, each with another drafter, chains and trees, without a gate."""
    target, tokenizer = smollm2
    offered, taken = 0, 0
    for number, prompt in enumerate(decoding.prompts(kind, EACH, longest=500)):
        ids = decoding.render(tokenizer, prompt.text)
        drafters = [PromptLookup(), ReferenceDrafter([ids]), Best([PromptLookup(max_ngram=4), SuffixDrafter()]),
                    TokenRecycling(nodes=24)]  # fmt: skip
        plain = generate(target, [ids], max_new_tokens=TOKENS)
        drafted = generate(target, [ids], drafters[number], max_new_tokens=TOKENS, gate=False)
        assert drafted.tokens == plain.tokens, f"{kind} {number}: {drafters[number]}"
        offered, taken = offered + drafted.stats.drafted, taken + drafted.stats.accepted
    assert 0 < taken < offered
