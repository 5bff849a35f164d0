"""What a poem is asked to be: its form, the characters that are given, its rhyme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlopt.poetry.patterns import FORMS, check_mode, find_form
from dlopt.poetry.rhymebook import find_group
from dlopt.poetry.script import is_han

FREE = "□"


@dataclass(frozen=True)
class Request:
    """One poem to be written under the rules.

    Args:
        form: 五绝, 七绝, 五律, 七律, or 五言联, 七言联 for one couplet.
        given: lines with □ for each free character. A line that is too short, and lines that are left out, are free.
        rhyme: the level group to rhyme by ("东", "一東", "上平聲一東"); None leaves it to the model.
        first_rhymes: whether the first line rhymes; None leaves it open. A 对联 wants False: oblique, then level ends.
        mode: "lenient" or "strict", as in `check`.
        forbid_repeats: no character twice in the poem. Given characters may repeat each other, no other may repeat
            them. The same rhyming character never comes twice.
        reduplication: a character may follow itself once within a line (叠字), also where repeats are forbidden.
        judge_given: whether lines that are given whole must be regular. If not, a line that fits no pattern must only
            fit by its second and last characters, and is taken for the kind in which the fewest others are wrong:
            what follows keeps 对, 粘 and the rhyme.

    ValueError, with a sentence, for an unknown form, mode or group, for lines that are too many or too long, and for
    anything but Chinese characters and □ in them.
    """

    form: str
    given: tuple[str, ...] = ()
    rhyme: str | None = None
    first_rhymes: bool | None = None
    mode: str = "lenient"
    forbid_repeats: bool = True
    reduplication: bool = False
    judge_given: bool = True

    def __post_init__(self) -> None:
        form = find_form(self.form)
        check_mode(self.mode)
        if self.rhyme is not None:
            find_group(self.rhyme)
        if isinstance(self.given, str):
            raise ValueError("given must be a sequence of lines, not one string")
        object.__setattr__(self, "given", tuple(self.given))  # a list would not hash
        if len(self.given) > form.lines:
            raise ValueError(f"{form.name} has {form.lines} lines, {len(self.given)} were given")
        for number, line in enumerate(self.given, 1):
            if len(line) > form.length:
                raise ValueError(f"line {number} has {len(line)} characters; {form.name} has {form.length} in a line")
            wrong = next((c for c in line if c != FREE and not is_han(c)), None)
            if wrong is not None:
                raise ValueError(
                    f"line {number} has {wrong!r}, which is no Chinese character (□ stands for a free one)"
                )

    @property
    def characters(self) -> str:
        """The whole poem as one string, with □ in every free place."""
        form = find_form(self.form)
        lines = [*self.given, *[""] * (form.lines - len(self.given))]
        return "".join(line.ljust(form.length, FREE) for line in lines)


def acrostic(heads: str, length: int = 5, **options: Any) -> Request:
    """藏头诗: a 绝句 of four heads or a 律诗 of eight, each line beginning with its head. length: 5 or 7.

    options: the other fields of `Request`. ValueError unless there are four or eight heads.
    """
    form = next((f for f in FORMS.values() if f.lines == len(heads) and f.length == length), None)
    if form is None or form.lines == 2:
        raise ValueError(f"heads must be 4 or 8 characters for lines of 5 or 7; got {len(heads)} for lines of {length}")
    return Request(form.name, tuple(heads), **options)


def continuation(first: str, **options: Any) -> Request:
    """续下句: the second line of a couplet whose first line, of 5 or 7 characters, is given.

    The answer has opposite tones in its even places, and ends level; where the first line ends level, they rhyme.
    A first line that is not regular is taken by its second and last characters, unless `judge_given=True`.
    """
    form = next((f for f in FORMS.values() if f.lines == 2 and f.length == len(first)), None)
    if form is None or FREE in first:
        raise ValueError(
            f"the first line must be 5 or 7 characters, all of them given; got {len(first)}: {first[:20]!r}"
        )
    return Request(form.name, (first,), **{"judge_given": False, **options})
