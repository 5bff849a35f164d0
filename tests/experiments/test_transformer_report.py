"""The report of topic `transformer` from made-up records: its keys, gaps shown as gaps, verdicts by their rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.experiments.transformer import _shown
from dlopt.lab import figures, report
from dlopt.lab.report import Presentation
from dlopt.lab.samples import Interval
from dlopt.lab.study import Results
from tests.experiments.made_up_transformer import PARTS, every, results

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "reports" / "transformer" / "report.typ").read_text(encoding="utf-8")


def presented(part: str, **more: Any) -> Presentation:
    found = results(part, **more)
    return found.experiment.present(found)


def merged(found: dict[str, Results]) -> Presentation:
    return report.merge("transformer", {name: r.experiment.present(r) for name, r in found.items()})


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Fewer resamples: the rules are looked at, not the last digit of an interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shown, "RESAMPLES", 400)
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: for tests of what is said."""
    for name in ("curves", "scatter", "bars"):
        monkeypatch.setattr(figures, name, lambda *args, **options: Figure())


@pytest.fixture(scope="module")
def complete() -> Presentation:
    return merged(every())


def test_the_report_compiles_and_shows_all_that_is_made(complete: Presentation, tmp_path: Path) -> None:
    pdf = report.build("transformer", complete, ROOT, tmp_path)[0].read_bytes()
    assert 10 <= max(int(n) for n in re.findall(rb"/Count (\d+)", pdf)) <= 25
    assert report.unused("transformer", complete, ROOT) == []
    asked = set(re.findall(r'\b(?:v|share)\("([^"]+)"', TEXT))
    assert asked <= set(complete.values)
    assert {k for k in complete.values if "verdict" in k or "answer" in k} <= asked
    assert all(complete.values[k] is not None for k in asked)
    assert "due(" not in TEXT


def test_references_exist() -> None:
    keys = set(re.findall(r"(?m)^@\w+\{([^,]+),", (ROOT / "reports" / "refs.bib").read_text(encoding="utf-8")))
    cited = set(re.findall(r"(?<![\w.])@([a-z]+\d{4}\w*)", TEXT))
    assert len(cited) > 30
    assert cited <= keys


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("part", PARTS)
def test_predictions_that_hold_are_confirmed(part: str) -> None:
    shown = presented(part)
    judged = {k: v for k, v in shown.values.items() if k.startswith("verdict")}
    assert set(judged.values()) == {CONFIRMED}, shown.values


@pytest.mark.parametrize("part", PARTS)
def test_no_record_at_all_still_gives_every_key(part: str, complete: Presentation) -> None:
    shown = presented(part, keep=lambda stage, cfg: False)
    assert any("不完整" in note for note in shown.notes)
    for name in ("values", "figures", "tables"):
        mine = {f"{part}.{k}" for k in getattr(shown, name)}
        assert mine == {k for k in getattr(complete, name) if k.startswith(f"{part}.")}
    assert {v for k, v in shown.values.items() if k.startswith("verdict")} == {OPEN}


@pytest.mark.slow
def test_a_partial_grid_compiles_and_is_not_judged(tmp_path: Path) -> None:
    shown = merged(every(keep=lambda stage, cfg: cfg.seed in (0, 1000) and stage != "song"))
    assert sum("不完整" in note for note in shown.notes) >= 3
    assert {shown.values[f"{part}.verdict.q{n}"] for part, n in (("halves", 1), ("ablation", 6), ("gradient", 8))} == {
        OPEN
    }
    assert report.build("transformer", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


def test_runs_that_were_skipped_say_why(tmp_path: Path) -> None:
    found = every(keep=lambda stage, cfg: False) | {"transformer/poems": results("poems", lambda cfg: "skipped")}
    shown = merged(found)
    assert any("跳过 5 次" in note and "made up" in note for note in shown.notes)
    assert shown.values["poems.verdict.q12"] == OPEN
    assert report.build("transformer", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("part", "level", "question", "verdict"),
    [
        ("halves", {"ngram": 4.6}, 1, CONTRADICTED),
        ("halves", {"lstm": 4.6}, 1, CONTRADICTED),
        ("halves", {"lstm": 4.9}, 1, OPEN),  # better by more than was predicted
        ("halves", {"opposite": 0.5}, 2, CONTRADICTED),
        ("halves", {"opposite": 0.70}, 2, OPEN),
        ("halves", {"length": 0.95}, 2, OPEN),
        ("halves", {"cost": 0.3}, 3, OPEN),
        ("halves", {"cost": 0.7}, 3, CONTRADICTED),
        ("halves", {"proper": 0.99}, 3, CONTRADICTED),
        ("halves", {"beam": 0.005}, 4, CONTRADICTED),
        ("halves", {"beam": 0.03, "t1": 0.02}, 4, OPEN),
        ("ablation", {"gate": 0.015}, 5, CONTRADICTED),
        ("ablation", {"gate": -0.05}, 5, OPEN),
        ("ablation", {"cold": -0.01}, 6, CONTRADICTED),
        ("ablation", {"cold": 0.02}, 6, OPEN),
        ("ablation", {"warm": 0.05}, 6, OPEN),
        ("ablation", {"none": -0.01}, 7, CONTRADICTED),
        ("ablation", {"relative": -0.05}, 7, CONTRADICTED),
        ("ablation", {"none": 0.02}, 7, OPEN),
        ("gradient", {"pre": 0.7}, 8, CONTRADICTED),
        ("gradient", {"sandwich": 0.46}, 8, OPEN),
        ("sparse", {"speed": 1.5}, 9, CONTRADICTED),
        ("sparse", {"speed": 3.0}, 9, OPEN),
        ("sparse", {"far": 0.6}, 10, CONTRADICTED),
        ("sparse", {"reach": 0.4}, 10, CONTRADICTED),
        ("sparse", {"reach": 0.7}, 10, OPEN),
        ("poems", {"long": 0.4}, 11, CONTRADICTED),
        ("poems", {"rhyme": 1.5}, 11, OPEN),
        ("poems", {"rhyme": 0.9}, 11, CONTRADICTED),
        ("poems", {"bias": 1.5}, 12, CONTRADICTED),
    ],
)
def test_the_rules_can_fail(part: str, level: dict[str, float], question: int, verdict: str) -> None:
    shown = presented(part, level=level)
    assert shown.values[f"verdict.q{question}"] == verdict, shown.values[f"answer.q{question}"]


@pytest.mark.usefixtures("undrawn")
def test_a_cold_start_that_diverges_needs_its_warm_up() -> None:
    def status(cfg: Any) -> str:
        cold = cfg.params.get("norm_position") == "post" and not cfg.warmup
        return "diverged" if cold else "done"

    shown = presented("ablation", status=status)
    assert shown.values["verdict.q6"] == CONFIRMED
    assert "3 个种子发散" in shown.values["answer.q6"]


@pytest.mark.usefixtures("undrawn")
def test_the_loss_on_poems_is_told_for_question_nine() -> None:
    assert presented("ablation").values["attention_alike"] == "是"
    assert presented("ablation", level={"alike": 0.1}).values["attention_alike"] == "否"


def test_the_bootstrap_of_a_ratio_covers_it_and_narrows_with_poems() -> None:
    random = np.random.default_rng(0)
    few, many = (random.binomial(4, 0.3, size=n) for n in (50, 5000))
    a, b = (_shown.ratio_interval(x.tolist(), [4.0] * len(x)) for x in (few, many))
    assert b.low < 0.3 < b.high
    assert b.high - b.low < 0.2 * (a.high - a.low)
    with pytest.raises(ValueError, match="as many"):
        _shown.ratio_interval([1.0], [1.0, 2.0])


def test_intervals_of_shares_and_of_their_difference() -> None:
    none, all_ = _shown.clopper(0, 100), _shown.clopper(100, 100)
    assert (none.low, all_.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 100))  # the closed form
    a, b = Interval(0.5, 0.4, 0.6, 9, math.nan), Interval(0.2, 0.1, 0.4, 9, math.nan)
    gap = _shown.difference(a, b)
    assert (gap.mean, gap.low) == (pytest.approx(0.3), pytest.approx(0.3 - math.hypot(0.1, 0.2)))
    assert gap.high == pytest.approx(0.3 + math.hypot(0.1, 0.1))
