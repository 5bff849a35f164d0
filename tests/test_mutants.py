import os

import pytest

from tests.mutants import PATIENCE, Mutant, all_mutants, survives


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 100)
@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda m: m.name)
def test_a_mutant_is_caught(mutant):
    told = survives(mutant)
    if told and " skipped" in told and "DLOPT_DATA" not in os.environ:
        pytest.skip(f"{mutant.test} needs data that DLOPT_DATA would name")
    assert not told, f"{mutant.test} does not notice {mutant.name!r}: {told}"


@pytest.mark.slow
@pytest.mark.parametrize(("only", "told"), [("", "exit 0"), ("no_such_test", "exit 5")])
def test_what_changes_nothing_is_not_called_caught(only, told):
    same = "def find(name: str)"
    mutant = Mutant("nothing is wrong", "catalog.py", same, same, "tests/test_catalog.py", only)
    assert survives(mutant).startswith(told)
