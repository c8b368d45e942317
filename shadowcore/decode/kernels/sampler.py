"""The next token, chosen on the device: the best, or one drawn with the model's probabilities at a temperature.

Drawing is choosing the best after adding to each score over the temperature -log(-log u), u uniform (Gumbel's trick).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from shadowcore.decode.kernels.launch import options, pdl_launch_dependents, pdl_wait, power_of_two

BLOCK = 1024


@triton.jit(do_not_specialize=["vocabulary"])
def _choose(
    scores, temperature, seed, best, where, arrivals, token, position, emitted, vocabulary,
    BLOCK: tl.constexpr, PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pdl_launch_dependents(PDL)
    pdl_wait(PDL)
    program, row, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    word = program * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + row * vocabulary + word, mask=word < vocabulary, other=float("-inf"))
    heat, now = tl.load(temperature), tl.load(position)
    if heat > 0:
        uniform = tl.rand((tl.load(seed) << 32) + now, row * vocabulary + word)
        score = score / heat - tl.log(-tl.log(tl.maximum(uniform, 1e-30)))
    value, index = tl.max(score, 0, return_indices=True)
    tl.store(best + row * programs + program, value)
    tl.store(where + row * programs + program, program * BLOCK + index)
    # who arrives last, of all sequences, compares and moves on
    tl.debug_barrier()
    if tl.atomic_add(arrivals, 1) == programs * tl.num_programs(1) - 1:
        part = tl.arange(0, PROGRAMS)
        for sequence in range(0, tl.num_programs(1)):
            place = sequence * programs + part
            values = tl.load(best + place, mask=part < programs, other=float("-inf"))
            highest = tl.max(values, 0)
            words = tl.load(where + place, mask=part < programs, other=0)
            first = tl.min(tl.where((values == highest) & (part < programs), words, 2147483647), 0).to(tl.int64)
            tl.store(token + sequence, first)
            tl.store(emitted + now * tl.num_programs(1) + sequence, first)
        tl.store(position, now + 1)
        tl.store(arrivals, 0)


class Chooser:
    """Chooses tokens of a batch from their scores (B, V), and moves on by a position."""

    def __init__(self, batch: int, vocabulary: int, device: torch.device):
        """temperature 0 is greedy; draws repeat for the same seed, position and sequence."""
        self.temperature = torch.zeros(1, device=device)
        self.seed = torch.zeros(1, dtype=torch.int64, device=device)
        self._programs = triton.cdiv(vocabulary, BLOCK)
        self._best = torch.empty(batch, self._programs, device=device)
        self._where = torch.empty(batch, self._programs, dtype=torch.int32, device=device)
        self._arrivals = torch.zeros(1, dtype=torch.int32, device=device)

    def __call__(
        self, scores: torch.Tensor, token: torch.Tensor, position: torch.Tensor, emitted: torch.Tensor
    ) -> None:
        """token (B,) and emitted[position] become the choice from scores (B, V), position (1,) one more."""
        _choose[self._programs, len(scores)](
            scores, self.temperature, self.seed, self._best, self._where, self._arrivals, token, position, emitted,
            scores.shape[1], BLOCK=BLOCK, PROGRAMS=power_of_two(self._programs), **options(scores.device, 4),
        )  # fmt: skip
