"""Every Triton kernel against torch in float64, on fresh random inputs; without a GPU under Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to test")

from shadowcore.decode.kernels.attention import Attention
from shadowcore.decode.kernels.launch import Units
from shadowcore.decode.kernels.rows import Partial, project, settle
from shadowcore.decode.kernels.select import Choice, Scorer, score, select
from shadowcore.method.policies import top_units

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTHS = [32, 24]  # one a power of two, one not


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def poisoned(*shape):
    return torch.full(shape, float("nan"), device=DEVICE)


def units_of(chosen, capacity=None):
    """Given units in a buffer with room for more: what is beyond the count must not matter."""
    index = torch.full((capacity or len(chosen),), 10**6, dtype=torch.int32, device=DEVICE)
    index[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return Units(index, torch.tensor([len(chosen)], dtype=torch.int32, device=DEVICE))


def close(ours, exact, tolerance=1e-5):
    assert not ours.isnan().any()
    assert (ours.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation, parts", [("none", 1), ("relu", 1), ("silu", 2)])
@pytest.mark.parametrize("width", WIDTHS)
def test_project(width, activation, parts, bias):
    x, weight, b = random(width), random(10, parts, width), random(10, parts) if bias else None
    exact = weight.double() @ x.double() + (b.double() if bias else 0)  # (10, parts)
    exact = {
        "none": lambda: exact[:, 0],
        "relu": lambda: exact[:, 0].relu(),
        "silu": lambda: torch.nn.functional.silu(exact[:, 0]) * exact[:, 1],
    }[activation]()
    out = poisoned(10)
    project(x, weight, b, out, activation=activation)
    close(out, exact)
    chosen = [7, 0, 9, 3]
    gathered = poisoned(6)
    project(x, weight, b, gathered, units_of(chosen, 6), activation=activation)
    assert torch.equal(gathered[:4], out[chosen]) and gathered[4:].isnan().all()


@pytest.mark.parametrize("width", WIDTHS)
def test_project_heads_and_a_tail(width):
    x, weight, bias = random(width, dtype=torch.bfloat16), random(6, 4, width, dtype=torch.bfloat16), random(6, 4)
    exact = weight.double() @ x.double() + bias.double()
    out = poisoned(3 + 2, 4)  # room for 3 of 4 heads, then 2 that are always there
    project(x, weight, bias, out, units_of([3, 1], 3), unit_rows=4, tail_rows=8)
    close(out[[0, 1, 3, 4]], exact[[3, 1, 4, 5]])
    assert out[2].isnan().all()


def test_project_8_bit_rows():
    x, weight, scale, bias = random(32), torch.randint(-127, 128, (10, 32), dtype=torch.int8), random(10), random(10)
    weight, out = weight.to(DEVICE), poisoned(10)
    project(x, weight, bias, out, scale=scale)
    close(out, scale.double() * (weight.double() @ x.double()) + bias.double())


@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("unit_rows, slots", [(1, 100), (16, 96)])
@pytest.mark.parametrize("width", [*WIDTHS, 96])
def test_accumulate_and_settle(width, unit_rows, slots, rms):
    weight, amount, residual, bias = random(slots, width), random(slots), random(width), random(width)
    norm_weight, norm_bias = random(width), None if rms else random(width)
    arrivals = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    partial = Partial(width, slots, unit_rows, DEVICE)
    partial.addends.fill_(float("nan"))

    def check(units, threshold, exact_sum):
        ours, out = residual.clone(), poisoned(width)
        partial.accumulate(amount, weight, units, threshold)
        settle(partial, bias, ours, arrivals, norm_weight, norm_bias, 1e-5, rms, out)
        exact = residual.double() + exact_sum + bias.double()
        close(ours, exact)
        centred = exact if rms else exact - exact.mean()
        normed = centred / (centred.square().mean() + 1e-5).sqrt() * norm_weight
        close(out, normed if rms else normed + norm_bias)
        assert arrivals.item() == 0

    rows = weight.double()
    check(None, None, amount.double() @ rows)
    check(None, 0.5, torch.where(amount.abs() > 0.5, amount, 0).double() @ rows)
    chosen = [5, 1, 4, 0]
    gathered = rows.unflatten(0, (-1, unit_rows))[chosen].flatten(0, 1)
    check(units_of(chosen), None, amount[: len(gathered)].double() @ gathered)
    check(units_of([], 2), None, torch.zeros(width, dtype=torch.float64, device=DEVICE))


def test_settle_without_sums_is_the_norm():
    residual, out = random(24), poisoned(24)
    settle(None, None, residual, torch.zeros(1, dtype=torch.int32, device=DEVICE), None, None, 1e-5, False, out)
    close(out, torch.nn.functional.layer_norm(residual.double(), (24,)))


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("positions, now", [(40, 0), (40, 17), (200, 63), (200, 64), (200, 199)])
def test_attention(positions, now, heads, kv_heads, rotary):
    width, shared = 8, heads // kv_heads
    keys, values = random(kv_heads, positions, width), random(kv_heads, positions, width)
    keys[:, now:], values[:, now:] = float("nan"), float("nan")  # not to be read
    turns = (random(positions, width), random(positions, width)) if rotary else None
    position = torch.tensor([now], dtype=torch.int32, device=DEVICE)
    attention = Attention(heads, kv_heads, shared, width, positions, DEVICE)

    def turned(x):
        return x if turns is None else x * turns[0][now] + x.roll(width // 2, -1) * turns[1][now]

    for chosen, capacity in ((list(range(heads)), heads), ([3, 0], 3)):
        qkv = random(capacity + 2 * kv_heads, width)
        ours_k, ours_v, out = keys.clone(), values.clone(), poisoned(capacity, width)
        numbered = capacity < heads
        attention(qkv, units_of(chosen, capacity), numbered, ours_k, ours_v, position, turns, out)
        key, value = turned(qkv[capacity : capacity + kv_heads]), qkv[capacity + kv_heads :]
        torch.testing.assert_close(ours_k[:, now], key)
        torch.testing.assert_close(ours_v[:, now], value)
        for place, head in enumerate(chosen):
            group = head // shared
            all_keys = torch.cat((keys[group, :now], key[group][None])).double()
            all_values = torch.cat((values[group, :now], value[group][None])).double()
            scores = all_keys @ turned(qkv[place]).double() * width**-0.5
            close(out[place], scores.softmax(0) @ all_values)


@pytest.mark.parametrize("kinds", ["heads", "neurons", "both"])
def test_score(kinds):
    layers, heads, neurons, head_rank, neuron_rank = 3, 4, 40, 8, 12
    kept = {"heads": (heads, 0), "neurons": (0, neurons), "both": (heads, neurons)}[kinds]
    ranks = [rank if units else 0 for units, rank in zip(kept, (head_rank, neuron_rank), strict=True)]
    scorers = [
        Scorer(random(layers, units, rank), random(layers, units)) if units else None
        for units, rank in zip(kept, ranks, strict=True)
    ]
    hidden, scores = random(sum(ranks)), poisoned(layers, sum(kept))
    score(hidden, *scorers, scores)
    exact = [
        s.weight.double() @ h.double() + s.bias.double()
        for s, h in zip(scorers, hidden.split(ranks), strict=True)
        if s is not None
    ]
    close(scores, torch.cat(exact, 1))


def test_score_8_bit():
    weight = torch.randint(-127, 128, (2, 10, 16), dtype=torch.int8, device=DEVICE)
    scorer, hidden, scores = Scorer(weight, random(2, 10), random(2, 10)), random(16), poisoned(2, 10)
    score(hidden, None, scorer, scores)
    close(scores, scorer.scale.double() * (weight.double() @ hidden.double()) + scorer.bias.double())


def indices(scores, kept):
    return top_units(scores, kept).nonzero()[:, 1].view(len(scores), kept)


@pytest.mark.parametrize("kept", [0, 1, 13, 49, 50])
@pytest.mark.parametrize("values", ["random", "few different", "all equal", "signed zeros"])
def test_select_is_the_policy(values, kept):
    scores = {
        "random": random(3, 4 + 50),
        "few different": torch.randint(-2, 3, (3, 4 + 50), device=DEVICE).float(),
        "all equal": torch.full((3, 4 + 50), -1.5, device=DEVICE),
        "signed zeros": torch.where(random(3, 4 + 50) > 0, 0.0, -0.0),
    }[values]
    heads, neurons = (torch.full((3, room), -1, dtype=torch.int32, device=DEVICE) for room in (4, 64))
    select(scores, [Choice(0, 4, 3, heads), Choice(4, 50, kept, neurons)])
    assert torch.equal(heads[:, :3].long(), indices(scores[:, :4], 3))
    assert torch.equal(neurons[:, :kept].long(), indices(scores[:, 4:], kept))
    assert (heads[:, 3:] == -1).all() and (neurons[:, kept:] == -1).all()
    alone = torch.full_like(neurons, -1)
    select(scores, [Choice(4, 50, kept, alone)])
    assert torch.equal(alone, neurons)
