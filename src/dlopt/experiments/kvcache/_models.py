"""The models of topic `kvcache`: "tiny", a random network over bytes for trying things out, or a pretrained one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from dlopt.tasks.models import pretrained

TINY, SMOLLM = "tiny", "smollm2-135m-instruct-q4_1"


class Bytes256:
    """A tokenizer whose tokens are the bytes of UTF-8; 256 ends a text. It has what the experiments ask of one."""

    eos_token_id = 256
    chat_template = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, tokens: list[int], **options: Any) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace")


def tiny() -> tuple[nn.Module, Bytes256]:
    """A Llama of 2 layers with grouped queries and random weights, the same ones always, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=264,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval(), Bytes256()


@lru_cache(maxsize=1)
def load(model: str, device: str = "cpu") -> tuple[Any, Any]:
    """(network in eval mode, tokenizer), kept for the next run of this process: nothing here changes weights."""
    network, tokenizer = tiny() if model == TINY else pretrained.load(model)
    return network.to(device), tokenizer


@lru_cache(maxsize=4)
def config(model: str) -> Any:
    """The configuration of a model, without its weights; `DataUnavailable` if the model is not on this machine."""
    if model == TINY:
        return tiny()[0].config
    from transformers import AutoConfig

    folder = pretrained.locate(model)
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def identity(model: str) -> dict[str, str]:
    """sha256 of the model's files; nothing for the random one, which is code."""
    return {} if model == TINY else pretrained.identity(model)
