"""The target of the experiments on drafting."""

from __future__ import annotations

from typing import Any

from dlopt.lab.log import Skipped
from dlopt.tasks.models import pretrained

SMOLLM2 = "smollm2-135m-instruct-q4_1"
TINY = "tiny"


def target(name: str) -> tuple[Any, Any]:
    """(model, tokenizer); `Skipped`, with what to do, where the model is not on this machine."""
    if pretrained.state(name) != "here":
        raise Skipped(f"the model is not here: run `dlopt model get {name}` first")
    return pretrained.load(name)
