"""Fill the tables and numbers of README.md, docs/ and config/README.md from the code and from results/reference.

    make docs    # python benchmarks/document_numbers.py

A page marks what is filled: `<!-- numbers: NAME ARGUMENTS -->`, then the content, then `<!-- end -->`. NAME is a
function of NUMBERS. Content that begins with a line break is a block; other content is a part of a sentence.
"""

from __future__ import annotations

import re
from pathlib import Path

import accuracy_tables as accuracy
import chain
import config_tables
import pandas as pd
import thresholds
from accuracy_tables import REFERENCE

from shadowcore import plan, rates
from shadowcore.commands.plan import totals
from shadowcore.config import load_study
from shadowcore.jobs import Jobs
from shadowcore.report.figures.scaling import WIDTHS, layerwise_over_shadow, timed

ROOT = Path(__file__).parent.parent
REGION = re.compile(r"(<!-- numbers: (.+?) -->)(.*?)(<!-- end -->)", re.DOTALL)


def times(folder: str, main: bool = True) -> pd.DataFrame:
    """Times of random weights: in the setting of every model in which all modes were timed, or in the others."""
    rows = timed({"latency": pd.read_parquet(REFERENCE / folder / "tables" / "latency.parquet")})
    return rows[rows["main"] == main]


def faster(width: str, *but: str) -> str:
    """How many percent faster one predictor is than one per layer, of all models but some; width: "256" or "2048"."""
    name = next(name for name in WIDTHS if name.startswith(f"{width} in both"))
    ratios = layerwise_over_shadow(times("published-speed-h200"), WIDTHS[name]).drop(list(but))
    return f"{(ratios.min() - 1) * 100:.0f} to {(ratios.max() - 1) * 100:.0f} %"


def grid() -> list[str]:
    """What the plan says of the paper's grid."""
    works = plan.work(Jobs(load_study(ROOT / "config" / "paper.yaml"), ROOT / "results"), strict=True)
    return ["| stage | jobs | GPU-hours | disk, GB |", "|---|---|---|---|"] + [
        f"| {rule} | {one.jobs} | {one.gpu_hours:.1f} | {one.disk / 1e9:.0f} |"
        for rule, one in totals(works, {}, rates.read()).items()
        if one.gpu_hours or one.disk > 1e9
    ]


def quick(of: str) -> pd.DataFrame:
    """A table of the quick study, its missing keys as empty text."""
    found = pd.read_parquet(REFERENCE / "quick" / "tables" / f"{of}.parquet")
    return found.fillna({"criterion": "", "policy": "", "units": "", "protocol": ""})


def quick_perplexity(policy: str, units: str) -> list[str]:
    """Perplexities of the quick study under one policy, with some units removed."""
    found = quick("perplexity").query("task == 'perplexity' and policy == @policy and units == @units")
    sparsities = sorted(found["sparsity_pct"].unique())
    lines = [f"| method | criterion | {' | '.join(f'{pct} %' for pct in sparsities)} |"]
    lines.append("|---" * (2 + len(sparsities)) + "|")
    for (method, criterion), part in found.groupby(["method", "criterion"]):
        cells = part.sort_values("sparsity_pct").apply(accuracy.interval, axis=1)
        lines.append(f"| {method} | {criterion} | {' | '.join(cells)} |")
    return lines


def quick_dense() -> str:
    return accuracy.interval(quick("perplexity").query("method == 'dense' and task == 'perplexity'").iloc[0])


def quick_half() -> list[str]:
    """At 50 %: accuracy of the quick study's questions, and recall of the kept neurons on held-out tokens."""
    keys = ["criterion", "method"]
    alike = "policy == 'per_layer' and sparsity_pct == 50"
    right = quick("accuracy").query(f"metric == 'acc' and units == 'neurons' and {alike}").set_index(keys)
    recall = (
        quick("quality").query(f"metric == 'recall' and kind == 'neurons' and {alike}").groupby(keys)["value"].mean()
    )
    lines = ["| criterion | method | accuracy | recall |", "|---" * 4 + "|"]
    for key, row in right.sort_index().iterrows():
        found = f"{recall[key]:.3f}" if key in recall else ""
        lines.append(f"| {' | '.join(key)} | {row['value']:.2f} ± {row['stderr']:.2f} | {found} |")
    return lines


def quick_times() -> list[str]:
    """Median times of the quick study, 10th to 90th percentile in brackets."""
    lines = ["| mode | dense | 30 % | 50 % | 70 % |", "|---" * 5 + "|"]
    for mode, part in quick("latency").groupby("mode", sort=False):
        cells = {
            row["sparsity_pct"]: f"{row['ms_per_token']:.1f} ({row['ms_p10']:.1f} to {row['ms_p90']:.1f})"
            for _, row in part.iterrows()
        }
        lines.append(f"| {mode} | {' | '.join(cells.get(pct, '') for pct in (0, 30, 50, 70))} |")
    return lines


OF_ACCURACY = ("perplexity", "main_accuracy", "all_accuracy", "worse", "difference", "seeds", "claims")
NUMBERS = {
    **{name: getattr(accuracy, name) for name in OF_ACCURACY},
    "criteria": lambda: accuracy.half("criterion of the mean scores", 2, *accuracy.CRITERIA),
    "small_predictors": lambda: accuracy.half("predictor", 0, *accuracy.SMALL),
    "config": config_tables.tables,
    "faster": faster,
    "goals": lambda folder: thresholds.goals(times(folder)),
    "grid": grid,
    **{one.__name__: one for one in (quick_dense, quick_half, quick_perplexity, quick_times)},
    "settings": lambda folder: thresholds.settings(times(folder, main=False)),
    "stages": lambda folder: chain.table(chain.read(REFERENCE / folder)),
    "times": lambda folder: thresholds.times(times(folder)),
    "variants": lambda folder: thresholds.variants(times(folder)),
    "widths": lambda folder: thresholds.widths(times(folder)),
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
    found = [ROOT / "README.md", ROOT / "config" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [path for path in found if REGION.search(path.read_text())]


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path.read_text()))
