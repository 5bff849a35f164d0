"""`python -m tests.mutants [WORD ...]`: which mutants are caught; exit 1 if one is not."""

from __future__ import annotations

import sys

from tests.mutants import all_mutants, survives


def main() -> int:
    chosen = [m for m in all_mutants() if not sys.argv[1:] or any(word in m.name for word in sys.argv[1:])]
    alive = 0
    for mutant in chosen:
        told = survives(mutant)
        alive += bool(told)
        print(f"{'ALIVE ' if told else 'caught'} {mutant.name} ({mutant.test})", flush=True)
        if told:
            print(told)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
