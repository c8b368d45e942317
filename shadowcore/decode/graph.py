"""The decoder at the speed of memory: Triton kernels, and the whole step one CUDA graph that the host only replays.

The same interface, prompt pass and cache as the torch decoder; a step reads each kept weight once. Seven kernels a
layer: norm, query-key-value rows, attention, output rows, norm, FFN rows in and out. What a step needs from the one
before, its token and position, stays on the device. Batch 1.
"""

from __future__ import annotations

import torch

from shadowcore.decode.chosen import AllUnits, on_device
from shadowcore.decode.decoder import Decoder
from shadowcore.decode.kernels.attention import Attention
from shadowcore.decode.kernels.launch import Units
from shadowcore.decode.kernels.rows import Partial, project, settle
from shadowcore.decode.layout import Layer, Layout, Norm
from shadowcore.decode.skipping import Selection
from shadowcore.errors import ConfigError
from shadowcore.models.recording import Site

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)  # bfloat16 arithmetic


class GraphDecoder(Decoder):
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
        self._scores = torch.empty(len(layout.head), **floats)  # of the vocabulary
        self._arrivals = torch.zeros(1, dtype=torch.int32, device=device)
        self._partials: dict[tuple[int, int], Partial] = {}
        self._attend = Attention(
            sizes.heads, sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_width, max_positions, device
        )
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._emitted = torch.zeros(max_positions, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def reset(self, batch: int = 1) -> None:
        """Forget everything cached. Raises ConfigError for more than one sequence."""
        if batch != 1:
            raise ConfigError(
                f"batch: the Triton backend decodes 1 sequence, {batch} found; the torch backend has more"
            )
        super().reset(batch)
        self._position.zero_()

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Start anew with ids (1, T), dense, and return the logits (1, V) of the last position."""
        logits = super().prefill(ids)
        self._position.fill_(self.position)
        return logits

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token (1,) and return the logits (1, V) of the next one."""
        self._token.copy_(tokens)
        self.advance(1)
        return self._scores.to(self.layout.dtype, copy=True)[None]

    @torch.inference_mode()
    def advance(self, steps: int) -> None:
        """Decode greedily after the token of the last step, without asking the device anything."""
        self._require_room(steps)
        for _ in range(steps):
            self._run()
        self.position += steps

    @torch.inference_mode()
    def generate(self, prompt_ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """The greedy continuation (1, new_tokens) of a prompt (1, T), T at least 1."""
        if prompt_ids.shape[1] > 1:
            self.prefill(prompt_ids[:, :-1])
        else:
            self.reset(len(prompt_ids))
        self._token.copy_(prompt_ids[:, -1])
        start = self.position
        self.advance(new_tokens)
        return self._emitted[start : self.position][None].clone()

    def go_to(self, position: int) -> None:
        """Continue at another position, as if the cache were filled up to there."""
        super().go_to(position)
        self._position.fill_(position)

    def _run(self) -> None:
        if self.layout.device.type == "cuda":
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()
        else:
            self.launch()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph. Run once before, so that every kernel is compiled."""
        state = [(tensor, tensor.clone()) for tensor in (self._token, self._position)]
        self.launch()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            self.launch()
        graph.instantiate()
        for tensor, before in state:
            tensor.copy_(before)
        return graph

    def launch(self) -> None:
        """Everything one step does, kernel by kernel: from the token and position on the device to the next ones."""
        layout, selection = self.layout, self.selection
        selection.start(self._position)
        self._residual.copy_(layout.embedding.index_select(0, self._token)[0])
        if layout.positions is not None:
            self._residual.add_(layout.positions.index_select(0, self._position)[0])
        partial, bias = None, None
        for index, layer in enumerate(layout.layers):
            self._settle(partial, bias, layer.attention_norm)
            selection.see(Site(index, "residual"), self._residual)
            partial, bias = self._attention_of(index, layer), layer.output_bias
            if selection.units(index, "heads") is None:
                selection.see(Site(index, "heads"), self._mixed.view(-1))
            self._settle(partial, bias, layer.ffn_norm)
            partial, bias = self._ffn_of(index, layer), layer.ffn_down_bias
        self._settle(partial, bias, layout.final_norm)
        self._emit()

    def _emit(self) -> None:
        """The next token, greedily, and on to the next position."""
        project(self._normed, self.layout.head, None, self._scores)
        torch.argmax(self._scores, dim=0, keepdim=True, out=self._token)
        self._emitted.index_copy_(0, self._position, self._token)
        self._position.add_(1)

    def _attention_of(self, index: int, layer: Layer) -> Partial:
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

    def _ffn_of(self, index: int, layer: Layer) -> Partial:
        units = self.selection.units(index, "neurons")
        active = self._active[: len(layer.ffn_down) if units is None else units.capacity]
        project(self._normed, layer.ffn_in, layer.ffn_in_bias, active, units, activation=self.layout.activation)
        partial = self._partial(len(active), 1)
        partial.accumulate(active, layer.ffn_down, units, self._threshold)
        return partial

    def _settle(self, partial: Partial | None, bias: torch.Tensor | None, norm: Norm) -> None:
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
