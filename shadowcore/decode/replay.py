"""Steps that never wait for the host: their launches captured once as a CUDA graph, their state on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shadowcore.decode.decoder import Decoder
from shadowcore.decode.layout import Layout
from shadowcore.errors import ConfigError


class Replay:
    """Calls `launch`, on a GPU through a graph captured at the first call; `state`: tensors that launching changes."""

    def __init__(self, launch: Callable[[], None], device: torch.device, state: Sequence[torch.Tensor] = ()):
        self._launch, self._device, self._state = launch, device, state
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._device.type != "cuda":
            self._launch()
            return
        if self.graph is None:
            self.graph = self._captured()
        self.graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The launches as a graph; made once before, so that every kernel is compiled, and undone."""
        before = [tensor.clone() for tensor in self._state]
        self._launch()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            self._launch()
        graph.instantiate()
        for tensor, value in zip(self._state, before, strict=True):
            tensor.copy_(value)
        return graph

    def nodes(self) -> int | None:
        """Nodes of the graph; None without one, or where the package cuda-bindings is missing."""
        if self.graph is None:
            return None
        try:
            from cuda.bindings import runtime
        except ImportError:
            return None
        error, _, count = runtime.cudaGraphGetNodes(self.graph.raw_cuda_graph())
        return int(count) if int(error) == 0 else None


class ReplayedDecoder(Decoder):
    """A decoder of one sequence whose step is one graph: `launch` leads from a token and position to the next ones."""

    def __init__(self, layout: Layout, max_positions: int):
        super().__init__(layout, max_positions)
        device = layout.device
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._scores = torch.empty(len(layout.head), dtype=self.score_dtype(layout), device=device)  # of the vocabulary
        self._emitted = torch.zeros(max_positions, dtype=torch.int64, device=device)
        self.replay = Replay(self.launch, device, (self._token, self._position))

    def launch(self) -> None:
        """Everything one step does, on the device."""
        raise NotImplementedError

    @staticmethod
    def score_dtype(layout: Layout) -> torch.dtype:
        """Number format of the vocabulary's scores."""
        return layout.dtype

    def choose(self) -> None:
        """The best token is emitted and read next, at the next position."""
        torch.argmax(self._scores, dim=0, keepdim=True, out=self._token)
        self._emitted.index_copy_(0, self._position, self._token)
        self._position.add_(1)

    def reset(self, batch: int = 1) -> None:
        """Forget everything cached. Raises ConfigError for more than one sequence."""
        if batch != 1:
            raise ConfigError(f"batch: a replayed step decodes 1 sequence, {batch} found; the torch backend has more")
        super().reset(batch)
        self._position.zero_()

    def go_to(self, position: int) -> None:
        """Continue at another position, as if the cache were filled up to there."""
        super().go_to(position)
        self._position.fill_(position)

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
        """Decode greedily on from the token of the last step, without asking the device anything."""
        self._require_room(steps)
        for _ in range(steps):
            self.replay()
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
