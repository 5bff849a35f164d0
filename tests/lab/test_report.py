"""Reports: numbers only from records, the same bytes each time, troubles as sentences; notebooks and bundles too."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from dlopt import catalog
from dlopt.lab import notebook, report, typeset
from dlopt.lab.bundle import bundle
from dlopt.lab.report import Presentation, ReportError
from tests.lab.made_up import METHODS, ROOT, Interval, presentation

REPORTS = ROOT / "reports"


@pytest.fixture(scope="module")
def shown() -> Presentation:
    return presentation()


@pytest.fixture(scope="module")
def built(shown: Presentation, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return report.build("demo", shown, ROOT, tmp_path_factory.mktemp("out"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a report of a few lines."""
    folder = tmp_path / "reports" / "tiny"
    folder.mkdir(parents=True)
    for name in ("template.typ", "refs.bib", "authors.toml"):
        shutil.copyfile(REPORTS / name, tmp_path / "reports" / name)
    return tmp_path


HEAD = """#import "../template.typ": *
#let (v, tab, fig) = kit("tiny")
#show: report.with(topic: "tiny", title: "短")
"""


def tiny(project: Path, text: str, values: dict[str, Any] | None = None, **parts: Any) -> Path:
    """Build a report whose body is `text`, from line 4 on."""
    source = project / "reports" / "tiny" / "report.typ"
    source.write_text(HEAD + text, encoding="utf-8")
    return report.build("tiny", Presentation(values or {}, **parts), project)[0]


def pages(pdf: bytes) -> int:
    return max(int(n) for n in re.findall(rb"/Count (\d+)", pdf))


def test_the_demo_report(built: list[Path], shown: Presentation) -> None:
    pdf = built[0].read_bytes()
    assert built[0].name == "demo.pdf"
    assert pdf.startswith(b"%PDF")
    assert 5 <= pages(pdf) <= 30
    assert report.unused("demo", shown, ROOT) == []
    assert REPORTS not in built[1].parents  # with `out`, the project folder stays as it is


def test_the_same_presentation_gives_the_same_bytes(built: list[Path], tmp_path: Path) -> None:
    again = report.build("demo", presentation(), ROOT, tmp_path)
    for one, other in zip(built, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one


def test_every_number_stands_in_the_values_and_every_value_is_used(shown: Presentation) -> None:
    text = (REPORTS / "demo" / "report.typ").read_text(encoding="utf-8")
    asked = set(re.findall(r'v\("([^"]+)"', text))
    for suffix in re.findall(r'v\(m \+ "([^"]+)"', text):
        asked |= {m + suffix for m in METHODS}
    assert asked == set(shown.values)


def test_references_exist() -> None:
    keys = re.findall(r"(?m)^@\w+\{([^,]+),", (REPORTS / "refs.bib").read_text(encoding="utf-8"))
    assert len(keys) == len(set(keys))
    text = (REPORTS / "demo" / "report.typ").read_text(encoding="utf-8")
    cited = set(re.findall(r"#cite\(<([^>]+)>\)", text)) | set(re.findall(r"@(\w*\d{4}\w*)", text))
    assert len(cited) > 10
    assert cited <= set(keys)
    for method in catalog.methods("adam").values():
        assert method.cite in keys, method.name


def test_pages_can_be_looked_at(project: Path) -> None:
    tiny(project, "正文")
    (page,) = typeset.pages(project / "reports" / "tiny" / "report.typ", project / "reports", ppi=20)
    assert page.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "what", "key", "hint"),
    [
        ('第一行\n#v("adamw.acuracy")', "value", "adamw.acuracy", "adamw.accuracy"),
        ('\n#tab("mian", [表])', "table", "mian", "main"),
        ('\n#fig("curve", [图])', "figure", "curve", "curves"),
    ],
)
def test_an_unknown_key_fails_with_its_name_and_line(project: Path, text: str, what: str, key: str, hint: str) -> None:
    frame = pd.DataFrame({"method": ["adamw"]})
    from matplotlib.figure import Figure

    parts = {"tables": {"main": frame}, "figures": {"curves": Figure()}}
    with pytest.raises(ReportError) as error:
        tiny(project, text, {"adamw.accuracy": 0.9}, **parts)
    told = str(error.value)
    assert f"tiny/report.typ:5 asks for the {what} {key!r}" in told
    assert f"did you mean {hint}?" in told
    assert not (project / "reports" / "tiny" / "report.pdf").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('#set text(font: "Comic Sans")\n字', r"tiny/report.typ:4: typst says: unknown font family: comic sans"),
        ("@nobody2000nothing", r"tiny/report.typ:4: typst says: label `<nobody2000nothing>` does not exist"),
        ("#let a = (", r"tiny/report.typ:4: typst says: unclosed delimiter"),
        ('#include "/../secret.typ"', r"tiny/report.typ:4: typst says: "),
    ],
)
def test_what_typst_says_is_a_sentence_with_a_line(project: Path, text: str, told: str) -> None:
    with pytest.raises(ReportError, match=told):
        tiny(project, text)


def test_an_error_inside_the_template_names_both_places(project: Path) -> None:
    with pytest.raises(ReportError, match=r"reports/template.typ:\d+ \(from tiny/report.typ:4\): typst says: "):
        tiny(project, '#v("x", style: "sci", digits: "three")', {"x": 1.5})


# content as text: what a reader sees, with ^ before what is raised
FLAT = """
#let flat(c) = if type(c) == str { c } else if c.func() == super { "^" + flat(c.body) } else if c.has("children") {
  c.children.map(flat).join() } else if c.has("text") { c.text } else { " " }
"""

NUMBERS = [
    ("", 1797, "1797"),
    ("", 1234567, "1\u2009234\u2009567"),
    ("", -3, "−3"),
    ("", "证实", "证实"),
    ("", "差 -0.8，[-3.6, 2.1]，1-2 步", "差 −0.8，[−3.6, 2.1]，1-2 步"),
    ("", None, "—"),
    ("", float("nan"), "—"),
    ("", 0.0, "0"),
    ("", 0.5, "0.5"),
    ("", 12.3456, "12.3"),
    ("", -0.4567, "−0.457"),
    ("", 0.00317, "3.17×10^−3"),
    ("", 2.5e7, "2.5×10^7"),
    (", digits: 3", 0.5, "0.500"),
    (", digits: 1", 0.96, "1.0"),
    (', style: "sci"', 0.25, "2.5×10^−1"),
    (', style: "fixed"', 0.00012345, "0.000123"),
    (', style: "percent"', 0.9316, "93.2%"),
    (', style: "bytes"', 77120, "75.3\xa0KiB"),
    (', style: "bytes"', 8, "8\xa0B"),
    (', style: "p"', 0.0002, "< 0.001"),
    (', style: "p"', 0.0312, "0.031"),
    ("", Interval(0.15, 0.137, 0.163), "0.150\xa0±\xa00.013"),
    ("", Interval(120.0, 109.0, 131.0), "120\xa0±\xa011"),
    ("", Interval(0.00061, 0.00059, 0.00063), "(6.10\xa0±\xa00.20)×10^−4"),
    ("", Interval(3.0, 3.0, 3.0), "3"),
    ("", Interval(2.0, 1.0, 4.0), "2.0\xa0[1.0,\xa04.0]"),
    ("", Interval(2.0, float("nan"), float("nan")), "2"),
    (', style: "percent"', Interval(0.95, 0.946, 0.954), "95.0\xa0±\xa00.4%"),
]


def test_how_numbers_are_written(project: Path) -> None:
    lines = [f'#assert.eq(flat(v("x{i}"{options})), "{told}")' for i, (options, _, told) in enumerate(NUMBERS)]
    tiny(project, FLAT + "\n".join(lines), {f"x{i}": value for i, (_, value, _) in enumerate(NUMBERS)})


def test_notes_and_names_reach_the_page(project: Path) -> None:
    plain = tiny(project, "正文").read_bytes()
    noted = tiny(project, "正文", notes=["网格不完整：缺 3 次运行"]).read_bytes()
    authors = project / "reports" / "authors.toml"
    authors.write_text(authors.read_text(encoding="utf-8").replace('name = ""', 'name = "李通义"', 1), encoding="utf-8")
    named = tiny(project, "正文").read_bytes()
    assert len({plain, noted, named}) == 3
    assert "李通义".encode("utf-16-be") in named or "李通义".encode() in named  # the PDF's author


def test_tables_keep_numbers_and_know_their_columns(project: Path) -> None:
    frame = pd.DataFrame({"method": ["adamw"], "test_accuracy": [Interval(0.9, 0.8, 1.0)], "forwards": [600],
                          "p_holm": [0.01], "差": [0.1], "status": ["diverged"]})  # fmt: skip
    frame.attrs["styles"] = {"差": "percent:2"}
    tiny(project, '#tab("main", [表]) <t>\n@t', tables={"main": frame})
    made = json.loads((project / "reports/tiny/gen/tables/main.json").read_text(encoding="utf-8"))
    assert [c["title"] for c in made["columns"]] == [
        "方法",
        "测试准确率",
        "前向次数",
        "p 值（Holm 校正）",
        "差",
        "状态",
    ]
    assert [c["style"] for c in made["columns"]] == ["auto", "percent", "auto", "p", "percent:2", "auto"]
    assert made["rows"] == [["AdamW", {"mean": 0.9, "low": 0.8, "high": 1.0}, 600, 0.01, 0.1, "发散"]]


def test_what_is_no_longer_made_is_removed(project: Path) -> None:
    frame = pd.DataFrame({"method": ["adamw"]})
    tiny(project, "", tables={"old": frame})
    tiny(project, "", tables={"new": frame})
    assert [p.name for p in (project / "reports/tiny/gen/tables").iterdir()] == ["new.json"]


def test_values_that_cannot_be_shown_are_refused(project: Path) -> None:
    with pytest.raises(ReportError, match=r"the value 'x' cannot stand in a report: .*list"):
        tiny(project, "", {"x": [1, 2]})
    with pytest.raises(ReportError, match="cannot name a table"):
        tiny(project, "", tables={"../escape": pd.DataFrame()})


def test_parts_of_a_topic_get_their_name_before_their_keys() -> None:
    parts = {"sampling/lasso": Presentation({"n": 1}, notes=["少一次运行"]), "sampling": Presentation({"n": 2})}
    merged = report.merge("sampling", parts)
    assert merged.values == {"lasso.n": 1, "n": 2}
    assert merged.notes == ["lasso：少一次运行"]


def test_sources_are_found_from_below_or_named(project: Path) -> None:
    tiny(project, "")
    assert report.sources("tiny", project / "reports") == project
    with pytest.raises(ReportError, match=r"no reports/nothing/report.typ"):
        report.sources("nothing", project)


def write_notebook(project: Path, *cells: str) -> None:
    source = project / "notebooks" / "tiny.py"
    source.parent.mkdir(exist_ok=True)
    source.write_text("# %% [markdown]\n# # 标题\n\n" + "\n\n".join(f"# %%\n{c}" for c in cells), encoding="utf-8")


def test_a_notebook_is_executed_the_same_each_time(project: Path) -> None:
    write_notebook(project, "import os, sys\nprint(os.environ['DLOPT_RESULTS'])\nos.getcwd()", "sys.executable")
    first = notebook.execute("tiny", project, results=Path("/some/results"))
    assert first == project / "notebooks" / "tiny.ipynb"
    book = nbformat.read(first, 4)
    assert book.cells[1].outputs[0].text == "/some/results\n"
    assert book.cells[1].outputs[1].data["text/plain"] == repr(str(project))
    assert "python" in book.cells[2].outputs[0].data["text/plain"]
    assert book.metadata.kernelspec == notebook.KERNEL
    again = notebook.execute("tiny", project, project / "again.ipynb", results=Path("/some/results"))
    assert again.read_bytes() == first.read_bytes()


def test_a_cell_that_fails_is_named(project: Path) -> None:
    write_notebook(project, "a = 1", "# why\na / 0", "b = 2")
    with pytest.raises(ReportError, match=r"notebooks/tiny.py: code cell 2 \('# why'\) fails: ZeroDivisionError"):
        notebook.execute("tiny", project)
    assert not (project / "notebooks" / "tiny.ipynb").exists()
    with pytest.raises(ReportError, match="no notebook source"):
        notebook.execute("none", project)


@pytest.mark.slow
def test_the_demo_notebook_runs(tmp_path: Path) -> None:
    broken = tmp_path / "results" / "demo" / "0123456789abcdef.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a record")  # the notebook leaves it out, with a line
    made = notebook.execute("demo", ROOT, tmp_path / "demo.ipynb", results=tmp_path / "results")
    text = made.read_text(encoding="utf-8")
    assert "还没有记录" in text
    assert "略去" in text


def test_a_bundle_holds_what_is_asked_for_and_no_data(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "第 1-1 组-选题 4.zip"
    with pytest.raises(ReportError, match=r"report.pdf is missing; make it with `dlopt report tiny`"):
        bundle("tiny", project, out)
    tiny(project, "正文")
    write_notebook(project, "1 + 1")
    with pytest.raises(ReportError, match=r"tiny.ipynb is missing"):
        bundle("tiny", project, out)
    notebook.execute("tiny", project)
    wanted = ["src/dlopt/a.py", "results/tiny/k1.json"]
    made = ["src/dlopt/__pycache__/a.pyc", "results/tiny/.work/k2/p.json", "results/other/k3.json"]
    for name in (*wanted, *made, "src/dlopt/w.safetensors", "data/mnist.bin", "artifacts/x.pt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    first = bundle("tiny", project, out).read_bytes()
    with zipfile.ZipFile(out) as archive:
        names = {name.removeprefix(f"{out.stem}/") for name in archive.namelist()}
        readme = archive.read(f"{out.stem}/readme.md").decode()
    assert names == {
        "readme.md", "report.pdf", "tiny.ipynb", "notebooks/tiny.py", "src/dlopt/a.py", "results/tiny/k1.json",
        "reports/template.typ", "reports/refs.bib", "reports/authors.toml", "reports/tiny/report.typ",
    }  # fmt: skip
    assert "运行逻辑" in readme
    (project / "src/dlopt/a.py").touch()
    assert report.bundle("tiny", project, out).read_bytes() == first
