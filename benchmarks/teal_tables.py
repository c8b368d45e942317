"""The table that benchmarks/teal.py writes, and its numbers for docs/speed.md."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from markdown_tables import markdown

from shadowcore.table_schema import INTEGER, NUMBER, TEXT, Table

TABLE = Table(
    "teal", 1, "one kernel on one matrix of Llama-2-7B at one sparsity",
    {
        "shape": (TEXT, "which matrices have these sizes"),
        "sparsity": (NUMBER, "share of the inputs or outputs that is skipped, 0 to 1; cublas skips nothing"),
        "teal_tuned": (TEXT, "sizes that TEAL chose for this shape and sparsity"),
        "kernel": (TEXT, "cublas, teal, ours_threshold, ours or ours_no_overlap: see benchmarks/teal.py"),
        "microseconds": (NUMBER, "median time of a product"),
        "bytes": (INTEGER, "bytes that the product needs: kept weights, the input and the output, 2 bytes each"),
        "gb_per_s": (NUMBER, "bytes divided by the time, 10^9 bytes per second"),
        "max_relative_error": (NUMBER, "largest error against float64, relative to the largest output"),
        "ceiling_gb_per_s": (NUMBER, "highest measured rate of reading or copying on the GPU, 10^9 bytes per second"),
        "gpu": (TEXT, "name of the GPU"),
        "share_of_ceiling": (NUMBER, "gb_per_s divided by ceiling_gb_per_s"),
    },
)  # fmt: skip


def shares(path: Path) -> list[str]:
    """The share of the memory's limit that each kernel reaches, and its microseconds."""
    rows = pd.read_parquet(path)
    kernels, lines = list(dict.fromkeys(rows["kernel"])), []
    for (shape, sparsity), found in rows.groupby(["shape", "sparsity"], sort=False):
        found = found.set_index("kernel").loc[kernels]
        pairs = zip(found["share_of_ceiling"], found["microseconds"], strict=True)
        lines.append([shape, f"{sparsity:.0%}".replace("%", " %"), *(f"{share:.2f} ({us:.1f})" for share, us in pairs)])
    return markdown(["matrix", "skipped", *(f"`{kernel}`" for kernel in kernels)], lines)


def ratio(path: Path, slow: str, fast: str, *sparsities: str) -> str:
    """The range of one kernel's time over another's, over all matrices at these sparsities, or at all."""
    times = pd.read_parquet(path).pivot_table(index=["shape", "sparsity"], columns="kernel", values="microseconds")
    found = times[slow] / times[fast]
    if sparsities:
        found = found.loc[:, [float(pct) / 100 for pct in sparsities]]
    return f"{found.min():.2f} to {found.max():.2f}"
