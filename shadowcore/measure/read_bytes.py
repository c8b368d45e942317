"""Bytes of weights that one decode step reads, of the dense model and of one unit, at batch 1.

They are the model's weights in their own number format, each counted once. Of an embedding table a step reads a row, of
the output table everything. Keys, values and activations are no weights. For a model that our decoder computes,
`latency.bytes_per_step` counts the same bytes from the decoder's own tensors.
"""

import torch

from shadowcore.models.families import Kind, dimensions_of, family_of, layers_of, output_projection


def dense_bytes(model: torch.nn.Module) -> int:
    """Bytes that a step of the dense model reads."""
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    head = model.get_output_embeddings().weight
    tied = head.nbytes if any(head is table for table in tables) else 0  # parameters() has a tied table once
    return sum(weight.nbytes for weight in model.parameters()) + tied - sum(t.nbytes - t[0].nbytes for t in tables)


def unit_bytes(model: torch.nn.Module, kind: Kind, computed: int = 0) -> int:
    """Bytes of one unit of a layer: what a step that skips the unit does not read.

    A head's are its query rows, where they are rows of its own, and its columns of the output projection; keys and
    values stay. A neuron's are its rows of gate and up, or of fc1, and its column of the down projection. So
    many of these input matrices as `computed` says are read for all neurons: their products decide which are kept.
    """
    family, layer = family_of(model.config), layers_of(model)[0]
    inputs = family.attention_projections[:1] if kind == "heads" else family.ffn_in[computed:]
    tensors = [output_projection(model, 0, kind).weight]
    for name in inputs:
        tensors += layer.get_submodule(name).parameters()
    return sum(tensor.nbytes for tensor in tensors) // dimensions_of(model.config).units(kind)
