"""Drafters inside `model.generate` of `transformers`, through its `custom_generate` argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dlopt.speculative.costs import Costs
from dlopt.speculative.engine import Decoding, Round
from dlopt.speculative.gate import Gate
from dlopt.speculative.generate import check_model, check_room, run
from dlopt.speculative.sampling import Processor, Sampling
from dlopt.speculative.stats import Stats
from dlopt.speculative.stopping import Stops

# what the loop of `transformers` would return beside the tokens, and this one does not keep
_UNKEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def as_custom_generate(
    drafter: Any,
    *,
    gate: bool | Gate | Costs = True,
    tokenizer: Any = None,
    streamer: Any = None,
    stats: Callable[[Stats], object] | None = None,
) -> Callable[..., Any]:
    """A function for `model.generate(**inputs, custom_generate=as_custom_generate(PromptLookup()))`.

    Everything else of `generate` works as before: its settings become processors and stopping criteria, which are asked
    after every token, of one row at a time; num_return_sequences and batches with padding on the left; sampling takes
    one seed from torch's generator (`torch.manual_seed`). Beam search, and scores, logits, attentions and hidden states
    in the result, are refused.

    drafter, gate: as in `dlopt.speculative.generate`. tokenizer: the target's, for drafters that compare it. streamer:
    has to be given here, since `transformers` 5.23 does not hand its own on; batch of one, as there. stats: called with
    the `Stats` of every call.
    """

    def decode_with_drafts(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        if (generation_config.num_beams or 1) > 1:
            raise ValueError(f"drafts cannot be verified in beam search, got num_beams={generation_config.num_beams}")
        if asked := [name for name in _UNKEPT if getattr(generation_config, name, None)]:
            raise ValueError(f"decoding with drafts does not keep what {' and '.join(asked)} would return")
        if not model_kwargs.get("use_cache", True):
            raise ValueError("decoding with drafts needs use_cache=True")
        check_model(model, drafter, tokenizer)
        count, width = input_ids.shape
        if streamer is not None and count > 1:
            raise ValueError(f"a streamer follows one row, got a batch of {count}")
        mask = model_kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] != width:
            raise ValueError(f"input_ids has {width} tokens, the attention mask {mask.shape[1]}: pass the whole prompt")
        pads = [0] * count if mask is None else (mask.shape[1] - mask.sum(1)).tolist()
        if mask is not None and bool((mask.diff(dim=1) < 0).any()):
            raise ValueError("attention_mask must be 0 at padding on the left and 1 from there on")
        most = generation_config.max_length - width
        check_room(model, width - min(pads), most)
        # temperature, top-k and top-p are among the processors
        sampling = Sampling(1.0 if generation_config.do_sample else 0.0)
        base = int(torch.randint(1 << 62, ())) if generation_config.do_sample else 0
        rows = []
        for number, (row, skip) in enumerate(zip(input_ids.tolist(), pads)):
            own = replace(sampling, seed=base + number, processors=(_of_row(logits_processor, number, count),))
            rows.append(Decoding(number, row[skip:], row[:skip], own, most, input_ids.device))
        if streamer is not None:
            streamer.put(input_ids.cpu())

        def stream(part: Round) -> None:
            streamer.put(torch.tensor(part.tokens))

        cache = model_kwargs.get("past_key_values")
        if getattr(drafter, "one_row", False) and count > 1:
            cache = None  # each row makes its own
        stops = Stops(criteria=stopping_criteria)
        found = run(model, rows, drafter, cache, most, stops, gate, None if streamer is None else stream)
        if streamer is not None:
            streamer.end()
        if stats is not None:
            stats(found)
        pad = getattr(generation_config, "_pad_token_tensor", None)
        longest = max(len(row.new) for row in rows)
        new = input_ids.new_full((count, longest), 0 if pad is None else int(pad))
        for row in rows:
            new[row.number, : len(row.new)] = torch.tensor(row.new)
        sequences = torch.cat((input_ids, new), dim=1)
        if not generation_config.return_dict_in_generate:
            return sequences
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache if count == 1 else None)

    return decode_with_drafts


def _of_row(processor: Any, number: int, count: int) -> Processor:
    """A batch's processor for one row of it, which stands in its place: `prefix_allowed_tokens_fn` counts rows."""
    if count == 1:
        return processor

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        return processor(ids.repeat(count, 1), scores.repeat(count, 1))[number : number + 1]

    return process
