"""The pretrained model: greedy text with prompt lookup is plain greedy text, in float32."""

import pytest

from dlopt.speculative import PromptLookup, generate

ASKED = [
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog near the old river bank.",
    "Fix the spelling: Ther are manny reasons why peple like to reed books in the evning before thay sleep.",
]


@pytest.mark.llm
def test_greedy_text_is_identical_in_fewer_passes(smollm2):
    target, tokenizer = smollm2
    rounds = 0
    for text in ASKED:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        plain = generate(target, ids, max_new_tokens=40)
        drafted = generate(target, ids, PromptLookup(length=7), max_new_tokens=40, gate=False)
        assert drafted.tokens == plain.tokens
        rounds += drafted.stats.rounds - plain.stats.rounds
    assert rounds < -10
