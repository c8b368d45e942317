"""A predictor's weights as files and decoders hold them: in 16 bits, or in 8 with one step size a row.

Eight bits are symmetric, per row of the matrix that meets the feature itself: standardising the feature is folded in
first. Scales that are powers of two (`power_of_two`) and steps of 17 bits make every fold exact, so that what is read
from a file and rounded again, by a decoder or after a copy, is the same numbers.
"""

from collections.abc import Mapping

import torch
from torch import nn

from shadowcore.errors import ArtifactError

State = Mapping[str, torch.Tensor]
LOST_BITS = 7  # of a step's 23 bits of fraction: 127 steps, in float32, then are exact


def stored(state: State, bits: int) -> dict[str, torch.Tensor]:
    """A state of scorers as files hold it; all that is no matrix stays in 32 bits."""
    found = {}
    for name, value in state.items():
        if not name.endswith("weight"):
            found[name] = value
        elif bits == 16:
            found[name] = value.bfloat16()
        else:
            found[name], found[_step_name(name)] = eight_bits(value / _scale(state, name))
    return found


def restored(file: State) -> dict[str, torch.Tensor]:
    """A state in 32 bits from what `stored` made of it."""
    found = {}
    for name, value in file.items():
        if value.dtype == torch.int8:
            found[name] = value.float() * file[_step_name(name)][:, None] * _scale(file, name)
        elif not name.endswith("step"):
            found[name] = value.float()
    return found


def load(module: nn.Module, file: State, where: str, remedy: str) -> None:
    """Put what `stored` made into a module; ArtifactError, naming `where`, if it does not fit or is not finite."""
    if lost := [name for name, value in file.items() if not value.isfinite().all()]:
        raise ArtifactError(f"{where}: tensor '{lost[0]}' is not finite; {remedy}")
    try:
        module.load_state_dict(restored(file), assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{where}: its tensors are not those of this predictor ({reason}); {remedy}") from None


def eight_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (..., r) rounded to 255 steps between minus and plus their largest number, and the size (...) of a step."""
    step = weight.abs().amax(-1).float().clamp_min(1e-30) / 127
    lost = (1 << LOST_BITS) - 1
    step = ((step.view(torch.int32) + lost) & ~lost).view(torch.float32)  # rounded up
    return (weight / step[..., None]).round().to(torch.int8), step


def power_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The power of two that is nearest to each number, by ratio."""
    return torch.exp2(scale.log2().round())


def _step_name(weight: str) -> str:
    return weight.removesuffix("weight") + "step"


def _scale(state: State, weight: str) -> torch.Tensor | float:
    """What divides the columns of a matrix: the scale of the feature, of the first of a scorer's two."""
    scorer, _, _ = weight.rpartition("inner.weight")
    return state[f"{scorer}feature_scale"] if weight.endswith("inner.weight") else 1.0
