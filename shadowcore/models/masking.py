"""Remove units from a model: by a mask while it runs, or by cutting out their weights."""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch

from shadowcore.models.families import Kind, family_of, layers_of, output_projection
from shadowcore.models.ffn import ffn_inputs
from shadowcore.models.recording import SITES, Choose, Site, visiting


@contextmanager
def choosing(model: torch.nn.Module, choose: Choose, what: Collection[str] = SITES) -> Iterator[None]:
    """While the block runs, units that `choose` does not keep contribute nothing; it is called at sites `what`."""

    def visit(site: Site, x: torch.Tensor) -> torch.Tensor | None:
        keep = choose(site, x)
        return None if keep is None else x * keep.to(x.device)[..., None]

    with visiting(model, visit, what):
        yield


def masked(model: torch.nn.Module, keep: Mapping[Kind, torch.Tensor]) -> AbstractContextManager[None]:
    """While the block runs, units whose entry in `keep[kind]` is False contribute nothing.

    keep[kind]: (L, U), the same units at every position; (L, T, U), other units at each of T positions; or
    (L, B, T, U), other units for each sequence, too.
    """
    return choosing(model, lambda site, x: keep[site.what][site.layer] if site.what in keep else None, keep)


def cut_out(model: torch.nn.Module, keep: Mapping[Kind, torch.Tensor]) -> torch.nn.Module:
    """A copy of `model` without the weights of removed units.

    A removed neuron loses its rows of fc1 (or gate and up) and its column of the down projection, so the layer becomes
    narrower. Heads cannot be cut out, because Hugging Face attention has one number of heads per model. So a removed
    head's K columns of the output projection are set to zero, and its rows of the query projection if it has rows of
    its own.
    """
    model = copy.deepcopy(model)
    family = family_of(model.config)
    for index, layer in enumerate(layers_of(model)):
        if "neurons" in keep:
            kept = keep["neurons"][index].nonzero().squeeze(1)
            for projection in ffn_inputs(model, index):
                _select(projection, kept, rows=True)
            _select(output_projection(model, index, "neurons"), kept, rows=False)
        if "heads" in keep:
            projection = output_projection(model, index, "heads")
            removed = ~keep["heads"][index].repeat_interleave(projection.in_features // keep["heads"].shape[1])
            projection.weight.data[:, removed] = 0
            for name in family.attention_projections[:1]:
                layer.get_submodule(name).weight.data[removed] = 0
    return model


def _select(linear: torch.nn.Linear, kept: torch.Tensor, rows: bool) -> None:
    """Keep only some output rows (with their biases) or input columns of a linear module, in place."""
    linear.weight = torch.nn.Parameter(linear.weight.data.index_select(0 if rows else 1, kept))
    if rows:
        linear.out_features = len(kept)
        if linear.bias is not None:
            linear.bias = torch.nn.Parameter(linear.bias.data[kept])
    else:
        linear.in_features = len(kept)
