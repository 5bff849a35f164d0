"""The report of topic `adam` from made-up records: its keys, gaps shown as gaps, verdicts by their rules."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.experiments.adam import _lm_report, _lm_verdicts, _report, _resnet_report, lm, resnet
from dlopt.experiments.adam._common import METHODS, NAMED, SEEDS
from dlopt.lab import report
from dlopt.lab.report import Presentation
from dlopt.lab.study import Results
from tests.experiments.made_up_adam import lm_results, resnet_results

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "reports" / "adam" / "report.typ").read_text(encoding="utf-8")
INF = math.inf


def merged(images: Results, words: Results) -> Presentation:
    return report.merge("adam", {"adam/resnet": _resnet_report.present(images), "adam/lm": _lm_report.present(words)})


@pytest.fixture(scope="module")
def complete() -> Presentation:
    return merged(resnet_results(), lm_results())


@pytest.fixture(scope="module")
def built(complete: Presentation, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return report.build("adam", complete, ROOT, tmp_path_factory.mktemp("out"))[0].read_bytes()


def test_the_report_compiles_from_complete_records(built: bytes) -> None:
    pages = max(int(n) for n in re.findall(rb"/Count (\d+)", built))
    assert 8 <= pages <= 20


def test_nothing_is_made_that_the_report_does_not_show(complete: Presentation) -> None:
    assert report.unused("adam", complete, ROOT) == []
    asked = set(re.findall(r'\b(?:v|pct)\("([^"]*[^".])"', TEXT))
    for part, end in re.findall(r'v\("(\w+\.)" \+ m \+ "(\.\w+)"', TEXT):
        asked |= {part + m + end for m in METHODS}
    asked |= {f"resnet.parameters.{name}" for name in _resnet_report.SHAPES}
    assert set(complete.values) == asked


def test_complete_records_need_no_warning(complete: Presentation) -> None:
    assert complete.notes == []
    assert all(v is not None for v in complete.values.values())
    verdicts = [v for k, v in complete.values.items() if ".verdict." in k]
    assert len(verdicts) == 9
    assert set(verdicts) <= {CONFIRMED, CONTRADICTED, OPEN}


def test_counted_bytes_stand_beside_the_formula(complete: Presentation) -> None:
    for name in ("resnet.cost", "resnet.full", "lm.cost"):
        table = complete.tables[name]
        assert list(table["状态（计数）"]) == list(table["状态（公式）"])
        assert set(table["相差"]) == {0}
    ratio = complete.tables["resnet.formula"].set_index("method")
    assert ratio.loc["adamw", "ResNet-18"] == pytest.approx(2, abs=1e-4)
    assert ratio.loc["adafactor", "5M 语言模型"] < 0.01
    assert 0.6 < ratio.loc["adafactor", "ResNet-18"] < 0.7  # 3 x 3 kernels: six numbers for nine
    assert 1 < ratio.loc["adam-mini", "5M 语言模型"] < 1.01


def test_no_record_at_all_still_makes_a_report(tmp_path: Path) -> None:
    lacking = (("tune", "report", "resnet18", "cost"), ("tune", "report", "ablations"))
    images, words = (
        Results(e, "cpu", {s: [] for s in stages}, [f"{s}: adamw seed 0" for s in stages])
        for e, stages in zip((resnet.experiment, lm.experiment), lacking)
    )
    shown = merged(images, words)
    assert {v for k, v in shown.values.items() if ".verdict." in k} == {OPEN}
    assert len([note for note in shown.notes if "不完整" in note]) == 2
    assert report.build("adam", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


def test_partial_and_broken_grids_show_gaps(tmp_path: Path) -> None:
    lost = {("lion", 1): "diverged", ("sgd", 2): "failed", **{("sophia-g", s): "diverged" for s in SEEDS}}
    images = resnet_results(status=lost, missing=("report: muon seed 2", "cost: adam"))
    words = lm_results(status=lost, missing=("ablations: adam",))
    keep = [r for r in images.stages["report"] if (r.method, r.config["seed"]) != ("muon", 2)]
    images = replace(images, stages={**images.stages, "report": keep, "cost": []})
    words = replace(words, stages={**words.stages, "ablations": words.stages["ablations"][2:]})
    other = replace(words.stages["report"][0], config={**words.stages["report"][0].config, "method": "elsewhere"})
    words.stages["report"].append(other)  # a method of another package, of one seed, that is not installed any more
    shown = merged(images, words)
    main = shown.tables["resnet.main"].set_index("method")["完成"]
    assert dict(main[["lion", "sgd", "sophia-g", "muon"]]) == {
        "lion": "2/3", "sgd": "2/3", "sophia-g": "0/3", "muon": "2/2",
    }  # fmt: skip
    assert shown.values["resnet.sophia-g.accuracy"] is None
    assert list(shown.tables["lm.main"]["method"]) == [*METHODS, "elsewhere"]
    assert shown.tables["lm.cost"].set_index("method").loc["elsewhere", "状态（公式）"] is None
    assert list(shown.tables["resnet.full"]["状态（计数）"]) == [None] * len(NAMED)
    assert list(shown.tables["lm.ablations"]["status"])[:2] == [None, None]
    assert any("未正常结束" in note for note in shown.notes)
    assert shown.values["resnet.verdict.share"] == shown.values["lm.verdict.partition"] == OPEN
    assert "暂不判定" in shown.values["lm.answer.partition"]
    assert report.build("adam", shown, ROOT, tmp_path)[0].read_bytes().startswith(b"%PDF")


def test_one_seed_has_no_interval_and_decides_nothing() -> None:
    images, words = resnet_results(), lm_results()
    for results in (images, words):
        results.stages["report"][:] = [r for r in results.stages["report"] if r.config["seed"] == 0]
    found = _resnet_report.answers(images)
    assert found["decay"][0] == found["sgd"][0] == OPEN
    found = _lm_verdicts.answers(words)
    assert {found[q][0] for q in ("adafactor", "mini", "sgd", "partition")} == {OPEN}


@pytest.mark.parametrize(
    ("question", "settings", "verdict"),
    [
        ("decay", {}, CONFIRMED),
        ("decay", {"accuracy": {"adam": 0.70}}, CONTRADICTED),
        ("decay", {"accuracy": {"adam": 0.70}, "missing": ("report: adam seed 3",)}, OPEN),
        ("sgd", {}, CONFIRMED),
        ("sgd", {"accuracy": {"sgd": 0.60}}, CONTRADICTED),
        ("sgd", {"status": {("sgd", 1): "diverged"}}, OPEN),
        ("order", {}, CONFIRMED),
        ("order", {"deep": {"adamw": 0.5, "adam-mini": 0.51, "adam": 0.52, "sophia-g": 0.9}}, CONTRADICTED),
        ("share", {}, CONFIRMED),
        ("share", {"share": 0.2}, CONTRADICTED),
    ],
)
def test_the_rules_of_the_images(question: str, settings: dict[str, Any], verdict: str) -> None:
    found, answer = _resnet_report.answers(resnet_results(**settings))[question]
    assert found == verdict, answer


@pytest.mark.parametrize(
    ("question", "settings", "verdict"),
    [
        ("adafactor", {}, CONFIRMED),
        ("adafactor", {"loss": {"adafactor": 1.9}}, CONTRADICTED),
        ("adafactor", {"loss": {"adafactor": 1.75}}, OPEN),
        ("mini", {}, CONFIRMED),
        ("mini", {"loss": {"adam-mini": 2.0}}, CONTRADICTED),
        ("sophia", {}, CONFIRMED),
        ("sophia", {"loss": {"sophia-g": 0.5}}, CONTRADICTED),
        ("sgd", {}, CONFIRMED),
        ("sgd", {"loss": {"sgd": 1.70}}, CONTRADICTED),
        ("sgd", {"status": {("sgd", s): "diverged" for s in SEEDS}}, CONFIRMED),
        ("partition", {"changes": {"partition=tensor": INF}}, CONFIRMED),
        ("partition", {"changes": {"partition=tensor": 1.9}}, CONFIRMED),
        ("partition", {"changes": {"partition=tensor": 1.5}}, CONTRADICTED),
        ("partition", {"changes": {"partition=tensor": 1.9, "partition=row": 1.9}}, OPEN),
        ("partition", {"missing": ("ablations: adam-mini",)}, OPEN),
    ],
)
def test_the_rules_of_the_language_model(question: str, settings: dict[str, Any], verdict: str) -> None:
    found, answer = _lm_verdicts.answers(lm_results(**settings))[question]
    assert found == verdict, answer


def test_sophia_saves_the_steps_that_its_curve_says() -> None:
    words = lm_results()
    final = {m: [r for r in words.stages["report"] if r.method == m] for m in ("adamw", "sophia-g")}
    assert _lm_verdicts.faster(final, "adamw") == pytest.approx([1.0, 1.0, 1.0])
    final["sophia-g"] = [  # as AdamW's, in half the steps
        replace(r, curve={**r.curve, "step": [s / 2 for s in r.curve["step"]]}) for r in final["adamw"]
    ]
    assert _lm_verdicts.faster(final, "sophia-g") == pytest.approx([2.0, 2.0, 2.0])
    assert _lm_verdicts.faster(final, "sophia-g", 0.5) == pytest.approx([2.0, 2.0, 2.0])


def test_an_ablation_is_compared_with_the_unchanged_run_of_its_seed() -> None:
    words = lm_results(changes={"interval=50": 1.85})
    table = _lm_report.present(words).tables["lm.ablations".partition(".")[2]]
    row = table[table["改动"] == "曲率间隔 k = 50"].iloc[0]
    plain = {r.config["seed"]: r.summary["test_loss"] for r in words.stages["report"] if r.method == "sophia-g"}
    assert row["Δ测试"] == pytest.approx(row["test_loss"] - plain[0])
    assert row["Δ测试"] > 0.1
    values = list(plain.values())
    mean = sum(values) / 3
    assert row["种子标准差"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))


def test_a_rate_at_the_end_of_its_trials_is_told() -> None:
    trials = {"adamw": {1e-3: 1.0, 3e-3: 0.5, 1e-2: 0.8, 2e-2: 0.9}, "sgd": {0.02: 3.0, 0.1: 2.0, 0.3: 1.5, 0.99: 1.0},
              "lion": {1e-4: 1.0, 2e-4: INF, 3e-4: 2.0, 5e-4: 3.0}, "muon": {1e-3: 1.0}}  # fmt: skip
    assert _report.chosen(trials) == {"adamw": 3e-3, "sgd": 0.99, "lion": 1e-4}
    table = _report.settings_table(trials, resnet.BOXES, resnet.FIXED).set_index("method")
    assert dict(table["位置"][["adamw", "sgd", "lion", "muon"]]) == {
        "adamw": "居中", "sgd": "范围边缘", "lion": "最小的一点", "muon": None,
    }  # fmt: skip
    assert table.loc["adam", "权重衰减"] == "0.0005（L2）"
    (note,) = _report.edge_notes(_report.chosen(trials), resnet.BOXES)
    assert "sgd" in note
    assert "上缘" in note
