"""Where a layer's time goes, and kernel changes for one sequence that were tried: docs/speed.md and docs/tried.md."""

from __future__ import annotations

import pandas as pd
from accuracy_tables import REFERENCE
from markdown_tables import lowest_to_highest, markdown

from shadowcore.method.policies import kept_units
from shadowcore.models.families import FAMILIES
from shadowcore.models.published import PUBLISHED

FOLDER = REFERENCE / "tried-h200"
LIMIT_GB_S = 4382  # the highest rate of reading that the run of the timeline measured
CACHED_TOKENS = 130  # when the timeline was taken
BYTES = 2  # of a number in bfloat16
KERNELS = {
    "query, key, value": "query, key and value rows",
    "attention": "attention",
    "output": "sum of output rows",
    "settle": "residual and norm",
    "FFN in": "FFN, first rows",
    "FFN out": "FFN, sum of last rows",
    "settle after FFN": "residual and norm, after the FFN",
}
KINDS = {
    "products": ("query, key, value", "FFN in"),
    "sums": ("output", "FFN out"),
    "others": ("attention", "settle", "settle after FFN"),
}


def bytes_of_kernels(model: str, pct: int) -> dict[str, int]:
    """Bytes of weights, keys and values that each kernel of a layer reads if so many units are removed."""
    family, sizes = PUBLISHED[model].family, PUBLISHED[model].dimensions
    heads, neurons = (kept_units(units, pct) for units in (sizes.heads, sizes.neurons))
    of_head, row = sizes.head_width * BYTES, sizes.width * BYTES
    return {
        "query, key, value": (heads + 2 * sizes.kv_heads) * sizes.head_width * row,
        "attention": 2 * heads * sizes.kv_heads // sizes.heads * CACHED_TOKENS * of_head,
        "output": heads * sizes.head_width * row,
        "FFN in": len(FAMILIES[family].ffn_in) * neurons * row,
        "FFN out": neurons * row,
    }


def timeline() -> pd.DataFrame:
    """Microseconds of a layer's kernels, by model and sparsity, dense or with given units, in their order.

    `us`: from the last end of the kernel before to its own. `bytes_us`: its bytes at the memory's limit. `handed_us`:
    from the last end before until a first program has waited; `first_us`: from then until a first program ends.
    """
    rows = pd.read_csv(FOLDER / "timeline.csv").query("mode in ('dense', 'given')")
    before = rows.groupby(["model", "sparsity_pct"])["last_end_us"].shift(fill_value=0)
    sizes = zip(rows["model"], rows["sparsity_pct"], rows["kernel"], strict=True)
    read = [bytes_of_kernels(model, pct).get(kernel, 0) for model, pct, kernel in sizes]
    parts = {"us": rows["last_end_us"] - before, "bytes_us": pd.Series(read, rows.index) / LIMIT_GB_S / 1e3}
    parts |= {"handed_us": rows["first_waited_us"] - before, "first_us": rows["first_end_us"] - rows["first_waited_us"]}
    rows = rows.assign(**parts, longer_us=parts["us"] - parts["bytes_us"])
    return rows.set_index(["model", "sparsity_pct", "kernel"]).sort_index()


def layer_times(*models: str) -> list[str]:
    """Microseconds of every kernel of a layer, dense and at 50 %; in brackets those of its bytes at the limit."""
    columns = [(model, pct) for model in models for pct in (0, 50)]
    found, lines = timeline()[["us", "bytes_us"]], []
    for kernel, name in KERNELS.items():
        pairs = (found.loc[(*column, kernel)] for column in columns)
        lines.append([name, *(f"{us:.1f}" + (f" ({limit:.1f})" if limit else "") for us, limit in pairs)])
    layers = [found.loc[column].sum() for column in columns]
    lines.append(["**layer**", *(f"**{us:.1f}** ({limit:.1f})" for us, limit in layers)])
    lines.append(["not explained by bytes", *(f"{100 * (1 - limit / us):.0f} %" for us, limit in layers)])
    return markdown(["µs", *(f"{model}, {f'{pct} %' if pct else 'dense'}" for model, pct in columns)], lines)


def kernel_us(column: str, kind: str, *models: str) -> str:
    """The range of a column of `timeline` over kernels of a kind, or of all kinds, in some models, or all."""
    rows = timeline()[column].reset_index()
    rows = rows[rows["kernel"].isin(KINDS.get(kind, KERNELS)) & (rows["model"].isin(models) | (not models))]
    return lowest_to_highest(rows[column])


def layer_us(kind: str, *models: str) -> str:
    """How much longer than their bytes the kernels of a kind take in a layer, dense or at 50 %: the range."""
    rows = timeline()["longer_us"].reset_index().query("sparsity_pct < 90")
    rows = rows[rows["kernel"].isin(KINDS.get(kind, KERNELS)) & (rows["model"].isin(models) | (not models))]
    return lowest_to_highest(rows.groupby(["model", "sparsity_pct"])["longer_us"].sum(), ".0f")


def cost_of_stamps() -> str:
    """By how many percent a step took longer while its programs wrote their times: the range."""
    rows = pd.read_csv(FOLDER / "timeline.csv")
    return lowest_to_highest((rows["step_ms_with_stamps"] / rows["step_ms_without_stamps"] - 1) * 100, "+z.1f") + " %"


def changes(patch: str) -> pd.DataFrame:
    """Times of a run with every change, next to `main`: the mean of its turns, or its only turn.

    `change_pct` of a step, `change_us` of a layer.
    """
    rows = pd.read_csv(FOLDER / "variants.csv").query("patch == @patch")
    keys = ["model", "sparsity_pct"]
    main = rows["ms_per_token"].where(rows["changes"] == "main").groupby([rows[key] for key in keys]).transform("mean")
    more = rows["ms_per_token"] - main
    return rows.assign(change_pct=more / main * 100, change_us=more / rows["layers"] * 1e3)


def tried_changes(patch: str) -> list[str]:
    """By how many percent each change changed a step, dense and with 50 and 90 % removed: a column a model."""
    found = changes(patch).query("changes != 'main'")
    times = found.set_index(["changes", "model", "sparsity_pct"])["change_pct"]
    models, lines = found["model"].unique(), []
    for name in found["changes"].unique():
        cells = (" / ".join(f"{times[name, model, pct]:+z.1f}" for pct in (0, 50, 90)) for model in models)
        lines.append([said(name), *cells])
    return markdown(["change of a step, %", *models], lines)


def said(name: str) -> str:
    """The settings of a change, as a table shows them."""
    return f"`{name.replace('=True', '')}`"


def tried_predictions(patch: str) -> list[str]:
    """Microseconds of a layer: predicted and measured changes, a row a change and model."""
    keys, sparsities = ["changes", "model", "sparsity_pct"], (0, 50)
    rows = pd.read_csv(FOLDER / "predictions.csv").query("patch == @patch")
    foreseen = rows.set_index(keys)["predicted_us_per_layer"]
    found, lines = changes(patch).set_index(keys)["change_us"], []
    for name, model in foreseen.index.droplevel("sparsity_pct").unique():
        cells = []
        for row in ((name, model, pct) for pct in sparsities):
            cells += [f"{foreseen[row]:+z.1f}", f"{found[row]:+z.1f}"] if row in foreseen.index else ["", ""]
        lines.append([said(name), model, *cells])
    return markdown(["change", "model", "dense, predicted", "measured", "50 %, predicted", "measured"], lines)


def tried_noise(*models: str) -> str:
    """By how many percent the two turns of `main` in one run differ: the range over models and sparsities."""
    rows = pd.read_csv(FOLDER / "variants.csv").query("changes == 'main' and patch != 'sizes'")
    rows = rows[rows["model"].isin(models) | (not models)]
    turns = rows.pivot_table(index=["patch", "model", "sparsity_pct"], columns="turn", values="ms_per_token")
    return lowest_to_highest((turns[1] / turns[2] - 1).abs() * 100) + " %"


def tried_drift() -> str:
    """By how many percent `main` took longer in the run of sizes than in the other two: the range."""
    rows = pd.read_csv(FOLDER / "variants.csv").query("changes == 'main'")
    sizes = (rows["patch"] == "sizes").rename("sizes")
    runs = rows.pivot_table(index=["model", "layers", "sparsity_pct"], columns=sizes, values="ms_per_token").dropna()
    return lowest_to_highest((runs[True] / runs[False] - 1) * 100, "+z.1f") + " %"


def tried_change(patch: str, change: str, *models: str) -> str:
    """By how many percent a change, written without spaces, changed a step: the range over models and sparsities."""
    rows = changes(patch)
    rows = rows[(rows["changes"] == change.replace(",", ", ")) & (rows["model"].isin(models) | (not models))]
    return lowest_to_highest(rows["change_pct"], "+z.1f") + " %"


def barrier_us(what: str, programs: str, warps: str) -> str:
    """Microseconds of a barrier of a grid, or of an empty kernel in a row of kernels."""
    rows = pd.read_csv(FOLDER / "barriers.csv").set_index(["what", "programs", "warps"])["us"]
    return f"{rows[what, int(programs), int(warps)]:.2f}"
