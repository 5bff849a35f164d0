"""The wheel and the sdist: what is in them, and that an installed dlopt works where there is no checkout.

Nothing is downloaded: the build uses the hatchling that is installed, and the wheel goes to a folder of its own
(`pip install --no-deps --target`), which is put before everything else on the path of a new Python.
"""

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dlopt
from dlopt import catalog

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def python(*arguments, cwd=None, path=(), **env):
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DLOPT_DATA", "DLOPT_RESULTS")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL,
        env=inherited | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"} | env,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of this checkout; as for a release, the wheel is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    done = python("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder that the wheel is installed in."""
    site = tmp_path_factory.mktemp("installed") / "site"
    (wheel,) = built.glob("*.whl")
    done = python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    yield site
    here = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    strange = {p for p in here if not p.endswith(".pyc")} - set(contents(wheel)) - {"bin/dlopt"}
    assert {p for p in strange if ".dist-info/" not in p} == set(), "something was written beside the installed package"


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def below(root, *patterns):
    found = {path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return {path for path in found if "__pycache__" not in path}


def test_the_wheel_holds_the_package_and_the_sources_of_reports(built):
    (wheel,) = built.glob("*.whl")
    names = set(contents(wheel))
    info = f"dlopt-{dlopt.__version__}.dist-info/"
    source = {f"dlopt/{path}" for path in below(ROOT / "src" / "dlopt", "**/*.py", "**/*.html", "**/*.js", "**/*.css")}
    reports = below(ROOT / "reports", "*.typ", "*.bib", "*.toml", "*/report.typ")
    shared = {f"dlopt/share/reports/{p}" for p in reports} | {
        f"dlopt/share/notebooks/{p}" for p in below(ROOT / "notebooks", "*.py")
    }
    assert "dlopt/share/reports/demo/report.typ" in shared
    assert source | shared <= names
    rest = {name for name in names - source - shared if not name.startswith((info, "dlopt/"))}
    assert rest == set()
    bad = [n for n in names if re.search(r"(^|/)(tests|results|data|\.work|gen|__pycache__)/|\.(pdf|ipynb|pyc|pt)$", n)]
    assert [n for n in bad if not n.startswith("dlopt/tasks/data/")] == []
    assert f"{info}licenses/LICENSE" in names


def test_the_metadata_names_torch_and_numpy_alone(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"dlopt-{dlopt.__version__}.dist-info/METADATA").decode()
    head = text.split("\n\n")[0]
    needed = [line for line in head.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert sorted(re.findall(r"Requires-Dist: (\w+)", "\n".join(needed))) == ["numpy", "torch"]
    assert "License-Expression: MIT" in head
    assert "Requires-Python: >=3.11" in head
    assert "# dlopt" in text


def test_the_sdist_holds_what_a_checkout_needs(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md", "README.zh.md", "CHANGELOG.md",
              "CONTRIBUTING.md", "CITATION.cff", "docs/generate.py", "docs/tutorial.md", "tests/test_wheel.py",
              "src/dlopt/catalog.py", "reports/template.typ", "reports/refs.bib", "reports/demo/report.typ",
              "notebooks/demo.py"}  # fmt: skip
    assert wanted <= names
    assert [n for n in names if re.search(r"^(results|\.venv|artifacts|build|dist)|/gen/|\.(pdf|pyc|pt)$", n)] == []


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder from which only torch, numpy and what they need can be imported: links to the installed files."""
    folder = tmp_path_factory.mktemp("bare")
    left, seen = ["torch", "numpy"], set()
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another system, or an extra
        left += [re.match(r"[\w.-]+", need)[0] for need in found.requires or () if "extra ==" not in need]
        for top in {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))
    return folder


def test_an_optimizer_needs_torch_and_numpy_alone(installed, bare, tmp_path):
    code = (
        "import sys, importlib.util\n"
        "for name in ('sklearn', 'pandas', 'typer', 'rich', 'scipy', 'matplotlib'):\n"
        "    assert importlib.util.find_spec(name) is None, f'{name} can be imported here: nothing would be shown'\n"
        "import torch, dlopt.adam, dlopt.zeroth\n"
        f"assert dlopt.__file__.startswith({str(installed)!r}), dlopt.__file__\n"
        "from dlopt.adam import Adafactor\nfrom dlopt.zeroth import MeZO\n"
        "model = torch.nn.Linear(3, 2)\n"
        "optimizer = Adafactor(model.parameters(), lr=0.1)\n"
        "model(torch.ones(1, 3)).sum().backward()\noptimizer.step()\n"
        "MeZO(model, lr=0.1).step(lambda: model(torch.ones(1, 3)).square().sum())\n"
        "from dlopt import catalog\nprint(len(catalog.methods()))\n"
    )
    # -S: no site-packages, so the path holds the standard library and these two folders
    done = python("-S", "-W", "error", "-c", code, cwd=tmp_path, path=(installed, bare))
    assert done.returncode == 0, done.stderr
    ours = [m for m in catalog.methods().values() if m.origin == "dlopt"]
    assert int(done.stdout) == len(ours)


def test_without_the_extra_the_command_says_so(installed, bare, tmp_path):
    for start in (("-m", "dlopt"), (installed / "bin" / "dlopt",)):
        done = python("-S", *start, "list", cwd=tmp_path, path=(installed, bare))
        assert done.returncode != 0
        assert done.stdout == ""
        told = "dlopt: the command line needs the extra packages of the lab: pip install 'dlopt[lab]'\n"
        assert done.stderr == told


def test_list_and_dry_run_in_an_empty_folder(installed, tmp_path):
    done = python("-m", "dlopt", "list", cwd=tmp_path, path=[installed])
    assert done.returncode == 0, done.stderr
    assert "dlopt.adam.adafactor.Adafactor" in done.stdout
    assert "share" not in done.stdout, "a notebook was taken for a method"
    done = python("-m", "dlopt", "run", "demo", "--dry-run", cwd=tmp_path, path=[installed])
    assert done.returncode == 0, done.stderr
    assert "12 runs get their hyper-parameters from an earlier stage" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_and_report_in_an_empty_folder(installed, tmp_path):
    """The real commands with fewer steps a run: what is tried here is that they find all they need."""
    code = (
        "import sys, dlopt.experiments.demo as demo\n"
        f"assert demo.__file__.startswith({str(installed)!r})\n"
        "demo.FIRST, demo.ZEROTH = 40, 60\n"
        "from dlopt.cli import main\nsys.argv = ['dlopt', *sys.argv[1:]]\nmain()\n"
    )
    done = python("-c", code, "demo", "--jobs", "1", cwd=tmp_path, path=[installed])
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "build" / "demo"
    assert (made / "demo.pdf").read_bytes().startswith(b"%PDF")
    assert (made / "demo.ipynb").is_file()
    assert (made / "dashboard.html").is_file()
    shutil.rmtree(made / "gen")
    (made / "demo.pdf").unlink()
    options = ("report", "demo", "--scale", "smoke", "--results", "build/demo/results", "--no-notebook")
    done = python("-c", code, *options, cwd=tmp_path, path=[installed])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (made / "demo.pdf").read_bytes().startswith(b"%PDF")
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
