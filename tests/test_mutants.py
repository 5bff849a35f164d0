import pytest

from tests.mutants import MUTANTS, survives


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_is_caught(mutant):
    told = survives(mutant)
    assert not told, f"{mutant.test} does not notice {mutant.name!r}: {told}"
