"""Traces as training reads them: chunk by chunk, so that a device never holds more than a chunk of them.

An example is a token or a whole window; the words below are those of tokens.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from shadowcore import artifacts
from shadowcore.errors import ArtifactError
from shadowcore.method.predictors import Predictor, feature_width
from shadowcore.method.score_quantization import decode
from shadowcore.method.tracing import SCHEMA, WINDOW_BITS, codes_name, feature_name, top_name
from shadowcore.models.families import Dimensions, Kind
from shadowcore.models.recording import Site

CHUNK_BYTES = 2**29
KEPT_SHARE = 10  # one part in so many of a GPU's free memory, for each split: the optimiser's moments come later


@dataclass(frozen=True)
class Chunk:
    """Some tokens of a trace on the device: what predictors read of each site (S, m, D), and scores as codes
    (m, L, bytes) and tops.
    """

    sites: Sequence[Site]
    features: torch.Tensor
    packed: Mapping[Kind, tuple[torch.Tensor, torch.Tensor]]
    bits: int
    sizes: Dimensions

    def __len__(self) -> int:
        return len(next(iter(self.packed.values()))[0])

    def feature(self, site: Site, index: torch.Tensor) -> torch.Tensor:
        """float32 (n, D) of tokens `index` (n,)."""
        return self.features_of([site], index)[0]

    def features_of(self, sites: Sequence[Site], index: torch.Tensor) -> torch.Tensor:
        """float32 (sites, n, D) of tokens `index` (n,)."""
        firsts = torch.tensor([self.sites.index(site) * len(self) for site in sites], device=index.device)
        rows = self.features.flatten(0, 1).index_select(0, (firsts[:, None] + index).flatten())
        return rows.unflatten(0, (len(sites), -1)).float()

    def scores(self, kind: Kind, index: torch.Tensor) -> torch.Tensor:
        """Scores of all layers, float32 (n, L, U), of tokens `index` (n,)."""
        codes, top = self.packed[kind]
        return decode(codes.index_select(0, index), top.index_select(0, index), self.bits, self.sizes.units(kind))


class TraceDataset:
    """The traces of one split by one criterion, as a predictor learns from them, on its device.

    traces: open files (`artifacts.open_tensors`), shard after shard; bits: of their scores; examples: tokens or
    windows; most: how many there are at most, the first ones; None for all.
    """

    def __init__(
        self, traces: Sequence[Any], predictor: Predictor, criterion: str, bits: int, examples: str = "tokens",
        most: int | None = None,
    ):  # fmt: skip
        sizes, kinds, sites = predictor.sizes, predictor.kinds, [group.site for group in predictor.groups]
        self.traces, self.bits, self.sizes, self.device = traces, bits, sizes, next(predictor.parameters()).device
        self.features = {site: feature_name(site, examples) for site in sites}
        self.packed = {
            kind: (codes_name(criterion, kind, examples), top_name(criterion, kind, examples)) for kind in kinds
        }
        packed = sum(sizes.layers * (sizes.units(kind) * bits // 8 + 4) for kind in kinds)
        rows = max(1, CHUNK_BYTES // (packed + len(sites) * sizes.width * 2))
        self.kept: dict[tuple, torch.Tensor] = {}  # what was read, as long as there is room for it on the device
        self.room = _room(self.device)
        self.places = []  # (trace, first token, token after the last) of every chunk
        expected = {name: ([feature_width(sizes, site)], "BF16") for site, name in self.features.items()}
        for kind, (codes, top) in self.packed.items():
            expected[codes] = ([sizes.layers, -(-sizes.units(kind) * bits // 8)], "U8")
            expected[top] = ([sizes.layers, 1], "F32")
        for trace in traces:
            tokens = trace.get_slice(self.packed[kinds[0]][0]).get_shape()[0]
            for name, (shape, dtype) in expected.items():
                found = trace.get_slice(name)
                if (found.get_shape(), found.get_dtype()) != ([tokens, *shape], dtype):
                    raise ArtifactError(
                        f"{trace.path}: tensor '{name}' is {found.get_dtype()} {found.get_shape()} where {dtype} "
                        f"{[tokens, *shape]} is read; delete the file and run the study again"
                    )
            tokens = tokens if most is None else min(tokens, most - len(self))
            self.places += [(trace, start, min(start + rows, tokens)) for start in range(0, tokens, rows)]

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.places)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit whose scores are read."""
        return tuple(self.packed)

    def of(self, kinds: Sequence[Kind]) -> Self:
        """The same tokens, in the same chunks, with the scores of some kinds only."""
        some = copy.copy(self)
        some.packed = {kind: self.packed[kind] for kind in kinds}
        return some

    def batches(self, size: int) -> int:
        """How many batches `shuffled` makes."""
        return sum(-(-(stop - start) // size) for _, start, stop in self.places)

    def chunks(self) -> Iterator[Chunk]:
        """Every token once, in the order of the files."""
        return map(self._read, self.places)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[tuple[Chunk, torch.Tensor]]:
        """Every token once, in batches of about `size` (at most): chunks in random order, random tokens of a chunk."""
        for place in torch.randperm(len(self.places), generator=generator).tolist():
            chunk = self._read(self.places[place])
            order = torch.randperm(len(chunk), generator=generator).to(self.device)
            for index in order.tensor_split(-(-len(chunk) // size)):
                yield chunk, index

    def _read(self, place: tuple[Any, int, int]) -> Chunk:
        trace, start, stop = place

        def read(*names: str) -> torch.Tensor:
            key = (trace.path, start, *names)
            if key in self.kept:
                return self.kept[key]
            value = torch.stack([trace.get_slice(name)[start:stop].to(self.device) for name in names])
            if sum(one.nbytes for one in self.kept.values()) + value.nbytes <= self.room:
                self.kept[key] = value
            return value

        packed = {kind: (read(codes)[0], read(top)[0]) for kind, (codes, top) in self.packed.items()}
        for kind, (_, top) in packed.items():
            if not top.isfinite().all():
                name = self.packed[kind][1]
                raise ArtifactError(f"{trace.path}: tensor '{name}' is not finite; delete the file and run again")
        return Chunk(list(self.features), read(*self.features.values()), packed, self.bits, self.sizes)


def open_traces(
    stack: ExitStack, paths: Iterable[Path], predictor: Predictor, criterion: str, bits: int,
    examples: str = "tokens", most: int | None = None,
) -> TraceDataset:  # fmt: skip
    """The traces in files, open until the stack closes; the first `most` examples. bits: of scores of tokens."""
    opened = [stack.enter_context(artifacts.open_tensors(path, SCHEMA)) for path in paths]
    bits = WINDOW_BITS if examples == "windows" else bits
    return TraceDataset(opened, predictor, criterion, bits, examples, most)


def _room(device: torch.device) -> int:
    """Bytes of traces that stay on a GPU, so that an epoch need not read them from the disk again."""
    return torch.cuda.mem_get_info(device)[0] // KEPT_SHARE if device.type == "cuda" else 0
