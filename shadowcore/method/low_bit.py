"""Low-bit copies of weight matrices: 2^b equal steps, symmetric about zero, with one step size for each row.

The largest value of a row is one of CLIPS, shares of its largest weight: the one with the least squared error. With
less than all of it, large weights are clipped, and the others are rounded more finely.
"""

import torch

# the methods that choose by such copies: their bits, and whether they read the residual that enters the layer
PROXIES = {f"proxy{bits}{'_ahead' * ahead}": (bits, ahead) for ahead in (False, True) for bits in (4, 3, 2)}
CLIPS = tuple(i / 40 for i in range(8, 41))
SCALE_BYTES = 4  # a row's step size, in 32 bits
CPU_NUMBERS, GPU_NUMBERS = 2**17, 2**26  # that are rounded at once: they fit into a processor's cache, a GPU's memory


def row_steps(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The best step size (F, 1) of each row of a matrix (F, D), in its number format."""
    rows = max(1, (GPU_NUMBERS if weight.is_cuda else CPU_NUMBERS) // weight.shape[1])
    return torch.cat([_best_steps(some, bits) for some in weight.split(rows)])


def _best_steps(weight: torch.Tensor, bits: int) -> torch.Tensor:
    largest = weight.abs().amax(1, keepdim=True).float().clamp_min(1e-30)
    steps = torch.stack([(largest * clip / (2 ** (bits - 1) - 0.5)).to(weight.dtype) for clip in CLIPS])
    errors = torch.stack([(low_bit(weight, step, bits) - weight).float().square().sum(1) for step in steps])
    return steps.gather(0, errors.argmin(0)[None, :, None]).squeeze(0)


def low_bit(weight: torch.Tensor, step: torch.Tensor, bits: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A matrix (F, D) rounded to the middles of 2^bits intervals of each row's step (F, 1), in its format or dtype."""
    dtype = dtype or weight.dtype
    return (interval(weight, step, bits) + 0.5).to(dtype) * step.to(dtype)


def interval(weight: torch.Tensor, step: torch.Tensor, bits: int) -> torch.Tensor:
    """The interval of each weight, a whole number from -2^(bits - 1) to 2^(bits - 1) - 1."""
    half = 2 ** (bits - 1)
    return (weight.float() / step.float()).floor().clamp(-half, half - 1)


def copy_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of such a copy, packed: every row begins at a whole byte, and has its step."""
    return rows * (-(-columns * bits // 8) + SCALE_BYTES)
