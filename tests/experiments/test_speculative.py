"""The comparison of drafters: arms from text, a run at smoke scale, and the report's verdicts from made-up records."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dlopt import experiments
from dlopt.experiments._present import CONFIRMED, CONTRADICTED, OPEN
from dlopt.experiments._tiny import ByteTokenizer, llama
from dlopt.experiments.speculative import _measure, bench, distil, skipping
from dlopt.experiments.speculative._arms import Workshop, arms
from dlopt.experiments.speculative._dropped import Dropped
from dlopt.experiments.speculative._measure import Told, measure, repetition
from dlopt.experiments.speculative._names import title
from dlopt.experiments.speculative._ratios import speedup
from dlopt.lab import figures, report
from dlopt.lab.log import Log, Paused, Skipped
from dlopt.lab.run import Settings
from dlopt.lab.study import Study, collect
from dlopt.memory import Bytes
from dlopt.speculative import costs
from dlopt.speculative.costs import Costs, describe, use
from tests.experiments import made_up_speculative as made_up

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "speculative" / "report.typ"


def test_arms_are_read_from_a_line() -> None:
    found = arms("prompt-lookup:length=4,max_ngram=2/fixed, rest:store=outputs,plain-bf16")
    assert [(a.method, dict(a.params), a.gated) for a in found] == [
        ("prompt-lookup", {"length": 4, "max_ngram": 2}, False),
        ("rest", {"store": "outputs"}, True),
        ("plain-bf16", {}, True),
    ]
    assert title(found[0].text) == "PromptLookup（length=4,max_ngram=2），定长"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("promt-lookup", "did you mean prompt-lookup"),
        ("prompt-lookup,prompt-lookup", "each arm once"),
        ("plain", "no arm is called 'plain'"),
        ("llma/free", "stands fixed, not 'free'"),
        ("llma:length", "reads name=value"),
        ("rest:store=web", "store takes"),
        ("suffix-decoding:history=2", "history takes on or off"),
        ("hf-lookup:length=2", "takes no settings"),
        ("draft-and-verify:skips=3", "skips takes found"),
        ("", "no arm is called"),
        ("bigram", "no arm is called 'bigram'"),
        ("prompt-lookup:lenght=3", "did you mean length"),
        ("rest:part=0", "part takes a number above 0 and at most 1, not 0"),
        ("rest:part=much", "part takes a number above 0 and at most 1, not 'much'"),
        ("cascade:shape=tall", "shape takes both, horizontal, vertical, alone, not 'tall'"),
    ],
)
def test_bad_arms_are_told(line: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        arms(line)


def test_lists_and_what_needs_a_small_model() -> None:
    assert arms("draft-and-verify:attention=3+5,mlp=4/fixed")[0].params == {"attention": [3, 5], "mlp": 4}
    with pytest.raises(ValueError, match="cascade/fixed drafts with a small model: give its folder as drafter"):
        bench.check(bench.Config(arms="prompt-lookup,cascade/fixed"))


def test_a_part_of_a_store_and_what_a_draft_reads() -> None:
    shop = Workshop(llama(layers=3), ByteTokenizer(), lambda: llama(layers=1), [[n + 1, n + 2] for n in range(9)])
    assert shop.store("outputs").tokens == 18
    assert shop.store("outputs", 1 / 3).tokens == 6
    sampling, lookup, skipped = arms("speculative-sampling/fixed,prompt-lookup,draft-and-verify:attention=1,mlp=1")
    assert 0 < (shop.reads(sampling) or 0) < 1
    assert shop.reads(lookup) is shop.reads(skipped) is None


def test_the_smoke_stages_run_end_to_end(tmp_path: Path) -> None:
    study = Study(experiments.load("speculative/bench"), "smoke")
    plans = study.conduct(Settings(tmp_path))
    records = [r for plan in plans for r in plan.records.values()]
    assert [r.status for r in records] == ["done"], [r.reason for r in records]
    (record,) = records
    found = record.summary
    assert found["plain tokens"] == [12, 12, 12]
    for arm in arms(bench.SMOKE):
        if arm.method != "plain-bf16":
            assert found[f"{arm.text} same"] == [True] * 3
        assert len(found[f"{arm.text} cpu"]) == 3
        value = speedup(record, arm.text)
        assert value is not None
        assert value.low <= value.mean <= value.high
    assert found["prompt-lookup:length=3/fixed drafted"] > 0
    assert sum(found["speculative-sampling:length=2/fixed rounds"]) <= 33
    assert study.experiment.present(collect(study, tmp_path)).values["prompts"] is not None


def test_a_drafter_is_distilled_into_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("DLOPT_ARTIFACTS", str(tmp_path / "artifacts"))
    study = Study(experiments.load("speculative/distil"), "smoke")
    (record,) = (r for plan in study.conduct(Settings(tmp_path)) for r in plan.records.values())
    assert record.status == "done", record.reason
    folder = distil.artifact(record.key)
    assert folder.parent.parent == tmp_path / "artifacts"
    assert distil.digest(folder) == record.summary["sha256"]
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 1
    assert record.curve["tokens"][-1] == 4 * 2 * 16
    assert distil.digest(tmp_path) == "absent"


@pytest.mark.parametrize("dropout", [0.0, 0.8])
def test_skip_sets_are_searched_and_measured(dropout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model that is trained in the run: the set is left for `speculative/bench`, and text is plain text."""
    from dlopt.speculative import Skips

    monkeypatch.setenv("DLOPT_ARTIFACTS", str(tmp_path))
    cfg = skipping.Config(model="trained", corpus="stdlib-text", share=0.5, trials=2, prompts=1, tokens=5, layers=3,
                          dropout=dropout, width=16, steps=3, batch=2, window=16)  # fmt: skip
    skipping.check(cfg)
    told = skipping.run(cfg, Log("key"))
    assert len(told["attention"]) + len(told["mlp"]) == 3
    assert told["test_loss"] > 0
    both = told["arms"].split(",draft")[-1]
    assert told[f"draft{both} same"] == [True] * 3
    assert Skips.load(distil.artifact("key").with_suffix(".json")).attention == tuple(told["attention"])


def test_what_the_models_need_is_missed_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLOPT_ARTIFACTS", str(tmp_path))
    with pytest.raises(Skipped, match=r"leaves behind, which is not here; .* `dlopt reproduce [0-9a-f]{16}`"):
        bench.run(bench.Config(arms=bench.MODELS, drafter=bench.DISTILLED), Log())
    for options, message in [({"share": 1.0}, "share and dropout"), ({"width": 12}, "multiple of 8"),
                             ({"trials": 0}, "trials must be at least 1")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            skipping.check(skipping.Config(model="tiny", **options))
    with pytest.raises(ValueError, match="lr must be above 0"):
        distil.check(distil.Config(model="tiny", lr=0.0))


def test_layers_are_dropped_in_training_alone() -> None:
    built = Dropped("stdlib-text", {"layers": 4, "hidden_size": 16, "intermediate_size": 16}, 0.9, 8, 2, 0, "cpu")
    batch = next(iter(built.batches))

    def losses(count: int) -> set[float]:
        return {float(built.criterion(built.forward(built.model, batch), batch).detach()) for _ in range(count)}

    assert len(losses(8)) > 2
    built.model.eval()
    assert len(losses(3)) == 1


def test_text_that_differs_from_plain_decoding_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _measure._ours

    def wrong(shop: Workshop, arm: Any, how: Any, model: Any, gate: Any = False) -> Any:
        run = right(shop, arm, how, model, gate)
        if arm is None:
            return run
        return lambda *given: (lambda t: Told([*t.tokens[:-1], (t.tokens[-1] + 1) % 256], t.cpu, t.seconds, t.prefill,
                                              t.stats))(run(*given))  # fmt: skip

    monkeypatch.setattr(_measure, "_ours", wrong)
    monkeypatch.setattr(_measure, "TIE", 0.0)
    with pytest.raises(RuntimeError, match="does not give the text of plain decoding: they differ at new token 5"):
        measure(Workshop(llama(eos_token_id=None), ByteTokenizer()), arms("prompt-lookup/fixed"),
                         bench._tiny_prompts(1), _measure.Settings(6, 0.0, 0), Log())  # fmt: skip


def test_a_comparison_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = arms("prompt-lookup,suffix-decoding,best-of-drafts,suffix-decoding:tree=false/fixed,hf-lookup")
    prompts = bench._tiny_prompts(2) * 2  # what comes again is in the history
    how = _measure.Settings(16, 0.0, 0)

    def begin(log: Log, resumed: bool = False) -> dict[str, list[Told]]:
        target = llama(eos_token_id=None)
        if not resumed:  # measured ones would choose other lengths each time; the run that goes on finds these again
            use(target, Costs((1, 8), (1.0, 1.4), describe(target)))
        return measure(Workshop(target, ByteTokenizer()), line, prompts, how, log)

    class Stopping(Log):
        def progress(self, done: int, total: int) -> None:
            self.deadline = 0.0 if done == 2 else None

    whole = begin(Log())
    stopping = Stopping(work=tmp_path)
    stopping.bytes = Bytes(weights=8)
    with pytest.raises(Paused, match="after 2 of 4 prompts"):
        begin(stopping)
    kept = json.loads((tmp_path / "prompts.json").read_text(encoding="utf-8"))["state"]
    with monkeypatch.context() as patch:
        patch.setattr(costs, "calibrate", lambda *args, **options: pytest.fail("the cost table was not restored"))
        log = Log(work=tmp_path)
        again = begin(log, resumed=True)
    assert log.bytes == Bytes(weights=8)

    def counts(told: Told) -> Any:
        stats = told.stats
        return told.tokens, stats and (stats.widths, stats.offered, stats.taken, stats.drafted, stats.accepted)

    assert {arm: list(map(counts, rows)) for arm, rows in again.items()} == {
        arm: list(map(counts, rows)) for arm, rows in whole.items()
    }
    assert [row.as_dict() for row in again["prompt-lookup"][:2]] == [
        Told.of(row).as_dict() for row in kept["found"]["prompt-lookup"]
    ]
    assert _measure.summed(again).keys() == _measure.summed(whole).keys()
    assert again["suffix-decoding"][2].stats.drafted > 0


def test_a_comparison_of_other_arms_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, how = llama(eos_token_id=None), _measure.Settings(4, 0.0, 0)
    shop, prompts = Workshop(target, ByteTokenizer()), bench._tiny_prompts(1)
    measure(shop, arms("prompt-lookup/fixed"), prompts, how, Log(work=tmp_path))
    found = measure(shop, arms("suffix-decoding/fixed"), prompts, how, Log(work=tmp_path))
    assert "holds the arms plain, prompt-lookup/fixed, where the run has plain, suffix" in capsys.readouterr().out
    assert len(found["suffix-decoding/fixed"]) == 1
    assert (tmp_path / "prompts.json.broken-1").exists()


def test_repetition_counts_what_was_there_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2] * 5) == pytest.approx(1 - 2 / 7)
    assert repetition([1]) == 0


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: for tests of what is said."""
    for name in ("curves", "bars"):
        monkeypatch.setattr(figures, name, lambda *args, **options: Figure())


def presented(name: str = "speculative/bench", **more: Any) -> Any:
    found = made_up.results(name=name, **more)
    return found.experiment.present(found)


def test_the_report_compiles_and_shows_all_that_is_made(tmp_path: Path) -> None:
    shown = report.merge("speculative", {name: presented(name) for name in made_up.RUNS})
    pdf = report.build("speculative", shown, ROOT, tmp_path)[0].read_bytes()
    assert 8 <= max(int(n) for n in re.findall(rb"/Count (\d+)", pdf)) <= 20
    assert report.unused("speculative", shown, ROOT) == []
    assert not shown.notes
    used = set(re.findall(r'\bv\("([^"]+)"', REPORT.read_text(encoding="utf-8")))
    assert set(shown.values) == used


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("model", "speed", "verdict"), [
    ("", 0.0, CONFIRMED), ("smollm2-135m-instruct-q4_1", 1.1, CONTRADICTED), ("dropout", 0.99, CONTRADICTED),
    ("trained", 1.5, CONTRADICTED), ("deeper", 0.5, CONFIRMED),
])  # fmt: skip
def test_skipping_is_judged(model: str, speed: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(made_up.SKIPPING, model, speed)
    shown = presented("speculative/skipping")
    assert shown.values["verdict.q11"] == verdict
    assert list(shown.tables["sets"]["跳过"]) == ["2/60"] * 3 + ["0/60"] + ["2/60"] * 4
    assert shown.tables["sets"]["GPU 代价下"][0] == pytest.approx(40 / (30 * 1.06 + 0.8 * 60))


@pytest.mark.usefixtures("undrawn")
def test_predictions_that_hold_are_confirmed() -> None:
    shown = presented()
    judged = {k: v for k, v in shown.values.items() if k.startswith("verdict.")}
    assert len(judged) == 11
    assert set(judged.values()) == {CONFIRMED}, {k: shown.values[k.replace("verdict", "answer")] for k in judged}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("question", "arm", "speed"),
    [
        (1, ("math", "prompt-lookup"), 0.9),
        (2, ("rewriting", "prompt-lookup"), 1.5),
        (3, ("qa", "prompt-lookup"), 1.2),
        (4, ("chat", "prompt-lookup/fixed"), 1.1),
        (5, ("math", "hf-lookup"), 1.3),
        (6, ("chat", "plain-bf16"), 1.1),
        (7, ("chat", "rest:store=books/fixed"), 1.5),
        (10, "best-of-drafts", 0.9),
        (12, ("code", "speculative-sampling/fixed"), 1.1),
        (12, "cascade/fixed", 0.5),
    ],
)
def test_the_opposite_is_contradicted(question: int, arm: Any, speed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(made_up.SPEED, arm, speed)
    if question == 10:
        monkeypatch.delitem(made_up.SPEED, ("rewriting", "best-of-drafts"))
    assert presented().values[f"verdict.q{question}"] == CONTRADICTED


def test_two_processors_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(figures, "curves", lambda lines, *args, **options: drawn.update(
        {line.config["method"]: line.curve for line in lines if "v(k) / v(1)" in line.curve}) or Figure())  # fmt: skip
    monkeypatch.setattr(figures, "bars", lambda *args, **options: Figure())
    found = made_up.results(name="speculative/bench")
    for stage, records in found.stages.items():
        cpu = "one CPU" if stage in ("lookup", "stores") else "another CPU"
        found.stages[stage] = [replace(r, environment={"cpu": cpu}) for r in records]
    r = found.stages["models"][0]
    r.summary["costs"] = {k: s * (1 if k == "1" else 2) for k, s in r.summary["costs"].items()}
    shown = found.experiment.present(found)
    assert shown.values["machines"] == "one CPU：查找类、数据库；another CPU：模型类、级联、树与链、草稿长度、采样"
    assert drawn["another CPU"]["v(k) / v(1)"][1:] == [2 * v for v in drawn["one CPU"]["v(k) / v(1)"][1:]]
    assert "ModelDrafter" not in set(shown.tables["speed"]["方法"])
    assert list(shown.tables["models"]["方法"])[:2] == ["bf16 逐词", "ModelDrafter"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", made_up.RUNS)
def test_no_record_at_all_still_gives_every_key(name: str) -> None:
    shown, full = presented(name, keep=lambda stage, cfg: False), presented(name)
    assert any("不完整" in note for note in shown.notes)
    assert set(shown.values) == set(full.values)
    assert set(shown.tables) == set(full.tables)
    assert set(shown.figures) == set(full.figures)
    assert {v for k, v in shown.values.items() if k.startswith("verdict")} <= {OPEN}


@pytest.mark.usefixtures("undrawn")
def test_runs_that_failed_are_named() -> None:
    shown = presented(status=lambda cfg: "failed" if cfg.category == "code" else "done")
    assert any("代码：失败" in note for note in shown.notes)
