"""The ground on which figures are drawn: size, font, axes, legends outside of the axes, and writing SVG.

Nothing here touches pyplot or matplotlib's global settings: the style holds while a figure is made or written.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dlopt.lab import fonts, palette
from dlopt.lab.record import write_atomic
from dlopt.memory import human

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.3  # inches: 16 cm, the text width of a report
FONT_SIZE = 9.0


class Interval(Protocol):
    """A mean with the ends of its interval. Anything with these three will do."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


Number = float | int | Interval


def spread(value: Number) -> tuple[float, float, float]:
    """(mean, low, high) of a number or an interval."""
    if isinstance(value, int | float):
        return float(value), float(value), float(value)
    return float(value.mean), float(value.low), float(value.high)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The lab's look, for as long as a figure is made or written."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "font.family": [_family()],  # by its own name: texts keep it when they are drawn later, without this style
        "font.size": FONT_SIZE,
        "axes.titlesize": FONT_SIZE,
        "axes.labelsize": FONT_SIZE,
        "xtick.labelsize": FONT_SIZE - 1,
        "ytick.labelsize": FONT_SIZE - 1,
        "legend.fontsize": FONT_SIZE,
        "axes.unicode_minus": False,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.4,
        "grid.color": "#DDDDDD",
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.5,
        "figure.constrained_layout.w_pad": 0.05,
        "figure.constrained_layout.h_pad": 0.05,
        "hatch.linewidth": 0.5,
        "mathtext.fontset": "dejavusans",
        "svg.fonttype": "path",
        "svg.hashsalt": "dlopt",
        "path.simplify": True,
    }
    with mpl.rc_context(settings):
        yield


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of 16 cm width with `count` axes side by side; `height` in inches, legend included."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def axis(axes: Axes, which: str, column: str, log: bool = False, title: str = "") -> None:
    """Name and scale of one axis ("x" or "y") by the column it shows: percent, bytes, or plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    side = axes.xaxis if which == "x" else axes.yaxis
    side.set_label_text(title or palette.label(column))
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        if palette.is_bytes(column):
            # powers of two, of which a decade has three; the ticks between would be written as plain powers of ten
            side.set_major_locator(LogLocator(base=2, numticks=7))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter(FuncFormatter(lambda v, _: human(v)))
        return
    side.set_major_locator(MaxNLocator(nbins=5 if which == "x" else 6, steps=[1, 2, 2.5, 5, 10]))
    if palette.is_share(column) or palette.is_bytes(column):
        write = writer(column)
        side.set_major_formatter(FuncFormatter(lambda v, _: write(v)))
        side.set_gid("bytes" if palette.is_bytes(column) else None)
    else:
        side.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))


def writer(column: str) -> Callable[[float], str]:
    """How the numbers of a column are written in a figure."""
    if palette.is_share(column):
        return lambda v: f"{100 * v:.4g}%"
    return human if palette.is_bytes(column) else plain


def plain(value: object) -> str:
    """A setting or a tick in few letters: 20000 -> 2万, 0.001 -> 0.001, 3.2e-05 -> 3.2e-5."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1e4 and value % 1000 == 0:
        return f"{value / 1e8:g} 亿" if abs(value) >= 1e8 else f"{value / 1e4:g} 万"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def literal(text: str) -> str:
    """A name as text: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put a legend below the axes, in as many columns as fit the width."""
    if not labels:
        return
    # widths in em: a Chinese letter is one, a Latin one about 0.56; 3.6 for the handle and the gaps
    widest = max(sum(1.0 if ord(c) > 0x2E7F else 0.56 for c in text) for text in labels) + 3.6
    columns = max(1, min(len(labels), int(WIDTH * 72 / FONT_SIZE / widest)))
    rows = math.ceil(len(labels) / columns)
    figure.legend(
        handles,
        [literal(text) for text in labels],
        loc="outside lower center",
        ncols=math.ceil(len(labels) / rows),
        frameon=False,
        handlelength=2.0,
        columnspacing=1.4,
    )


def finish(figure: Figure) -> Figure:
    """Settle the layout once and for all: constrained layout would move things a little at each writing."""
    from matplotlib.ticker import MultipleLocator

    for axes in figure.axes:
        for side in (axes.xaxis, axes.yaxis):
            if side.get_gid() == "bytes":
                # 64 KiB, 128 KiB, ...: ticks at round decimal numbers of bytes would read 97.7 KiB
                low, high = side.get_view_interval()
                side.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(max(high - low, 1) / 5))))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def svg(figure: Figure) -> str:
    """The figure as SVG text: the same figure gives the same text, at any time and in any process."""
    with style():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to an .svg file, whole or not at all."""
    write_atomic(path, svg(figure).encode())
    return path


@cache
def _family() -> str:
    """Tell matplotlib about the Chinese font; the name under which it knows it."""
    from matplotlib.font_manager import FontProperties, fontManager

    path = fonts.find(fonts.SANS)
    fontManager.addfont(path)
    return FontProperties(fname=path).get_name()
