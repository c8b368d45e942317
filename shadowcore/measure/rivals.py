"""Dense decoders to compare with: the same weights, cache and graph, but the products of torch, or its compiler."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch.nn import functional
from transformers import StaticCache

from shadowcore.decode import operations
from shadowcore.decode.layout import Layout
from shadowcore.decode.replay import ReplayedDecoder

Tensors = tuple[torch.Tensor | None, ...]


class TorchGraph(ReplayedDecoder):
    """A dense step of torch operations (cuBLAS) in one CUDA graph; `compiled`: each layer through torch.compile.

    Attends to the whole cache under a mask, because a graph cannot grow.
    """

    def __init__(self, layout: Layout, max_positions: int, compiled: bool = False):
        super().__init__(layout, max_positions)
        self._places = torch.arange(max_positions, device=layout.device)
        self._layer: Callable = self._plain_layer
        if compiled:
            options = {"coordinate_descent_tuning": True}
            self._layer = torch.compile(self._plain_layer, dynamic=False, options=options)

    def launch(self) -> None:
        """Everything one step does, on the device."""
        x = functional.embedding(self._token, self.layout.embedding)
        if self.layout.positions is not None:
            x = x + self.layout.positions[self._position]
        turns = None
        if self.layout.inverse_frequencies is not None:
            turns = self._cos[self._position], self._signed_sin[self._position]
        visible = (self._places <= self._position)[None, None, None]
        for index, layer in enumerate(self.layout.layers):
            weights = (
                layer.query_key_value, layer.query_key_value_bias, layer.output, layer.output_bias,
                layer.ffn_in, layer.ffn_in_bias, layer.ffn_down, layer.ffn_down_bias,
                layer.attention_norm.weight, layer.attention_norm.bias, layer.ffn_norm.weight, layer.ffn_norm.bias,
            )  # fmt: skip
            x = self._layer(x, weights, self._keys[index], self._values[index], self._position, visible, turns)
        self._scores.copy_(self._logits(x)[0])
        self.choose()

    def _plain_layer(
        self, x: torch.Tensor, weights: Tensors, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor,
        visible: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:  # fmt: skip
        qkv_weight, qkv_bias, out_weight, out_bias, in_weight, in_bias, down_weight, down_bias, *norms = weights
        first = self.layout.layers[0]
        groups = self.layout.sizes.kv_heads
        normed = _norm(x, norms[0], norms[1], first.attention_norm.eps, first.attention_norm.rms)
        qkv = operations.project(qkv_weight, qkv_bias, normed)
        if turns is not None:
            turned = operations.rotate(qkv[:, :-groups], *turns)
            qkv = torch.cat((turned, qkv[:, -groups:]), 1)
        query, key, value = qkv.split((qkv.shape[1] - 2 * groups, groups, groups), 1)
        keys.index_copy_(2, position, key[:, :, None])
        values.index_copy_(2, position, value[:, :, None])
        grouped = query.shape[1] != groups
        mixed = functional.scaled_dot_product_attention(query[:, :, None], keys, values, visible, enable_gqa=grouped)
        x = x + operations.add(out_weight.flatten(0, 1), out_bias, mixed.flatten(1))
        normed = _norm(x, norms[2], norms[3], first.ffn_norm.eps, first.ffn_norm.rms)
        active = self._activate(operations.project(in_weight, in_bias, normed))
        return x + operations.add(down_weight, down_bias, active)


def _norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, rms: bool
) -> torch.Tensor:
    if rms:
        return functional.rms_norm(x, x.shape[-1:], weight, eps)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


class HuggingFaceGenerate:
    """What users call: `generate` of the Hugging Face model, its cache growing, or static and then compiled."""

    def __init__(self, model: torch.nn.Module, prompt_tokens: int, max_positions: int, static: bool):
        device = next(model.parameters()).device
        self.model, self.layout = model, SimpleNamespace(device=device)
        self._prompt = torch.randint(10, model.config.vocab_size, (1, prompt_tokens), device=device)
        self._cache = StaticCache(config=model.config, max_cache_len=max_positions) if static else None

    def go_to(self, position: int) -> None:
        """Every call begins with the prompt: the slope between two lengths leaves it out."""

    @torch.inference_mode()
    def advance(self, steps: int) -> None:
        """Generate so many tokens, greedily."""
        if self._cache is not None:
            self._cache.reset()
        self.model.generate(
            self._prompt, past_key_values=self._cache, do_sample=False, min_new_tokens=steps, max_new_tokens=steps
        )
