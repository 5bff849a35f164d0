"""A tiny random model over bytes, with prompts of its own: for trying the comparison out in a second."""

from __future__ import annotations

from typing import Any

from dlopt.tasks.decoding import Prompt

TOY = "toy"


class Bytes256:
    """A tokenizer whose tokens are bytes, with the few calls that the comparison makes."""

    def __len__(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(256)}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> dict[str, list[int]]:
        return self(messages[0]["content"])


def _model(layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(layers)
        return LlamaForCausalLM(config).eval()


def toy() -> tuple[Any, Bytes256]:
    """(target, tokenizer), always the same."""
    return _model(2), Bytes256()


def toy_drafter() -> Any:
    """A smaller model with the same vocabulary."""
    return _model(1)


def toy_prompts(count: int) -> list[Prompt]:
    """Prompts that repeat themselves."""
    return [Prompt(f"{n} abcabc {n} abcabc", (f"{n} abcabc",)) for n in range(count)]
