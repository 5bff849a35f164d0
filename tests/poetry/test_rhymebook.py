"""Tones and rhymes of characters, in both scripts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dlopt
from dlopt.poetry import rhymes, tones
from dlopt.poetry.rhymebook import find_group, level_groups, level_rhymes, members, near
from dlopt.poetry.script import script_of, simplified, traditional
from dlopt.tasks import data

# characters of one reading that every handbook puts under these level groups
KNOWN = dict(
    pair.split("=")
    for pair in (
        "東=公風紅 冬=峰松農 江=窗邦 支=詩枝遲 微=飛歸衣 魚=居初書 虞=湖圖孤 齊=西溪雞啼 佳=街懷埋 "
        "灰=梅回臺 真=人春新 文=雲君聞 元=村門魂 寒=丹欄殘 刪=山顏關 先=天年眠 蕭=橋朝潮 肴=巢郊 "
        "豪=袍桃 歌=河羅多 麻=花家沙 陽=香霜鄉 庚=城明兵 青=庭星亭 蒸=冰僧 尤=樓秋愁 侵=心林音 "
        "覃=南潭 鹽=簾纖 咸=帆衫 "
    ).split()
)
OBLIQUE = "月日雪白葉鳥水柳草路樹夜露目盡客國入一石"


@pytest.mark.parametrize("group", KNOWN)
def test_known_characters_stand_in_their_group(group):
    full = find_group(group)
    assert full[-1] == group
    for char in KNOWN[group]:
        assert full in level_rhymes(char), char
        assert tones(char) >= {"平"}


def test_there_are_106_groups_of_which_30_are_level():
    assert len(members()) == 106
    assert [g[-1] for g in level_groups()] == list(KNOWN)
    assert all(tones(char) == {"仄"} for char in OBLIQUE)


def test_a_character_of_several_readings_has_all_of_them():
    assert tones("中") == tones("看") == tones("思") == {"平", "仄"}
    assert {g[-1] for g in rhymes("中")} == {"東", "送"}
    assert {g[-1] for g in level_rhymes("還")} == {"刪", "先"}


def test_both_scripts():
    assert rhymes("龙", "simplified") == rhymes("龙") == rhymes("龍")
    # 发 stands for 發 (入聲) and 髮 (入聲); 干 for 乾, 幹 and itself; in traditional text 干 is only itself
    assert rhymes("发", "simplified") == rhymes("發") | rhymes("髮")
    assert tones("干", "traditional") == {"平"}
    assert tones("干", "simplified") == {"平", "仄"}
    assert rhymes("后", "simplified") == rhymes("后") | rhymes("後")
    assert rhymes("爲") == rhymes("為") != frozenset()
    assert rhymes("迴") == rhymes("回")
    assert rhymes("嘆") == rhymes("歎") == {"上平聲十四寒", "去聲十五翰"}
    assert simplified("龍飛鳳舞") == "龙飞凤舞"
    assert traditional("龙飞凤舞") == "龍飛鳳舞"
    assert (script_of("龙飞"), script_of("龍飛"), script_of("明月")) == ("simplified", "traditional", "traditional")


def test_what_the_table_lacks_has_no_tone():
    for char in "𠀀a1😀，":
        assert tones(char) == frozenset()


def test_wrong_arguments_are_refused():
    for char in ("", "白日"):
        with pytest.raises(ValueError, match="one character"):
            tones(char)
    with pytest.raises(ValueError, match="script must be one of"):
        tones("白", "roman")
    for name in ("", "月", "一送", "XYZ"):
        with pytest.raises(ValueError, match="no level rhyme group"):
            find_group(name)


def test_groups_are_found_by_any_of_their_names():
    assert {find_group(name) for name in ("東", "东", "一東", "上平聲一東", "上平声一东")} == {"上平聲一東"}
    assert {g[-1] for g in near(find_group("東"))} == {"冬"}
    assert near(find_group("尤")) == frozenset()
    assert near("上平聲十三元") >= near("上平聲十一真") - {"上平聲十三元"}


def test_the_packaged_table_is_the_source_without_its_stray_letters(monkeypatch, tang):
    source = data.get("pingshui")
    stored = {
        group: text for parts in source.values() for groups in parts.values() for group, (text,) in groups.items()
    }
    content = json.loads((Path(dlopt.__file__).parent / "poetry" / "pingshui.json").read_text(encoding="utf-8"))
    assert content["groups"].keys() == stored.keys()
    for group, text in stored.items():
        assert content["groups"][group] == "".join(dict.fromkeys(c for c in text if not c.isascii())), group
    assert "MIT License" in content["licence"]


def test_the_supplement_is_borne_out_by_the_poems(clean):
    """Added level readings of the characters that poems rhyme by: the other rhymes are mostly of that group."""
    content = json.loads((Path(dlopt.__file__).parent / "poetry" / "pingshui.json").read_text(encoding="utf-8"))
    added = {c: g for g, chars in content["supplement"]["readings"].items() if "平" in g for c in chars}
    seen: dict[str, list[bool]] = {}
    for poem in clean.poems:
        ends = [line[-1] for line in poem.lines[1::2]]
        for char in added.keys() & set(ends):
            others = [level_rhymes(e) for e in ends if e != char]
            seen.setdefault(char, []).extend(added[char] in groups for groups in others if groups)
    often = {char: sum(hits) / len(hits) for char, hits in seen.items() if len(hits) >= 20}
    assert "啼" in often
    assert min(often.values()) > 0.6, often


def test_importing_the_topic_needs_no_opencc():
    code = "import sys; sys.modules['opencc'] = None; import dlopt.poetry.prosody; "
    code += "from dlopt.poetry import tones; assert tones('白') == {'仄'}\n"
    code += "try: tones('龙')\nexcept ImportError as e: assert 'dlopt[poetry]' in str(e)\nelse: sys.exit('no error')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
