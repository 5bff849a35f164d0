"""The documentation is true: its code runs, its commands exist, its links lead somewhere, what is made is up to date.

Fenced `python` blocks run in one namespace per file, from top to bottom. Of the tutorial and of "Add a method" every
command is run too, in a copy of the project; a block there whose first line is a file name becomes that file. Other
pages' commands are parsed, and the cheap ones run.
"""

import contextlib
import doctest
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import dlopt
from dlopt import catalog, cli
from dlopt import commands as commands_module
from dlopt.lab.run import Settings
from tests.lab import made_up

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh.md")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
WHOLE = ("docs/add_a_method.md", "docs/tutorial.md")  # every block and command of these is run, in order
CHEAP = ("list", "plan", "doctor", "data list", "model list")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"(?:#|//|%) ([\w./]+/[\w.]+\.\w+)\n")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """[(language, text)] of a page's fenced blocks, in order."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if not languages or language in languages]


def commands(page):
    """The lines of a page's shell blocks."""
    lines = [line for _, text in blocks(page, "sh") for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run_python(text, page, namespace):
    exec(compile(text, name_of(page), "exec"), namespace)


def yours():
    """What the README says is the reader's own."""
    return {
        "model": torch.nn.Linear(4, 3),
        "x": torch.randn(8, 4),
        "y": torch.arange(8) % 3,
        "loss_function": torch.nn.functional.cross_entropy,
    }


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("page", [p for p in PAGES if name_of(p) not in WHOLE and blocks(p, "python")], ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "demo").mkdir(parents=True)
    namespace = {"__name__": "page"} | (yours() if page.name in READMES else {})
    for _, text in blocks(page, "python"):
        run_python(text, page, namespace)


@pytest.fixture
def project(tmp_path):
    """A copy of what a newcomer's checkout holds, for pages that add files."""
    for name in ("src", "tests", "reports"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("gen", "*.pdf"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def shell(line, folder, path):
    """One command line in a project, with this Python and the project's own source."""
    words = shlex.split(line)
    words = [sys.executable, "-m", "dlopt", *words[1:]] if words[0] == "dlopt" else [sys.executable, *words[1:]]
    done = subprocess.run(
        [*words, *(["-p", "no:cacheprovider", "-p", "no:xdist"] if "pytest" in words else [])], cwd=folder, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_tutorial_runs_from_top_to_bottom(project, monkeypatch, capsys):
    page, namespace, told = ROOT / "docs" / "tutorial.md", {"__name__": "page"}, {}
    monkeypatch.chdir(project)
    for language, text in blocks(page, "python", "sh", "typst"):
        if found := FILE.match(text):
            (project / found[1]).parent.mkdir(parents=True, exist_ok=True)
            (project / found[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            run_python(text, page, namespace)
        else:
            for line in text.splitlines():
                if line not in cheap():  # those run elsewhere in this file
                    told[line] = shell(line, project, [project / "src"])
    assert (project / "reports" / "batch" / "report.pdf").read_bytes().startswith(b"%PDF")
    shown = next(out for line, out in told.items() if line.startswith("dlopt show"))
    assert "12 records" in shown


def test_the_worked_example_of_a_method(project, tmp_path_factory):
    """As it stands for a file of dlopt, then for a package with an entry point."""
    page = ROOT / "docs" / "add_a_method.md"
    files = {found[1]: text for _, text in blocks(page, "python") if (found := FILE.match(text))}
    assert len(files) == len(blocks(page, "python"))
    for path, text in files.items():
        (project / path).write_text(text, encoding="utf-8")
    ((_, entry),) = blocks(page, "bibtex")
    with (project / "reports" / "refs.bib").open("a", encoding="utf-8") as bibliography:
        bibliography.write(entry)
    first, second = ([line for line in text.splitlines() if line] for _, text in blocks(page, "sh"))
    told = [shell(line, project, [project / "src"]) for line in first]
    assert "dlopt.adam.signum.Signum" in told[0]
    assert int(re.search(r"(\d+) passed", told[1])[1]) >= 15
    line = "python -c 'import doctest; from dlopt.adam import signum; assert doctest.testmod(signum) == (0, 6)'"
    shell(line, project, [project / "src"])

    ((_, points),) = blocks(page, "toml")
    ((group, named),) = tomllib.loads(points)["project"]["entry-points"].items()
    site = tmp_path_factory.mktemp("site")
    ((name, module),) = named.items()
    target = site / Path(*module.split(".")).with_suffix(".py")
    target.parent.mkdir()
    target.write_text(files["src/dlopt/adam/signum.py"], encoding="utf-8")
    (site / "theirs-1.0.dist-info").mkdir()
    (site / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    listed, ran = (shell(line, site, [site, ROOT / "src"]) for line in second)
    assert f"{module}.Signum" in listed
    assert "(from theirs)" in listed
    assert "report: 3 done" in ran


def modules():
    """All modules of dlopt but those whose needs are not installed."""
    missing = {m.module for m in catalog.methods().values() if m.missing()}
    for found in pkgutil.walk_packages(dlopt.__path__, "dlopt."):
        if found.name not in missing and found.name != "dlopt.__main__":
            yield found.name


@pytest.mark.parametrize("room", sorted({name.split(".")[1] for name in modules()}))
def test_docstring_examples_run(room):
    for name in modules():
        if name.split(".")[1] != room:
            continue
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] in ("dlopt", *sys.stdlib_module_names):
                raise
            continue  # of an extra that is not installed
        # the methods of a topic are at hand in its examples
        package = sys.modules[f"dlopt.{room}"]
        names = {n: getattr(package, n) for n in dir(package)} if catalog.methods(room) else {}
        failed = io.StringIO()
        with contextlib.redirect_stdout(failed):
            result = doctest.testmod(module, extraglobs=names | vars(module))
        assert not result.failed, failed.getvalue()


# ---------------------------------------------------------------- commands


def parse(line):
    """The command that a line means, with its arguments checked; nothing is run."""
    import typer

    words, name = shlex.split(line)[1:], "dlopt"
    command = typer.main.get_command(cli.app)
    context = None
    while hasattr(command, "commands"):
        context = command.make_context(name, [*words], parent=context, resilient_parsing=False)
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, words, parent=context)
    return name


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name_of)
def test_commands_exist_and_their_options_are_right(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "dlopt":
            parse(line)
        elif words[0] == "make":
            assert words[1] in targets, line
        elif words[:2] == ["pip", "install"]:
            assert set(re.findall(r"\[(\w+)\]", line)) <= set(extras), line
        else:
            assert words[:3] == ["python", "-m", "pytest"], f"{name_of(page)}: nobody checks {line!r}"
    for line in re.findall(r"`(dlopt [^`]+)`", page.read_text(encoding="utf-8")):
        words = [w for w in line.split() if not (w.isupper() or w.startswith("["))]
        assert words[1] in TOP, f"{name_of(page)}: {line}"


TOP = [c.name or c.callback.__name__ for c in (*cli.app.registered_commands, *cli.app.registered_groups)]


def test_the_parser_of_this_test_refuses_what_the_command_would():
    assert parse("dlopt data get mnist") == "get"
    with pytest.raises(Exception, match="No such option"):
        parse("dlopt run demo --colour red")
    with pytest.raises(Exception, match="No such command"):
        parse("dlopt paint")


def cheap():
    short = re.compile(f"dlopt ({'|'.join(CHEAP)})( .*)?")
    lines = {line for page in PAGES if name_of(page) not in WHOLE for line in commands(page)}
    return sorted(line for line in lines if "--dry-run" in line or short.fullmatch(line))


@pytest.mark.parametrize("line", cheap())
def test_cheap_commands_run(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, capsys.readouterr().err
    assert capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Five tiny runs of the demonstration, in a folder of their own."""
    folder = tmp_path_factory.mktemp("recorded")
    study = commands_module.study_of("demo", "smoke", ["method=adamw", "stage=tune"], ["steps=2"], "cpu")
    study.conduct(Settings(folder / "results" / "demo"))
    return folder


def looks():
    lines = {line for page in PAGES if name_of(page) not in WHOLE for line in commands(page)}
    return sorted(line for line in lines if re.match(r"dlopt (show|status|reproduce|dashboard)\b", line))


@pytest.mark.parametrize("line", looks())
def test_commands_that_look_at_records_run(line, records, tmp_path, monkeypatch, capsys):
    key = next((records / "results" / "demo").glob("*.json")).stem[:8]
    monkeypatch.chdir(records)
    monkeypatch.setattr(sys, "argv", [key if word == "0123abcd" else word for word in shlex.split(line)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, capsys.readouterr().err


# ---------------------------------------------------------------- what is made, and what is written twice


@pytest.fixture
def generate():
    """docs/generate.py, by its path: `docs` is a name that other packages install too."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_made_from_the_source_is_up_to_date(generate, capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_that_is_out_of_date_is_named_and_made_anew(generate, tmp_path, monkeypatch, capsys):
    for path in ("README.md", "README.zh.md", "docs/methods.md", "reports/refs.bib"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    for folder in ("reports", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, dirs_exist_ok=True)
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("`Adafactor`", "`A`"), encoding="utf-8")
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out == "README.md is out of date: run `make docs`\n"
    assert generate.main([]) == 0
    assert page.read_text(encoding="utf-8") == right
    assert generate.main(["--chekc"]) == 2


def test_the_demo_table_holds_what_the_records_say_or_placeholders(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "RECORDS", tmp_path)
    assert "| MeZO | {{mezo.accuracy}} | {{mezo.state}} | {{mezo.forwards}} |" in generate.demo_block("en")
    made = [made_up.record("mezo", seed) for seed in (0, 1, 2)]
    for record, share in zip(made, (0.8, 0.9, 0.85)):
        record.summary.update(test_accuracy=share, forwards=20_000)
    monkeypatch.setattr(generate, "demo_records", lambda: {"mezo": made})
    # by hand: mean 0.85, deviation 0.05, so the half width is 4.3027 x 0.05 / sqrt(3) = 0.1242
    assert "| MeZO | 85.0% ± 12.4 | 8 B | 20,000 |" in generate.demo_block("zh")


def test_studies_without_a_report_are_named_and_not_counted(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "RECORDS", tmp_path / "results")
    for topic in ("adam", "zeroth"):
        (tmp_path / "reports" / topic).mkdir(parents=True)
        (tmp_path / "reports" / topic / "report.typ").write_text('#show: report.with(\n  title: "某",\n)\n')
        (tmp_path / "results" / topic).mkdir(parents=True)
        for key in "ab":
            (tmp_path / "results" / topic / f"{key}.json").write_text("{}")
    (tmp_path / "reports" / "zeroth" / "report.pdf").touch()
    made = generate.studies_block("zh").splitlines()
    assert made[2:] == [
        "| `adam`: 某 |  |  | 记录尚未齐全 |",
        "| `zeroth`: 某 | [PDF](reports/zeroth/report.pdf) |  | 2 |",
    ]
    assert "| `adam`: Adam and its relatives |  |  | being recorded |" in generate.studies_block("en")


def test_the_two_readmes_have_one_structure():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in READMES]
    bare = [FENCE.sub("", text) for text in texts]
    levels, items, made, links = ([re.findall(pattern, text, re.MULTILINE) for text in bare] for pattern in (
        r"^(#+) ", r"^(\*) ", r"<!-- made: (\w+) -->", r"\]\((?!README)([^)]+)\)"))  # fmt: skip
    assert levels[0] == levels[1]
    assert items[0] == items[1]
    assert made[0] == made[1] == ["demo", "methods", "studies", "commands"]
    assert sorted(set(links[0])) == sorted(set(links[1]))
    assert blocks(ROOT / "README.md") == blocks(ROOT / "README.zh.md")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        assert "://" not in link, f"{name_of(page)} links to another host: {link}"
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{name_of(page)}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("name", sorted(n for n, m in catalog.methods().items() if m.origin == "dlopt"))
def test_a_method_can_be_imported_as_the_readme_says(name):
    entry = catalog.find(name)
    if entry.missing():
        pytest.skip(f"needs {entry.missing()}")
    assert getattr(importlib.import_module(f"dlopt.{entry.topic}"), entry.attribute) is entry.load()


def test_version_and_licence_agree():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {dlopt.__version__}\n" in citation
    assert f"## [{dlopt.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "license: MIT\n" in citation


# ---------------------------------------------------------------- what must not be in git

# turned round, so that this file does not name them either
TURNED = "gro.ipyp detsohnohtyp .adnocana egrof-adnoc sjmpn yrotcafitra /elpmis/"
HOSTS = [word[::-1] for word in TURNED.split()]
HOMES = re.compile(rf"(?<![\w.~/$}}])/({'toor|sresU|emoh|krow'[::-1]})/[\w.-]+")


@pytest.fixture(scope="module")
def texts():
    """{name: text} of every file that git knows or would take; pictures and other binary files aside."""
    done = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("this is not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    found = {name_of(path): path.read_bytes() for path in paths}
    return {name: data.decode() for name, data in found.items() if b"\0" not in data and not data.startswith(b"%PDF")}


def test_no_file_names_a_package_registry_or_a_place_on_somebodys_machine(texts):
    assert "Makefile" in texts
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            bad = [host for host in HOSTS if host in line.lower()] + HOMES.findall(line)
            assert not bad, f"{name}:{number} names {bad}"


def test_only_the_readmes_name_the_index_of_torch(texts):
    host = "download." + "pytorch.org"
    assert sorted(name for name, text in texts.items() if host in text) == sorted(READMES)
