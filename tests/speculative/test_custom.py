"""Drafters inside `model.generate` of `transformers`."""

import pytest
import torch
from transformers import DynamicCache, StoppingCriteria

from dlopt.speculative import ModelDrafter, PlainDecoding, PromptLookup, as_custom_generate
from tests.speculative.tiny import PROMPT, PROMPTS, model, oracle, texts, tree


def padded():
    width = max(map(len, PROMPTS))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]),
    }


def single():
    return {"input_ids": torch.tensor([PROMPT])}


class Sum(StoppingCriteria):
    """Ends a row whose last two tokens have this sum."""

    def __init__(self, total):
        self.total = total

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -2:].sum(1) == self.total


@pytest.mark.parametrize("inputs", [single, padded])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"prefix_allowed_tokens_fn": lambda row, ids: [4 + row, 8 + row, *range(12, 20)]},
        {"min_new_tokens": 9, "eos_token_id": [15, 2, 7]},
    ],
)
def test_greedy_text_is_that_of_transformers(inputs, options):
    target = model()
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0} | options
    plain = target.generate(**inputs(), **options)
    for drafter in (
        PromptLookup(),
        ModelDrafter(target, 3),
        tree(texts(target), 3) if len(options) < 4 else PlainDecoding(),
    ):
        found = target.generate(**inputs(), custom_generate=as_custom_generate(drafter, gate=False), **options)
        assert torch.equal(found, plain)


def test_stopping_criteria_are_asked_after_every_token():
    target = model()
    whole = texts(target)
    new = whole[0][len(PROMPT) :]
    options = {"max_new_tokens": 20, "do_sample": False, "stopping_criteria": [Sum(new[6] + new[7])]}
    plain = target.generate(**single(), **options)
    assert plain.shape[1] < len(PROMPT) + 20
    found = target.generate(**single(), custom_generate=as_custom_generate(oracle(whole, 5), gate=False), **options)
    assert torch.equal(found, plain)


def test_sampling_follows_torchs_seed_and_not_the_drafter():
    target = model()
    options = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.9, "top_p": 0.9, "num_return_sequences": 3,
               "pad_token_id": 0}  # fmt: skip
    drawn = []
    for drafter in (PlainDecoding(), PromptLookup(), ModelDrafter(model(seed=5, layers=1), 3, coupling="shared")):
        torch.manual_seed(3)
        drawn.append(target.generate(**single(), custom_generate=as_custom_generate(drafter, gate=False), **options))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert len({tuple(row) for row in drawn[0].tolist()}) == 3
    torch.manual_seed(4)
    other = target.generate(**single(), custom_generate=as_custom_generate(PromptLookup(), gate=False), **options)
    assert not torch.equal(drawn[0], other)


def test_streamers_stats_caches_and_results():
    target, told = model(), []

    class Streamer:
        def __init__(self):
            self.got = []

        def put(self, tokens):
            self.got += tokens.flatten().tolist()

        def end(self):
            self.got.append("end")

    streamer, cache = Streamer(), DynamicCache()
    custom = as_custom_generate(PromptLookup(), gate=False, streamer=streamer, stats=told.append)
    found = target.generate(
        **single(), max_new_tokens=9, do_sample=False, return_dict_in_generate=True, past_key_values=cache,
        custom_generate=custom,
    )  # fmt: skip
    assert streamer.got == [*found.sequences[0].tolist(), "end"]
    assert found.past_key_values is cache
    assert cache.get_seq_length() == found.sequences.shape[1] - 1
    assert told[0].tokens == 9


def test_what_cannot_be_kept_is_refused():
    target = model()
    custom = as_custom_generate(PromptLookup(), gate=False)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(ValueError, match="does not keep what output_scores would return"):
        target.generate(**single(), custom_generate=custom, return_dict_in_generate=True, output_scores=True, **options)
    with pytest.raises(ValueError, match="cannot be verified in beam search, got num_beams=2"):
        target.generate(**single(), custom_generate=custom, num_beams=2, **options)
    with pytest.raises(ValueError, match="needs use_cache=True"):
        target.generate(**single(), custom_generate=custom, use_cache=False, **options)
    with pytest.raises(ValueError, match="a streamer follows one row, got a batch of 3"):
        target.generate(**padded(), custom_generate=as_custom_generate(PromptLookup(), streamer=object()), **options)
    drafter = ModelDrafter(model(vocabulary=25))
    with pytest.raises(ValueError, match="a drafter needs the target's vocabulary"):
        target.generate(**single(), custom_generate=as_custom_generate(drafter, gate=False), **options)
