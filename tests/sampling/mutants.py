"""Mutants of topic sampling: see `tests.mutants`."""

from tests.mutants import Mutant

MUTANTS = [
    Mutant(
        "importance: missing weight",
        "sampling/importance.py",
        "zip(numbers(indices), numbers(1 / self._q[indices]))",
        "zip(numbers(indices), numbers(np.ones(len(indices))))",
        "tests/sampling/test_importance.py",
    ),
    Mutant(
        "importance: biased alias table",
        "sampling/alias.py",
        "self.alias[heavy[spent]] = heavy[spent + 1]",
        "self.alias[heavy[spent]] = heavy[spent]",
        "tests/sampling/test_importance.py",
    ),
    Mutant(
        "reshuffling: reused permutation",
        "sampling/epochs.py",
        "generator(self.seed, self.epoch).permutation(self.n)",
        "generator(self.seed).permutation(self.n)",
        "tests/sampling/test_epochs.py",
    ),
    Mutant(
        "samplers: shards overlap",
        "sampling/base.py",
        "return order[self.rank :: self.world_size]",
        "return order[max(self.rank - 1, 0) :: self.world_size]",
        "tests/sampling/test_epochs.py",
    ),
]
