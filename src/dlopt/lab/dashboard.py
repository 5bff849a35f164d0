"""The dashboard: all records in one HTML file that opens from a disk and asks no host for anything.

Vega's scripts and the records stand inside of the file (1 MB and up); a content policy in its head makes the browser
refuse whatever would be loaded from elsewhere. Text from records reaches the page as JSON that cannot end its script
element, and is written with `textContent` only, so a name like "<script>" is shown, not run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlopt.lab import fonts, palette
from dlopt.lab.curves import COUNTED, method_of
from dlopt.lab.record import write_atomic
from dlopt.lab.typeset import ReportError

if TYPE_CHECKING:
    from dlopt.lab.record import Record

FONT = "dlopt CJK"  # the Chinese characters that this page brings along; also named in dashboard.html
LONGEST = 60  # a text in a summary that is longer (which examples were right, say) is left out of the table


def page(records: Iterable[Record], out: Path) -> Path:
    """Write the page: a table of runs with filter and sorting, and their curves over a choice of axes.

    Works from file://, in light and dark, without a network. Raises `ReportError` if there is no record.
    """
    found = list(records)
    if not found:
        raise ReportError("a dashboard needs at least one record; there are none")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    # split, not replaced one after the other: the scripts may hold the second mark
    style, rest = template.split("/*FONT*/")
    head, rest = rest.split("/*DATA*/")
    middle, tail = rest.split("/*VEGA*/")
    data = embedded(_data(found))
    content = style + fonts.face(FONT, template + data) + head + data + middle + _vega() + tail
    write_atomic(out, content.encode())
    return out


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: no "<", ">" or "&", and no line separators of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _data(records: list[Record]) -> dict[str, Any]:
    methods = dict.fromkeys(method_of(r) for r in records)
    names = {name for r in records for name in (*r.curve, *r.summary, *(f"bytes.{kind}" for kind in r.bytes))}
    names |= {"method", "params", "seed", "status", "reason"}
    labels = {name: palette.label(name) for name in sorted(names)} | palette.STATUSES | {"key": "记录"}
    return {
        "runs": [_run(r) for r in records],
        "labels": labels | {name: palette.title(name) for name in methods},
        "colours": {name: palette.look(name).colour for name in methods},
        "shares": sorted(name for name in names if palette.is_share(name)),
        "bytes": sorted(name for name in names if palette.is_bytes(name)),
        "axes": list(COUNTED),
        "spec": _spec(),
    }


def _run(record: Record) -> dict[str, Any]:
    params = record.overrides.get("params", {})  # what was set; the method's defaults would fill the table
    summary = record.summary | {f"bytes.{kind}": count for kind, count in record.bytes.items()}
    return {
        "key": record.key,
        "experiment": record.experiment,
        "method": method_of(record),
        "params": ", ".join(f"{k}={_short(v)}" for k, v in params.items()),
        "seed": record.config.get("seed"),
        "status": record.status,
        "reason": record.reason,
        "summary": {k: _finite(v) for k, v in summary.items() if _fits(v) and palette.label(k) != k},
        "curve": {name: [_finite(v) for v in column] for name, column in record.curve.items()},
    }


def _spec() -> dict[str, Any]:
    """The chart without data, as Vega-Lite: the page fills in rows, titles and scales as the reader chooses."""
    try:
        import altair as alt
    except ImportError as error:
        raise ReportError("the dashboard needs the Python package altair: pip install 'dlopt[report]'") from error
    chart = (
        alt.Chart(alt.Data(values=[]))
        .mark_line(interpolate="linear", strokeWidth=1.6, opacity=0.85, clip=True)
        .encode(
            x=alt.X("x:Q"),
            y=alt.Y("y:Q"),
            color=alt.Color("method:N", legend=None),
            detail="run:N",
            strokeDash=alt.condition("datum.status === 'diverged'", alt.value([5, 4]), alt.value([1, 0])),
            tooltip=[alt.Tooltip(f"{name}:N", title=palette.label(name)) for name in ("method", "params", "seed")],
        )
        .properties(width="container", height=330)
        .configure(font=f"system-ui, '{FONT}', sans-serif")
    )
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("$schema", None)  # an address that nobody asks, but a reader might wonder about
    return spec


@cache  # seconds for each call
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script, from the package that altair uses for it."""
    try:
        import vl_convert
    except ImportError as error:
        raise ReportError(
            "the dashboard needs the Python package vl-convert-python: pip install 'dlopt[report]'"
        ) from error
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # its many short names stay inside of a function; it leaves vegaEmbed on the window
    return "(() => {" + bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--") + "})();"


def _fits(value: Any) -> bool:
    return not isinstance(value, list | Mapping) and len(str(value)) <= LONGEST


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
