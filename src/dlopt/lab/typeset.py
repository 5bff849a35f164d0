"""Typst: from a .typ file to a PDF that is the same, byte for byte, each time; errors as sentences.

Only the three Chinese fonts of `fonts` and those inside of typst are seen, whatever a system has installed. A warning
(an unknown font, say) is an error: what it means would otherwise be found by a reader.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlopt.catalog import suggest
from dlopt.lab import fonts
from dlopt.lab.record import write_atomic

if TYPE_CHECKING:
    import typst

_PLACE = re.compile(r"┌─ (?P<path>.+):(?P<line>\d+):\d+")
_PARTS = re.compile(r"^(?=(?:error|warning): )", re.MULTILINE)
_UNKNOWN = re.compile(r"unknown (?P<what>value|table|figure) key: (?P<key>.+)")


class ReportError(ValueError):
    """A report, notebook or bundle that cannot be made; the sentence says which file and what to do."""


def pdf(source: Path, root: Path, out: Path, known: Sequence[str] = ()) -> Path:
    """Compile a .typ file to a PDF, written whole or not at all.

    root: the folder that the source may read from. known: the keys that exist, for a hint beside an unknown one.
    """
    write_atomic(out, _compile(source, root, known, format="pdf"))
    return out


def pages(source: Path, root: Path, ppi: float = 110) -> list[bytes]:
    """Each page as a PNG, to look at."""
    found = _compile(source, root, (), format="png", ppi=ppi)
    return found if isinstance(found, list) else [found]


def _compile(source: Path, root: Path, known: Sequence[str], **options: Any) -> Any:
    if not source.is_file():
        raise ReportError(f"there is no report at {source}; write one beside the others, from ../template.typ")
    with _compiler(source, root) as (compiler, error_type):
        try:
            made, warnings = compiler.compile_with_warnings(timestamp=0, **options)
        except error_type as error:
            raise ReportError(_sentence(error, source, known)) from error
        if warnings:
            raise ReportError(_sentence(warnings[0], source, known))
    return made


@contextlib.contextmanager
def _compiler(source: Path, root: Path) -> Iterator[tuple[typst.Compiler, type[typst.TypstError]]]:
    try:
        import typst
    except ImportError as error:
        raise ReportError("reports need the Python package typst: pip install 'dlopt[report]'") from error
    with tempfile.TemporaryDirectory(prefix="dlopt-fonts-") as folder:
        seen = typst.Fonts(
            include_system_fonts=False, include_embedded_fonts=True, font_paths=[str(fonts.link(Path(folder)))]
        )
        yield typst.Compiler(str(source), root=str(root), font_paths=seen), typst.TypstError


def _sentence(error: Any, source: Path, known: Sequence[str]) -> str:
    """One sentence with file and line: where the error arose, and which line of the report led there."""
    text = str(error.diagnostic)
    # errors and warnings stand in one text; each goes on to the next "error:" or "warning:" at a line's beginning
    told = next((part for part in _PARTS.split(text) if str(error.message).split("\n")[0] in part), text)
    places = [f"{'/'.join(Path(p['path']).parts[-2:])}:{p['line']}" for p in _PLACE.finditer(told)]
    mine = [place for place in places if f"/{source.name}:" in place]
    asked = mine[-1] if mine else str(source)
    message = str(error.message).removeprefix("assertion failed: ")
    found = _UNKNOWN.search(message)
    if found:
        what, key = found["what"], found["key"].strip()
        return (
            f"{asked} asks for the {what} {key!r}, which the records do not give{suggest(key, known)}; "
            "correct it there, or add it to `present` of the experiment"
        )
    where = f"{places[0]} (from {asked})" if places and places[0] != asked else asked
    hints = "".join(f" ({hint})" for hint in error.hints)
    return f"{where}: typst says: {' '.join(message.split())}{hints}"
