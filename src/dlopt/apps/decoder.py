"""The work behind the page on drafts: one prompt decoded token by token and then with drafts, told as it happens.

The two runs follow each other on one thread, so that neither takes the other's processor; a short pass that nobody
measures goes before them. Weights are read at the first request. What `tell` gets, in order:

    loading    only where the model is read now: {model}
    start      {prompt_tokens, tokens, parameters, seed, drafter, title}
    costs      v(k) as calibrated: {lengths, seconds, where}
    plain      one token at a time: {round, tokens: [[text, kind]], accepted, drafted, seconds}
    drafted    the same by rounds. Round 0 is the prefill's token. seconds: since then, of decoding alone
    done       after each of the two: {pane, rest: the last half character, if the text ends in one, and figures}
    end        {plain, drafted: figures, speedup, predicted, identical, differs}
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dlopt import catalog
from dlopt.apps.speculative_cli import MODEL
from dlopt.lab import palette
from dlopt.poetry.wish import Refused

if TYPE_CHECKING:  # they are heavy to import
    from dlopt.speculative.engine import Round
    from dlopt.speculative.stats import Stats

Tell = Callable[[dict[str, Any]], object]
WARM = 32  # tokens of the prompt that the unmeasured pass reads


class Offer(NamedTuple):
    """A drafter that needs nothing but text. length: its setting that bounds the tokens of a draft, "" for none."""

    title: str
    about: str
    length: str


OFFERED = {
    "prompt-lookup": Offer(
        "提示查找",
        "最近几个词元若在提示或已写的文字里出现过，就照抄它们上次之后的词元。适合改写、改错、补代码。",
        "length",
    ),
    "llma": Offer("参考文本", "已写的结尾若见于参考文本，就照抄参考文本的下文；不填则以提示本身为参考。", "length"),
    "suffix-decoding": Offer(
        "后缀解码", "查出结尾的每一种重复，按后文出现的多少拟成一棵草稿树；重合越长，草稿越长。", "depth"
    ),
    "token-recycling": Offer(
        "词元回收", "记下模型上次在每个词元之后最看好的几个词元，展开成一棵草稿树；不要求文字重复。", "nodes"
    ),
    "best-of-drafts": Offer("择优", "每一轮让以上各法同时起草，取照以往命中率算最合算的一份。", ""),
}


@dataclass(frozen=True)
class Ask:
    """One request. reference: of LLMA. gate: draft as many tokens as pay off. length: of a draft, at most. tokens: new
    ones, at most, at least 2. temperature, top_p, seed: of sampling, see `dlopt.speculative.Sampling`."""

    prompt: str
    drafter: str
    reference: str = ""
    gate: bool = True
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    length: int = 10
    tokens: int = 96

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise Refused("请先写一段提示")
        if self.drafter not in OFFERED:
            raise Refused(f"没有叫「{self.drafter}」的起草方法；可选的有 {'、'.join(OFFERED)}")


class Cancelled(Exception):
    """Nobody reads the answer any more."""


class Decoder:
    """A model to decode with. name: of the registry of pretrained models. model, tokenizer: given ones of that name;
    None reads them at the first request."""

    def __init__(self, name: str = MODEL, model: Any = None, tokenizer: Any = None) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer

    def missing(self) -> str:
        """Why nothing can be decoded here, in a sentence, or "". It reads no weights."""
        if self.model is not None:
            return ""
        if lacking := sorted({module for name in OFFERED for module in catalog.find(name).missing()}):
            return _install("、".join(lacking))
        try:
            from dlopt.tasks.models import pretrained
        except ImportError as error:
            return _install(str(error.name or error))
        fetch = f"请先运行 dlopt model get {self.name}"
        return {
            "here": "",
            "missing": f"还没有模型：{fetch}（只需一次，之后不再联网）",
            "broken": f"模型的文件不全或被改过：{fetch}，它会重新取来",
        }[pretrained.state(self.name)]

    def card(self) -> dict[str, Any]:
        """Name, summary, licence, and the number of parameters once the model is read."""
        found: dict[str, Any] = {"name": self.name, "summary": "", "licence": "", "parameters": None}
        try:
            from dlopt.tasks.models import pretrained

            entry = pretrained.REGISTRY.get(self.name)
        except ImportError:
            entry = None
        if entry is not None:
            found |= {"summary": entry.summary, "licence": entry.licence}
        if self.model is not None:
            found["parameters"] = self.model.num_parameters()
        return found

    def run(self, ask: Ask, tell: Tell, stopped: Callable[[], bool]) -> None:
        """Decode twice. `Refused` if it cannot be done, `Cancelled` soon after `stopped()` is true."""

        def going() -> None:
            if stopped():
                raise Cancelled

        going()
        model, tokenizer = self._ready(tell)
        from dlopt.speculative.costs import costs_of
        from dlopt.speculative.generate import generate

        ids = encode(tokenizer, ask.prompt)
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) + ask.tokens > limit:
            raise Refused(
                f"提示有{len(ids)}个词元，再写{ask.tokens}个就超过模型的上下文（{limit}个词元）：请缩短提示，或少写一些"
            )
        drafter = make(ask, tokenizer)
        tell({
            "type": "start", "prompt_tokens": len(ids), "tokens": ask.tokens, "parameters": model.num_parameters(),
            "seed": ask.seed, "drafter": ask.drafter, "title": OFFERED[ask.drafter].title,
        })  # fmt: skip
        going()
        generate(model, [ids[:WARM]], drafter, max_new_tokens=min(ask.tokens, 4), eos=None, gate=False)
        going()
        costs = costs_of(model)
        tell({"type": "costs", **costs.as_dict()})
        results = {}
        for pane, used in (("plain", None), ("drafted", drafter)):
            going()
            watch = _Watch(pane, tokenizer, tell, going)
            found = results[pane] = generate(
                model, [ids], used, max_new_tokens=ask.tokens, temperature=ask.temperature, top_p=ask.top_p,
                seed=ask.seed, gate=costs if ask.gate else False, stream=watch,
            )  # fmt: skip
            found.stats.total_seconds -= watch.aside  # the page's own work is no decoding
            found.stats.costs = costs  # also without the gate, for the prediction
            tell({"type": "done", "pane": pane, "rest": watch.text.rest(), **figures(found.stats)})
        plain, drafted = results["plain"], results["drafted"]
        pairs = list(zip(plain.tokens[0], drafted.tokens[0]))
        differs = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        same = plain.tokens == drafted.tokens
        enough = min(plain.stats.tokens, drafted.stats.tokens) > 1
        tell({
            "type": "end", "plain": figures(plain.stats), "drafted": figures(drafted.stats),
            "speedup": drafted.stats.speedup(plain.stats) if enough else None,
            "predicted": drafted.stats.predicted_speedup, "identical": same, "differs": None if same else differs + 1,
        })  # fmt: skip

    def _ready(self, tell: Tell) -> tuple[Any, Any]:
        if self.model is None:
            tell({"type": "loading", "model": self.name})
            try:
                from dlopt.tasks.models import pretrained

                model, self.tokenizer = pretrained.load(self.name)
            except (ImportError, RuntimeError) as error:  # `DataUnavailable` is one of the latter
                raise Refused(self.missing() or f"模型 {self.name} 读不出来：{error}") from error
            self.model = model  # last: whoever sees it finds the tokenizer too
        return self.model, self.tokenizer


def make(ask: Ask, tokenizer: Any) -> Any:
    """The drafter that a request names, with drafts of at most its length. "best-of-drafts" has all others."""
    if ask.drafter == "best-of-drafts":
        others = [Ask(**{**vars(ask), "drafter": name}) for name in OFFERED if name != ask.drafter]
        return catalog.find(ask.drafter).load()([make(other, tokenizer) for other in others])
    settings: dict[str, Any] = {OFFERED[ask.drafter].length: ask.length}
    if ask.drafter == "llma" and ask.reference.strip():
        settings["references"] = [list(tokenizer(ask.reference, add_special_tokens=False)["input_ids"])]
    return catalog.find(ask.drafter).load()(**settings)


def offers() -> list[dict[str, Any]]:
    """What the page lists: Chinese title and sentence, the class's name, and whether it takes a reference."""
    return [
        {"name": name, "class": palette.title(name), "title": offer.title, "about": offer.about,
         "reference": name in ("llma", "best-of-drafts")}
        for name, offer in OFFERED.items()
    ]  # fmt: skip


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a chat that begins with the prompt; of the bare text where the tokenizer knows no chats."""
    from dlopt.tasks.decoding import render

    if getattr(tokenizer, "chat_template", None):
        return render(tokenizer, prompt)
    return list(tokenizer(prompt)["input_ids"])


def kinds(found: Round) -> list[str]:
    """What each token of a round is: those of the draft "accepted", the target's own as the round says."""
    return ["accepted"] * found.accepted + [found.kind] * (len(found.tokens) - found.accepted)


def figures(stats: Stats) -> dict[str, Any]:
    """What the page shows of one run. Speed is of decoding after the prefill, which gives the first token."""
    seconds, made = stats.decode_seconds, stats.tokens - stats.rows
    return {
        "tokens": stats.tokens, "rounds": stats.rounds, "drafted": stats.drafted, "accepted": stats.accepted,
        "acceptance": stats.acceptance, "tokens_per_round": stats.tokens_per_round, "seconds": seconds,
        "prefill_seconds": stats.prefill_seconds, "tokens_per_second": made / seconds if made and seconds > 0 else None,
    }  # fmt: skip


class Text:
    """Tokens to text as they come. A token may end inside a character; that waits for the token which completes it.

    All pieces and `rest()` together are the tokenizer's decoding of all tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.tokens, self.shown = tokenizer, list[int](), 0

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self.tokens.append(token)
        whole = self._whole()
        piece = whole.removesuffix("\ufffd")[self.shown :]  # one such sign stands for an incomplete end
        self.shown += len(piece)
        return piece

    def rest(self) -> str:
        """What still waits at the end."""
        return self._whole()[self.shown :]

    def _whole(self) -> str:
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _Watch:
    """Called with each round, tells it. aside: the seconds that this took after the prefill."""

    def __init__(self, pane: str, tokenizer: Any, tell: Tell, going: Callable[[], None]) -> None:
        self.pane, self.tell, self.going = pane, tell, going
        self.text, self.rounds, self.aside, self.began = Text(tokenizer), 0, 0.0, 0.0

    def __call__(self, found: Round) -> None:
        now = time.perf_counter()
        self.going()
        tokens = [[self.text.add(token), kind] for token, kind in zip(found.tokens, kinds(found))]
        seconds = now - self.began - self.aside if self.rounds else 0.0
        self.tell({
            "type": self.pane, "round": self.rounds, "tokens": tokens, "accepted": found.accepted,
            "drafted": found.drafted, "seconds": seconds,
        })  # fmt: skip
        if self.rounds:
            self.aside += time.perf_counter() - now
        else:
            self.began = time.perf_counter()
        self.rounds += 1


def _install(what: str) -> str:
    return f"这一页需要 {what}：请运行 pip install 'dlopt[llm]'，再重开 dlopt app"
