"""The report of topic `sampling` from made-up records: its keys, gaps shown as gaps, verdicts by their rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dlopt.experiments import _present, _series
from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.lab import figures, report
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from tests.experiments.made_up_sampling import PARTS, RUNS, every, results

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "reports" / "sampling" / "report.typ").read_text(encoding="utf-8")


def presented(part: str, **more: Any) -> Presentation:
    found = results(part, **more)
    return found.experiment.present(found)


def merged(found: dict[str, Results]) -> Presentation:
    return report.merge("sampling", {name: r.experiment.present(r) for name, r in found.items()})


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: for tests of what is said."""
    for name in ("curves", "scatter", "bars"):
        monkeypatch.setattr(figures, name, lambda *args, **options: Figure())


@pytest.fixture(scope="module")
def complete() -> Presentation:
    return merged(every())


def test_the_report_compiles_and_shows_all_that_is_made(complete: Presentation, tmp_path: Path) -> None:
    pdf = report.build("sampling", complete, ROOT, tmp_path)[0].read_bytes()
    assert 8 <= max(int(n) for n in re.findall(rb"/Count (\d+)", pdf)) <= 22
    assert report.unused("sampling", complete, ROOT) == []
    assert set(complete.values) == set(re.findall(r'\bv\("([^"]+)"', TEXT))
    assert all(v is not None for v in complete.values.values())


def test_references_exist() -> None:
    keys = set(re.findall(r"(?m)^@\w+\{([^,]+),", (ROOT / "reports" / "refs.bib").read_text(encoding="utf-8")))
    cited = set(re.findall(r"@([a-z]+\d{4}\w*|[a-z]+_code)", TEXT))
    assert len(cited) > 30
    assert cited <= keys


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("part", PARTS)
def test_predictions_that_hold_are_confirmed(part: str) -> None:
    shown = presented(part)
    judged = {k: v for k, v in shown.values.items() if k.startswith("verdict")}
    assert set(judged.values()) == {CONFIRMED}, shown.values


@pytest.mark.parametrize("part", RUNS)
def test_no_record_at_all_still_gives_every_key(part: str, complete: Presentation) -> None:
    shown = presented(part, keep=lambda stage, cfg: False)
    assert any("不完整" in note for note in shown.notes)
    assert {f"{part}.{k}" for k in shown.values} == {k for k in complete.values if k.startswith(f"{part}.")}
    assert {f"{part}.{k}" for k in shown.figures} == {k for k in complete.figures if k.startswith(f"{part}.")}
    assert {f"{part}.{k}" for k in shown.tables} == {k for k in complete.tables if k.startswith(f"{part}.")}
    assert {v for k, v in shown.values.items() if k.startswith("verdict")} == ({OPEN} if part in PARTS else set())


def test_a_partial_grid_compiles_and_says_so(tmp_path: Path) -> None:
    def keep(stage: str, cfg: Any) -> bool:
        return getattr(cfg, "data", "mg") in ("mg", "mushrooms") and getattr(cfg, "task", "mnist").startswith("mnist")

    shown = merged(every(keep=keep))
    assert sum("不完整" in note for note in shown.notes) == 4
    assert report.build("sampling", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


def test_runs_that_diverged_are_named_and_never_win(tmp_path: Path) -> None:
    def status(cfg: Any) -> str:
        lost = cfg.method == "random-reshuffling" and cfg.seed < 5
        return "diverged" if lost else "failed" if cfg.method == "grab" and cfg.seed == 1 else "done"

    found = {"sampling/lasso": results("lasso", status=status), "sampling/vision": results("vision", status=status)}
    shown = merged(every(keep=lambda stage, cfg: False) | found)
    assert any("每幕重排发散" in note and "GraB失败" in note for note in shown.notes)
    assert shown.values["lasso.verdict.q1"] == OPEN
    assert report.build("sampling", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("part", "level", "question"),
    [
        ("lasso", {"random-reshuffling": -1.0}, "q1"),
        ("lasso", {"importance": -1.0}, "q2"),
        ("lasso", {"class-blocks": -5.0}, "q3"),
        ("lasso", {"saga": -1.0}, "q4"),
        ("logistic", {"random-reshuffling": -1.0}, "q1"),
    ],
)
def test_a_prediction_that_fails_is_contradicted(part: str, level: dict[str, float], question: str) -> None:
    assert presented(part, level=level).values[f"verdict.{question}"] == CONTRADICTED


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "value", "part", "questions"),
    [
        ("SLOPES", {"with-replacement": (1.0, -1.0), "fixed-order": (1.0, -2.0), "shuffle-once": (2.0, -1.0),
                    "random-reshuffling": (2.8, -2.6), "grab": (2.5, -2.8)}, "theory", ("q1", "q2")),
        ("ACCURACY", {"class-blocks": 0.74, "fixed-order": 0.5, "importance:online": 0.9}, "vision",
         ("q1", "q2", "q4")),
    ],
)  # fmt: skip
def test_the_rules_of_theory_and_vision_can_fail(
    name: str, value: Any, part: str, questions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"tests.experiments.made_up_sampling.{name}", value)
    shown = presented(part)
    assert {q: shown.values[f"verdict.{q}"] for q in questions} == dict.fromkeys(questions, CONTRADICTED)


@pytest.mark.usefixtures("undrawn")
def test_the_cause_is_batchnorm_if_groupnorm_cures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.experiments.made_up_sampling as made_up

    plain = made_up.vision_run

    def cured(cfg: Any, level: Any) -> Any:
        summary, curve = plain(cfg, level)
        return (summary | {"test_accuracy": 0.75} if cfg.task.endswith("group") else summary), curve

    monkeypatch.setitem(made_up.RUNS, "vision", cured)
    assert presented("vision").values["verdict.q3"] == CONTRADICTED


def test_a_verdict_needs_every_part() -> None:
    assert _present.verdict([True, True]) == CONFIRMED
    assert _present.verdict([True, None]) == OPEN
    assert _present.verdict([False, None]) == CONTRADICTED
    assert _present.verdict([]) == OPEN


def test_the_slope_of_a_power() -> None:
    assert _series.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert _series.slope([1], [3]) is None


@pytest.mark.usefixtures("undrawn")
def test_one_seed_is_not_called_undecided() -> None:
    shown = presented("vision", keep=lambda stage, cfg: getattr(cfg, "seed", 0) in (0, 1000))
    column = shown.tables["tests"].iloc[:, 1]
    assert len(column.dropna()) > 3
    assert all("不检验" in cell for cell in column.dropna())
