"""Figures: deterministic SVG, fixed looks, honest about runs that were lost, labels in Chinese, nothing cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from dlopt.lab import canvas, curves, figures, fonts, palette
from tests.lab.made_up import METHODS, Interval, around, record, records, trials


def texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def all_figures() -> dict[str, Figure]:
    some = records()
    cells = [
        record("adamw", s, "diverged" if lr > 0.02 and (s or k > 2) else "done", lr, points=6 + k, k=k)
        for s in range(2)
        for lr in (0.01, 0.03)
        for k in (1, 5)
    ]
    return {
        "curves": figures.curves(some, "examples", ["val_loss", "val_accuracy"], log_y=True, target=0.9),
        "bars": figures.bars({m: around(0.9, 0.01) for m in METHODS} | {"lion": float("nan")}, "accuracy"),
        "stacked": figures.stacked({r.config["method"]: r.bytes for r in some}),
        "scatter": figures.scatter(trials(), "lr", "accuracy", log_x=True, best="max"),
        "pareto": figures.pareto_plot(
            {m: (around(3.0 + i, 0.2), 0.9 - 0.1 * i) for i, m in enumerate(METHODS)}, "seconds", "accuracy"
        ),
        "heatmap": figures.heatmap(cells, "lr", "k", "accuracy"),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return all_figures()


def test_the_same_records_give_the_same_bytes(drawn: dict[str, Figure], tmp_path: Path) -> None:
    again = figures.curves(records(), "examples", ["val_loss", "val_accuracy"], log_y=True, target=0.9)
    path = figures.save(drawn["curves"], tmp_path / "curves.svg")
    assert path.read_text() == figures.svg(again)
    for figure in drawn.values():
        assert figures.svg(figure) == figures.svg(figure)  # writing does not move anything


def test_svg_holds_outlines_only_and_no_date(drawn: dict[str, Figure]) -> None:
    text = figures.svg(drawn["curves"])
    assert "<text" not in text
    assert "dc:date" not in text


def test_width_is_that_of_the_page(drawn: dict[str, Figure]) -> None:
    for figure in drawn.values():
        assert figure.get_figwidth() == pytest.approx(16 / 2.54, abs=0.01)


def test_nothing_is_cut_and_no_legend_covers_data(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        whole = figure.bbox
        for axes in figure.axes:
            box = axes.get_tightbbox(renderer)
            assert box.x0 >= whole.x0 - 1, name
            assert box.x1 <= whole.x1 + 1, name
            for legend in figure.legends:
                assert not legend.get_window_extent(renderer).overlaps(box), name


def test_labels_are_chinese_and_the_font_has_them(drawn: dict[str, Figure]) -> None:
    from matplotlib import ft2font

    face = ft2font.FT2Font(fonts.find(fonts.SANS))
    found = texts(drawn["curves"])
    assert {"样本数", "验证损失", "验证准确率"} <= set(found)
    for letter in {c for figure in drawn.values() for t in texts(figure) for c in t if ord(c) > 0x2E7F}:
        assert face.get_char_index(ord(letter)), letter


def test_a_run_that_diverged_is_drawn_counted_and_kept_out_of_the_mean(drawn: dict[str, Figure]) -> None:
    assert "SGD（发散 1/3）" in texts(drawn["curves"])
    loss = drawn["curves"].axes[0]
    assert loss.get_ylim()[1] < 5  # the run that blew up to 125 flattens nobody
    assert any(line.get_marker() == "x" for line in loss.lines)
    assert "发散 1/2" in "".join(texts(drawn["heatmap"]))
    assert "发散" in texts(drawn["bars"])


def test_failed_and_skipped_runs_are_counted_too() -> None:
    figure = figures.curves([record("adamw"), record("adamw", 1, "failed"), record("adamw", 2, "skipped")])
    assert "AdamW（失败 1/3，跳过 1/3）" in texts(figure)


def test_only_runs_that_diverged_still_give_a_figure() -> None:
    assert "AdamW（发散 1/1）" in texts(figures.curves([record("adamw", status="diverged")], log_y=True))


def test_counters_without_a_value_at_step_0_begin_at_0() -> None:
    x, _ = curves.points(record("adamw"), "examples", "val_loss")
    assert x[0] == 0
    assert len(x) == 21
    x, _ = curves.points(record("adamw"), "examples", "val_loss", log_x=True)
    assert x[0] > 0


def test_mean_and_interval() -> None:
    x = np.arange(3.0)
    grid, mean, low, high = curves.mean_curve([(x, np.full(3, v)) for v in (1.0, 2.0, 3.0)])
    assert grid is x
    np.testing.assert_allclose(mean, 2.0)
    np.testing.assert_allclose(high - mean, 4.302652730 * 1.0 / np.sqrt(3))  # t_{0.975, 2} s / sqrt(n)
    np.testing.assert_allclose(mean - low, high - mean)
    _, mean, low, _ = curves.mean_curve([(x, np.full(3, v)) for v in (0.01, 0.1, 1.0)], log=True)
    np.testing.assert_allclose(mean, 0.1)
    assert (low > 0).all()
    grid, mean, low, high = curves.mean_curve([(x, x), (x / 2 + 0.5, x + 0.5)])
    assert (grid[0], grid[-1]) == (0.5, 1.5)  # what both seeds cover
    assert (low == mean).all()  # two seeds make no band
    assert (high == mean).all()


def test_a_wide_band_does_not_move_the_axis() -> None:
    some = [record("adamw", seed) for seed in (0, 1, 2)]
    some[0].curve["val_loss"][-1] = 5.0
    low, high = figures.curves(some, "examples", "val_loss").axes[0].get_ylim()
    assert -0.5 < low < high < 5.6


def test_looks_are_fixed_and_differ_within_a_topic() -> None:
    for topic in (
        ("adamw", "sgd", "adafactor", "adam-mini", "sophia-g", "sophia_h", "lion", "muon"),
        ("adamw", "sgd", "mezo", "mezo-svrg", "lozo", "lozo-m", "deepzero"),
        ("adamw", "sgd", "adafactor", "mezo"),
        ("galore", "golore", "flora_compress", "flora_tucker", "relora", "sltrain", "lora", "adamw"),
        ("importance", "fixed-order", "shuffle-once", "random-reshuffling", "class-blocks", "class-balanced", "grab"),
    ):
        looks = [palette.look(name) for name in topic]
        assert len({(look.colour, look.marker) for look in looks}) == len(topic)
    assert palette.look("adam-mini") == palette.look("adam_mini")
    code = "from dlopt.lab import palette; print(palette.look('someone_elses'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == str(palette.look("someone_elses"))


def test_names_are_never_formulas() -> None:
    figure = figures.curves([record("cost$ly_$\\frac")])
    assert "<svg" in figures.svg(figure)


def test_callers_settings_are_untouched() -> None:
    before = dict(mpl.rcParams)
    figures.svg(figures.curves(records()))
    assert dict(mpl.rcParams) == before


def test_value_of_looks_in_every_place() -> None:
    r = record("adamw", lr=0.25, batch=64)
    assert figures.value_of(r, "lr") == figures.value_of(r, "params.lr") == 0.25
    assert figures.value_of(r, "batch") == 64
    assert figures.value_of(r, "accuracy") == r.summary["accuracy"]
    assert figures.value_of(r, "bytes.total") == sum(r.bytes.values())
    assert figures.value_of(r, "nothing") is None


def test_troubles_are_sentences() -> None:
    with pytest.raises(ValueError, match=r"no record has the curve column 'vall_loss'; they have .*val_loss"):
        figures.curves(records(), y="vall_loss")
    with pytest.raises(ValueError, match="at least one record"):
        figures.scatter([], "lr", "accuracy")


def test_numbers_are_short() -> None:
    assert [canvas.plain(v) for v in (0, 0.001, 3.2e-5, 1500, 20000, 3e8)] == [
        "0",
        "0.001",
        "3.2e-5",
        "1500",
        "2 万",
        "3 亿",
    ]
    assert canvas.writer("accuracy")(0.9315) == "93.15%"
    assert canvas.writer("state_bytes")(2048) == "2.0 KiB"


def test_a_missing_font_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_packaged", list)
    monkeypatch.setattr(fonts, "_SYSTEM", ("/nowhere",))
    fonts.find.cache_clear()
    try:
        with pytest.raises(fonts.FontUnavailable, match="pip install mplfonts"):
            fonts.find(fonts.SERIF)
    finally:
        fonts.find.cache_clear()


def test_interval_like_values() -> None:
    assert canvas.spread(Interval(2.0, 1.0, 4.0)) == (2.0, 1.0, 4.0)
    assert canvas.spread(3) == (3.0, 3.0, 3.0)


def test_the_bar_of_a_single_run_is_labelled():
    one = Interval(0.5, float("nan"), float("nan"))
    (label,) = [t for t in figures.bars({"lion": one}, "accuracy").axes[0].texts if "50" in t.get_text()]
    assert label.xy == (0.5, 0)


def test_bars_of_one_series_share_its_colour():
    bars = {"a: adamw": 1.0, "a: sgd": 2.0, "b: adamw": 3.0}
    figure = figures.bars(bars, "seconds", series={name: name.split()[1] for name in bars})
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert colours[0] == colours[2] != colours[1]
