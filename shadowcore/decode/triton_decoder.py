"""The Triton decoder: a step is one CUDA graph of Triton kernels, and the host only replays it.

It has the interface, prompt pass and cache of the torch decoder. A step reads each kept weight once, with seven kernels
a layer: norm, query-key-value rows, attention, output rows, norm, FFN rows in and out. Token and position stay on the
device. Several sequences share the weights that are read. The units of later layers are chosen concurrently with
earlier layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shadowcore.decode.cuda_graph import ReplayedDecoder
from shadowcore.decode.kernels import batched_gemm as batched
from shadowcore.decode.kernels import gemv as single
from shadowcore.decode.kernels.attention import Attention
from shadowcore.decode.kernels.fused_norm import Normed, Partial, Read, embed, folded, settle
from shadowcore.decode.kernels.launch import Branch, Units, begin_row
from shadowcore.decode.kernels.sampler import Chooser
from shadowcore.decode.layout import Layer, Layout, Norm
from shadowcore.decode.selection import DenseSelection, Selection
from shadowcore.decode.triton_selection import TritonSelection, on_device
from shadowcore.errors import ConfigError
from shadowcore.models.families import Kind
from shadowcore.models.recording import Site

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)  # bfloat16 arithmetic


class GraphDecoder(ReplayedDecoder):
    """Decoding of up to 64 sequences. On a CPU, tests run the kernels interpreted (TRITON_INTERPRET=1).

    thresholds, one a layer: the down projection leaves out neurons whose activation is not above it; 0 changes nothing
    after ReLU. Raises ConfigError for a number format, head size or device the kernels do not serve.
    """

    selection: TritonSelection

    def __init__(
        self,
        layout: Layout,
        max_positions: int,
        selection: Selection | None = None,
        thresholds: Sequence[float] | None = None,
    ):
        check_served(layout)
        self._thresholds = thresholds
        self._compacted = any(len(layer.output) < layout.sizes.heads for layer in layout.layers)
        if self._compacted and not (selection is None or isinstance(selection, DenseSelection)):
            raise ConfigError("selection: a compacted layout has only its kept units; decode it without a selection")
        super().__init__(layout, max_positions, on_device(selection, layout))
        self._turns = None
        if layout.inverse_frequencies is not None:
            self._turns = self._cos.squeeze(1), self._signed_sin.squeeze(1)  # (positions, K)
        self._heads = [_all_heads(layer) for layer in layout.layers]
        self._read = [_read(layer) for layer in layout.layers]
        self._read_head = _folded(layout.head, None, layout.final_norm)
        self._branch, self._chosen_for = Branch(layout.device), -1

    def _allocate(self, batch: int) -> None:
        super()._allocate(batch)
        if batch > 1 and self._thresholds is not None:
            raise ConfigError(f"thresholds: they support batch size 1 only (got {batch})")
        sizes, device, dtype = self.layout.sizes, self.layout.device, self.layout.dtype
        self.selection.allocate(batch)
        floats = {"dtype": torch.float32, "device": device}
        self._residual = torch.empty(batch, sizes.width, **floats)
        # a residual that is not normed yet may be too large for 16 bits with few of them for the exponent
        narrow = torch.float32 if dtype == torch.float16 else dtype
        self._normed, self._ahead = (Normed.empty(batch, sizes.width, narrow, device) for _ in range(2))
        self._qkv = torch.empty(batch * (sizes.heads + 2 * sizes.kv_heads) * sizes.head_width, **floats)
        self._active = torch.empty(batch * sizes.neurons, **floats)
        self._partials: dict[tuple[int, int], Partial] = {}
        self._attend = Attention(batch, sizes.heads, sizes.kv_heads, sizes.head_width, self.max_positions, device)
        self._choose = Chooser(batch, len(self.layout.head), device)

    def launch(self) -> None:
        """Everything one step does, kernel by kernel: from the token and position on the device to the next ones."""
        layout = self.layout
        self.selection.start(self._position)
        norm = layout.layers[0].attention_norm
        embed(
            self._token, self._position, layout.embedding, layout.positions, self._residual, norm.weight, self._normed
        )
        for index, layer in enumerate(layout.layers):
            self._see(Site(index, "residual"))
            self._need(index, "heads")
            partial = self.attention(index, layer)
            self._see(Site(index, "heads"))
            self._need(index, "neurons")  # before a kernel that has nothing to load early, so that the FFN's may
            self.settle(partial, layer.output_bias, layer.ffn_norm)
            self._see(Site(index, "ffn_input"))
            partial = self.ffn(index, layer)
            if index + 1 == len(layout.layers):
                self.settle(partial, layer.ffn_down_bias, layout.final_norm)
            else:
                following = layout.layers[index + 1]
                self.settle(partial, layer.ffn_down_bias, following.attention_norm, following.ffn_norm)
        self.emit()

    def _see(self, site: Site) -> None:
        """Let the selection read a feature and choose, concurrently with what does not depend on the choice.

        Those layers read only lists of units that were chosen earlier.
        """
        first = self.selection.sites.get(site)
        if first is None:
            return
        if site.what == "ffn_input":  # the next kernel needs the choice
            self.selection.see(site, self.feature(site))
            begin_row(2)
            return
        self._branch.join()  # the buffers hold the results of one group at a time
        self.selection.see(site, self.feature(site), self._branch)
        self._chosen_for = first

    def _need(self, index: int, kind: Kind) -> None:
        """Wait for the choice that this layer is the first to use, if it is of such units."""
        if index == self._chosen_for and kind in self.selection.kinds:
            self._branch.join()

    def feature(self, site: Site) -> torch.Tensor | Normed:
        """The feature at a site while its layer is computed, (B, ...): the residual, its norm or all heads' outputs."""
        if site.what == "heads":
            return self._attend.combined(self._mixed, self.layout.sizes.heads).flatten(1)
        if site.what == "residual" and not self.selection.ahead:
            return self._residual
        normed = self._ahead if self.selection.ahead else self._normed
        norm = self.layout.layers[site.layer].ffn_norm
        return normed._replace(eps=norm.eps, rms=norm.rms)

    def sample(self, temperature: float, seed: int) -> None:
        """How the next tokens are chosen: greedily at temperature 0, else drawn, inside the graph."""
        self._choose.temperature.fill_(temperature)
        self._choose.seed.fill_(seed)

    def emit(self) -> None:
        """Choose the next token and advance the position."""
        self._project(self._normed_by(self.layout.final_norm), self.layout.head, self._read_head, self._scores)
        self._choose(self._scores, self._token, self._position, self._emitted)

    def attention(self, index: int, layer: Layer) -> Partial:
        """A layer's attention of the normed residual: the sum that it adds to the residual."""
        sizes, units = self.layout.sizes, self.selection.units(index, "heads")
        heads = self._heads[index] if units is None else units
        kv_rows = 2 * sizes.kv_heads * sizes.head_width
        width = heads.capacity * sizes.head_width + kv_rows
        qkv = self._qkv[: self.batch * width].view(self.batch, width)
        self._project(
            self._normed_by(layer.attention_norm), layer.query_key_value, self._read[index][0], qkv, units,
            sizes.head_width, kv_rows,
        )  # fmt: skip
        numbered = self._compacted or units is not None
        keys, values = self._keys[index], self._values[index]
        norms = None
        if layer.query_norm is not None:
            norms = layer.query_norm.weight, layer.key_norm.weight, layer.query_norm.eps
        self._mixed = self._attend(qkv, heads, numbered, keys, values, self._position, self._turns, norms)
        partial = self._partial(heads.capacity * sizes.head_width, sizes.head_width)
        if self.batch == 1:
            single.accumulate(partial, self._mixed, layer.output, units)
        else:
            mixed = self._attend.combined(self._mixed, heads.capacity, heads.rows)
            batched.accumulate(partial, mixed.flatten(1), layer.output, units)
        return partial

    def ffn(self, index: int, layer: Layer) -> Partial:
        """A layer's FFN of the normed residual: the sum that it adds to the residual."""
        units = self.selection.units(index, "neurons")
        block = 1 if units is None else units.block
        width = len(layer.ffn_down) if units is None else units.capacity * block
        active = self._active[: self.batch * width].view(self.batch, width)
        self._project(
            self._normed_by(layer.ffn_norm), layer.ffn_in, self._read[index][1], active, units, block,
            activation=self.layout.activation,
        )  # fmt: skip
        partial = self._partial(width, block)
        if self.batch == 1:
            threshold = None if self._thresholds is None else self._thresholds[index]
            single.accumulate(partial, active, layer.ffn_down, units, threshold)
        else:
            batched.accumulate(partial, active, layer.ffn_down, units)
        return partial

    def settle(self, partial: Partial, bias: torch.Tensor | None, norm: Norm, ahead: Norm | None = None) -> None:
        """Add a sum to the residual, and prepare its norm for the kernel that reads it next.

        And another norm, `ahead`, for a selection that reads the residual as if it were normed so.
        """
        more = (ahead.weight, self._ahead) if self.selection.ahead and ahead else ()
        settle(partial, bias, self._residual, norm.weight, self._normed, *more)

    def _normed_by(self, norm: Norm) -> Normed:
        return self._normed._replace(eps=norm.eps, rms=norm.rms)

    def _project(self, *arguments, **more) -> None:
        (single if self.batch == 1 else batched).project(*arguments, **more)

    def _partial(self, slots: int, unit_rows: int) -> Partial:
        """The buffer for the sum of this many rows, shared by the layers."""
        if (slots, unit_rows) not in self._partials:
            width, device = self.layout.sizes.width, self.layout.device
            if self.batch == 1:
                partial = single.partial_sums(width, slots, unit_rows, device)
            else:
                partial = batched.partial_sums(self.batch, width, slots, unit_rows, device)
            self._partials[slots, unit_rows] = partial
        return self._partials[slots, unit_rows]


def _read(layer: Layer) -> tuple[Read, Read]:
    """Norms and biases of a layer's two products of a normed residual, folded for the kernels."""
    return (
        _folded(layer.query_key_value, layer.query_key_value_bias, layer.attention_norm),
        _folded(layer.ffn_in, layer.ffn_in_bias, layer.ffn_norm),
    )


def _folded(weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm) -> Read:
    rows = weight.view(-1, weight.shape[-1])
    return folded(rows, None if bias is None else bias.flatten(), norm.weight, norm.bias, norm.rms)


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
    return Units(present, count)
