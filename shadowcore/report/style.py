"""How every figure looks: one colour and marker per method, panels, axes, and files that repeat to the byte.

The only module that imports matplotlib. Colours are those of Okabe and Ito's palette, which readers with
any common colour blindness can tell apart; markers say the same thing again for a black and white print.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from shadowcore import artifacts
from shadowcore.artifacts import Header

FIGURE_SCHEMA = "figure/1"
NOTHING = "nothing to show"


class Look(NamedTuple):
    """How a method is named and drawn."""

    label: str
    color: str
    marker: str


METHODS = {
    "dense": Look("dense", "#000000", ""),
    "huggingface": Look("Hugging Face, dense", "#666666", "P"),
    "random": Look("random", "#8C8C8C", "X"),
    "static": Look("static (mean scores)", "#E69F00", "s"),
    "given": Look("given (static units, gathered)", "#C9A66B", "d"),
    "threshold": Look("threshold (magnitude)", "#B8A800", "p"),
    "griffin": Look("griffin (large over the prompt)", "#7F3C8D", "h"),
    "relu": Look("relu (zeros, lossless)", "#8B4513", "*"),
    "shadow": Look("shadow (one predictor)", "#0072B2", "o"),
    "segments": Look("segments (one per group of layers)", "#56B4E9", "v"),
    "layerwise": Look("layerwise (one per layer)", "#009E73", "^"),
    "layerwise_own": Look("layerwise, reading its own layer", "#D55E00", "<"),
    "oracle": Look("oracle (true scores)", "#CC79A7", "D"),
}
CRITERIA = {
    "plainact": Look("plainact", "#0072B2", "o"),
    "l2_norm": Look("l2_norm", "#E69F00", "s"),
    "grad_norm": Look("grad_norm", "#009E73", "^"),
    "fisher": Look("fisher", "#D55E00", "D"),
    "snip": Look("snip", "#CC79A7", "v"),
    "nwot": Look("nwot", "#56B4E9", "P"),
    "output_norm": Look("output_norm", "#000000", "*"),
    "grasp": Look("grasp", "#B8A500", "<"),
    "jacov": Look("jacov", "#7A5195", ">"),
    "epenas": Look("epenas", "#8B5A2B", "d"),
    "random": METHODS["random"],
}
ROUNDS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # of a predictor's training, in order
ORDER = {method: rank for rank, method in enumerate(METHODS)}
FAINT = "#D9D9D9"

RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EBEBEB",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts as text, not outlines
    "svg.hashsalt": "shadowcore",
}
PNG_DPI = 150


def look(method: str) -> Look:
    """The look of a method; one that is not in METHODS is drawn yellow under its own name."""
    return METHODS.get(method, Look(method, "#F0E442", "p"))


def look_of_criterion(criterion: str) -> Look:
    """The look of a criterion where lines tell criteria apart."""
    return CRITERIA.get(criterion, Look(criterion, "#666666", "h"))


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with the settings of this module, whatever matplotlib was told before."""

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
            with artifacts.replacing(paths[-1]) as partial:
                figure.savefig(partial, format=kind, dpi=PNG_DPI, metadata=entries)
    return paths


def panels(
    count: int, columns: int | None = None, size: tuple[float, float] = (3.3, 2.7), **shared: bool | str
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of `size` inches, in at most three columns unless `columns` is given."""
    columns = columns or {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows = math.ceil(count / columns)
    width = max(columns * size[0], 5.0)  # room for the title
    figure = Figure(figsize=(width, rows * size[1] + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def empty(message: str) -> Figure:
    """A figure that says why it shows nothing; its label is NOTHING."""
    figure = Figure(figsize=(5, 2), layout="constrained", label=NOTHING)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(message, 60), ha="center", va="center", transform=axes.transAxes)
    return figure


def title(figure: Figure, heading: str, details: Iterable[str]) -> None:
    """What is shown, above everything: the heading, then model, data and counts."""
    width = int(figure.get_figwidth() * 13)  # letters of this size in the width
    lines = [*textwrap.wrap(heading, width), *textwrap.wrap(" · ".join(details), width)]
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


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with its 1, 2 and 5 written as plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 4 * low else range(1, 10)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def whole_ticks(axes: Axes) -> None:
    """At most seven ticks on x, at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def colour_scale(low: float, high: float) -> Normalize:
    """Logarithmic between positive ends, else linear: importance spans orders of magnitude."""
    return LogNorm(low, high) if 0 < low < high else Normalize(low, high)


def colour_bar(image: AxesImage, axes: Axes, label: str) -> None:
    """The scale of an image's colours beside it, open at both ends, in plain numbers."""
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(image.norm, LogNorm) else None
    bar = axes.figure.colorbar(image, ax=axes, label=label, extend="both", pad=0.02, ticks=ticks, format="%g")
    bar.minorticks_off()
