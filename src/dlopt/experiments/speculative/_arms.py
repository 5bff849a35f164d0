"""Arms of a comparison, from a line of text: `prompt-lookup:length=4/fixed,rest:store=instructions,plain-bf16`.

An arm is a drafter of the catalogue with settings, "/fixed" without the gate; or one of the baselines `plain-bf16` (the
target in 16 bits), `hf-lookup` and `hf-assisted` (transformers' own). Plain decoding in fp32 always runs beside them.
Some settings are not the drafter's: `store` and `part` (of `rest`: which store, and how much of its text), `shape` (of
`cascade`: see `SHAPES`), `history` (of `suffix-decoding`: on or off) and `skips=found` (of `draft-and-verify`: the set
that a run of `speculative/skipping` found).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dlopt import catalog
from dlopt.lab.experiment import parse
from dlopt.tasks import data, suggest
from dlopt.tasks.decoding import Prompt, render

PLAIN = "plain"
HALF = "plain-bf16"
BASELINES = (HALF, "hf-lookup", "hf-assisted")
NEED_SMALL = ("hf-assisted", "speculative-sampling", "cascade")
DRAWN = ("speculative-sampling", "cascade", "draft-and-verify")  # a model writes the drafts, under sampling by lot
STORES = ("instructions", "books", "outputs")
HF_LENGTH = 10
# lengths of a cascade of the small model and lookup, all for 10 tokens: who drafts for the target, who for the model
SHAPES = {
    "both": ((3, 7), (7,)),
    "horizontal": ((3, 7), (0,)),
    "vertical": ((10, 0), (7,)),
    "alone": ((10, 0), (0,)),
}
OURS = ("store", "part", "shape", "history", "skips")  # settings of an arm that are not the drafter's


@dataclass(frozen=True)
class Arm:
    """text: as it was written, the name of its figures. method: of the catalogue, or one of `BASELINES`. gated: whether
    the gate chooses lengths."""

    text: str
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = True


def arms(line: str) -> list[Arm]:
    """The arms of a line. ValueError, with a sentence, for what is unknown or stands twice."""
    found = [_arm(piece.strip()) for piece in _pieces(line)]
    texts = [arm.text for arm in found]
    if len(set(texts)) < len(texts):
        raise ValueError(f"arms must name each arm once, got {line!r}")
    return found


def _pieces(line: str) -> list[str]:
    """Split at commas that begin a new arm, not at those between settings (`a:x=1,y=2,b` has the arms a and b)."""
    pieces: list[str] = []
    for part in line.split(","):
        if "=" in part.partition(":")[0] and pieces:
            pieces[-1] += f",{part}"
        else:
            pieces.append(part)
    return pieces


def _arm(text: str) -> Arm:
    body, slash, how = text.partition("/")
    if slash and how != "fixed":
        raise ValueError(f"after the slash of an arm stands fixed, not {how!r}")
    name, _, settings = body.partition(":")
    known = [*BASELINES, *_MAKERS, *_free()]
    if name not in known:
        raise ValueError(f"no arm is called {name!r}{suggest(name, known)}; there are {', '.join(known)}")
    params = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting of an arm reads name=value, got {setting!r} in {text!r}")
        numbers = [parse(part) for part in value.strip().split("+")]  # 3+5+7 is a list
        params[key.strip()] = numbers if len(numbers) > 1 else numbers[0]
    if name in BASELINES and (params or slash):
        raise ValueError(f"{name} takes no settings, got {text!r}")
    if params.get("store", STORES[0]) not in STORES:
        raise ValueError(f"store takes {', '.join(STORES)}, not {params['store']!r}")
    if not isinstance(part := params.get("part", 1), int | float) or not 0 < part <= 1:
        raise ValueError(f"part takes a number above 0 and at most 1, not {part!r}")
    if params.get("shape", "both") not in SHAPES:
        raise ValueError(f"shape takes {', '.join(SHAPES)}, not {params['shape']!r}")
    if params.get("history", "on") not in ("on", "off"):
        raise ValueError(f"history takes on or off, not {params['history']!r}")
    if params.get("skips", "found") != "found":
        raise ValueError(f"skips takes found, not {params['skips']!r}; name sub-layers with attention=3+5,mlp=4")
    if name not in BASELINES:
        catalog.find(name).check({key: v for key, v in params.items() if key not in OURS})
    return Arm(text, name, params, not slash)


def _free() -> list[str]:
    """Drafters of the catalogue that need nothing to be built."""
    return [name for name, m in catalog.methods("speculative", "drafter").items() if name != PLAIN and _bare(m.load())]


def _bare(target: Any) -> bool:
    """Whether it can be called without arguments."""
    return all(p.default is not p.empty for p in inspect.signature(target).parameters.values())


@dataclass
class Workshop:
    """What drafters are built from. target, tokenizer: the model. drafter: calls for a small model that drafts, if
    there is one. outputs: token ids of earlier answers, for the store of that name. skips: calls for the set of
    sub-layers that was found, if there is one."""

    target: Any
    tokenizer: Any
    drafter: Callable[[], Any] | None = None
    outputs: list[list[int]] = field(default_factory=list)
    skips: Callable[[], Any] | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def build(self, arm: Arm, prompt: Prompt) -> Any:
        """The drafter for one prompt. What it may keep from one to the next (a store, a history) is made once."""
        params = dict(arm.params)
        entry = catalog.find(arm.method)
        make = _MAKERS.get(arm.method)
        if make is not None:
            return make(self, arm, params, prompt)
        return self.once(arm.text, lambda: entry.load()(**params))

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def half(self) -> Any:
        """The target in 16 bits."""
        return self.once("half", lambda: copy.deepcopy(self.target).to(torch.bfloat16))

    def remember(self, answer: list[int]) -> None:
        """Put an answer into the histories that later prompts draft from."""
        for key, kept in self._kept.items():
            if key.startswith("history "):
                kept.add(answer)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def small(self) -> Any:
        """The model that drafts."""
        if self.drafter is None:
            raise ValueError("this run has no small model to draft with")
        return self.once("drafter", self.drafter)

    def reads(self, arm: Arm) -> float | None:
        """The share of the target's weights that a drafted token of the arm reads, where every token reads the same."""
        if arm.method == "speculative-sampling":
            return self.small().num_parameters() / self.target.num_parameters()
        if arm.method == "draft-and-verify" and self.skips is not None and "skips" in arm.params:
            return self.once("skips", self.skips).cost
        return None

    def store(self, name: str, part: float = 1) -> Any:
        """A datastore: answers to instructions (`instructions`), novels (`books`), or earlier answers (`outputs`).

        part: the share of it that is used, by characters; of documents every n-th, of novels the beginning.
        """
        from dlopt.speculative import Datastore

        if name == "outputs":
            documents = self.outputs[:: round(1 / part)]
        else:
            texts = [text[: round(len(text) * part)] for text in _texts(name)] if name == "books" else _texts(name)
            documents = [self.encode(text) for text in (texts if name == "books" else texts[:: round(1 / part)])]
        return Datastore.build([d for d in documents if d], len(self.tokenizer), self.tokenizer)


def _texts(name: str) -> list[str]:
    if name == "books":  # about as many characters as the instructions have
        return [bytes(data.get("gutenberg-books").train[:1_000_000].tolist()).decode("utf-8", errors="ignore")]
    # answers to the prompts of category "code" would hand over the very tokens that are asked for
    code = [row.output for row in data.get("code-alpaca") if not (row.input and len(row.output) >= 150)]
    return [row.output for row in data.get("alpaca-en")] + code


def _llma(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    references = [shop.encode(text) for text in prompt.references] or [render(shop.tokenizer, prompt.text)]
    return catalog.find(arm.method).load()(references, **params)


def _rest(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    name, part = params.pop("store", STORES[0]), params.pop("part", 1)
    store = shop.once(f"store {name} {part}", lambda: shop.store(name, part))
    return catalog.find(arm.method).load()(store, **params)


def _suffix(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    from dlopt.speculative import SuffixHistory

    kept = params.pop("history", "on") == "on"
    history = shop.once(f"history {arm.text}", SuffixHistory) if kept else None
    return catalog.find(arm.method).load()(history, **params)


def _small(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    return catalog.find(arm.method).load()(shop.small(), **params)


def _cascade(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    """The small model, then lookup in the text."""
    if shape := params.pop("shape", None):
        params["lengths"] = SHAPES[shape]
    return catalog.find(arm.method).load()([shop.small(), catalog.find("max-gram").load()()], **params)


def _skipping(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    """The target without some sub-layers: `attention=3+5,mlp=4`, or those that were found: `skips=found`."""
    if params.pop("skips", None):
        if shop.skips is None:
            raise ValueError("this run has no set of skipped sub-layers")
        found = shop.once("skips", shop.skips)
        params |= {"attention": list(found.attention), "mlp": list(found.mlp)}
    lists = {name: v if isinstance(v, list) else [v] for name, v in params.items() if name in ("attention", "mlp")}
    return catalog.find(arm.method).load()(shop.target, **params | lists)


def _best(shop: Workshop, arm: Arm, params: dict[str, Any], prompt: Prompt) -> Any:
    """Lookup in the text, and the history of earlier answers."""
    parts = [
        catalog.find("prompt-lookup").load()(max_ngram=4),
        _suffix(shop, Arm(arm.text, "suffix-decoding"), {}, prompt),
    ]
    return catalog.find(arm.method).load()(parts, **params)


_MAKERS: Mapping[str, Callable[[Workshop, Arm, dict[str, Any], Prompt], Any]] = {
    "llma": _llma,
    "rest": _rest,
    "suffix-decoding": _suffix,
    "speculative-sampling": _small,
    "cascade": _cascade,
    "draft-and-verify": _skipping,
    "best-of-drafts": _best,
}
