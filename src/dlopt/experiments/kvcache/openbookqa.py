"""OpenbookQA behind prefixes that are compressed once: which cache stays close to the full one, at which bytes.

Zero-shot, the full cache by the rules of lm-evaluation-harness. Then prefixes that all questions share: 24 shots (420
tokens), and facts of the book with 8 shots (about 1,000 and 2,000 tokens), each at least four times the budgets in
tokens. The prefix attends in full, the cache compresses it, and every question is scored from that cache. A model of
this size answers little above chance, so caches are ranked by what moves: the distance from the full cache's choices
(KL divergence), the log-likelihood of the right choice, and agreement.

order="packed" scores many questions in one pass from the cache as it was compressed. "stepwise" is the order of use,
and of the bounds in the issue: a copy of the cache for each question, the stem goes in and is compressed in turn, then
the four choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlopt.experiments.kvcache import _models, _scoring
from dlopt.experiments.kvcache._common import EVICTING, KEEPING, check_cache, keeping, settings, sizes
from dlopt.lab.experiment import Earlier, Experiment, Stage
from dlopt.lab.log import Log
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from dlopt.tasks import data
from dlopt.tasks.openbookqa import parse

SHOTS, BOOK, LONG, WHOLE = "shots:24", "book:1024", "book:2000", "book:6000"
# budgets in tokens for each prefix, at most a quarter of it; the last ones are about the bytes of KIVI-2
BUDGETS = {SHOTS: (64, 104), BOOK: (128, 232), LONG: (128, 256, 432), WHOLE: (512, 1280)}
STEPWISE = 150  # questions of the runs that the bounds are stated for
QUESTIONS = 500


@dataclass(frozen=True)
class Config:
    """method, params: the cache. prefix: "zero", "shots:NUMBER" or "book:TOKENS". order: "packed" or "stepwise".
    questions: the first so many of the test part. data: of `tasks.data`. model: "tiny", a name, folder or hub name."""

    method: str = "full"
    params: dict[str, Any] = field(default_factory=dict)
    prefix: str = SHOTS
    order: str = "packed"
    questions: int = QUESTIONS
    data: str = "openbookqa"
    model: str = _models.SMOLLM


def check(cfg: Config) -> None:
    """Refuse what cannot run, before anything is written."""
    check_cache(cfg.method, cfg.params, cfg.model)
    _scoring.check(cfg.data, cfg.prefix, cfg.questions, cfg.order)
    if cfg.prefix == "zero" and cfg.method != "full":
        raise ValueError("without a prefix nothing is cached: method must be full")


def run(cfg: Config, log: Log) -> Mapping[str, Any]:
    """Score the questions; bytes are those behind the prefix."""
    found, cache = _scoring.measure(
        log, cfg.model, cfg.data, cfg.prefix, cfg.questions, cfg.method, cfg.params, cfg.order
    )
    if cache is not None:
        network, _ = _models.load(cfg.model, log.device)
        log.bytes = cache.nbytes()
        found |= sizes(network, cache, cfg.method, cfg.params)
    return found


def bounds(questions: int, **more: Any) -> Any:
    """What the issue's bounds name, on 24 shots: the methods and, beside them, the paper's residual and positions."""
    chosen: list[dict[str, Any]] = [
        keeping("full"),
        keeping("kivi-2"),
        keeping("kivi-4"),
        settings("sinks", 64),
        settings("window", 64),
        {"method": "kivi", "params": {"bits": 2, "residual": 128}},
        settings("sinks:original", 64),
        settings("sinks", 128),
        settings("sinks", 256),
    ]
    return lambda earlier: [Config(**c, order="stepwise", questions=questions, **more) for c in chosen]


def ranked(prefixes: Sequence[str], budgets: Mapping[str, Sequence[int]], questions: int, **more: Any) -> Any:
    """Every method behind every prefix: those that forget at every budget, the others once."""

    def configs(earlier: Earlier) -> Sequence[Config]:
        return [
            Config(**values, prefix=name, questions=questions, **more)
            for name in prefixes
            for values in (
                *(keeping(s) for s in KEEPING),
                *(settings(s, budget) for budget in budgets[name] for s in EVICTING),
            )
        ]

    return configs


def zero(questions: int, **more: Any) -> Any:
    """The full model without a prefix."""
    return lambda earlier: [Config(prefix="zero", questions=questions, **more)]


def minutes(cfg: Config) -> float:
    """On one core of a 2026 server."""
    if cfg.model == _models.TINY:
        return 0.02
    kind, number = parse(cfg.prefix)
    tokens = {"zero": 0, "shots": 17.5 * number, "book": number}[kind]
    each = 0.085 if cfg.order == "packed" else 0.33
    return 0.1 + (cfg.questions * (each + 1e-5 * tokens) + 4e-3 * tokens) / 60


def present(results: Results) -> Presentation:
    """Values, tables and figures of the report."""
    from dlopt.experiments.kvcache._report_openbookqa import present as made

    return made(results)


_SAMPLE = {"data": "openbookqa-sample", "model": _models.TINY}
experiment = Experiment(
    name="kvcache/openbookqa",
    config=Config,
    run=run,
    version=1,
    stages={
        "smoke": (
            Stage("zero", zero(4, **_SAMPLE), minutes, "4 questions of a sample, a random model"),
            Stage(
                "ranked",
                ranked(("shots:4",), {"shots:4": (24,)}, 4, **_SAMPLE),
                minutes,
                "all methods behind 4 shots, 24 tokens kept",
            ),
            Stage(
                "bounds",
                lambda earlier: [
                    Config(**keeping("kivi-2"), prefix="shots:4", order="stepwise", questions=4, **_SAMPLE)
                ],
                minutes,
                "in the order of use",
            ),
        ),
        # what is dropped first where time is short comes last
        "cpu": (
            Stage("zero", zero(QUESTIONS), minutes, "zero-shot, all 500 questions"),
            Stage("bounds", bounds(STEPWISE), minutes, f"24 shots, {STEPWISE} questions in the order of use"),
            Stage(
                "ranked", ranked((SHOTS, LONG), BUDGETS, QUESTIONS), minutes, "24 shots and 2,000 tokens, all methods"
            ),
            Stage("between", ranked((BOOK,), BUDGETS, QUESTIONS), minutes, "1,024 tokens, all methods"),
        ),
        # any model by --set model=OWNER/NAME
        "gpu": (
            Stage("zero", zero(QUESTIONS), minutes, "zero-shot, all 500 questions"),
            Stage("bounds", bounds(QUESTIONS), minutes, "24 shots, all questions in the order of use"),
            Stage(
                "ranked", ranked((SHOTS, LONG), BUDGETS, QUESTIONS), minutes, "24 shots and 2,000 tokens, all methods"
            ),
            Stage("between", ranked((BOOK,), BUDGETS, QUESTIONS), minutes, "1,024 tokens, all methods"),
            Stage("longer", ranked((WHOLE,), BUDGETS, QUESTIONS), minutes, "6,000 tokens, all methods"),
        ),
    },
    identity=lambda cfg: data.identity(cfg.data) | _models.identity(cfg.model),
    check=check,
    present=present,
    primary="divergence",
)
