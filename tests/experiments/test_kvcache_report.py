"""The report of topic `kvcache` from made-up records: its keys, gaps shown as gaps, verdicts by their rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.lab import report
from dlopt.lab.report import Presentation
from tests.experiments.made_up_kvcache import RUNS, every, results

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "reports" / "kvcache" / "report.typ").read_text(encoding="utf-8")


def presented(part: str, **more: Any) -> Presentation:
    found = results(part, **more)
    made: Presentation = found.experiment.present(found)
    return made


def merged(**more: Any) -> Presentation:
    return report.merge("kvcache", {name: r.experiment.present(r) for name, r in every(**more).items()})


@pytest.fixture(scope="module")
def complete() -> Presentation:
    return merged()


def test_the_report_compiles_and_shows_all_that_is_made(complete: Presentation, tmp_path: Path) -> None:
    pdf = report.build("kvcache", complete, ROOT, tmp_path)[0].read_bytes()
    assert 10 <= max(int(n) for n in re.findall(rb"/Count (\d+)", pdf)) <= 20
    assert report.unused("kvcache", complete, ROOT) == []
    assert set(complete.values) == set(re.findall(r'\bv\("([^"]+)"', TEXT))
    assert all(v is not None for v in complete.values.values())
    judged = {k: v for k, v in complete.values.items() if ".verdict." in k}
    assert set(judged.values()) == {CONFIRMED}, {k: complete.values[k.replace("verdict", "answer")] for k in judged}


def test_references_exist() -> None:
    keys = set(re.findall(r"(?m)^@\w+\{([^,]+),", (ROOT / "reports" / "refs.bib").read_text(encoding="utf-8")))
    cited = set(re.findall(r"@([a-z]+\d{4}\w*)", TEXT))
    assert len(cited) > 15
    assert cited <= keys


def test_no_record_at_all_still_gives_every_key_and_compiles(complete: Presentation, tmp_path: Path) -> None:
    empty = merged(keep=lambda stage, cfg: False)
    assert set(empty.values) == set(complete.values)
    assert set(empty.tables) == set(complete.tables)
    assert set(empty.figures) == set(complete.figures)
    assert {v for k, v in empty.values.items() if ".verdict." in k} == {OPEN}
    assert sum("不完整" in note for note in empty.notes) == len(RUNS)
    assert report.build("kvcache", empty, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


def test_a_partial_grid_with_lost_runs_compiles_and_names_them(tmp_path: Path) -> None:
    shown = merged(
        keep=lambda stage, cfg: stage in ("zero", "bounds", "ranked", "axes", "stream", "after", "copy", "contexts"),
        status=lambda cfg: "failed" if cfg.method in ("h2o", "full") else "done",
    )
    assert any("H2O" in note and "失败" in note for note in shown.notes)
    assert report.build("kvcache", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("part", "level", "question"),
    [
        ("openbookqa", {"kivi-2": 0.13}, "q1"),
        ("openbookqa", {"window": 0.9}, "q1"),
        ("openbookqa", {"tova": 0.05}, "q2"),
        ("openbookqa", {"h2o": 0.3}, "q3"),
        ("openbookqa", {"window": 0.3}, "q4"),
        ("kivi", {"kivi-4": 0.05}, "q2"),
        ("generation", {"sinks": 0.0}, "q1"),
    ],
)
def test_a_prediction_that_fails_is_contradicted(
    part: str, level: dict[str, float], question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert presented(part, level=level).values[f"verdict.{question}"] == CONTRADICTED
