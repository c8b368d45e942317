"""Properties of the units that trained predictors keep that matter for speed, next to those of random units.

    python benchmarks/kept_units.py results/quick smollm2-135m wikipedia kept_units.parquet
    python benchmarks/kept_units.py results/relu smollm2-relu c4 relu.parquet --dtype bfloat16 --untrained proxy4 relu

Every predictor of the model in the study, and every method that `--untrained` names, chooses units in windows of the
text's evaluation split, each from another article while there are enough. The first half of a window is a dense prompt;
then each token has its own units. Windows at the same position are the sequences of a batch. TABLE has the columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from math import comb
from pathlib import Path
from typing import Any

import torch

from shadowcore import artifacts, provenance
from shadowcore.measure.conditions import Condition
from shadowcore.measure.methods import METHODS
from shadowcore.measure.protocols import TOKEN, Protocol
from shadowcore.measure.read_bytes import dense_bytes, unit_bytes
from shadowcore.measure.sparsity import Context, Masks, SparseModel
from shadowcore.method.low_bit import PROXIES
from shadowcore.method.predictors import FIRST_SPARSE_LAYER
from shadowcore.models.families import KINDS, Kind, dimensions_of
from shadowcore.models.losses import all_scored
from shadowcore.models.recording import Choose, Site
from shadowcore.schemas import CONDITION
from shadowcore.stages.inputs import ModelAndText, read_predictor
from shadowcore.table_schema import INTEGER, NUMBER, TEXT, Table

WINDOWS, TOKENS, PROMPT, BATCH = 32, 128, 64, 8
SPARSITIES_PCT, SEQUENCES = (30, 50, 70), (1, 2, 4, 8, 16)
UNTRAINED = (*PROXIES, "relu", "sparseinfer")  # methods that need no file of the study
NAMES = ("model", "data", "calibration", "method", "criterion", "predictor", "units", "sparsity_pct", "seed")
BLOCK = "blocks of {} adjacent neurons with a kept one, over all; a block of 16-bit weights, one a neuron, has {}"
TABLE = Table(
    "kept_units", 1, "the units of one kind that a method keeps in all layers but the first, or random ones instead",
    {name: CONDITION[name] for name in NAMES} | {
        "choice": (TEXT, "own: what the method keeps; popular: random units, as many for each token, each as often as "
                         "the method keeps it; uniform: as many random units, all equally often"),
        "windows": (INTEGER, "number of windows; a batch is some of them at the same position"),
        "steps": (INTEGER, "number of sparse tokens in a window"),
        **{f"union_{count}": (NUMBER, f"units that a batch of {count} needs, over all units; mean over all sets of "
                                      f"{count} windows; null with fewer windows") for count in SEQUENCES},
        "kept_before": (NUMBER, "units of a token that the token before it kept, over the units of a token"),
        "run_units": (NUMBER, "mean number of kept units in a run of adjacent ones"),
        "blocks_16": (NUMBER, BLOCK.format(16, "32 bytes")),
        "blocks_64": (NUMBER, BLOCK.format(64, "128 bytes")),
        "caches": (NUMBER, "keys and values that the kept heads of a token read, over all of its sequence"),
        "weight_share": (NUMBER, "weights of all these units, over the weights that a dense step reads"),
    },
)  # fmt: skip


class RecordedMasks(Masks):
    """The masks of a method; `kept[site]` lists those that were applied, (B, T, U) for each pass."""

    def __init__(self, masks: Masks):
        self.masks, self.sites, self.kept = masks, masks.sites, {}

    def begin(self, ids: torch.Tensor, scored: torch.Tensor, context: Context, protocol: Protocol = TOKEN) -> Choose:
        choose = self.masks.begin(ids, scored, context, protocol)

        def recorded(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            keep = choose(site, x)
            if keep is not None:
                self.kept.setdefault(site, []).append(keep.expand(*x.shape[:2], -1).cpu())
            return keep

        return recorded


def kept(model: torch.nn.Module, masks: Masks, kind: Kind, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Keep masks (S, T - prompt, L - 1, U) in windows ids (S, T), of all layers but the first.

    The steps are the tokens from the prompt's last one, the first whose next token is scored, to the last but one.
    """
    recorded = RecordedMasks(masks)
    sparse = SparseModel(model, recorded)
    for part in ids.to(model.device).split(BATCH):
        sparse.logits(part, all_scored(part, prompt), first_kept=ids.shape[1] - 2)
    layers = range(FIRST_SPARSE_LAYER, sparse.sizes.layers)
    return torch.stack([torch.cat(recorded.kept[Site(layer, kind)])[:, prompt - 1 :] for layer in layers], 2)


def random_units(often: torch.Tensor, sequences: int, steps: int, seed: int = 0) -> torch.Tensor:
    """Masks (S, T, L, U), independent of each other, that keep each unit with its probability `often` (L, U).

    Each keeps as many units of a layer as the sum of their probabilities, if this is a whole number: systematic
    sampling, for which the units of every layer and step are put in a random order.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for chances in often.double():  # (U,)
        order = torch.rand(steps, len(chances), generator=generator).argsort(-1)  # (T, U)
        start = torch.rand(sequences, steps, 1, generator=generator, dtype=torch.double)
        counts = torch.cat((torch.zeros_like(start), (chances[order].cumsum(-1) + start).floor()), -1)  # (S, T, 1 + U)
        drawn = counts.diff(dim=-1) > 0
        layers.append(torch.zeros_like(drawn).scatter(-1, order.expand_as(drawn), drawn))
    return torch.stack(layers, 2)


def properties(keep: torch.Tensor, blocks: Mapping[str, int]) -> dict[str, float | None]:
    """The counted columns of TABLE for masks (S, T, L, U); blocks: columns that count blocks of so many units."""
    windows, found = len(keep), {}
    keepers = keep.sum(0)  # (T, L, U): how many sequences keep a unit
    for count in SEQUENCES:
        sets = comb(windows, count)
        # of all sets of sequences, the share that has none of the sequences that keep a unit
        without = [comb(windows - some, count) / max(1, sets) for some in range(windows + 1)]
        found[f"union_{count}"] = 1 - torch.tensor(without).double()[keepers].mean().item() if sets else None
    runs = keep[..., 0].sum() + (keep[..., 1:] & ~keep[..., :-1]).sum()
    found["kept_before"] = ((keep[:, 1:] & keep[:, :-1]).sum() / keep[:, 1:].sum()).item()
    found["run_units"] = (keep.sum() / runs).item()
    for name, size in blocks.items():
        found[name] = torch.stack([block.any(-1) for block in keep.split(size, -1)]).double().mean().item()
    return found


def rows(model: torch.nn.Module, masks: Masks, kind: Kind, ids: torch.Tensor) -> Iterator[dict[str, Any]]:
    """A method's rows of TABLE, without the columns that name it: of its own units, then of random ones."""
    own, sizes = kept(model, masks, kind, ids, PROMPT), dimensions_of(model.config)
    often = own.double().mean((0, 1))  # (L, U)
    blocks = {"caches": sizes.heads // sizes.kv_heads} if kind == "heads" else {"blocks_16": 16, "blocks_64": 64}
    facts = {"windows": own.shape[0], "steps": own.shape[1]}
    facts["weight_share"] = often.numel() * unit_bytes(model, kind) / dense_bytes(model)
    yield {"choice": "own"} | facts | properties(own, blocks)
    for choice, chances in (("popular", often), ("uniform", often.mean(-1, keepdim=True).expand_as(often))):
        yield {"choice": choice} | facts | properties(random_units(chances, *own.shape[:2]), blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the results of a study, such as results/quick")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("table", type=Path, help="the Parquet file to write")
    parser.add_argument("--untrained", nargs="*", choices=UNTRAINED, default=["proxy4"])
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    folder, documents = given.study / "models" / given.model, given.study / "texts" / given.text / "documents.parquet"
    inputs = ModelAndText(folder / "card.json", folder / "weights", documents)
    model, ids = inputs.model(given.dtype), inputs.ids("evaluation", TOKENS, WINDOWS, 0)
    files, table = sorted((given.study / "predictors" / given.model).glob("*/*.safetensors")), []
    specs = {path: artifacts.read_header(path)["spec"] for path in files}
    for source, spec in (specs | {name: {"method": name, "seed": 0} for name in given.untrained}).items():
        predictor = read_predictor(source, dimensions_of(model.config)).put_on(model) if source in specs else None
        method, names = METHODS[spec["method"]], {name: spec[name] for name in NAMES if name in spec}
        for kind in [kind for kind in (predictor.kinds if predictor else KINDS) if kind in (method.units or KINDS)]:
            for pct in method.sparsities_pct or SPARSITIES_PCT:
                row = names | {"model": given.model, "data": given.text, "units": kind, "sparsity_pct": pct}
                masks = method.masks(model, Condition(**row, policy="per_layer", protocol="token"), predictor)
                table += [row | counted for counted in rows(model, masks, kind, ids)]
                print(*row.values(), f"{table[-3]['union_4']:.3f}", flush=True)
    header = {"made by": "python benchmarks/kept_units.py", "spec": {"dtype": given.dtype, "prompt_tokens": PROMPT}}
    header["inputs"] = {path.name: artifacts.digest(path) for path in (inputs.card, documents, *files)}
    artifacts.write_table(given.table, TABLE.schema, TABLE.build(table), header | {"run": provenance.run_information()})


if __name__ == "__main__":
    main()
