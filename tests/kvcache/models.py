"""Tiny random models of each family, float64: seconds for all of them together."""

from functools import cache

import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY = 23
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    # large enough that attention is far from uniform, so that a lost or turned key shows
    "initializer_range": 0.3,
}
LLAMA = {**COMMON, "num_key_value_heads": 4}
GQA = {**COMMON, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
PARTIAL = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}

FAMILIES = {
    "llama": lambda: LlamaConfig(**LLAMA),
    "llama-gqa": lambda: LlamaConfig(**GQA),
    "llama-yarn": lambda: LlamaConfig(**GQA, rope_parameters=YARN),
    "llama-llama3": lambda: LlamaConfig(**GQA, rope_parameters=LLAMA3),
    "llama-linear": lambda: LlamaConfig(**GQA, rope_parameters=LINEAR),
    "qwen2": lambda: Qwen2Config(**GQA),
    "qwen3": lambda: Qwen3Config(**GQA, head_dim=16),
    "gpt-neox": lambda: GPTNeoXConfig(**COMMON, rope_parameters=PARTIAL),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    ),
}  # fmt: skip


@cache
def build(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float64):
    """The model of a family, the same weights for every attention and precision."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation=attention)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model.to(dtype).eval()


def tokens(rows: int, length: int, seed: int = 0):
    """(rows, length) random tokens."""
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(lengths, seed: int = 3):
    """Rows of random tokens of different lengths, padded at the left with token 0: (ids, mask)."""
    width = max(lengths)
    ids, mask = tokens(len(lengths), width, seed), torch.ones(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, : width - length], mask[row, : width - length] = 0, 0
    return ids, mask


@torch.no_grad()
def feed(model, cache, ids, pieces, mask=None):
    """Logits of `ids` fed in pieces of the given sizes, (B, T, V); positions and mask as `generate` gives them."""
    found, start = [], cache.get_seq_length()
    assert sum(pieces) == ids.shape[1]
    before = start
    for size in pieces:
        more = {}
        if mask is not None:
            seen = mask[:, : start + size]
            more = {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp_min(0)[:, start:]}
        here = ids[:, start - before : start - before + size]
        found.append(model(here, past_key_values=cache, use_cache=True, **more).logits)
        start += size
    return torch.cat(found, 1)
