"""Our decoder: a dense pass over the prompt, then steps of one token that really skip units.

Protocol `token`: every next-token prediction comes from a step, and a step's masks are computed at its own position.
The weights of skipped neurons are not read. Of a skipped head, the query, the attention and the output projection are
left out; keys and values of all heads are always computed, so the cache is complete. In a batch, weights are read if
some sequence keeps the unit; the cache, which is each sequence's own, only of heads that the sequence itself keeps.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from shadowcore.decode import operations
from shadowcore.decode.layout import Layer, Layout
from shadowcore.decode.selection import DenseSelection, Kept, Selection
from shadowcore.errors import ConfigError
from shadowcore.models.families import KINDS, Kind
from shadowcore.models.recording import Site


class Decoder:
    """Decoding of a layout with a static cache of keys and values, each (L, B, G, max_positions, K).

    `selection` says what steps skip; without one they are dense. Raises ConfigError for more positions than the model
    has and, when decoding, for more than the cache has.
    """

    def __init__(self, layout: Layout, max_positions: int, selection: Selection | None = None):
        if max_positions > layout.sizes.positions:
            raise ConfigError(
                f"max_positions: {max_positions} is too large; it must be at most {layout.sizes.positions}, which are "
                "the model's positions, or its sliding window: the decoder attends to all positions"
            )
        self.layout, self.max_positions = layout, max_positions
        self.selection = DenseSelection() if selection is None else selection
        self.position = 0
        self._sites = [
            {what: Site(layer, what) for what in ("residual", "heads", "ffn_input")}
            for layer in range(len(layout.layers))
        ]
        self._kv_heads = [self._kv_heads_of(layer) for layer in layout.layers]
        if layout.inverse_frequencies is not None:
            self._cos, self._signed_sin = rotary_tables(layout, max_positions)
        self._allocate(batch=1)

    def reset(self, batch: int = 1) -> None:
        """Empty the cache, for `batch` sequences."""
        self.position = 0
        if batch != self.batch:
            self._allocate(batch)

    @property
    def batch(self) -> int:
        """Sequences decoded together."""
        return self._keys.shape[1]

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Start anew with ids (B, T), dense, and return the logits (B, V) of the last position."""
        batch, length = ids.shape
        self.reset(batch)
        self._require_room(length)
        x = self._embed(ids, slice(0, length))  # (B, T, D)
        for index, layer in enumerate(self.layout.layers):
            qkv = operations.project(layer.query_key_value, layer.query_key_value_bias, layer.attention_norm(x))
            qkv = self._rotate(layer.normed(qkv), slice(0, length))
            query, key, value = self._split(qkv.transpose(1, 2))  # (B, heads, T, K)
            self._keys[index, :, :, :length] = key
            self._values[index, :, :, :length] = value
            kv_heads = self._kv_heads[index]
            if kv_heads is not None:
                key, value = key[:, kv_heads], value[:, kv_heads]
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            x = x + operations.add(layer.output.flatten(0, 1), layer.output_bias, mixed.transpose(1, 2).flatten(2))
            x = x + self._ffn(layer, layer.ffn_norm(x), None)
        self.position = length
        return self._logits(x[:, -1])

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens (B,) and return the logits (B, V) of the next ones."""
        self._require_room(1)
        selection, position = self.selection, self.position
        selection.start(position)
        x = self._embed(tokens, position)  # (B, D)
        for index, layer in enumerate(self.layout.layers):
            selection.see(self._sites[index]["residual"], x)
            x = x + self._attention(index, layer, layer.attention_norm(x), selection.kept(index, "heads"))
            normed = layer.ffn_norm(x)
            selection.see(self._sites[index]["ffn_input"], normed)
            x = x + self._ffn(layer, normed, selection.kept(index, "neurons"))
        self.position = position + 1
        return self._logits(x)

    def generate(
        self, prompt_ids: torch.Tensor, new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> torch.Tensor:
        """The continuation (B, new_tokens) of a prompt (B, T), T at least 1: greedy at temperature 0, else drawn.

        The prompt is prefilled but for its last token, so that every prediction comes from a step. The same seed
        draws the same tokens on the same backend. Raises ConfigError for a negative temperature.
        """
        if not temperature >= 0:
            raise ConfigError(f"temperature: {temperature:g} is not allowed; it must be 0 (greedy) or more")
        if prompt_ids.shape[1] > 1:
            self.prefill(prompt_ids[:, :-1])
        else:
            self.reset(len(prompt_ids))
        return self.continued(prompt_ids[:, -1], new_tokens, temperature, seed)

    def continued(self, tokens: torch.Tensor, new_tokens: int, temperature: float = 0.0, seed: int = 0) -> torch.Tensor:
        """The next new_tokens tokens, (B, new_tokens), after tokens (B,) and the cached ones."""
        generator, generated = torch.Generator(self.layout.device).manual_seed(seed), []
        for _ in range(new_tokens):
            logits = self.step(tokens)
            if temperature > 0:
                probabilities = (logits.float() / temperature).softmax(-1)
                tokens = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
            else:
                tokens = logits.argmax(-1)
            generated.append(tokens)
        return torch.stack(generated, 1)

    def go_to(self, position: int) -> None:
        """Continue at another position, as if the cache were filled up to there; it times steps without a prompt."""
        self.position = position

    def advance(self, steps: int) -> None:
        """Decode greedily on from the tokens of the last step; from token 0 at first."""
        for _ in range(steps):
            self._token = self.step(self._token).argmax(-1)

    def share_cache(self, other: Decoder) -> None:
        """Use the cache of another decoder with as many positions; only one of the two may decode at a time."""
        self._keys, self._values = other._keys, other._values

    def keep_masks(self) -> dict[Kind, torch.Tensor]:
        """What the last step kept of the model's units, a mask (L, U) per kind; of a batch, the union."""
        return {kind: mask.any(1) for kind, mask in self.masks_by_sequence().items()}

    def masks_by_sequence(self) -> dict[Kind, torch.Tensor]:
        """What the last step kept of the model's units for each sequence, a mask (L, B, U) per kind."""
        masks = {kind: mask[:, None].repeat(1, self.batch, 1) for kind, mask in self.layout.keep_masks().items()}
        for index, layer in enumerate(self.layout.layers):
            for kind in KINDS:
                kept = self.selection.kept(index, kind)
                if kept is not None:
                    masks[kind][index] = False
                    masks[kind][index][:, layer.present[kind][kept.units]] = True if kept.rows is None else kept.rows
        return masks

    def _attention(self, index: int, layer: Layer, x: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        """sum_h softmax(q_h K_h^T / sqrt(K)) V_h Wo_h + b over kept heads, for a step's x (B, D)."""
        weight, bias, kv_heads = layer.query_key_value, layer.query_key_value_bias, self._kv_heads[index]
        if kept is None:
            qkv = operations.project(weight, bias, x)
        else:
            heads, units = len(layer.output), kept.units.tolist()
            key_value = operations.project(weight[heads:], None if bias is None else bias[heads:], x)
            qkv = torch.cat((operations.project_heads(weight, bias, x, units), key_value), 1)
            shared = self.layout.sizes.heads // self.layout.sizes.kv_heads
            kv_heads = [kv_heads[h] if kv_heads is not None else h // shared for h in units]
        query, key, value = self._split(self._rotate(layer.normed(qkv), self.position))  # (B, heads, K)
        keys, values = self._keys[index], self._values[index]
        keys[:, :, self.position] = key
        values[:, :, self.position] = value
        cached = keys[:, :, : self.position + 1], values[:, :, : self.position + 1]
        mixed = operations.attend(query, *cached, kv_heads, kept and kept.rows)  # (B, n, K)
        if kept is None:
            mixed = mixed.flatten(1)
            self.selection.see(self._sites[index]["heads"], mixed)
            return operations.add(layer.output.flatten(0, 1), layer.output_bias, mixed)
        return operations.add_heads(layer.output, layer.output_bias, mixed, units)

    def _ffn(self, layer: Layer, x: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        """sum_f a_f W2_f + b with a_f = relu(W1_f x + b_f), or act(gate_f x) (up_f x), over kept neurons."""
        kind = self.layout.activation
        if kept is None:
            active = operations.activate(operations.project(layer.ffn_in, layer.ffn_in_bias, x), kind)
            return operations.add(layer.ffn_down, layer.ffn_down_bias, active)
        active = operations.activate(operations.project_neurons(layer.ffn_in, layer.ffn_in_bias, x, kept.units), kind)
        if kept.rows is not None:
            active = active * kept.rows
        return operations.add_neurons(layer.ffn_down, layer.ffn_down_bias, active, kept.units)

    def _embed(self, ids: torch.Tensor, position: int | slice) -> torch.Tensor:
        x = functional.embedding(ids, self.layout.embedding)
        return x if self.layout.positions is None else x + self.layout.positions[position]

    def _rotate(self, qkv: torch.Tensor, position: int | slice) -> torch.Tensor:
        """Rotary positions on the queries and keys of qkv (..., heads + 2 G, K), in place."""
        if self.layout.inverse_frequencies is not None:
            turned = qkv[..., : -self.layout.sizes.kv_heads, :]
            turned.copy_(operations.rotate(turned, self._cos[position], self._signed_sin[position]))
        return qkv

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys, values of qkv (B, heads + 2 G, ...)."""
        groups = self.layout.sizes.kv_heads
        return qkv.split((qkv.shape[1] - 2 * groups, groups, groups), 1)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.layout.final_norm(x), self.layout.head)

    def _kv_heads_of(self, layer: Layer) -> list[int] | None:
        """The KV head of each query head of a layer; None where no head has been removed."""
        sizes = self.layout.sizes
        if len(layer.output) == sizes.heads:
            return None
        return (layer.present["heads"] // (sizes.heads // sizes.kv_heads)).tolist()

    def _allocate(self, batch: int) -> None:
        sizes = self.layout.sizes
        shape = (sizes.layers, batch, sizes.kv_heads, self.max_positions, sizes.head_width)
        self._keys, self._values = (
            torch.zeros(shape, dtype=self.layout.dtype, device=self.layout.device) for _ in range(2)
        )
        self._token = torch.zeros(batch, dtype=torch.int64, device=self.layout.device)

    def _require_room(self, tokens: int) -> None:
        if self.selection.sequences not in (None, self.batch):
            raise ConfigError(
                f"selection: it has units for {self.selection.sequences} sequences, {self.batch} are decoded"
            )
        if self.position + tokens > self.max_positions:
            raise ConfigError(
                f"max_positions: the cache holds {self.max_positions} positions, {self.position + tokens} are needed"
            )


def rotary_tables(layout: Layout, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines, and sines with the first half negated, of every position's angles: (positions, 1, K) each."""
    frequencies = layout.inverse_frequencies.float()
    angles = torch.arange(positions, device=layout.device)[:, None] * frequencies  # (positions, K/2)
    cos, sin = angles.cos() * layout.rotary_scale, angles.sin() * layout.rotary_scale
    tables = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
    return tuple(table[:, None].to(layout.dtype) for table in tables)
