"""Mutants of the pages: see `tests.mutants`."""

from tests.mutants import Mutant

DECODE_PAGE = "tests/apps/test_decode.py"

MUTANTS = [
    Mutant(
        "page on drafts: accepted tokens and the target's own change colours",
        "apps/decoder.py",
        '["accepted"] * found.accepted + [found.kind] *',
        '[found.kind] * found.accepted + ["accepted"] *',
        DECODE_PAGE,
        "in_order",
    ),
    Mutant(
        "page on drafts: who has left is decoded for",
        "apps/decoder.py",
        "            if stopped():\n",
        "            if not stopped:\n",
        DECODE_PAGE,
        "after_it_was_cancelled",
    ),
    Mutant(
        "page on drafts: half a character is shown",
        "apps/decoder.py",
        'whole.removesuffix("\\ufffd")',
        "whole",
        DECODE_PAGE,
        "that_completes_it",
    ),
    Mutant(
        "pages: a reader who leaves early leaves the work behind",
        "apps/stream.py",
        "            self._job.cancelled.set()\n",
        "            pass\n",
        "tests/apps/test_stream.py",
    ),
]
