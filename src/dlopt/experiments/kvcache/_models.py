"""The models of topic `kvcache`: "tiny", a random network over bytes for trying things out, or a pretrained one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.tasks.models import pretrained

TINY, SMOLLM = "tiny", "smollm2-135m-instruct-q4_1"


@lru_cache(maxsize=1)
def load(model: str, device: str = "cpu") -> tuple[Any, Any]:
    """(network in eval mode, tokenizer), kept for the next run of this process: nothing here changes weights."""
    network, tokenizer = (llama(), ByteTokenizer()) if model == TINY else pretrained.load(model)
    return network.to(device), tokenizer


@lru_cache(maxsize=4)
def config(model: str) -> Any:
    """The configuration of a model, without its weights; `DataUnavailable` if the model is not on this machine."""
    if model == TINY:
        return llama().config
    from transformers import AutoConfig

    folder = pretrained.locate(model)
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def identity(model: str) -> dict[str, str]:
    """sha256 of the model's files; nothing for the random one, which is code."""
    return {} if model == TINY else pretrained.identity(model)
