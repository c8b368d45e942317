"""The decoder at the speed of memory: Triton kernels, and the whole step one CUDA graph that the host only replays.

The same interface, prompt pass and cache as the torch decoder; a step reads each kept weight once. Seven kernels a
layer: norm, query-key-value rows, attention, output rows, norm, FFN rows in and out. What a step needs from the one
before, its token and position, stays on the device. Batch 1.
"""

from __future__ import annotations

import torch

from shadowcore.decode.chosen import AllUnits, on_device
from shadowcore.decode.kernels.attention import Attention
from shadowcore.decode.kernels.launch import Units
from shadowcore.decode.kernels.rows import Partial, project, settle
from shadowcore.decode.layout import Layer, Layout, Norm
from shadowcore.decode.replay import ReplayedDecoder
from shadowcore.decode.skipping import Selection
from shadowcore.errors import ConfigError
from shadowcore.models.recording import Site

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)  # bfloat16 arithmetic


class GraphDecoder(ReplayedDecoder):
    """Greedy decoding of one sequence. On a CPU the kernels must be interpreted (TRITON_INTERPRET=1): for tests.

    `threshold`: neurons whose activation is not above it are left out of the down projection; 0 loses nothing after
    ReLU. Raises ConfigError for a number format, head size or device the kernels do not serve.
    """

    def __init__(
        self,
        layout: Layout,
        max_positions: int,
        selection: Selection | AllUnits | None = None,
        threshold: float | None = None,
    ):
        check_served(layout)
        super().__init__(layout, max_positions)
        sizes, device = layout.sizes, layout.device
        self.selection = on_device(selection, sizes, layout.dtype, device)
        self._threshold = threshold
        compacted = any(len(layer.output) < sizes.heads for layer in layout.layers)
        if compacted and type(self.selection) is not AllUnits:
            raise ConfigError("selection: a compacted layout has only its kept units; decode it without a selection")
        self._turns = None
        if layout.inverse_frequencies is not None:
            self._turns = self._cos.squeeze(1), self._signed_sin.squeeze(1)  # (positions, K)
        self._heads = [_all_heads(layer) for layer in layout.layers]
        self._numbered = compacted
        floats = {"dtype": torch.float32, "device": device}
        self._residual = torch.empty(sizes.width, **floats)
        self._normed = torch.empty(sizes.width, dtype=layout.dtype, device=device)
        self._qkv = torch.empty(sizes.heads + 2 * sizes.kv_heads, sizes.head_width, **floats)
        self._mixed = torch.empty(sizes.heads, sizes.head_width, **floats)
        self._active = torch.empty(sizes.neurons, **floats)
        self._arrivals = torch.zeros(1, dtype=torch.int32, device=device)
        self._partials: dict[tuple[int, int], Partial] = {}
        self._attend = Attention(
            sizes.heads, sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_width, max_positions, device
        )

    def launch(self) -> None:
        """Everything one step does, kernel by kernel: from the token and position on the device to the next ones."""
        layout, selection = self.layout, self.selection
        selection.start(self._position)
        self._residual.copy_(layout.embedding.index_select(0, self._token)[0])
        if layout.positions is not None:
            self._residual.add_(layout.positions.index_select(0, self._position)[0])
        partial, bias = None, None
        for index, layer in enumerate(layout.layers):
            self.settle(partial, bias, layer.attention_norm)
            selection.see(Site(index, "residual"), self.feature(Site(index, "residual")))
            partial, bias = self.attention(index, layer), layer.output_bias
            if selection.units(index, "heads") is None:
                selection.see(Site(index, "heads"), self.feature(Site(index, "heads")))
            self.settle(partial, bias, layer.ffn_norm)
            partial, bias = self.ffn(index, layer), layer.ffn_down_bias
        self.settle(partial, bias, layout.final_norm)
        self.emit()

    @staticmethod
    def score_dtype(layout: Layout) -> torch.dtype:
        """Number format of the vocabulary's scores."""
        return torch.float32

    def feature(self, site: Site) -> torch.Tensor:
        """What flows at a site while its layer is computed: the residual, or all heads' outputs."""
        return self._residual if site.what == "residual" else self._mixed.view(-1)

    def emit(self) -> None:
        """The next token, greedily, and on to the next position."""
        project(self._normed, self.layout.head, None, self._scores)
        self.choose()

    def attention(self, index: int, layer: Layer) -> Partial:
        """A layer's attention of the normed residual, as the sum it adds."""
        sizes, units = self.layout.sizes, self.selection.units(index, "heads")
        heads = self._heads[index] if units is None else units
        kv_rows = 2 * sizes.kv_heads * sizes.head_width
        qkv = self._qkv[: heads.capacity + 2 * sizes.kv_heads]
        project(self._normed, layer.query_key_value, layer.query_key_value_bias, qkv, units, sizes.head_width, kv_rows)
        mixed, numbered = self._mixed[: heads.capacity], self._numbered or units is not None
        keys, values = self._keys[index, 0], self._values[index, 0]
        self._attend(qkv, heads, numbered, keys, values, self._position, self._turns, mixed)
        partial = self._partial(heads.capacity * sizes.head_width, sizes.head_width)
        partial.accumulate(mixed, layer.output, units)
        return partial

    def ffn(self, index: int, layer: Layer) -> Partial:
        """A layer's FFN of the normed residual, as the sum it adds."""
        units = self.selection.units(index, "neurons")
        active = self._active[: len(layer.ffn_down) if units is None else units.capacity]
        project(self._normed, layer.ffn_in, layer.ffn_in_bias, active, units, activation=self.layout.activation)
        partial = self._partial(len(active), 1)
        partial.accumulate(active, layer.ffn_down, units, self._threshold)
        return partial

    def settle(self, partial: Partial | None, bias: torch.Tensor | None, norm: Norm) -> None:
        """Add a sum to the residual, and norm it for what reads it next."""
        settle(partial, bias, self._residual, self._arrivals, norm.weight, norm.bias, norm.eps, norm.rms, self._normed)

    def _partial(self, slots: int, unit_rows: int) -> Partial:
        """Room for the sum of so many rows, shared by the layers."""
        if (slots, unit_rows) not in self._partials:
            self._partials[slots, unit_rows] = Partial(self.layout.sizes.width, slots, unit_rows, self.layout.device)
        return self._partials[slots, unit_rows]


def check_served(layout: Layout) -> None:
    """Raise ConfigError unless the kernels serve this number format, head size and device."""
    device, width = layout.device, layout.sizes.head_width
    if layout.dtype not in DTYPES:
        raise ConfigError(f"dtype: {layout.dtype} is not served by the Triton backend; the torch backend takes any")
    if width & (width - 1) or width > 256:
        raise ConfigError(
            f"head width: {width} is not served by the Triton backend, a power of two up to 256 is; "
            "the torch backend takes any"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ConfigError(
            f"device: {torch.cuda.get_device_name(device)} has capability {found}, the Triton backend needs "
            f"{'.'.join(map(str, OLDEST_CAPABILITY))}; the torch backend runs on any"
        )


def _all_heads(layer: Layer) -> Units:
    present = layer.present["heads"].to(torch.int32)
    count = torch.full((1,), len(present), dtype=torch.int32, device=present.device)
    return Units(present, count, early=True)
