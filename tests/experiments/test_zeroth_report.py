"""The report of topic `zeroth` from made-up records: its keys, gaps shown as gaps, verdicts by their rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dlopt.experiments import _series
from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.experiments.zeroth import _shown
from dlopt.lab import figures, report
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from tests.experiments import made_up_zeroth as made_up
from tests.experiments.made_up_zeroth import PARTS, every, results

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "reports" / "zeroth" / "report.typ").read_text(encoding="utf-8")


def presented(part: str, **more: Any) -> Presentation:
    found = results(part, **more)
    return found.experiment.present(found)


def merged(found: dict[str, Results]) -> Presentation:
    return report.merge("zeroth", {name: r.experiment.present(r) for name, r in found.items()})


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: for tests of what is said."""
    for name in ("curves", "scatter", "bars", "stacked", "heatmap"):
        monkeypatch.setattr(figures, name, lambda *args, **options: Figure())


@pytest.fixture(scope="module")
def complete() -> Presentation:
    return merged(every())


def test_the_report_compiles_and_shows_all_that_is_made(complete: Presentation, tmp_path: Path) -> None:
    pdf = report.build("zeroth", complete, ROOT, tmp_path)[0].read_bytes()
    assert 8 <= max(int(n) for n in re.findall(rb"/Count (\d+)", pdf)) <= 22
    assert report.unused("zeroth", complete, ROOT) == []
    used = set(re.findall(r'\b(?:v|share|verdict|answer)\("([^"]+)"', TEXT))
    assert set(complete.values) == used
    assert all(v is not None for v in complete.values.values())
    assert not complete.notes


def test_references_exist() -> None:
    keys = set(re.findall(r"(?m)^@\w+\{([^,]+),", (ROOT / "reports" / "refs.bib").read_text(encoding="utf-8")))
    cited = set(re.findall(r"@([a-z]+\d{4}\w*|[a-z0-9]+_code)", TEXT))
    assert len(cited) > 40
    assert cited <= keys


@pytest.mark.usefixtures("undrawn")
def test_predictions_that_hold_are_confirmed() -> None:
    shown = merged(every())
    judged = {k: v for k, v in shown.values.items() if ".verdict." in k}
    assert len(judged) == 14
    assert set(judged.values()) == {CONFIRMED}, {k: v for k, v in judged.items() if v != CONFIRMED}


@pytest.mark.parametrize("part", PARTS)
def test_no_record_at_all_still_gives_every_key(part: str, complete: Presentation) -> None:
    shown = presented(part, keep=lambda stage, cfg: False)
    assert any("不完整" in note for note in shown.notes)
    assert {f"{part}.{k}" for k in shown.values} == {k for k in complete.values if k.startswith(f"{part}.")}
    assert {f"{part}.{k}" for k in shown.figures} == {k for k in complete.figures if k.startswith(f"{part}.")}
    assert {f"{part}.{k}" for k in shown.tables} == {k for k in complete.tables if k.startswith(f"{part}.")}
    assert {v for k, v in shown.values.items() if k.startswith("verdict")} == {OPEN}


def test_a_partial_grid_compiles_and_says_so(tmp_path: Path) -> None:
    """What is likely while the study is under way: one seed, no heat maps, no second task, no wide networks."""

    def keep(stage: str, cfg: Any) -> bool:
        return cfg.seed in (0, 1000) and stage not in ("heat", "trec", "interval") and getattr(cfg, "width", 1.0) == 1

    shown = merged(every(keep=keep))
    assert sum("不完整" in note for note in shown.notes) == 4
    assert {shown.values[f"lm.verdict.q{n}"] for n in (8, 9, 10)} == {OPEN}  # one seed is not both
    assert shown.values["lm.verdict.q11"] == CONFIRMED
    assert {shown.values["vision.verdict.q7"], shown.values["official.verdict.q13"]} == {OPEN}
    assert report.build("zeroth", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


def test_runs_that_diverged_are_named_and_never_win(tmp_path: Path) -> None:
    def status(cfg: Any) -> str:
        if cfg.method == "deepzero" and cfg.seed == 1:
            return "diverged"
        hot = getattr(cfg, "params", {}).get("eps") == 1e-4 and cfg.params["lr"] > 0.005 and cfg.seed == 1000
        return "diverged" if hot else "failed" if cfg.method == "mezo-svrg" and cfg.seed == 1 else "done"

    names = ("vision", "lm")
    shown = merged(every(keep=lambda s, c: False) | {f"zeroth/{n}": results(n, status=status) for n in names})
    assert any("DeepZero发散 1 次" in note for note in shown.notes)
    assert any("MeZO-SVRG失败 1 次" in note for note in shown.notes)
    assert shown.values["vision.verdict.q4"] == shown.values["lm.verdict.q10"] == OPEN
    assert shown.values["lm.verdict.q9"] == CONFIRMED
    assert report.build("zeroth", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("part", "question", "world", "verdict"),
    [
        ("estimators", "q1", {"law": 1.25}, CONTRADICTED),
        ("estimators", "q1", {"law": 1.15}, OPEN),
        ("estimators", "q2", {"rank": 1.3}, CONTRADICTED),
        ("estimators", "q2", {"rank": 0.7}, OPEN),
        ("estimators", "q3", {"bfloat16": 1e-3}, CONTRADICTED),
        ("vision", "q5", {"deepzero": 0.8}, CONTRADICTED),
        ("vision", "q7", {"best_lr": 5}, CONTRADICTED),
        ("vision", "q7", {"bf16_row": 1.0}, CONTRADICTED),
        ("vision", "q7", {"bf16_row": 1.1}, OPEN),
        ("lm", "q10", {"svrg": 0.3}, CONTRADICTED),
        ("lm", "q11", {"memory": 0.6}, CONTRADICTED),
        ("lm", "q11", {"lozo_pace": 1.1}, CONTRADICTED),
        ("lm", "q11", {"lozo_pace": 0.95}, OPEN),
        ("official", "q12", {"drift": 0.1}, CONTRADICTED),
        ("official", "q12", {"moved": 1e-6}, OPEN),
        ("official", "q13", {"change": 0.9}, CONTRADICTED),
        ("official", "q13", {"official_end": 0.5}, OPEN),
        ("official", "q14", {"double": 0.5}, CONTRADICTED),
        ("official", "q14", {"square": 1.0}, OPEN),
    ],
)
def test_the_rules_can_fail(
    part: str, question: str, world: dict[str, float], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in world.items():
        monkeypatch.setitem(made_up.WORLD, name, value)
    assert presented(part).values[f"verdict.{question}"] == verdict


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("part", "table", "change", "question", "verdict"),
    [
        ("vision", "LOSS", {"mezo": 2.25}, "q4", CONTRADICTED),
        ("vision", "LOSS", {"mezo:q=16": 0.5}, "q6", CONTRADICTED),
        ("vision", "LOSS", {"mezo:q=16": 0.78}, "q6", OPEN),
        ("lm", "ACCURACY", {"mezo": 0.85}, "q8", CONTRADICTED),
        ("lm", "ACCURACY", {"lozo": 0.80}, "q9", CONTRADICTED),
        ("lm", "ACCURACY", {"lozo": 0.60}, "q9", OPEN),
        ("lm", "AUC", {"mezo": 0.95}, "q8", OPEN),
    ],
)
def test_the_rules_of_training_can_fail(
    part: str, table: str, change: dict[str, float], question: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.setitem(getattr(made_up, table), name, value)
    if question == "q4":
        monkeypatch.setitem(made_up.WORLD, "early", 30.0)
    assert presented(part).values[f"verdict.{question}"] == verdict


def test_a_verdict_has_three_values() -> None:
    assert _shown.judged(True, False) == CONFIRMED
    assert _shown.judged(False, True) == CONTRADICTED
    assert _shown.judged(False, False) == OPEN


def test_the_slope_of_a_power_and_a_row_by_its_value() -> None:
    assert _series.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert _series.slope([0, 2, 4], [0, 12, 48]) == pytest.approx(2)  # zeros have no logarithm
    assert _series.slope([1], [3]) is None
    found = _series.line("mezo", {"step": [1, 4], "ratio": [0.9, 1.1]})
    assert _shown.row_of(found, "step", 4) == {"step": 4, "ratio": 1.1}
    assert _shown.row_of(found, "step", 5) == {}
