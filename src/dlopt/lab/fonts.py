"""Where the Chinese fonts are: in the Python package mplfonts, else among the system's.

Figures need one sans face; reports need serif, sans and mono. The files are found without importing mplfonts,
which would change matplotlib's settings behind our back.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import os
from functools import cache
from pathlib import Path

SERIF, SANS, MONO = "Noto Serif CJK SC", "Noto Sans CJK SC", "Noto Sans Mono CJK SC"

# per family: its file in mplfonts, then the names that Linux distributions give to the same font
_FILES = {
    SERIF: ("NotoSerifCJKsc-Regular.otf", "NotoSerifCJK-Regular.ttc"),
    SANS: ("NotoSansCJKsc-Regular.otf", "NotoSansCJK-Regular.ttc"),
    MONO: ("NotoSansMonoCJKsc-Regular.otf", "NotoSansCJK-Regular.ttc"),
}
_SYSTEM = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")


class FontUnavailable(RuntimeError):
    """No file with Chinese glyphs was found for a family that figures or reports need."""


@cache
def find(family: str = SANS) -> Path:
    """The font file of one of SERIF, SANS, MONO; `FontUnavailable` says what was looked for and where."""
    places = _packaged() + [Path(place).expanduser() for place in _SYSTEM]
    for place in places:
        for name in _FILES[family]:
            found = sorted(place.rglob(name)) if place.is_dir() else []
            if found:
                return found[0]
    looked = ", ".join(str(place) for place in places)
    raise FontUnavailable(
        f"no file of the font {family!r} ({' or '.join(_FILES[family])}) in {looked}; "
        "`pip install mplfonts` or Debian's fonts-noto-cjk brings it"
    )


def link(folder: Path) -> Path:
    """Fill a folder with links to the three fonts: typst takes folders only, and must see no other fonts."""
    for family in _FILES:
        target = folder / find(family).name
        if not target.exists():
            os.symlink(find(family), target)
    return folder


def face(name: str, text: str) -> str:
    """A CSS rule that brings the Chinese characters of a text along, so that a page shows them on every machine."""
    from fontTools import subset  # comes with matplotlib

    wanted = "".join(sorted({c for c in text if ord(c) >= 0x2E80}))
    options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
    data = io.BytesIO()
    with subset.load_font(str(find(SANS)), options) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=wanted)
        subsetter.subset(font)
        subset.save_font(font, data, options)
    coded = base64.b64encode(data.getvalue()).decode()
    return (
        f'@font-face {{ font-family: "{name}"; unicode-range: U+2E80-FFFF; '
        f'src: url(data:font/woff;base64,{coded}) format("woff"); }}'
    )


def _packaged() -> list[Path]:
    spec = importlib.util.find_spec("mplfonts")
    return [Path(spec.origin).parent / "fonts"] if spec is not None and spec.origin else []
