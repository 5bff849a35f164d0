import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlopt import catalog
from dlopt.catalog import CatalogError

ROOT = Path(__file__).parent.parent


def python(code, path="", **env):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(path)} | env,
    )  # fmt: skip


def test_discovery_imports_neither_torch_nor_any_method():
    code = (
        "import sys; from dlopt import catalog, experiments; n = len(catalog.methods()); e = experiments.names();"
        "assert n >= 5 and 'demo' in e, (n, e);"
        "heavy = ('torch', 'numpy', 'pandas');"
        "bad = [m for m in sys.modules if m.split('.')[0] in heavy or m.startswith('dlopt.adam')];"
        "assert not bad, bad"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(catalog.methods()))
def test_every_entry_loads_and_tells_the_truth(name):
    entry = catalog.find(name)
    if entry.missing():
        pytest.skip(f"needs {entry.missing()}")
    target = entry.load()
    assert target.__dlopt_method__ == name
    assert target.__doc__
    assert entry.summary
    known = entry.parameters()
    assert set(entry.search) <= set(known), "a search box names a hyper-parameter that is not there"
    entry.check(dict.fromkeys(entry.search))
    with pytest.raises(CatalogError, match="has no hyper-parameter 'no_such_thing'"):
        entry.check({"no_such_thing": 1})


def test_every_citation_is_in_the_bibliography():
    text = (ROOT / "reports" / "refs.bib").read_text(encoding="utf-8")
    keys = {line.split("{")[1].rstrip(",\n") for line in text.splitlines() if line.startswith("@")}
    for entry in catalog.methods().values():
        if entry.origin == "dlopt":
            assert entry.cite in keys, f"{entry.name} cites {entry.cite}, which reports/refs.bib does not have"


def test_packages_offer_their_methods_by_name():
    import dlopt.adam
    import dlopt.zeroth
    from dlopt.adam import Adafactor
    from dlopt.zeroth import MeZO

    assert "Adafactor" in dir(dlopt.adam)
    assert Adafactor is catalog.find("adafactor").load()
    assert MeZO is catalog.find("mezo").load()
    with pytest.raises(AttributeError, match=r"dlopt.adam has no method 'Nope'"):
        dlopt.adam.Nope  # noqa: B018


def test_unknown_names_get_a_suggestion():
    with pytest.raises(CatalogError, match=r"no method is called 'adafacter' \(did you mean adafactor"):
        catalog.find("adafacter")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@method('x', topic=TOPIC, kind='optimizer', cite='c', summary='s')\ndef f(p): ...", "literal keywords"),
        ("@method('x', topic='adam')\ndef f(p): ...", "is incomplete"),
        ("@method('x', topic='adam', kind='k', cite='c', summary='s', colour=3)\ndef f(p): ...", "is incomplete"),
        ("@method('x' topic='adam')\ndef f(p): ...", "cannot be parsed"),
        (
            "@method('x', topic='t', kind='k', cite='c', summary='s', search={[1]: 2})\ndef f(p): ...",
            "literal keywords",
        ),
    ],
)
def test_a_registration_that_cannot_be_read_is_named_with_its_line(tmp_path, source, message):
    path = tmp_path / "bad.py"
    path.write_text(f"from dlopt.catalog import method\n{source}\n")
    with pytest.raises(CatalogError, match=message) as caught:
        catalog._read(path, "bad", "dlopt")
    assert "bad.py:" in str(caught.value)


def test_a_file_may_declare_its_encoding(tmp_path):
    path = tmp_path / "old.py"
    line = "@method('x', topic='adam', kind='k', cite='c', summary='Poincaré')\ndef f(p): ...\n"
    path.write_bytes(f"# -*- coding: latin-1 -*-\n{line}".encode("latin-1"))
    assert [m.summary for m in catalog._read(path, "old", "third")] == ["Poincaré"]
    path.write_bytes(line.encode("latin-1"))
    with pytest.raises(CatalogError, match=r"old\.py:\S+ cannot be parsed"):
        catalog._read(path, "old", "third")


def test_a_missing_submodule_is_missing():
    entry = dataclasses.replace(catalog.find("sgd"), needs=("torch", "no_such_package.sub", "torch.no_such_module"))
    assert entry.missing() == ("no_such_package.sub", "torch.no_such_module")


SOURCE = '''
import torch
from dlopt.catalog import method
from dlopt.memory import Bytes, tensor_bytes


@method("third-sgd", topic="adam", kind="optimizer", cite="robbins1951sgd", summary="plain SGD from another package",
        search={"lr": (1e-3, 1.0, "log")})
class ThirdSGD(torch.optim.SGD):
    """Plain SGD: w <- w - lr g."""

    def __init__(self, params, lr=0.1, weight_decay=0.0, maximize=False):
        super().__init__(params, lr=lr, weight_decay=weight_decay, maximize=maximize)

    @staticmethod
    def memory(params, **options):
        n = tensor_bytes(params)
        return Bytes(weights=n, gradients=n)
'''


@pytest.fixture(scope="module")
def third_party(tmp_path_factory):
    """A package with an entry point, as pip lays it out, in a folder of its own."""
    site = tmp_path_factory.mktemp("site")
    package = site / "third" / "optimizers"
    package.mkdir(parents=True)
    # importing the package would fail: discovery must not do it
    (site / "third" / "__init__.py").write_text("import os\nassert os.environ.get('MAY_IMPORT')\n")
    (package / "__init__.py").write_text("")
    (package / "sgd.py").write_text(SOURCE)
    info = site / "third_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dlopt.methods]\nthird = third.optimizers\n")
    return site


def dlopt(site, *arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "dlopt", *arguments], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(site)} | env,
    )  # fmt: skip


def test_a_third_party_method_is_listed_without_being_imported(third_party):
    done = dlopt(third_party, "list", "adam")
    assert done.returncode == 0, done.stderr
    assert "third-sgd" in done.stdout
    assert "third-pack" in done.stdout


def test_a_third_party_method_runs_in_an_experiment(third_party, tmp_path):
    options = ("--results", str(tmp_path), "--only", "method=third-sgd", "--only", "stage=tune", "--set", "steps=3")
    done = dlopt(third_party, "run", "demo", *options, MAY_IMPORT="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("third-sgd") == 5
    assert len(list(tmp_path.glob("demo/*.json"))) == 5


def test_a_third_party_method_enters_the_test_matrix(third_party):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_optimizers.py", "-k", "third-sgd", "-p", "no:cacheprovider"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(third_party), "MAY_IMPORT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 8, done.stdout[-500:]


def test_two_methods_of_one_name_and_a_missing_module_are_refused(tmp_path, third_party):
    site = tmp_path / "site"
    (site / "other_pack-1.0.dist-info").mkdir(parents=True)
    (site / "other_pack-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-pack\nVersion: 1.0\n"
    )
    points = site / "other_pack-1.0.dist-info" / "entry_points.txt"
    (site / "other.py").write_text(SOURCE.replace("third-sgd", "adamw"))
    points.write_text("[dlopt.methods]\nx = other\n")
    done = dlopt(site, "list")
    assert (done.returncode, done.stdout) == (2, "")
    assert "two methods are called 'adamw'" in done.stderr
    points.write_text("[dlopt.methods]\nx = other.nothing\n")
    done = dlopt(site, "list")
    assert done.returncode == 2
    assert "names a module that is not there" in done.stderr
