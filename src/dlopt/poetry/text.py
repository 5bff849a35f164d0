"""Lines of a poem out of text, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dlopt.poetry.patterns import FORMS, Form
from dlopt.poetry.script import is_han

LIMIT = 400  # characters; the longest form has 56
_BREAKS = re.compile(r"[，。？！；：、,.?!;:\s　]+")


def lines_of(poem: str | Iterable[str], form: Form | None = None) -> tuple[str, ...]:
    """The lines of a poem without punctuation.

    poem: text with punctuation or line breaks, text without any (cut by the length of a line of `form`, or by the only
    form that is as long), or an iterable of lines. ValueError with a sentence if there is nothing in it, if it is
    longer than `LIMIT`, or if it holds anything but Chinese characters and punctuation.
    """
    if isinstance(poem, str):
        whole = poem.strip()
        lines = tuple(line for line in _BREAKS.split(whole[: 4 * LIMIT]) if line)
    else:
        lines = tuple(part for line in poem for part in _BREAKS.split(line) if part)
        whole = "".join(lines)
    if not lines:
        raise ValueError("the poem is empty: give its lines in Chinese characters")
    if len(whole) > LIMIT:
        raise ValueError(f"the poem has {len(whole)} characters; at most {LIMIT} are read")
    for number, line in enumerate(lines, 1):
        for place, char in enumerate(line, 1):
            if not is_han(char):
                raise ValueError(
                    f"line {number} has {char!r} in place {place}, which is no Chinese character; leave out titles, "
                    "letters, digits and editorial marks"
                )
    return _cut(lines[0], form) if len(lines) == 1 else lines


def form_of(lines: tuple[str, ...]) -> Form:
    """The form that lines belong to, by their number and the length that most of them have. ValueError if none does."""
    lengths = [len(line) for line in lines]
    most = max((5, 7), key=lengths.count)
    for form in FORMS.values():
        if form.lines == len(lines) and form.length == most and most in lengths:
            return form
    raise ValueError(
        f"{len(lines)} lines of {', '.join(map(str, lengths[:8]))}{' ...' if len(lines) > 8 else ''} characters are "
        "none of the forms: 2, 4 or 8 lines of 5 or 7 characters"
    )


def _cut(text: str, form: Form | None) -> tuple[str, ...]:
    fitting = [f for f in ([form] if form else FORMS.values()) if f.size == len(text)]
    if not fitting:
        wanted = (
            f"{form.name} has {form.size}" if form else "a form has " + ", ".join(str(f.size) for f in FORMS.values())
        )
        raise ValueError(f"{len(text)} characters without punctuation cannot be cut into lines: {wanted}")
    length = fitting[0].length
    return tuple(text[i : i + length] for i in range(0, len(text), length))
