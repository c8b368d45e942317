"""Dense decoders to compare with: the same weights, cache and graph, but the products of torch, or its compiler."""

from collections.abc import Callable

import torch
from torch.nn import functional

from shadowcore.decode import operations
from shadowcore.decode.cuda_graph import ReplayedDecoder
from shadowcore.decode.layout import OPT_POSITION_OFFSET, Layer, Layout
from shadowcore.models.families import family_of, layers_of


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
        for layer, keys, values in zip(self.layout.layers, self._keys, self._values, strict=True):
            x = self._layer(x, layer, keys, values, self._position, visible, turns)
        self._scores.copy_(self._logits(x))
        torch.argmax(self._scores, dim=1, out=self._token)
        self._emitted.index_copy_(0, self._position, self._token[None])
        self._position.add_(1)

    def _plain_layer(
        self, x: torch.Tensor, layer: Layer, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor,
        visible: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:  # fmt: skip
        groups = self.layout.sizes.kv_heads
        qkv = operations.project(layer.query_key_value, layer.query_key_value_bias, layer.attention_norm(x))
        qkv = layer.normed(qkv)
        if turns is not None:
            turned = operations.rotate(qkv[:, :-groups], *turns)
            qkv = torch.cat((turned, qkv[:, -groups:]), 1)
        query, key, value = qkv.split((qkv.shape[1] - 2 * groups, groups, groups), 1)
        keys.index_copy_(2, position, key[:, :, None])
        values.index_copy_(2, position, value[:, :, None])
        grouped = query.shape[1] != groups
        mixed = functional.scaled_dot_product_attention(query[:, :, None], keys, values, visible, enable_gqa=grouped)
        x = x + operations.add(layer.output.flatten(0, 1), layer.output_bias, mixed.flatten(1))
        inner = operations.project(layer.ffn_in, layer.ffn_in_bias, layer.ffn_norm(x))
        return x + operations.add(
            layer.ffn_down, layer.ffn_down_bias, operations.activate(inner, self.layout.activation)
        )


class HuggingFaceDecoder:
    """The baseline everybody has: the Hugging Face model with its own growing cache."""

    def __init__(self, model: torch.nn.Module):
        self.model, self._cache = model, None

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Start anew with ids (B, T); logits (B, V) of the last position."""
        self._cache = None
        return self.forward(ids, 1)[:, -1]

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens (B,); logits (B, V)."""
        return self.forward(tokens[:, None], 1)[:, -1]

    @torch.inference_mode()
    def continued(self, tokens: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """The greedy continuation (B, new_tokens) of what is cached and tokens (B,)."""
        generated = []
        for _ in range(new_tokens):
            tokens = self.step(tokens).argmax(-1)
            generated.append(tokens)
        return torch.stack(generated, 1)

    def forward(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """Append ids (B, T); logits (B, logits_to_keep, V) after the last of them."""
        out = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=logits_to_keep)
        self._cache = out.past_key_values
        return out.logits


class HuggingFaceGenerate:
    """What users call: `generate` of a model whose weights are views of the layout's; the cache grows or is static."""

    def __init__(self, layout: Layout, max_positions: int, batch: int, static: bool):
        """batch: number of sequences that are generated together."""
        from transformers import StaticCache

        self.model, self.layout = as_model(layout), layout
        self._cache = StaticCache(config=self.model.config, max_cache_len=max_positions) if static else None
        self._prompt = torch.zeros(batch, 1, dtype=torch.int64, device=layout.device)

    def go_to(self, position: int) -> None:
        """Every call begins with a prompt of so many tokens: the slope between two lengths leaves it out."""
        words = torch.arange(position, device=self.layout.device).expand(len(self._prompt), -1)
        self._prompt = words * 7919 % (self.layout.sizes.vocabulary - 10) + 10

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) of the last position of ids (B, T)."""
        return self.model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]

    @torch.inference_mode()
    def advance(self, steps: int) -> None:
        """Generate so many tokens, greedily."""
        if self._cache is not None:
            self._cache.reset()
        self.model.generate(
            self._prompt, past_key_values=self._cache, do_sample=False, min_new_tokens=steps, max_new_tokens=steps
        )


def as_model(layout: Layout) -> torch.nn.Module:
    """The Hugging Face model a layout stands for, its weights views of the layout's."""
    from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig  # not above: a start imports this module

    sizes = layout.sizes
    shared = {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.width, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "max_position_embeddings": sizes.positions,
        "tie_word_embeddings": layout.head is layout.embedding,
    }  # fmt: skip
    if layout.activation == "relu":  # the only one without a gate
        config = OPTConfig(**shared, ffn_dim=sizes.neurons, word_embed_proj_dim=sizes.width)
    else:
        config = LlamaConfig(
            **shared, intermediate_size=sizes.neurons, num_key_value_heads=sizes.kv_heads, head_dim=sizes.head_width,
            rms_norm_eps=layout.final_norm.eps, hidden_act="relu" if layout.exact_zeros else "silu",
        )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=layout.dtype).eval()
    family = family_of(config)

    def put(name: str, weight: torch.Tensor, bias: torch.Tensor | None = None, of: torch.nn.Module = model) -> None:
        module = of.get_submodule(name)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            module.bias = torch.nn.Parameter(bias, requires_grad=False)

    for module, layer in zip(layers_of(model), layout.layers, strict=True):
        widths = [n * sizes.head_width for n in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
        weights = layer.query_key_value.flatten(0, 1).split(widths)
        biases = (
            [None] * 3 if layer.query_key_value_bias is None else layer.query_key_value_bias.flatten().split(widths)
        )
        for name, weight, bias in zip(family.attention_projections, weights, biases, strict=True):
            put(name, weight, bias, module)
        put(family.output_projection, layer.output.flatten(0, 1).T, layer.output_bias, module)
        for part, name in enumerate(family.ffn_in):
            bias = None if layer.ffn_in_bias is None else layer.ffn_in_bias[:, part]
            put(name, layer.ffn_in[:, part], bias, module)
        put(family.ffn_down, layer.ffn_down.T, layer.ffn_down_bias, module)
        put(family.attention_norm, layer.attention_norm.weight, layer.attention_norm.bias, module)
        put(family.ffn_norm, layer.ffn_norm.weight, layer.ffn_norm.bias, module)
    put(family.final_norm, layout.final_norm.weight, layout.final_norm.bias)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(layout.embedding))
    model.get_output_embeddings().weight = torch.nn.Parameter(layout.head, requires_grad=False)
    if layout.positions is not None:
        unread = layout.positions.new_zeros(OPT_POSITION_OFFSET, sizes.width)
        table = torch.cat((unread, layout.positions))
        model.model.decoder.embed_positions.weight = torch.nn.Parameter(table, requires_grad=False)
    else:
        with layout.device:
            model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model
