"""Tones and rhymes of characters: the 106 groups of 平水韵, which travel with the package (`pingshui.json`).

The table is in traditional characters and MIT-licensed; the notice stands in the file. 上平聲 and 下平聲 are level
(平); 上聲, 去聲 and 入聲 are oblique (仄). A character that stands in several groups has several readings, and every
one counts.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from dlopt.poetry.script import SCRIPTS, each_simplified, is_han, simplified

LEVEL, OBLIQUE = "平", "仄"

# The classes within which the first line may borrow its rhyme (首句借邻韵): groups whose sounds are near
NEIGHBOURS = tuple(frozenset(kin) for kin in "東冬 江陽 支微齊 魚虞 佳灰 真文元寒刪先 蕭肴豪 庚青蒸 覃鹽咸".split())


def tones(char: str, script: str = "traditional") -> frozenset[str]:
    """{"平"}, {"仄"} or both: the tones that `char` can have; empty if the table does not know it.

    script: "traditional" reads the character as it stands; "simplified" joins the readings of all traditional forms
    that it may stand for (发: 發 and 髮). A character that the table lacks is looked up by forms of the same
    simplified character in either case. ValueError if `char` is not one character, or the script is unknown.
    """
    return frozenset(map(tone_of, rhymes(char, script)))


def rhymes(char: str, script: str = "traditional") -> frozenset[str]:
    """The groups of `char` by full name, such as {"上平聲一東", "去聲一送"} for 中. See `tones`."""
    if len(char) != 1:
        raise ValueError(f"tones and rhymes are those of one character, got {char!r}")
    if script not in SCRIPTS:
        raise ValueError(f"script must be one of {', '.join(SCRIPTS)}, got {script!r}")
    return _rhymes(char, script)


def level_rhymes(char: str, script: str = "traditional") -> frozenset[str]:
    """The level groups of `char`: those that regulated verse rhymes by."""
    return frozenset(g for g in rhymes(char, script) if tone_of(g) == LEVEL)


def tone_of(group: str) -> str:
    """ "平" or "仄": the tone of a group, given by full name."""
    return LEVEL if group[1] == LEVEL else OBLIQUE


@cache
def level_groups() -> tuple[str, ...]:
    """The 30 level groups, by full name, in the order of the table."""
    return tuple(g for g in members() if tone_of(g) == LEVEL)


def find_group(name: str) -> str:
    """The full name of the level group that is called `name`: "東", "一東", "上平聲一東" or any of these simplified."""
    wanted = simplified(name.strip())  # the way back is not unique: 咸 stays, or becomes 鹹
    for group in level_groups():
        if wanted in map(simplified, (group, group[3:], group[-1])):
            return group
    raise ValueError(f"no level rhyme group is called {name!r}; there are {' '.join(g[3:] for g in level_groups())}")


def near(group: str) -> frozenset[str]:
    """The level groups whose rhyme the first line may borrow in a poem that rhymes by `group`; without itself."""
    kin = next((kin for kin in NEIGHBOURS if group[-1] in kin), frozenset())
    return frozenset(g for g in level_groups() if g[-1] in kin and g != group)


@cache
def members() -> dict[str, str]:
    """{group: its characters}, all 106, with the supplement that the file explains."""
    found = json.loads(files("dlopt.poetry").joinpath("pingshui.json").read_text(encoding="utf-8"))
    groups, more = found["groups"], found["supplement"]
    plain = {name: chars + more["readings"].get(name, "") for name, chars in groups.items()}
    for shape, standard in more["shapes"].split():
        for name, chars in plain.items():
            if standard in chars:
                plain[name] += shape
    return plain


@cache
def _table() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for group, chars in members().items():
        for char in chars:
            table.setdefault(char, set()).add(group)
    return {char: frozenset(found) for char, found in table.items()}


@cache
def _forms() -> dict[str, str]:
    """{simplified form: all characters of the table that it may stand for}."""
    chars = "".join(_table())
    found: dict[str, str] = {}
    for char, form in zip(chars, each_simplified(chars), strict=True):
        found[form] = found.get(form, "") + char
    return found


@cache
def _rhymes(char: str, script: str) -> frozenset[str]:
    table = _table()
    own = table.get(char, frozenset())
    if (own and script == "traditional") or not is_han(char):
        return own
    (form,) = each_simplified(char)
    return own.union(*(table[c] for c in _forms().get(form, "")))
