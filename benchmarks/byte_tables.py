"""Tables of docs/findings.md, docs/speed.md and docs/claims.md: quality per byte, proxies, heads in batches."""

from __future__ import annotations

import pandas as pd
from accuracy_tables import interval, table
from markdown_tables import markdown
from thresholds import by_size, sparse

from shadowcore.models.published import PUBLISHED
from shadowcore.report.figures.scaling import RANK

KEYS = ["data", "method", "criterion", "predictor", "units", "sparsity_pct", "seed"]
UNTRAINED = ("dense", "random", "static", "oracle", "threshold")
PROXIES = ("proxy4", "proxy3", "proxy4_ahead", "proxy3_ahead")
LEFT_OUT = ("random", "oracle")  # of no use in a decoder


def perplexities(folder: str) -> pd.DataFrame:
    """Perplexities of windows, a row a condition; keys without a value are "-"."""
    found = table("perplexity", folder)
    found = found[(found["task"] == "perplexity") & (found["policy"].isna() | (found["policy"] == "per_layer"))]
    found = found[found["protocol"].isna() | (found["protocol"] == "token")]
    return found.assign(**{key: found[key].astype(object).where(found[key].notna(), "-") for key in KEYS})


def per_byte(data: str, *sparsities: str) -> list[str]:
    """Methods that skip neurons, by falling share of the model's weights that a token reads."""
    found = perplexities("smollm2-short")
    found = found[found["data"] == data]
    dense = found.loc[found["method"] == "dense", "value"].iloc[0]
    found = found[(found["units"] == "neurons") & ~found["method"].isin(LEFT_OUT)]
    found = found[found["sparsity_pct"].isin(map(int, sparsities)) & (found["criterion"] != "l2_norm")]
    rows = []
    for row in found.sort_values(["read_share", "value"], ascending=[False, True]).to_dict("records"):
        predictor = "" if row["predictor"] == "-" else row["predictor"]
        removed, read = f"{row['sparsity_pct']} %", f"{100 * row['read_share']:.0f} %"
        rows.append([row["method"], predictor, removed, read, interval(row), f"{row['value'] / dense:.2f}"])
    return markdown(["method", "predictor", "removed", "weights read", "perplexity", "of dense"], rows)


def of_dense(method: str, pct: str, what: str, predictor: str = "-", folder: str = "smollm2-short") -> str:
    """On C4, a method's share of weights read, its perplexity (value), or this over the dense model's (ratio)."""
    found = perplexities(folder).query("data == 'c4' and units in ('neurons', '-') and criterion != 'l2_norm'")
    found = found[found["seed"].isin([0, "-"])]
    dense = found.loc[found["method"] == "dense", "value"].item()
    rows = found[(found["method"] == method) & (found["sparsity_pct"] == int(pct))]
    row = rows[(rows["predictor"] == predictor) | (predictor == "-")].squeeze()
    words = {"share": f"{100 * row['read_share']:.0f} %", "value": f"{row['value']:.0f}"}
    return (words | {"ratio": f"{row['value'] / dense:.2f}"})[what]


def again() -> list[str]:
    """How far perplexities moved between the reference study and the shorter one, without and with training."""
    both = perplexities("smollm2").merge(perplexities("smollm2-short"), on=KEYS, suffixes=("", "_again"))
    both["change"] = (both["value_again"] / both["value"] - 1) * 100
    untrained = both["method"].isin(UNTRAINED)
    rows = []
    for name, part in (("nothing is trained", both[untrained]), ("with a predictor", both[~untrained])):
        change = part["change"]
        changes = (f"{value:+.2f} %" for value in (change.median(), change.min(), change.max()))
        rows.append([name, len(part), *changes])
    return markdown(["conditions", "number", "median change", "largest decrease", "largest increase"], rows)


def example_correlations() -> list[str]:
    """The published kind of rank correlation, and held-out losses, of predictors of windows and of constants."""
    found = table("quality", "smollm2-short").query("metric == 'spearman_of_examples'")
    trained = table("predictors", "smollm2-short").set_index(["method", "predictor", "criterion", "kind"])
    names = {"static": "the mean of the training windows, constant", "shadow": "one predictor (shadow)",
             "layerwise_own": "one predictor per layer (layerwise_own)"}  # fmt: skip
    rows = []
    for row in found.sort_values(["kind", "value"]).to_dict("records"):
        key = tuple(row[name] for name in trained.index.names)
        loss = f"{trained.loc[key, 'loss'] / trained.loc[key, 'loss_constant']:.3f}" if key in trained.index else "1"
        rows.append([names[row["method"]], row["kind"], f"{row['value']:.3f} ± {row['stderr']:.3f}", loss])
    return markdown(["scores by", "units", "rank correlation", "loss / loss of the constant"], rows)


def head_times() -> pd.DataFrame:
    """Milliseconds of a step, heads skipped per sequence: a row for (sequences, prompt), a column a mode."""
    return table("latency", "batches-h200").set_index(["batch", "prompt_tokens", "mode"])["ms_per_token"].unstack()


def head_batch(sequences: int | str, prompt: int | str) -> str:
    """The speed-up of a batch over our dense decoder if half of the heads are skipped."""
    row = head_times().loc[(int(sequences), int(prompt))]
    return f"{row['dense'] / row['shadow']:.2f}"


def head_batches() -> list[str]:
    """Times of every batch, and the speed-up over our dense decoder."""
    rows = [
        [*setting, *(f"{row[mode]:.2f}" for mode in ("dense", "cublas", "shadow")), head_batch(*setting)]
        for setting, row in head_times().iterrows()
    ]
    return markdown(["sequences", "prompt", "dense, ours", "cuBLAS", "50 % of heads", "speed-up over ours"], rows)


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


def proxy_gains(rows: pd.DataFrame, neurons: pd.DataFrame) -> list[str]:
    """Speed-ups of decoders that choose neurons only, and those that their bytes allow; `neurons`: without proxies."""
    models, lines = by_size(rows), []
    for pct in (50, 70):
        for mode in ("given", "shadow", *PROXIES):
            found = sparse(rows if mode in PROXIES else neurons, mode)
            if pct in found.index.get_level_values("sparsity_pct"):
                found = found.xs(pct, level="sparsity_pct").reindex(models)
                pairs = found[["gain", "allowed"]].to_numpy()
                cells = ["" if pd.isna(gain) else f"{gain:.2f} ({allowed:.2f})" for gain, allowed in pairs]
                lines.append([f"{pct} %", mode, *cells])
    return markdown(["removed", "neurons chosen by", *models], lines)


def proxy_costs(rows: pd.DataFrame, mode: str) -> list[str]:
    """What choosing costs a proxy at 50 %, and what it would cost at the memory's limit."""
    ahead, lines = sparse(rows, f"{mode}_ahead"), []
    found = sparse(rows, mode)
    for model in by_size(rows):
        row = found.loc[(model, 50)]
        limit = row["predictor_mb"] / rows["ceiling_gb_s"].max()
        hidden = row["ms_per_token"] - ahead.loc[(model, 50), "ms_per_token"]
        numbers = (row["ms_per_token"], row["predictor_ms"], row["selection_ms"], limit, hidden)
        lines.append([model, *map("{:.2f}".format, numbers)])
    names = ["ms a token, 50 % removed", "whole step", "choosing", "of it: finding the largest scores"]
    return markdown([*names, "reading the copies at the limit", "saved by choosing ahead"], lines)
