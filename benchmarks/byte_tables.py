"""Tables of docs/findings.md and docs/claims.md: quality per byte, what low-bit proxies cost, and units in common."""

from __future__ import annotations

import pandas as pd
from accuracy_tables import REFERENCE, interval, table
from markdown_tables import markdown

from shadowcore.models.families import FAMILIES
from shadowcore.models.published import PUBLISHED

KEYS = ["data", "method", "criterion", "predictor", "units", "sparsity_pct", "seed"]
UNTRAINED = ("dense", "random", "static", "oracle", "threshold")
LEFT_OUT = ("random", "oracle", "layerwise")  # of no use in a decoder, or far off the scale


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


def of_dense(method: str, pct: str, what: str, predictor: str = "-") -> str:
    """On C4, a method's share of weights read, its perplexity (value), or this over the dense model's (ratio)."""
    found = perplexities("smollm2-short").query("data == 'c4' and units in ('neurons', '-') and criterion != 'l2_norm'")
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


def selector_gain(mode: str, model: str, key: str) -> str:
    """A mode's gain over dense in ms_per_token, or the one that gb_per_token allow."""
    found = table("latency", "proxies-h200").query("model == @model").set_index("mode")[key]
    return f"{(found['dense'] / found[mode] - 1) * 100:.0f} %"


def head_batches() -> list[str]:
    """Heads skipped per sequence of a batch: milliseconds of a step, and the speed-up over our dense decoder."""
    found = table("latency", "batches-h200").set_index(["batch", "prompt_tokens", "mode"])["ms_per_token"].unstack()
    rows = [
        [*setting, *(f"{row[mode]:.2f}" for mode in ("dense", "cublas", "shadow")), f"{row.dense / row.shadow:.2f}"]
        for setting, row in found.iterrows()
    ]
    return markdown(["sequences", "prompt", "dense, ours", "cuBLAS", "50 % of heads", "speed-up over ours"], rows)


def selector_times() -> list[str]:
    """Measured and possible speed-ups over our dense decoder: as fast as dense for every byte that is read."""
    found = table("latency", "proxies-h200")
    names = ["model", "neurons chosen by", "ms a token", "GB read", "speed-up over dense", "if bytes decided"]
    rows = []
    for model, part in found.groupby("model"):
        dense = part[part["mode"] == "dense"].iloc[0]
        for row in part[part["mode"] != "static"].sort_values("ms_per_token").to_dict("records"):
            gains = [f"{dense[key] / row[key]:.2f}" for key in ("ms_per_token", "gb_per_token")]
            choosing = row["predictor_ms"] + row["selection_ms"]
            cells = [model, row["mode"], f"{row['ms_per_token']:.2f}", f"{row['gb_per_token']:.1f}", *gains]
            rows.append([*cells, "" if pd.isna(choosing) else f"{choosing:.2f}"])
    return markdown([*names, "choosing, ms"], rows)


def kept_units(units: str, pct: str, choice: str = "own") -> pd.DataFrame:
    """What benchmarks/kept_units.py counted of SmolLM2-135M, by method and predictor, without those of l2_norm."""
    found = pd.read_parquet(REFERENCE / "kept-units" / "smollm2-135m.parquet")
    found = found[(found["units"] == units) & (found["sparsity_pct"] == int(pct)) & (found["criterion"] != "l2_norm")]
    found = found[found["choice"] == choice].fillna({"predictor": ""})
    return found.set_index((found["method"] + " " + found["predictor"]).str.strip()).sort_values("union_4")


def kept_unit(column: str, units: str, pct: str, choice: str) -> str:
    """A number of the predictor `shadow small`: a length of runs, or a share in percent."""
    value = kept_units(units, pct, choice).loc["shadow small", column]
    return f"{value:.2f}" if column == "run_units" else f"{100 * value:.0f} %"


def in_common(*sparsities: str) -> list[str]:
    """Neurons: what batches need, what the token before kept, and the share of weights that batches read."""
    rows = []
    for pct in sparsities:
        random = kept_units("neurons", pct, "uniform").iloc[:1].set_axis(["random"])
        for name, row in pd.concat([kept_units("neurons", pct), random]).iterrows():
            unions = [row[f"union_{count}"] for count in (2, 4, 8, 16)]
            weights = [1 - row["weight_share"] * (1 - union) for union in unions[1::2]]
            shares = (f"{100 * share:.0f} %" for share in (*unions, row["kept_before"], *weights))
            rows.append([name, f"{pct} %", *shares])
    names = ["neurons kept by", "removed", "needed by 2", "by 4", "by 8", "by 16", "kept before"]
    return markdown([*names, "weights read by 4", "by 16"], rows)


def batch_gain(model: str, sequences: str, pct: str, choice: str) -> str:
    """A published model's weights over those that a batch would read if it needed the share of `shadow small`."""
    size, sizes = PUBLISHED[model], PUBLISHED[model].dimensions
    ffn = (sizes.layers - 1) * (1 + len(FAMILIES[size.family].ffn_in)) * sizes.width * sizes.neurons / size.multiplied
    needed = kept_units("neurons", pct, choice).loc["shadow small", f"union_{sequences}"]
    return f"{1 / (1 - ffn * (1 - needed)):.2f}"
