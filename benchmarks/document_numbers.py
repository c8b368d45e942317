"""Fill the tables and numbers of README.md, docs/, config/ and results/README.md from code and results/reference.

    make docs    # python benchmarks/document_numbers.py

A page marks what is filled: `<!-- numbers: NAME ARGUMENTS -->`, then the content, then `<!-- end -->`. NAME is a
function of NUMBERS. Content that begins with a line break is a block; other content is a part of a sentence.
"""

from __future__ import annotations

import re
from pathlib import Path

import accuracy_tables as accuracy
import byte_tables
import chain
import claim_tables
import config_tables
import kept_units
import pandas as pd
import quality_tables
import quick_tables
import teal_tables
import thresholds
import tried_tables
import unit_tables
from accuracy_tables import REFERENCE
from markdown_tables import lowest_to_highest, markdown

from shadowcore import plan, rates
from shadowcore.commands.plan import totals
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.report.figures.scaling import SETTING, WIDTHS, layerwise_over_shadow, published_ratios, timed
from shadowcore.schemas import TABLES

ROOT = Path(__file__).parent.parent
REGION = re.compile(r"(<!-- numbers: (.+?) -->)(.*?)(<!-- end -->)", re.DOTALL)


def times(folder: str, main: bool = True) -> pd.DataFrame:
    """Times of random weights: in the setting of every model in which all modes were timed, or in the others."""
    rows = timed({"latency": accuracy.table("latency", folder)})
    return rows[rows["main"] == main]


def gains(folder: str, ranks: str) -> pd.Series:
    """How many percent faster one predictor is than one per layer; ranks: "published", or the start of a name."""
    if ranks == "published":
        return (published_ratios() - 1) * 100
    name = next(name for name in WIDTHS if name.startswith(ranks.replace("_", " ")))
    return (layerwise_over_shadow(times(folder), WIDTHS[name]) - 1) * 100


def faster(folder: str, ranks: str, *but: str) -> str:
    """The range of `gains` over all models but some."""
    found = gains(folder, ranks).drop(list(but))
    return f"{abs(found.min()):.0f} to {found.max():.0f} %"


def span(folder: str, mode: str, pct: str, column: str, *models: str) -> str:
    """The range of a column of `thresholds.sparse` over some models, or all."""
    found = thresholds.sparse(times(folder), mode)[column].xs(int(pct), level="sparsity_pct")
    found = found[list(models) or found.index]
    digits = 0 if column.endswith(("_us", "_s")) else 2
    return lowest_to_highest(found, f",.{digits}f")


def changed(before: str, after: str, column: str, *where: str) -> str:
    """By how many percent a column grew from a run to a later one, in rows of these models, modes or sparsities."""
    keys = ["model", "mode", "sparsity_pct", "predictor_rank", "predictor_rank_heads", "predictor_bits"]
    both = times(before).merge(times(after), on=keys, suffixes=("_before", ""))
    for word in where:
        both = both[(both[["model", "mode", "sparsity_pct"]].astype(str) == word).any(axis=1)]
    found = (both[column] / both[f"{column}_before"] - 1) * 100
    return lowest_to_highest(found, "+.1f") + " %"


def slower(folder: str, mode: str) -> str:
    """The range of a dense decoder's time over ours, over all settings in which both were timed."""
    modes = accuracy.table("latency", folder).pivot_table(index=SETTING, columns="mode", values="ms_per_token")
    found = modes[mode] / modes["dense"]
    return f"{found.min():.2f} to {found.max():.2f}"


def batch_gains(folder: str, model: str, pct: str, mode: str, what: str = "gain") -> str:
    """The range over batches of a mode's speed-up over the fastest dense decoder, or of another column of `sparse`."""
    rows = times(folder, main=False).query("model == @model and batch > 1")
    found = [thresholds.sparse(batch, mode).loc[(model, int(pct)), what] for _, batch in rows.groupby("batch")]
    digits = 0 if what.endswith("_us") else 2
    return f"{min(found):.{digits}f} to {max(found):.{digits}f}"


def ceilings(folder: str) -> str:
    """The highest rates of reading that the processes of a run measured: the lowest and the highest of them."""
    rates_found = times(folder)["ceiling_gb_s"], times(folder, main=False)["ceiling_gb_s"]
    return f"{pd.concat(rates_found).min():,.0f} to {pd.concat(rates_found).max():,.0f}"


def throttled(folder: str, model: str) -> str:
    """The share of a model's repeats in the main setting after which the driver said that it had slowed the GPU."""
    rows = accuracy.table("latency_repeats", folder)
    main = (rows["batch"] == 1) & (rows["prompt_tokens"] == 128) & (rows["new_tokens"] == 128)
    return f"{100 * (rows.loc[main & (rows['model'] == model), 'throttled'] > 0).mean():.0f} %"


def grid() -> list[str]:
    """What the plan says of the paper's grid."""
    study = load_study(ROOT / "config" / "paper.yaml")
    works = plan.work(Jobs(study, ROOT / "results"), strict=True)
    rows = [
        (rule, one.jobs, f"{one.gpu_hours:.1f}", f"{one.disk / 1e9:.0f}")
        for rule, one in totals(works, {}, rates.read(), plan.disk(study, works)).items()
        if one.gpu_hours or one.disk > 1e9
    ]
    return markdown(["stage", "jobs", "GPU-hours", "disk, GB"], rows)


def dictionary() -> str:
    """The columns of every final table, of outcomes, kept_units and teal, from the schemas."""
    sections = []
    for table in (*TABLES.values(), kept_units.TABLE, teal_tables.TABLE):
        columns = [(f"`{name}`", kind, meaning) for name, (kind, meaning) in table.columns.items()]
        lines = markdown(["column", "type", "meaning"], columns)
        sections += [f"### {table.name} (schema {table.schema})", f"One row: {table.row}.", "\n".join(lines)]
    return "\n\n".join(sections)


def spread(folder: str) -> list[str]:
    """A model on one GPU and on two."""
    rows = pd.read_parquet(REFERENCE / folder / "compared.parquet")
    cells = [
        (row.what, f"{row.seconds_one:.2f}", f"{row.seconds_spread:.2f}", f"{row.apart:.2g}")
        for row in rows.itertuples()
    ]
    return markdown(["what", "one GPU, s", "two GPUs, s", "largest difference"], cells)


def at_once(folder: str) -> str:
    """Seconds of a job alone and of jobs side by side."""
    rows = pd.read_parquet(REFERENCE / folder / "jobs.parquet").query("exit_code == 0")
    alone, together = (rows.loc[rows["at_once"] == count, "seconds"].max() for count in (1, 2))
    gain = 2 * alone / together
    return f"one took {alone:.0f} s alone, and two at once took {together:.0f} s: {gain:.2f} times the jobs an hour"


OF_ACCURACY = ("value", "all_accuracy", "worse", "difference", "draws", "seeds")
OF_BYTES = (
    "head_batch", "head_batches", "head_gain", "head_gains", "kernel_variants", "upper_half_gain",
    "variant_change",
)  # fmt: skip
OF_QUALITY = ("best_at", "by_bytes", "of_dense", "relufied", "summary")
OF_TIMELINE = ("cost_of_stamps", "kernel_us", "layer_times", "layer_us")
OF_TRIED = (
    "barrier_us",
    "tried_change",
    "tried_changes",
    "tried_drift",
    "tried_noise",
    "tried_predictions",
)
OF_UNITS = ("in_common", "kept_unit", "batch_gain")
NUMBERS = {
    **{name: getattr(accuracy, name) for name in OF_ACCURACY},
    **{name: getattr(byte_tables, name) for name in OF_BYTES},
    **{name: getattr(quality_tables, name) for name in OF_QUALITY},
    **{name: getattr(tried_tables, name) for name in (*OF_TIMELINE, *OF_TRIED)},
    **{name: getattr(unit_tables, name) for name in OF_UNITS},
    "criteria": lambda: accuracy.half("static masks, by the mean score of", 2, *accuracy.CRITERIA),
    "small_predictors": lambda: accuracy.half("predictor", 0, *accuracy.SMALL),
    "batch_gains": batch_gains,
    "ceilings": ceilings,
    "changed": changed,
    "claim": claim_tables.claim,
    "verdicts": claim_tables.verdicts,
    "config": config_tables.tables,
    "dictionary": dictionary,
    "example_correlations": claim_tables.example_correlations,
    "at_once": at_once,
    "faster": faster,
    "faster_of": lambda folder, ranks, model: f"{gains(folder, ranks)[model]:.0f} %",
    "goals": lambda *folders: thresholds.goals(*((times(folder), times(folder, main=False)) for folder in folders)),
    "grid": grid,
    "proxy_costs": lambda folder, mode: byte_tables.proxy_costs(times(folder), mode),
    "proxy_gains": lambda *folders: byte_tables.proxy_gains(*map(times, folders)),
    **{f"quick_{name}": getattr(quick_tables, name) for name in ("dense", "half", "of_dense", "perplexity", "times")},
    "settings": lambda folder, which: thresholds.settings(times(folder, main=False), which == "batches"),
    "shares": lambda folder: thresholds.shares(times(folder)),
    "slower": slower,
    "span": span,
    "spread": spread,
    "stages": lambda folder: chain.table(chain.read(REFERENCE / folder)),
    "teal": lambda folder: teal_tables.shares(REFERENCE / folder / "teal.parquet"),
    "teal_ratio": lambda folder, *words: teal_tables.ratio(REFERENCE / folder / "teal.parquet", *words),
    "throttled": throttled,
    "times": lambda folder: thresholds.times(times(folder)),
    "variants": lambda folder: thresholds.variants(times(folder)),
    "widths": lambda *folders: thresholds.widths(*map(times, folders)),
}


def filled(page: str) -> str:
    """A page with every region made anew."""

    def fill(region: re.Match) -> str:
        name, *arguments = region[2].split()
        content = NUMBERS[name](*arguments)
        content = content if isinstance(content, str) else "\n".join(content)
        return region[1] + (f"\n{content}\n" if region[3].startswith("\n") else content) + region[4]

    return REGION.sub(fill, page)


def pages() -> list[Path]:
    """Every page with a region."""
    found = [ROOT / f"{folder}README.md" for folder in ("", "config/", "results/")]
    found += sorted((ROOT / "docs").glob("*.md"))
    return [path for path in found if REGION.search(path.read_text())]


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path.read_text()))
