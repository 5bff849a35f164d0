"""`generate`: decode with a drafter, get the tokens that plain decoding would give (greedy) or their law (sampling)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from operator import index
from typing import Any

import torch
from torch import Tensor

from dlopt.speculative.costs import Costs, costs_of
from dlopt.speculative.engine import Decoding, Round, decode
from dlopt.speculative.gate import Gate
from dlopt.speculative.sampling import Processor, Sampling
from dlopt.speculative.stats import Stats
from dlopt.speculative.stopping import Stops, eos_of

Tokens = Tensor | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Result:
    """What `generate` gives.

    sequences: (b, t), prompts, padded on the left to one length, and new tokens, padded on the right. tokens: the new
    tokens of each row, without padding. stats: what it cost.
    """

    sequences: Tensor
    tokens: list[list[int]]
    stats: Stats


def generate(
    model: Any,
    input_ids: Tokens,
    drafter: Any = None,
    cache: Any = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    processors: Iterable[Processor] = (),
    seed: int | Sequence[int] = 0,
    eos: int | Iterable[int] | str | None = "model",
    stop: str | Sequence[str | Sequence[int]] = (),
    tokenizer: Any = None,
    attention_mask: Tensor | None = None,
    gate: bool | Gate | Costs = True,
    stream: Callable[[Round], object] | None = None,
) -> Result:
    """Continue prompts with a causal language model of `transformers`.

    Greedy text is the text of plain decoding (in exact arithmetic: block and single passes may round differently, which
    shows in half precision). Sampled text has exactly the law of plain sampling, and with a deterministic drafter it is
    the same text at the same seed.

    model: in eval mode. input_ids: (t,), (b, t) or a list of lists of token ids; rows may differ in length, as lists or
    with `attention_mask` (b, t), 0 at padding on the left. drafter: what guesses tokens (`PromptLookup()`, ...); None
    decodes token by token. Of a draft that is a tree its likeliest path is verified where trees cannot be: on other
    caches than the full one, in models with windows, under attention without masks. cache: an empty
    `transformers.Cache`, or for one row one that holds the beginning of the prompt; afterwards it holds all but the
    last token, for one row. None makes a full cache. max_new_tokens: at least 1. temperature, top_k, top_p, processors:
    see `Sampling`. seed: of row 0, row r has seed + r; or one for each row. eos: token ids that end a row; "model"
    takes the model's own, None has none. stop: strings (which need `tokenizer`) or sequences of token ids that end a
    row, and stay in it. gate: True drafts as many tokens as pay off, for which v(k) is measured once for a model
    object, in about a second; False drafts what the method drafts; a `Costs` table or a `Gate` that goes on learning
    are taken as they are. stream: called with every row's `Round`, the first token's included.

    Raises ValueError, with a sentence, for values out of range, an empty prompt, a prompt that with the new tokens
    passes the model's context, tokens outside the vocabulary, a drafter that does not fit the model, and caches that
    cannot take tokens back.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from dlopt.speculative import PromptLookup, generate
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
        >>> plain = generate(model, [[1, 2, 3, 1, 2]], max_new_tokens=8, eos=None)
        >>> drafted = generate(model, [[1, 2, 3, 1, 2]], PromptLookup(), max_new_tokens=8, eos=None, gate=False)
        >>> drafted.tokens == plain.tokens
        True
    """
    prompts = _prompts(input_ids, attention_mask)
    _check(model, prompts, max_new_tokens, drafter, tokenizer)
    sampling = Sampling(temperature, top_k, top_p, tuple(processors))
    if isinstance(eos, str) and eos != "model":
        raise ValueError(f'eos is "model", None, or token ids, got {eos!r}')
    ends = eos_of(model) if eos == "model" else [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    stops = Stops(ends, stop, tokenizer)
    room = max_new_tokens if sampling.processors else 0
    rows = [
        Decoding(number, prompt, [], replace(sampling, seed=own), room, model.device)
        for number, (prompt, own) in enumerate(zip(prompts, _seeds(seed, len(prompts))))
    ]
    stats = run(model, rows, drafter, cache, max_new_tokens, stops, gate, stream)
    pad = getattr(model.generation_config, "pad_token_id", None)
    pad = pad if pad is not None else ends[0] if ends else 0
    return Result(_sequences(rows, pad, model.device), [row.new for row in rows], stats)


def run(
    model: Any,
    rows: list[Decoding],
    drafter: Any,
    cache: Any,
    max_new_tokens: int,
    stops: Stops,
    gate: bool | Gate | Costs,
    stream: Callable[[Round], object] | None,
) -> Stats:
    """Decode rows together, or one by one where the drafter asks for that."""
    from transformers import DynamicCache

    if getattr(drafter, "one_row", False) and len(rows) > 1:
        if cache is not None:
            raise ValueError(f"{type(drafter).__name__} decodes rows one by one, so it cannot fill one cache for all")
        parts = [run(model, [row], drafter, None, max_new_tokens, stops, gate, stream) for row in rows]
        return Stats.sum(parts)
    if drafter is None or gate is False:
        chosen = None
    else:
        chosen = gate if isinstance(gate, Gate) else Gate(gate if isinstance(gate, Costs) else None)
        if not chosen.given:
            chosen.costs = costs_of(model, len(rows))
    cache = DynamicCache(config=model.config) if cache is None else cache
    return decode(model, rows, drafter, cache, max_new_tokens, stops, chosen, stream)


def _prompts(input_ids: Tokens, attention_mask: Tensor | None) -> list[list[int]]:
    found = (
        input_ids.tolist()
        if isinstance(input_ids, Tensor)
        else [list(r) if isinstance(r, Sequence | Tensor) else r for r in input_ids]
    )
    if found and not isinstance(found[0], list):
        found = [found]
    try:
        rows = [[index(token) for token in row] for row in found]
    except TypeError as error:
        raise ValueError(f"input_ids must be whole numbers: {error}") from error
    if attention_mask is not None:
        mask = attention_mask.reshape(-1, attention_mask.shape[-1]).tolist()
        if [len(m) for m in mask] != [len(row) for row in rows]:
            raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must have the shape of input_ids")
        if any(m != sorted(m) for m in mask):
            raise ValueError("attention_mask must be 0 at padding on the left and 1 from there on")
        rows = [[token for token, on in zip(row, m) if on] for row, m in zip(rows, mask)]
    if not rows or not all(rows):
        raise ValueError("a prompt is empty; every row needs at least one token")
    return rows


def _check(model: Any, prompts: list[list[int]], max_new_tokens: int, drafter: Any, tokenizer: Any) -> None:
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    check_model(model, drafter, tokenizer)
    check_room(model, max(map(len, prompts)), max_new_tokens)
    vocabulary = model.config.vocab_size
    for row, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"row {row} has a token outside the model's vocabulary of {vocabulary}")


def check_room(model: Any, longest: int, new: int) -> None:
    """ValueError if a prompt and the new tokens do not fit into the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest + new > limit:
        raise ValueError(f"a prompt of {longest} tokens and {new} new ones pass the model's context of {limit} tokens")


def check_model(model: Any, drafter: Any, tokenizer: Any) -> None:
    """ValueError where a model cannot be decoded here, or a drafter does not fit it."""
    if model.training:
        raise ValueError("the model is in training mode; call .eval() on it")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder; only causal language models can be decoded here"
        )
    if drafter is not None and (isinstance(drafter, type) or not callable(getattr(drafter, "begin", None))):
        raise ValueError(f"drafter must have begin(prompt, sampling), as PromptLookup() has; got {drafter!r}")
    if callable(check := getattr(drafter, "check", None)):
        check(model, tokenizer)


def _seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    if isinstance(seed, Integral):
        return [int(seed) + row for row in range(rows)]
    if len(seed) != rows:
        raise ValueError(f"seed must be one number, or one for each of the {rows} rows, got {len(seed)}")
    return [int(own) for own in seed]


def _sequences(rows: list[Decoding], pad: int, device: torch.device) -> Tensor:
    left, right = max(len(row.prompt) for row in rows), max(len(row.new) for row in rows)
    return torch.tensor(
        [[pad] * (left - len(row.prompt)) + row.prompt + row.new + [pad] * (right - len(row.new)) for row in rows],
        device=device,
    )
