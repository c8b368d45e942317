"""Looking inside someone else's model: visit each layer's residuals, heads, FFN input and neurons as they flow by.

Criteria read these activations and masks replace them. The hooks are removed afterwards.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch

from shadowcore.models.families import KINDS, Kind, device_of, dimensions_of, layers_of, output_projection
from shadowcore.models.ffn import ffn_inputs, norm_before_ffn


class Site(NamedTuple):
    """A place in the model: the residual entering a layer, its heads, the residual that the norm of its FFN reads, the
    input of its FFN, or its neurons. A family without such a norm has no `ffn_residual`.
    """

    layer: int
    what: Literal["residual", "ffn_residual", "ffn_input"] | Kind


SITES = ("residual", "ffn_residual", "ffn_input", *KINDS)
Visit = Callable[[Site, torch.Tensor], torch.Tensor | None]
# from a site and its activations: the mask of kept units, (B, T, U) or (U,), or None for all
Choose = Callable[[Site, torch.Tensor], torch.Tensor | None]


@contextmanager
def visiting(model: torch.nn.Module, visit: Visit, what: Collection[str] = SITES) -> Iterator[None]:
    """While the block runs, call `visit(site, x)` at every residual and every site of `what`, in order of each pass.

    x is (B, T, D) at residuals and FFN inputs, and (B, T, U, K) at units (K = 1 for neurons). At units, a returned
    tensor of the same shape takes the place of x; None leaves it. x is on the device of the site's layer, if the model
    is spread over several. Hooks are gone afterwards, whatever happens inside.
    """
    sizes = dimensions_of(model.config)
    shape = {}  # (B, T) of the current pass, because OPT flattens the two dimensions before its FFN

    def hook(site: Site, module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        if site.what == "residual":
            shape["batch"] = x.shape[:2]
            visit(site, x.to(device_of(model, site.layer)))
        elif site.what not in KINDS:
            visit(site, x.view(*shape["batch"], sizes.width))
        else:
            units = x.view(*shape["batch"], sizes.units(site.what), sizes.unit_width(site.what))
            if (replaced := visit(site, units)) is not None:
                return (replaced.reshape(x.shape),), kwargs
        return None

    handles = []
    try:
        for index, layer in enumerate(layers_of(model)):
            places = {"residual": layer, "ffn_residual": norm_before_ffn(model, index)}
            places |= {"ffn_input": ffn_inputs(model, index)[0]}
            places |= {kind: output_projection(model, index, kind) for kind in KINDS}
            for name, module in places.items():
                if module is not None and name in ("residual", *what):
                    at = partial(hook, Site(index, name))
                    handles.append(module.register_forward_pre_hook(at, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """While the block runs, no parameter requires a gradient; the flags are restored afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
