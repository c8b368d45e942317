"""How every figure looks: one colour and marker per method, panels, axes, and files that repeat to the byte.

The only module that imports matplotlib. Colours can be told apart with any common colour blindness; markers and
labels at the ends of lines say the same again in black and white.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from shadowcore import artifacts, atomic
from shadowcore.artifacts import Header
from shadowcore.report.looks import look

FIGURE_SCHEMA = "figure/1"
End = tuple[float, float, str, str]  # x, y, label, color of the last point of a line
Drawing = Figure | str  # a figure, or the reason why there is nothing to show
FAINT, GREY = "#D9D9D9", "#666666"
HALO = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5}  # behind labels that cross lines
LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "linestyle": ":"}  # from a point to its label
WIDTH = 8.5  # inches of a figure, at most: text of 9 points is read well at 800 pixels

RC = {
    "font.size": 9, "axes.titlesize": 9, "figure.titlesize": 10, "legend.fontsize": 8.5, "legend.frameon": False,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "lines.linewidth": 1.4, "lines.markersize": 4.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": "#EBEBEB", "grid.linewidth": 0.6, "svg.hashsalt": "shadowcore",
    "pdf.fonttype": 42,  # fonts as text, not outlines
}  # fmt: skip
PNG_DPI = 150


def styled(draw: Callable[..., Drawing]) -> Callable[..., Drawing]:
    """Draw with the settings of this module, whatever matplotlib was set to before."""

    @wraps(draw)
    def drawing(*arguments):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            return draw(*arguments)

    return drawing


def save(figure: Figure, stem: Path, header: Header) -> list[Path]:
    """Write `stem`.pdf and `stem`.png with their header, byte for byte the same for equal figures; return the paths."""
    stem = Path(stem)
    made_of = artifacts.origin(FIGURE_SCHEMA, header)
    # no dates, and no versions but those of the header
    metadata = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None, "Keywords": made_of},
        "png": {"Software": None, artifacts.METADATA_KEY: made_of},
    }
    paths = []
    with matplotlib.rc_context(RC):
        for kind, entries in metadata.items():
            paths.append(stem.with_name(f"{stem.name}.{kind}"))
            with atomic.replacing(paths[-1]) as partial:
                figure.savefig(partial, format=kind, dpi=PNG_DPI, metadata=entries)
    return paths


def panels(count: int, columns: int | None = None, height: float = 2.6, **shared: object) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of a height in inches, in at most three columns unless `columns` is given."""
    columns = columns or {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 0.75 * WIDTH, rows * height + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def title(figure: Figure, heading: str, details: Iterable[str]) -> None:
    """What is shown, above everything: the heading, then model, data and counts, each on one line."""
    width = int(figure.get_figwidth() * 13)  # letters of this size in the width
    facts = textwrap.wrap("~· ".join(fact.replace(" ", "~") for fact in details), width, break_on_hyphens=False)
    lines = [*textwrap.wrap(heading, width), *(line.removesuffix("~·").replace("~", " ") for line in facts)]
    figure.suptitle("\n".join(lines))


def legend(figure: Figure, handles: Iterable[Line2D]) -> None:
    """One legend below all panels, an entry per label."""
    entries = {handle.get_label(): handle for handle in handles}
    if entries:
        letters = 7 + max(map(len, entries))
        columns = max(1, min(len(entries), int(figure.get_figwidth() * 15 / letters)))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def key(label: str, color: str, marker: str = "", line: str = "-", **more: object) -> Line2D:
    """An entry of the legend."""
    return Line2D([], [], label=label, color=color, marker=marker, linestyle=line, **more)


def end_labels(axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's label at its last point: right of the panel if the point is near. Set limits and scales before.

    Labels are moved up or down until none covers another; a thin dotted leader then joins the point and its label.
    """
    axes.autoscale_view()
    to_panel = axes.transScale + axes.transLimits  # data to fractions of the panel
    room = axes.figure.get_figheight() - 0.9
    rows = axes.get_subplotspec().get_gridspec().nrows if axes.get_subplotspec() else 1
    gap = 0.14 / max(room / rows - 0.5, 1)  # a line of text, as a fraction of the panel
    columns: dict[float, list[tuple[float, float, End]]] = {}
    for end in ends:
        x, y = to_panel.transform(end[:2])
        if -1e-6 <= y <= 1 + 1e-6:
            columns.setdefault(1.04 if x > 0.85 else round(x + 0.02, 6), []).append((y, x, end))
    for left, labels in columns.items():
        labels.sort(key=lambda label: label[0])
        below = 0.6 * gap if left < 1 else 0  # in the panel, below the lines of methods, most of which rise
        sizes = [gap * (end[2].count("\n") + 1) for *_, end in labels]
        heights = _apart([y - below for y, *_ in labels], sizes)
        for (y, x, (*_, label, color)), height in zip(labels, heights, strict=True):
            far = abs(height + below - y) > gap / 2 or x < left - 0.1
            axes.annotate(
                label, (x, y), (left, height), "axes fraction", "axes fraction", color=color, va="center", fontsize=8,
                annotation_clip=False, bbox=HALO if left < 1 else None, linespacing=1,
                arrowprops=LEADER | {"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4} if far else None,
            )  # fmt: skip


def _apart(wanted: Sequence[float], sizes: Sequence[float]) -> np.ndarray:
    """Rising heights, as near to those wanted as `sizes` of labels allow, below the top if there is room."""
    heights, apart = np.array(wanted), [sum(both) / 2 for both in pairwise(sizes)]
    for number, gap in enumerate(apart):
        heights[number + 1] = max(heights[number + 1], heights[number] + gap)
    heights[-1] = min(heights[-1], max(1, sum(apart) - 0.1))
    for number in range(len(apart) - 1, -1, -1):
        heights[number] = min(heights[number], heights[number + 1] - apart[number])
    return heights


def counted(row: Mapping[str, Any], what: str = "") -> str:
    """How many documents of an evaluated text were measured, or windows of a calibration text: a fact for the title."""
    text, things = (row["data"], "documents") if "data" in row else (row["calibration"], "windows")
    return f"{text}: {row['n']:,} {what or things}"


def level(axes: Axes, value: float, low: float, high: float) -> None:
    """The dense model: a horizontal line with its interval as a band."""
    if low == low:  # no band without an interval (NaN)
        axes.axhspan(low, high, color=FAINT, alpha=0.6, linewidth=0, zorder=0)
    axes.axhline(value, color=look("dense").color, linewidth=1.2)


def named_rows(axes: Axes, names: Sequence[str]) -> None:
    """A y axis with a name for each place, the first at the top."""
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", visible=False)


def log_axis(axes: Axes, label: str, which: str = "y") -> None:
    """A logarithmic axis that says so: plain numbers at enough ticks, and small ticks between them."""
    axes.set(**{f"{which}scale": "log", f"{which}label": f"{label} (log scale)"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    numbers = (1,) if high > 1000 * low else (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)
    axis.set_major_locator(MaxNLocator(5) if high < 3 * low else LogLocator(subs=numbers))
    axis.set_minor_locator(LogLocator(subs=range(1, 10)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))


def whole_ticks(axes: Axes) -> None:
    """At most seven ticks on x, at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def colour_map(axes: Axes, values: np.ndarray, low: float, high: float, label: str, **shown: object) -> None:
    """Values as colours with their scale at the right, logarithmic between positive ends, open, in plain numbers."""
    norm = LogNorm(low, high) if 0 < low < high else Normalize(low, high)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", norm=norm, **shown)
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(norm, LogNorm) else None
    bar = axes.figure.colorbar(image, ax=axes, label=label, extend="both", pad=0.02, ticks=ticks, format="%g")
    bar.minorticks_off()
    axes.grid(False)
