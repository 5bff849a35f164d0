import os

import pytest

from tests.mutants import MUTANTS, survives


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_is_caught(mutant):
    told = survives(mutant)
    if told and " skipped" in told and "DLOPT_DATA" not in os.environ:
        pytest.skip(f"{mutant.test} needs data that DLOPT_DATA would name")
    assert not told, f"{mutant.test} does not notice {mutant.name!r}: {told}"
