"""Decoders at the sizes of published models: time against the memory's limit, and where it goes."""

import pandas as pd

from shadowcore.report import PUBLISHED, style
from shadowcore.report.figures.lines import curves
from shadowcore.report.looks import look
from shadowcore.report.select import where
from shadowcore.report.style import GREY, Drawing
from shadowcore.report.tables import Tables

RANK, BITS = 256, 16  # of the predictors compared at equal sizes
# widths compared, by name: ranks for neurons of the one predictor and of those of every layer
WIDTHS = {
    "2048 in both, as published": (2048, 2048),
    "2048 against DejaVu's own 512/1000": (2048, 1000),
    "256 in both": (RANK, RANK),
}
NOTHING = "no predictors at 50 % with random weights in the tables"
MODES = ("static", "given", "shadow", "layerwise")
DENSE = ("dense", "cublas", "compiled", "huggingface", "huggingface_static")
SETTING = ["device", "model", "batch", "prompt_tokens", "new_tokens"]
TIMES = ("ms_per_token", "ms_p10", "ms_p90")
PARTS = {
    "attention_ms": ("attention", "#56B4E9"), "ffn_ms": ("FFN", "#0072B2"),
    "norms_ms": ("residual and norms", "#999999"), "vocabulary_ms": ("vocabulary", "#E69F00"),
    "predictor_ms": ("predictor and selection", "#D55E00"),
}  # fmt: skip


def timed(tables: Tables) -> pd.DataFrame:
    """Rows with random weights; `roof_ms`: of their bytes at the run's best ceiling; `main`: of the main lengths."""
    rows = tables["latency"]
    rows = rows[(rows["weights"] == "random") & rows["roofline_ms"].notna()]
    best = rows.groupby("device")["ceiling_gb_s"].transform("max")
    modes = rows.groupby(SETTING)["mode"].transform("size")
    main = modes == modes.groupby([rows["device"], rows["model"]]).transform("max")
    return rows.assign(roof_ms=rows["roofline_ms"] * rows["ceiling_gb_s"] / best, main=main)


def alike(rows: pd.DataFrame, mode: str, rank: int = RANK, bits: int = BITS) -> pd.DataFrame:
    """One mode's rows by rising sparsity; of predictors those of one rank and number format."""
    found = where(rows, mode=mode).sort_values("sparsity_pct")
    predicted = found["predictor_rank"].notna()
    return found[~predicted | ((found["predictor_rank"] == rank) & (found["predictor_bits"] == bits))]


def layerwise_over_shadow(rows: pd.DataFrame, ranks: tuple[int, int], pct: int = 50) -> pd.Series:
    """Time of layerwise over shadow at these ranks and one sparsity, by model; both of one run, else no row."""
    keys = ["model", "ceiling_gb_s"]  # a run measures its ceiling once
    half = rows[rows["sparsity_pct"] == pct]
    shadow, layerwise = (
        alike(half, mode, rank).set_index(keys)["ms_per_token"]
        for mode, rank in zip(("shadow", "layerwise"), ranks, strict=True)
    )
    return (layerwise / shadow).dropna().droplevel("ceiling_gb_s")


def published_ratios() -> pd.Series:
    """Published times of layerwise over shadow at half the units, by model."""
    rows = where(pd.read_csv(PUBLISHED), quantity="latency", sparsity_pct=50)
    times = rows.pivot(index="model", columns="method", values="value")
    return times["layerwise"] / times["shadow"]


def decoding(tables: Tables, model: str) -> Drawing:
    """Time per token against sparsity, and the time that its bytes take at the memory's limit (dotted)."""
    rows = where(timed(tables), model=model, main=True)
    if rows.empty:
        return "no times with random weights in the tables"
    dense = rows[rows["mode"].isin(DENSE)].nsmallest(1, "ms_per_token").iloc[0]  # the fastest
    black = look("dense").color
    figure, panels = style.panels(2, height=3.0)
    sparse = pd.concat(alike(rows, mode) for mode in MODES).rename(columns={"mode": "method"})
    sparse = sparse.assign(gain=dense["ms_per_token"] / sparse["ms_per_token"])
    levels = (dense["ms_per_token"], 1)
    for panel, level in zip(panels, levels, strict=True):
        panel.axhline(level, color=black)
    ends = [curves(panels[0], sparse, columns=TIMES), curves(panels[1], sparse, columns=("gain",))]
    for method, rows in sparse[sparse["method"] != "given"].groupby("method", sort=False):  # as static's
        panels[0].plot(rows["sparsity_pct"], rows["roof_ms"], color=look(method).color, linestyle=":", linewidth=1)
    panels[0].set(ylim=(0, None), ylabel="ms per token")
    panels[1].set(ylabel="times faster than the fastest dense")
    name = "dense" if dense["mode"] == "dense" else f"dense ({dense['mode']})"
    for panel, labels, level in zip(panels, ends, levels, strict=True):
        panel.set_xlabel("heads and neurons removed (%)")
        style.whole_ticks(panel)
        style.end_labels(panel, [*labels, (panel.get_xlim()[1], level, name, black)])
    limit = "the bytes of that method at the memory's limit (static and given read the same bytes: one line)"
    style.legend(figure, [style.key(limit, GREY, line=":")])
    facts = [model, dense["device"], dense["dtype"], "random weights", f"predictors of rank {RANK}"]
    style.title(figure, "Time per token and speed-up against sparsity: median, 10th to 90th percentile", facts)
    return figure


def scaling(tables: Tables, _: str) -> Drawing:
    """Time of layerwise over shadow at 50 % for every size, and the published ratios."""
    rows, shadow = _at_half(tables)
    if shadow.empty:
        return NOTHING
    figure, (axes,) = style.panels(1, height=3.0)
    handles, color = [], look("shadow").color
    looks = [{"marker": "D"}, {"marker": "^", "markerfacecolor": "none"}, {"marker": "o", "markerfacecolor": "none"}]
    for (name, ranks), drawn in zip(WIDTHS.items(), looks, strict=True):
        values = layerwise_over_shadow(rows, ranks).reindex(shadow.index)
        if values.notna().any():
            axes.plot(range(len(shadow)), values, linestyle="", color=color, **drawn)
            handles.append(style.key(f"ranks {name}", color, line="", **drawn))
    published = published_ratios().reindex(shadow.index)
    axes.plot(range(len(shadow)), published, linestyle="", marker="x", color="#D55E00")
    axes.axhline(1, color=look("dense").color)
    axes.set(ylabel="time of layerwise / of shadow", ylim=(0.9, None))
    handles.append(style.key("published: ranks 2048 in both, 1 to 4 A100", "#D55E00", "x", ""))
    facts = ["50 % of heads and neurons removed", "random weights"]
    return _by_size(figure, shadow, handles, "One predictor per layer against one: ratio of times per token", facts)


def step_parts(tables: Tables, _: str) -> Drawing:
    """Where the time of a step of shadow goes at 50 %, for every size."""
    _rows, shadow = _at_half(tables)
    if shadow.empty or shadow[list(PARTS)].isna().all(axis=None):
        return NOTHING
    figure, (axes,) = style.panels(1, height=3.0)
    places, below = range(len(shadow)), shadow[list(PARTS)].fillna(0).T.cumsum().shift(fill_value=0).T
    for column, (_label, color) in PARTS.items():
        axes.bar(places, shadow[column], bottom=below[column], color=color, width=0.7)
    axes.plot(places, shadow["ms_per_token"], linestyle="", marker="_", color="black", markersize=16)
    axes.set(ylabel="ms per token")
    handles = [*(style.key(*part, "s", "") for part in PARTS.values()), style.key("whole step", "black", "_", "")]
    facts = [f"shadow of rank {RANK}, 50 % removed", "random weights"]
    return _by_size(figure, shadow, handles, "Where a step's time goes: parts timed alone", facts)


def _at_half(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the main lengths, and shadow's at 50 % of each model, models by size."""
    rows = where(timed(tables), main=True)
    shadow = alike(where(rows, sparsity_pct=50), "shadow").set_index("model").sort_values("gb_per_token")
    return rows, shadow


def _by_size(figure, shadow: pd.DataFrame, handles: list, heading: str, facts: list[str]) -> Drawing:
    """The figure with its models below, its legend and its title."""
    figure.axes[0].set_xticks(range(len(shadow)), list(shadow.index), rotation=30, ha="right")
    style.legend(figure, handles)
    style.title(figure, heading, [shadow["device"].iloc[0], *facts])
    return figure
