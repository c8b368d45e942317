"""Scores in few bits: logarithmic codes relative to the largest score of each row.

Importance spans many orders of magnitude and what matters is its order, so a code is a step on a
logarithmic ladder below the row's maximum: 4 bits (15 steps over 4 decades, within 39 %) are enough to
train on, 8 bits (255 steps over 8 decades, within 4 %) to evaluate against. Scores below the ladder,
and exact zeros, come back as zero.
"""

import math

import torch

DECADES = {4: 4.0, 8: 8.0}  # what the ladder spans, per width in bits


def step_ratio(bits: int) -> float:
    """Ratio of two neighbouring steps; a code is within its square root of the score."""
    return 10 ** (DECADES[bits] / (2**bits - 2))


def encode(scores: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 (..., U), with 4 bits (..., ceil(U / 2)), and row maxima float32 (..., 1) of scores (..., U) >= 0."""
    scores = scores.float()
    top = scores.amax(-1, keepdim=True)
    highest = 2**bits - 1
    steps_down = torch.log(scores / top) / -math.log(step_ratio(bits))  # nan in a row of zeros
    codes = (highest - steps_down.round()).clamp(min=0).nan_to_num(0).to(torch.uint8)
    if bits == 8:
        return codes, top
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., 0::2] | codes[..., 1::2] << 4, top


def decode(codes: torch.Tensor, top: torch.Tensor, bits: int, units: int) -> torch.Tensor:
    """Scores float32 (..., U) from what `encode` returned."""
    ladder = step_ratio(bits) ** (torch.arange(2**bits, device=codes.device, dtype=torch.float32) - (2**bits - 1))
    ladder[0] = 0
    if bits == 8:
        return ladder.index_select(0, codes.flatten().int()).view(codes.shape)[..., :units] * top
    # what each byte stands for: two scores, looked up as one number of 64 bits
    table = torch.stack((ladder.repeat(16), ladder.repeat_interleave(16)), 1).view(torch.int64).flatten()
    pairs = table.index_select(0, codes.flatten().int()).view(codes.shape)
    return pairs.view(torch.float32)[..., :units] * top
