"""Speculative decoding: drafters propose, one verifier accepts losslessly.

`from dlopt.speculative import generate, PromptLookup`. Methods are imported when first used.
"""

from importlib import import_module
from typing import Any

from dlopt.catalog import exports
from dlopt.speculative.generate import Result, generate

# what is neither a method of the catalogue nor imported above: {name: file}
_PUBLIC = {
    "Costs": "costs",
    "Datastore": "datastore",
    "Distillation": "distill",
    "Draft": "draft",
    "Gate": "gate",
    "Recipe": "distill",
    "Sampling": "sampling",
    "Skips": "skips",
    "Stats": "stats",
    "SuffixHistory": "suffix",
    "as_custom_generate": "custom",
    "calibrate": "costs",
    "find_skips": "skips",
}
_get, _names = exports("speculative")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"dlopt.speculative.{_PUBLIC[name]}"), name)
    return _get(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_PUBLIC, Result.__name__, generate.__name__])
