"""Tables of docs/speed.md and docs/tried.md: proxies, heads in batches, variants of the kernels of batches."""

from __future__ import annotations

import pandas as pd
from accuracy_tables import REFERENCE, table
from markdown_tables import lowest_to_highest, markdown
from thresholds import by_size, sparse
from tried_tables import BYTES, bytes_of_kernels

from shadowcore.models.published import PUBLISHED
from shadowcore.report.figures.scaling import RANK

PROXIES = ("proxy4", "proxy3", "proxy4_ahead", "proxy3_ahead")


def head_times() -> pd.DataFrame:
    """Milliseconds of a step, heads skipped per sequence: a row for (sequences, prompt), a column a mode."""
    return table("latency", "batches-h200").set_index(["batch", "prompt_tokens", "mode"])["ms_per_token"].unstack()


def head_batch(sequences: int | str, prompt: int | str, *over: str) -> str:
    """The speed-up of a batch over the fastest of some dense decoders, or of all, if half of the heads are skipped."""
    row = head_times().loc[(int(sequences), int(prompt))]
    return f"{row[list(over or ('dense', 'cublas'))].min() / row['shadow']:.2f}"


def head_batches() -> list[str]:
    """Times of every batch, and the speed-up over the fastest dense decoder."""
    rows = [
        [*setting, *(f"{row[mode]:.2f}" for mode in ("dense", "cublas", "shadow")), head_batch(*setting)]
        for setting, row in head_times().iterrows()
    ]
    return markdown(["sequences", "prompt", "dense, ours", "cuBLAS", "50 % of heads", "speed-up"], rows)


def variant_times() -> pd.DataFrame:
    """Times of variants of the kernels of batches, with the change from the kernels that took turns with them."""
    rows, keys = pd.read_csv(REFERENCE / "batches-h200" / "kernel_variants.csv"), ["run", "sequences", "sparsity_pct"]
    before = rows["ms_per_token"].where(rows["variant"] == "main").groupby([rows[key] for key in keys]).transform("max")
    return rows.assign(change_ms=rows["ms_per_token"] - before, change_pct=(rows["ms_per_token"] / before - 1) * 100)


def variant_change(variant: str, pct: str, *sequences: str) -> str:
    """By how many percent a variant changed the time of a step: the range over batches of some sizes, or all."""
    rows = variant_times()
    chosen = (rows["variant"] == variant) & (rows["sparsity_pct"] == int(pct))
    found = rows[chosen & (rows["sequences"].astype(str).isin(sequences) | (not sequences))]["change_pct"]
    return lowest_to_highest(found, "+.1f") + " %"


def kernel_variants() -> list[str]:
    """Milliseconds of a step, and by how many each variant changed them; in brackets the prediction."""
    rows, lines = variant_times().drop_duplicates(["variant", "sequences", "sparsity_pct"]), []
    for (variant, pct), found in rows.groupby(["variant", "sparsity_pct"], sort=False):
        cells = [f"{ms:.2f}" for ms in found["ms_per_token"]]
        if variant != "main":
            foreseen = ("" if pd.isna(ms) else f" ({ms:+z.2f})" for ms in found["predicted_change_ms"])
            cells = [f"{ms:+z.2f}{told}" for ms, told in zip(found["change_ms"], foreseen, strict=True)]
        lines.append([f"`{variant}`", f"{pct} %", *cells])
    return markdown(["kernels", "removed", *(f"{count} sequences" for count in rows["sequences"].unique())], lines)


def head_gain(model: str, sequences: int | str, tokens: int | str) -> str:
    """The speed-up that bytes allow if each sequence keeps a random half of the heads, in all layers but the first."""
    size, sizes = PUBLISHED[model], PUBLISHED[model].dimensions
    layers, group = sizes.layers - 1, sizes.heads // sizes.kv_heads
    cache = int(sequences) * int(tokens) * 2 * sizes.kv_heads * sizes.head_width  # numbers in a layer
    queries_and_outputs = 2 * sizes.width * sizes.heads * sizes.head_width
    skipped = layers * (queries_and_outputs / 2 ** int(sequences) + cache / 2**group)
    dense = size.multiplied + sizes.layers * cache
    return f"{dense / (dense - skipped + RANK * (sizes.width + layers * sizes.heads)):.2f}"


def head_gains(model: str) -> list[str]:
    """`head_gain` for some batches and lengths of the cache."""
    lengths = (512, 2048, 4096)
    rows = [[count, *(head_gain(model, count, tokens) for tokens in lengths)] for count in (1, 4, 16, 32, 64)]
    return markdown(["sequences", *(f"{tokens:,} tokens" for tokens in lengths)], rows)


def with_proxies(rows: pd.DataFrame) -> list[str]:
    """The models that were timed with proxies, by size."""
    timed = set(rows.loc[rows["mode"].isin(PROXIES), "model"])
    return [model for model in by_size(rows) if model in timed]


def proxy_gains(rows: pd.DataFrame, neurons: pd.DataFrame) -> list[str]:
    """Speed-ups of decoders that choose neurons only, and those that their bytes allow; `neurons`: without proxies."""
    models, lines = with_proxies(rows), []
    for pct in (50, 70):
        for mode in ("given", "shadow", *PROXIES):
            found = sparse(rows if mode in PROXIES else neurons, mode)
            if pct in found.index.get_level_values("sparsity_pct"):
                found = found.xs(pct, level="sparsity_pct").reindex(models)
                pairs = found[["gain", "allowed"]].to_numpy()
                cells = ["" if pd.isna(gain) else f"{gain:.2f} ({allowed:.2f})" for gain, allowed in pairs]
                lines.append([f"{pct} %", mode, *cells])
    return markdown(["removed", "neurons chosen by", *models], lines)


def upper_half_gain(model: str, pct: str, where: str) -> str:
    """The speed-up over dense decoding that bytes allow with weights of 8 bits, if copies of 4 bits choose the neurons.

    where: "inside", the copies are the upper halves of the weights; "beside", they are read in addition.
    """
    size = PUBLISHED[model]
    rows_in, rows_out, kept_in, kept_out = (  # weights, of a byte each
        bytes_of_kernels(model, removed)[kernel] / BYTES
        for removed in (0, int(pct))
        for kernel in ("FFN in", "FFN out")
    )
    copies = rows_in / 2
    again = kept_in / 2 if where == "inside" else kept_in  # inside, only the lower halves
    skipped = rows_in + rows_out - (copies + again + kept_out)
    return f"{size.multiplied / (size.multiplied - (size.dimensions.layers - 1) * skipped):.2f}"


def proxy_costs(rows: pd.DataFrame, mode: str) -> list[str]:
    """What choosing costs a proxy at 50 %, and what it would cost at the memory's limit."""
    ahead, lines = sparse(rows, f"{mode}_ahead"), []
    found = sparse(rows, mode)
    for model in with_proxies(rows):
        row = found.loc[(model, 50)]
        limit = row["predictor_mb"] / rows["ceiling_gb_s"].max()
        hidden = row["ms_per_token"] - ahead.loc[(model, 50), "ms_per_token"]
        numbers = (row["ms_per_token"], row["predictor_ms"], row["selection_ms"], limit, hidden)
        lines.append([model, *map("{:.2f}".format, numbers)])
    names = ["ms a token, 50 % removed", "whole step", "choosing", "of it: finding the largest scores"]
    return markdown([*names, "reading the copies at the limit", "saved by choosing ahead"], lines)
