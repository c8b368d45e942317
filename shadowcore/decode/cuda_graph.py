"""Decoder steps captured as one CUDA graph: their state is on the device, so that they never wait for the host."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from shadowcore.decode.decoder import Decoder
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
        """The launches as a graph. They run once before, to compile every kernel; `state` is restored afterwards."""
        before = [tensor.clone() for tensor in self._state]
        self._launch()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        gc.collect()  # no memory may be freed during the capture
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
    """A decoder whose step is one CUDA graph; `launch` computes the next tokens and position from the current ones."""

    most_sequences = 64  # bits of a number

    def launch(self) -> None:
        """Everything one step does, on the device."""
        raise NotImplementedError

    def _allocate(self, batch: int) -> None:
        if batch > self.most_sequences:
            raise ConfigError(
                f"batch: {batch} sequences are too many; a CUDA graph decodes up to {self.most_sequences}, the torch "
                "backend any number"
            )
        super()._allocate(batch)
        device = self.layout.device
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._scores = torch.empty(batch, len(self.layout.head), dtype=torch.float32, device=device)
        self._emitted = torch.zeros(self.max_positions, batch, dtype=torch.int64, device=device)
        self.replay = Replay(self.launch, device, (self._token, self._position))

    def reset(self, batch: int = 1) -> None:
        """Empty the cache, for `batch` sequences."""
        super().reset(batch)
        self._position.zero_()

    def go_to(self, position: int) -> None:
        super().go_to(position)
        self._position.fill_(position)

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        logits = super().prefill(ids)
        self._position.fill_(self.position)
        return logits

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._token.copy_(tokens)
        self.advance(1)
        return self._scores.to(self.layout.dtype, copy=True)

    @torch.inference_mode()
    def advance(self, steps: int) -> None:
        """Decode on from the tokens of the last step, without waiting for the device."""
        self._require_room(steps)
        for _ in range(steps):
            self.replay()
        self.position += steps

    @torch.inference_mode()
    def continued(self, tokens: torch.Tensor, new_tokens: int, temperature: float = 0.0, seed: int = 0) -> torch.Tensor:
        self.sample(temperature, seed)
        self._token.copy_(tokens)
        start = self.position
        self.advance(new_tokens)
        return self._emitted[start : self.position].T.clone()

    def sample(self, temperature: float, seed: int) -> None:
        """Set how the next tokens are chosen: greedily. Raises ConfigError for a temperature other than 0."""
        if temperature != 0:
            raise ConfigError(f"temperature: {type(self).__name__} decodes greedily, at 0 only (got {temperature:g})")
