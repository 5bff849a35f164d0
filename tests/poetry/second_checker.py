"""A second checker, written apart from `dlopt.poetry`: whole poems against regular expressions, one per arrangement.

It shares no code with the first. It reads the table by itself; patterns are typed out in full for both lengths; there
is no search for the best explanation. Letters: P only level, Z only oblique, X either (or unknown).
"""

import itertools
import json
import re
from functools import cache
from pathlib import Path

import dlopt

TABLE = Path(dlopt.__file__).parent / "poetry" / "pingshui.json"
NEAR = ["東冬", "江陽", "支微齊", "魚虞", "佳灰", "真文元寒刪先", "蕭肴豪", "庚青蒸", "覃鹽咸"]

# kind of line: (for five, for seven); p level, z oblique, "." either
LENIENT = {
    "a": (".z.pz", ".p.z.pz"),
    "b": (".p.zz|ppzpz", ".z.p.zz|.zppzpz"),
    "A": (".zzpp", ".p.zzpp"),
    "B": ("pp.zp|zppzp", ".zpp.zp|.zzppzp"),
}
STRICT = {
    "a": (".zppz|.zzpz", ".p.zppz|.p.zzpz"),
    "b": (".ppzz|ppzpz", ".z.ppzz|.zppzpz"),
    "A": (".zzpp", ".p.zzpp"),
    "B": ("ppzzp|zppzp", ".zppzzp|.zzppzp"),
}
# an a line that is off, and the B line that saves it
SAVED = {"lenient": (".z.zz", ".p.z.zz"), "strict": (".z.zz|.zzpz", ".p.z.zz|.p.zzpz")}
SAVES = (".ppzp", ".z.ppzp")
KINDS = {
    2: ["AB", "BA", "aB", "bA"],
    4: ["ABbA", "BAaB", "aBbA", "bAaB"],
    8: ["ABbAaBbA", "BAaBbAaB", "aBbAaBbA", "bAaBbAaB"],
}
# what is right but for one rule
LONE = {"B": ("zpzzp", ".zzpzzp")}
TAILS = {"A": (".zppp", ".p.zppp")}

ALSO = "迴回 溪谿 岳嶽 塚冢 踪蹤"  # other shapes in the poems of the tests


@cache
def table():
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    found = {}
    for source in (content["groups"], content["supplement"]["readings"]):
        for group, chars in source.items():
            for char in chars:
                found.setdefault(char, set()).add(group)
    for shape, standard in [*content["supplement"]["shapes"].split(), *ALSO.split()]:
        found[shape] = found.get(shape, set()) | found[standard]
    return found


def level(char):
    return {g for g in table().get(char, ()) if g.startswith(("上平", "下平"))}


def letter(char):
    groups = table().get(char)
    if not groups:
        return "X"
    return "P" if groups == level(char) else "X" if level(char) else "Z"


def couplet(kinds, mode, seven, more=None):
    shapes = dict(LENIENT if mode == "lenient" else STRICT)
    for kind, extra in (more or {}).items():
        shapes[kind] = tuple(f"{a}|{b}" for a, b in zip(shapes[kind], extra))
    found = f"(?:{shapes[kinds[0]][seven]})/(?:{shapes[kinds[1]][seven]})"
    if kinds == "aB":
        found += f"|(?:{SAVED[mode][seven]})/(?:{SAVES[seven]})"
    return f"(?:{found})"


@cache
def pattern(kinds, mode, seven, relaxed=""):
    more = {"": None, "孤平": LONE, "三平尾": TAILS}[relaxed]
    return translated("/".join(couplet(kinds[i : i + 2], mode, seven, more) for i in range(0, len(kinds), 2)))


@cache
def translated(text):
    return re.compile(text.replace("p", "[PX]").replace("z", "[ZX]").replace(".", "[PZX]"))


def loose_kinds(count, rule):
    """All sequences of kinds that only keep the other of 对 and 粘 ("失粘": 粘 is not asked for)."""
    pairs = {"失粘": ("aB", "bA"), "失对": ("aB", "bA", "aA", "bB")}[rule]
    firsts = {"失粘": ("AB", "BA", "aB", "bA"), "失对": ("AB", "BA", "AA", "BB", "aB", "bA", "aA", "bB")}[rule]
    low = {"a": 0, "A": 0, "b": 1, "B": 1}
    for head in firsts:
        for tail in itertools.product(pairs, repeat=count // 2 - 1):
            whole = "".join((head, *tail))
            joints = [(whole[i - 1], whole[i]) for i in range(2, count, 2)]
            if rule == "失粘" or all(low[x] == low[y] for x, y in joints):
                yield whole


def rhyme_holds(lines, kinds):
    even = [line[-1] for line in lines[1::2]]
    shared = set.intersection(*(level(c) for c in even))
    ends = even
    if kinds[0] in "AB":
        first = level(lines[0][-1])
        near = {g: [k for k in NEAR if g[-1] in k] for g in shared}
        shared = {g for g in shared if g in first or any(f[-1] in k for k in near[g] for f in first)}
        ends = [lines[0][-1], *even]
    return bool(shared) and len(set(ends)) == len(ends)


def tones_hold(lines, mode, kinds, relaxed=""):
    text = "/".join("".join(map(letter, line)) for line in lines)
    return pattern(kinds, mode, len(lines[0]) == 7, relaxed).fullmatch(text) is not None


def right(lines, mode="lenient", first=None):
    """Whether the poem is regular. first: True or False asks for a rhyming or an unrhymed first line."""
    if any(c not in table() for line in lines for c in line):
        return False
    return any(
        tones_hold(lines, mode, kinds) and rhyme_holds(lines, kinds)
        for kinds in KINDS[len(lines)]
        if first in (None, kinds[0] in "AB")
    )


def right_but_for(lines, rule):
    """Whether tones are right (lenient) once one rule is dropped, and wrong with it; the rhyme is not asked."""
    if any(tones_hold(lines, "lenient", kinds) for kinds in KINDS[len(lines)]):
        return False
    if rule in ("失粘", "失对"):
        return any(tones_hold(lines, "lenient", kinds) for kinds in loose_kinds(len(lines), rule))
    return any(tones_hold(lines, "lenient", kinds, rule) for kinds in KINDS[len(lines)])


def answers(first, answer, mode):
    """Whether a line answers a first line, regular or not: opposite start, level end, a rhyme where that ends level."""
    seven = len(first) == 7
    one, two = ("".join(map(letter, line)) for line in (first, answer))
    for kind, starts in (("A", "ZX" if seven else "PX"), ("B", "PX" if seven else "ZX")):
        shape = (LENIENT if mode == "lenient" else STRICT)[kind][seven]
        if kind == "B" and translated(SAVED[mode][seven]).fullmatch(one):
            shape += "|" + SAVES[seven]
        rhymes = one[-1] in "ZX" or level(first[-1]) & level(answer[-1])
        if translated(shape).fullmatch(two) and one[1] in starts and rhymes:
            return True
    return False
