"""Mutants of prosody and poems: see `tests.mutants`."""

# ruff: noqa: E501 (lines stand here as they stand in the source)

from tests.mutants import Mutant

MUTANTS = [
    Mutant(
        "poetry: the table of rhymes is shifted by one group",
        "poetry/rhymebook.py",
        "    for group, chars in members().items():\n        for char in chars:\n            table",
        '    for group, chars in zip(members(), [*list(members().values())[1:], ""], strict=True):\n        for char in chars:\n            table',
        "tests/poetry/test_rhymebook.py",
        "known",
    ),
    Mutant(
        "poetry: simplified characters read as they stand",
        "poetry/rhymebook.py",
        'if (own and script == "traditional")',
        "if own",
        "tests/poetry/test_rhymebook.py",
        "scripts",
    ),
    Mutant(
        "poetry: level and oblique swapped in one place of one pattern",
        "poetry/patterns.py",
        '{"中平平仄仄": "", "中平仄仄仄"',
        '{"中平平平仄": "", "中平仄仄仄"',
        "tests/poetry/test_checker.py",
        "canonical",
    ),
    Mutant(
        "poetry: no test for 孤平",
        "poetry/patterns.py",
        '"B": {"平平中仄平": ""',
        '"B": {"中平中仄平": ""',
        "tests/poetry/test_checker.py",
        "fault",
    ),
    Mutant(
        "poetry: no test for 粘",
        "poetry/reading.py",
        "broken = bool(path) and _start",
        "broken = not path and _start",
        "tests/poetry/test_checker.py",
        "irregular",
    ),
    Mutant(
        "poetry: split by couplet",
        "poetry/corpus.py",
        "for pair in poem.couplets if part_of(poem.text) ==",
        'for pair in poem.couplets if part_of("".join(pair)) ==',
        "tests/poetry/test_corpus.py",
        "split",
    ),
    Mutant(
        "poetry: the constraint ignores repeats",
        "poetry/plan.py",
        "            mask.index_fill_(0, used, False)\n",
        "",
        "tests/poetry/test_constrained.py",
        "repeats_come",
    ),
    Mutant(
        "poetry: the rhyme group is not kept",
        "poetry/plan.py",
        "groups &= self._fit(token, k)",
        "pass",
        "tests/poetry/test_constrained.py",
        "repeats_come",
    ),
    Mutant(
        "poetry: nothing is kept for the rhymes to come",
        "poetry/plan.py",
        "tight = request.forbid_repeats and",
        "tight = False and",
        "tests/poetry/test_constrained.py",
        "just_enough",
    ),
]
