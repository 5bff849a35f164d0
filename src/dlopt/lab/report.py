"""Reports: what an experiment presents becomes files, then a PDF.

`build` writes `reports/<topic>/gen/` (values.json, tables/*.json, figures/*.svg: made, never edited, not in git) and
compiles `reports/<topic>/report.typ`, which may use no number but these. How numbers are written (percent, bytes,
mean ± half width) is decided in `reports/template.typ`; here they stay numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlopt.lab import canvas, palette, typeset
from dlopt.lab.record import write_atomic
from dlopt.lab.typeset import ReportError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Presentation", "ReportError", "build", "bundle", "merge", "sources", "unused", "write"]

# where an installed package keeps reports/ and notebooks/; nothing is written there
SHARE = Path(__file__).parents[1] / "share"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_USES = re.compile(r"#?\b(tab|fig)\(\s*\"([^\"]+)\"")


@dataclass
class Presentation:
    """What the report of a topic is made from; an experiment's `present(results)` returns it.

    values: {key: number, text, None (not available) or anything with mean, low, high}. tables: data frames whose
    cells are such values; columns called `accuracy`, `lr`, `method`, `p_holm`, `state_bytes` ... get their Chinese
    name and way of writing, others keep their name, and `frame.attrs["styles"] = {column: style}` says how their
    numbers are written: "percent", "bytes", "sci", "fixed" or "p", with decimals after a colon if wanted ("fixed:2").
    figures: matplotlib figures. notes: warnings that the report prints on its first page ("partial grid").
    """

    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def sources(topic: str, start: Path) -> Path:
    """The project folder that holds reports/<topic>/report.typ: `start`, a folder above it, or this package's own.

    Raises `ReportError` that names the places looked at.
    """
    places = [start, *start.parents, Path(__file__).parents[3], SHARE]
    for place in places:
        if (place / "reports" / topic / "report.typ").is_file():
            return place
    raise ReportError(
        f"there is no reports/{topic}/report.typ in {start}, above it or in {places[-2]}; "
        "work in a checkout of dlopt, or write the report beside a copy of reports/template.typ"
    )


def merge(topic: str, presented: Mapping[str, Presentation]) -> Presentation:
    """One presentation from those of a topic's experiments, {experiment: presentation}.

    What the experiment "sampling/lasso" calls "main" is "lasso.main" in the report of "sampling"; the experiment that
    is called like the topic keeps its names.
    """
    merged = Presentation()
    for name, presentation in presented.items():
        part = name.partition("/")[2]
        before = f"{part}." if part else ""
        merged.values |= {before + key: value for key, value in presentation.values.items()}
        merged.tables |= {before + key: table for key, table in presentation.tables.items()}
        merged.figures |= {before + key: figure for key, figure in presentation.figures.items()}
        merged.notes += [f"{part}：{note}" if part else note for note in presentation.notes]
    return merged


def build(
    topic: str,
    presentation: Presentation,
    root: Path,
    out: Path | None = None,
    *,
    results: Path | None = None,
    notebook: bool = False,
) -> list[Path]:
    """Write what the records say, compile reports/<topic>/report.typ, and execute the notebook if asked to.

    root: the project folder, see `sources`. out: a folder for <topic>.pdf, <topic>.ipynb and gen/<topic>/; by default
    they stand beside their sources (reports/<topic>/report.pdf, notebooks/<topic>.ipynb, reports/<topic>/gen/), and
    with `out` the project folder stays untouched. For the package's own sources the default is build/<topic> in the
    current folder. results: the folder of records that the notebook reads.

    Returns the PDF, the notebook if there is one, values.json, tables and figures. The same presentation gives the
    same bytes. Raises `ReportError` for a key that the report asks for and the records do not give, and for whatever
    typst refuses or warns of.
    """
    if out is None and root == SHARE:
        out = Path.cwd() / "build" / topic
    known = [*presentation.values, *presentation.tables, *presentation.figures]
    with _workshop(topic, root, out) as reports:
        made = write(topic, presentation, reports)
        pdf = reports / topic / "report.pdf" if out is None else out / f"{topic}.pdf"
        typeset.pdf(reports / topic / "report.typ", reports, pdf, known)
        if out is not None:
            made = [_move(path, reports / topic / "gen", out / "gen" / topic) for path in made]
    if notebook:
        from dlopt.lab import notebook as notebooks

        pages = None if out is None else out / f"{topic}.ipynb"
        return [pdf, notebooks.execute(topic, root, pages, results=results), *made]
    return [pdf, *made]


def bundle(topic: str, root: Path, out: Path, *, results: Path | None = None) -> Path:
    """See `dlopt.lab.bundle.bundle`."""
    from dlopt.lab import bundle as bundles

    return bundles.bundle(topic, root, out, results=results)


@contextlib.contextmanager
def _workshop(topic: str, root: Path, out: Path | None) -> Iterator[Path]:
    """The reports folder to work in: the project's own, or a copy of what this report needs of it."""
    own = root / "reports"
    if out is None:
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="dlopt-report-") as folder:
        for path in [*own.glob("*.*"), *own.glob(f"{topic}/*")]:
            if path.is_file() and path.suffix != ".pdf":
                target = Path(folder) / path.relative_to(own)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
        yield Path(folder)


def _move(path: Path, source: Path, target: Path) -> Path:
    where = target / path.relative_to(source)
    write_atomic(where, path.read_bytes())
    return where


def write(topic: str, presentation: Presentation, reports: Path) -> list[Path]:
    """Write <reports>/<topic>/gen: values.json, tables, figures. Files that are no longer made are removed."""
    gen = reports / topic / "gen"
    for name in (*presentation.tables, *presentation.figures):
        if not _NAME.fullmatch(name):
            raise ReportError(f"{name!r} cannot name a table or figure: use letters, digits, '_', '-' and '.'")
    values = {key: _checked(f"value {key!r}", encode, value) for key, value in sorted(presentation.values.items())}
    frames = {name: _checked(f"table {name!r}", _table, frame) for name, frame in sorted(presentation.tables.items())}
    index = {
        "values": values,
        "tables": list(frames),
        "figures": sorted(presentation.figures),
        "notes": list(presentation.notes),
    }
    made = [_dump(gen / "values.json", index)]
    made += [_dump(gen / "tables" / f"{name}.json", frame) for name, frame in frames.items()]
    for name, figure in sorted(presentation.figures.items()):
        made.append(canvas.save(figure, gen / "figures" / f"{name}.svg"))
    for old in {*gen.glob("tables/*.json"), *gen.glob("figures/*.svg")} - set(made):
        old.unlink()
    return made


def unused(topic: str, presentation: Presentation, root: Path) -> list[str]:
    """Tables and figures that are made but that the report does not show."""
    text = (root / "reports" / topic / "report.typ").read_text(encoding="utf-8")
    shown = {name for _, name in _USES.findall(text)}
    return sorted({*presentation.tables, *presentation.figures} - shown)


def encode(value: Any) -> Any:
    """A value as JSON holds it: a number, a text, {mean, low, high}, or null for what is not available.

    numpy scalars become numbers; NaN and infinity, which JSON lacks and a reader cannot use, become null.
    """
    if hasattr(value, "mean") and hasattr(value, "low") and hasattr(value, "high"):
        ends = {name: encode(getattr(value, name)) for name in ("mean", "low", "high")}
        return ends if all(end is not None for end in ends.values()) else ends["mean"]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, bool):
        return "是" if value else "否"
    if value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{value!r} ({type(value).__name__}) is neither a number, a text nor an interval")


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    styles: Mapping[str, str] = frame.attrs.get("styles", {})
    names = [str(column) for column in frame.columns]
    rows = [[encode(_worded(name, cell)) for name, cell in zip(names, row)] for row in _rows(frame)]
    columns = [
        {
            "title": palette.label(name),
            "style": styles.get(name, _style(name)),
            "number": any(not isinstance(row[i], str) and row[i] is not None for row in rows),
        }
        for i, name in enumerate(names)
    ]
    return {"columns": columns, "rows": rows}


def _rows(frame: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    """Row by row with the cells as they are: `DataFrame.values` would turn counts into floats."""
    return zip(*(frame[column].tolist() for column in frame.columns))


def _worded(column: str, cell: Any) -> Any:
    if column == "method" and isinstance(cell, str):
        return palette.title(cell)
    return palette.STATUSES.get(cell, cell) if column == "status" else cell


def _style(column: str) -> str:
    """How the numbers of a known column are written."""
    if palette.is_share(column):
        return "percent"
    if palette.is_bytes(column):
        return "bytes"
    return "p" if column == "p" or column.startswith("p_") else "auto"


def _checked(what: str, function: Any, value: Any) -> Any:
    try:
        return function(value)
    except TypeError as error:
        raise ReportError(f"the {what} cannot stand in a report: {error}") from error


def _dump(path: Path, content: Any) -> Path:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, f"{text}\n".encode())
    return path
