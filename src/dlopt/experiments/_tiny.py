"""A tiny random Llama over bytes, with its tokenizer: for trying experiments on language models out in a second."""

from __future__ import annotations

from typing import Any

END, VOCABULARY = 256, 264


class ByteTokenizer:
    """Tokens are the bytes of UTF-8; 256 ends a text. It has what the experiments ask of a tokenizer."""

    eos_token_id = END
    chat_template = None

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, tokens: list[int], **options: Any) -> str:
        return bytes(token for token in tokens if token < END).decode("utf-8", errors="replace")

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(VOCABULARY)}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> dict[str, list[int]]:
        return self(messages[0]["content"])


def llama(layers: int = 2, seed: int = 0, **options: Any) -> Any:
    """A Llama with grouped queries and random weights in eval mode, always the same. options: of `LlamaConfig`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    usual = {
        "hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": END,
        "pad_token_id": None, "attn_implementation": "sdpa",
    }  # fmt: skip
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, **{**usual, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
