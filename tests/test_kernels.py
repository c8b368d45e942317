"""Every Triton kernel against torch in float64, on fresh random inputs; without a GPU under Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to test")

from shadowcore.decode import kernels
from shadowcore.decode.kernels import batched_gemm, gemv
from shadowcore.decode.kernels.attention import Attention
from shadowcore.decode.kernels.fused_norm import Normed, Read, embed, folded, settle
from shadowcore.decode.kernels.gemv import accumulate, partial_sums, project
from shadowcore.decode.kernels.launch import Units
from shadowcore.decode.kernels.low_bit import score_neurons
from shadowcore.decode.kernels.sampler import Chooser
from shadowcore.decode.kernels.select import Choice, Scorer, score, select, unite
from shadowcore.decode.low_bit_proxy import PackedLayer, packed
from shadowcore.decode.operations import activate
from shadowcore.method.policies import top_units

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTHS = [32, 24]  # one a power of two, one not


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def poisoned(*shape):
    return torch.full(shape, float("nan"), device=DEVICE)


def units_of(chosen, capacity=None, rows=None):
    """Given units in a buffer with room for more: what is beyond the count must not matter."""
    index = torch.full((capacity or len(chosen),), 10**6, dtype=torch.int32, device=DEVICE)
    index[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return Units(index, torch.tensor([len(chosen)], dtype=torch.int32, device=DEVICE), rows=rows)


def bits_of(keeps):
    """Of which sequences keep each unit, (B, n) bool, the bits (n,)."""
    return (keeps.long() << torch.arange(len(keeps), device=DEVICE)[:, None]).sum(0)


def close(ours, exact, tolerance=1e-5):
    assert not ours.isnan().any()
    assert (ours.double() - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation, parts", [("none", 1), ("relu", 1), ("silu", 2), ("gated_relu", 2)])
@pytest.mark.parametrize("width", WIDTHS)
def test_project(width, activation, parts, bias):
    x, weight, b = random(width), random(10, parts, width), random(10, parts) if bias else None
    exact = weight.double() @ x.double() + (b.double() if bias else 0)  # (10, parts)
    exact = {
        "none": lambda: exact[:, 0],
        "relu": lambda: exact[:, 0].relu(),
        "silu": lambda: torch.nn.functional.silu(exact[:, 0]) * exact[:, 1],
        "gated_relu": lambda: exact[:, 0].relu() * exact[:, 1],
    }[activation]()
    out = poisoned(10)
    project(x, weight, Read(None, b), out, activation=activation)
    close(out, exact)
    chosen = [7, 0, 9, 3]
    gathered = poisoned(6)
    project(x, weight, Read(None, b), gathered, units_of(chosen, 6), activation=activation)
    assert torch.equal(gathered[:4], out[chosen]) and gathered[4:].isnan().all()


@pytest.mark.parametrize("width", WIDTHS)
def test_project_heads_and_a_tail(width):
    x, weight, bias = random(width, dtype=torch.bfloat16), random(6, 4, width, dtype=torch.bfloat16), random(6, 4)
    exact = weight.double() @ x.double() + bias.double()
    out = poisoned(3 + 2, 4)  # room for 3 of 4 heads, then 2 that are always there
    project(x, weight, Read(None, bias), out, units_of([3, 1], 3), unit_rows=4, tail_rows=8)
    close(out[[0, 1, 3, 4]], exact[[3, 1, 4, 5]])
    assert out[2].isnan().all()


def test_project_8_bit_rows():
    x, weight, scale, bias = random(32), torch.randint(-127, 128, (10, 32), dtype=torch.int8), random(10), random(10)
    weight, out = weight.to(DEVICE), poisoned(10)
    project(x, weight, Read(None, bias), out, scale=scale)
    close(out, scale.double() * (weight.double() @ x.double()) + bias.double())


def normed_exactly(x, gain, shift, rms):
    centred = x if rms else x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + (0 if shift is None else shift)


@pytest.mark.parametrize("sequences", [1, 3, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("unit_rows, slots", [(1, 300), (16, 96)])
@pytest.mark.parametrize("width", [24, 96])
def test_accumulate_and_settle_and_project_what_is_normed(width, unit_rows, slots, rms, sequences):
    weight, amount, residual = random(slots, width), random(sequences, slots), random(sequences, width) + 3
    gain, shift, bias, reads = random(width), None if rms else random(width), random(width), random(10, 1, width)
    out = Normed.empty(sequences, width, torch.float32, DEVICE)._replace(eps=1e-5, rms=rms)
    product, make = (batched_gemm.project, batched_gemm.partial_sums) if sequences > 1 else (project, partial_sums)
    partial = make(*([sequences] if sequences > 1 else []), width, slots, unit_rows, DEVICE)
    partial.addends.fill_(float("nan"))

    def check(units, threshold, exact_sum):
        ours, products = residual.clone(), poisoned(sequences, 10)
        if sequences > 1:
            batched_gemm.accumulate(partial, amount, weight, units)
        else:
            accumulate(partial, amount, weight, units, threshold)
        settle(partial, bias, ours, gain, out)
        exact = residual.double() + exact_sum + bias.double()
        close(ours, exact)
        product(out, reads, folded(reads.view(10, width), None, gain, shift, rms), products)
        close(products, normed_exactly(exact, gain, shift, rms) @ reads[:, 0].double().T, 3e-5)

    rows = weight.double()
    check(None, None, amount.double() @ rows)
    if sequences == 1:
        check(None, 0.5, torch.where(amount.abs() > 0.5, amount, 0).double() @ rows)
    chosen = [5, 1, 4, 0]
    gathered = rows.unflatten(0, (-1, unit_rows))[chosen].flatten(0, 1)
    check(units_of(chosen), None, amount[:, : len(gathered)].double() @ gathered)
    check(units_of([], 2), None, torch.zeros(sequences, width, dtype=torch.float64, device=DEVICE))


def test_sums_of_any_number_of_rows_together(monkeypatch):
    monkeypatch.setattr(gemv, "SUM_PROGRAMS", 8)
    weight, amount = random(300, 24), random(300)
    partial = partial_sums(24, 300, 1, DEVICE)
    assert partial.group == 48
    accumulate(partial, amount, weight)
    close(partial.addends.double().sum((0, 1)), amount.double() @ weight.double())


@pytest.mark.parametrize("unit_rows", [1, 16])
def test_sums_of_a_batch_read_lists_of_several_tiles(monkeypatch, unit_rows):
    monkeypatch.setattr(batched_gemm, "SUM_GROUP", 256)  # rows of a program: up to four tiles
    weight, amount, kept, room = random(640, 24), random(3, 640), 448 // unit_rows, 560 // unit_rows
    chosen = torch.randperm(640 // unit_rows)[:kept]
    partial = batched_gemm.partial_sums(3, 24, room * unit_rows, unit_rows, DEVICE)
    assert partial.group == 256 and batched_gemm.SUM_ROWS == 64  # four tiles, three tiles and none
    partial.addends.fill_(float("nan"))
    batched_gemm.accumulate(partial, amount, weight, units_of(chosen.tolist(), room))
    gathered = weight.double().unflatten(0, (-1, unit_rows))[chosen].flatten(0, 1)
    close(partial.addends[:2].double().sum(0), amount[:, :448].double() @ gathered)
    assert partial.addends[2:].isnan().all()


@pytest.mark.parametrize("learned", [True, False])
def test_embed(learned):
    table, positions, gain = random(50, 40), random(9, 40) if learned else None, random(40)
    token, position = torch.tensor([7, 0, 49], device=DEVICE), torch.tensor([4], device=DEVICE)
    residual, out = poisoned(3, 40), Normed.empty(3, 40, torch.float32, DEVICE)
    embed(token, position, table, positions, residual, gain, out)
    exact = table[token] + (positions[4] if learned else 0)
    assert torch.equal(residual, exact) and torch.equal(out.scaled, exact * gain)
    close(out.moments[:, 0].sum(1), exact.double().sum(1))


@pytest.mark.parametrize("activation, parts", [("none", 1), ("relu", 1), ("silu", 2), ("gated_relu", 2)])
@pytest.mark.parametrize("width, sequences", [(WIDTHS[0], 3), (WIDTHS[1], 64)])
def test_a_batch_is_its_sequences(width, sequences, activation, parts):
    x, weight, read = random(sequences, width), random(40, parts, width), Read(None, random(40, parts))
    keeps = torch.rand(sequences, 7, device=DEVICE) < 0.5
    units = units_of([9, 0, 33, 4, 21, 2, 3], 9, torch.nn.functional.pad(bits_of(keeps), (0, 2)))
    together = poisoned(sequences, 9)
    batched_gemm.project(x, weight, read, together, units, activation=activation)
    alone = poisoned(sequences, 9)
    for vector, out in zip(x, alone, strict=True):
        project(vector, weight, read, out, units, activation=activation)
    close(together[:, :7], torch.where(keeps, alone[:, :7], 0).double())
    assert (together[:, :7][~keeps] == 0).all()
    assert together[:, 7:].isnan().all()


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("positions, now, splits", [(40, 0, 16), (200, 63, 16), (200, 64, 1), (200, 199, 2)])
def test_attention(monkeypatch, positions, now, splits, heads, kv_heads, rotary):
    monkeypatch.setattr("shadowcore.decode.kernels.attention.MOST_SPLITS", splits)
    width, shared = 8, heads // kv_heads
    keys, values = random(kv_heads, positions, width), random(kv_heads, positions, width)
    keys[:, now:], values[:, now:] = float("nan"), float("nan")  # not to be read
    turns = (random(positions, width), random(positions, width)) if rotary else None
    position = torch.tensor([now], dtype=torch.int32, device=DEVICE)
    attention = Attention(1, heads, kv_heads, width, positions, DEVICE)

    def turned(x):
        return x if turns is None else x * turns[0][now] + x.roll(width // 2, -1) * turns[1][now]

    for chosen, capacity in ((list(range(heads)), heads), ([3, 0], 3)):
        qkv = random(capacity + 2 * kv_heads, width)
        ours_k, ours_v, numbered = keys.clone(), values.clone(), capacity < heads
        mixed = attention(qkv, units_of(chosen, capacity), numbered, ours_k, ours_v, position, turns)
        (out,) = attention.combined(mixed, capacity)
        output, partial = random(heads, width, 24), partial_sums(24, capacity * width, width, DEVICE)
        accumulate(partial, mixed, output, units_of(chosen, capacity))
        added = partial.addends[: -(-len(chosen) * width // partial.group)].double().sum((0, 1))
        close(added, torch.einsum("hk,hkd->d", out[: len(chosen)].double(), output[chosen].double()))
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
    start = 16 if kinds == "both" else 0  # a gap between heads and neurons
    hidden, scores = random(sum(ranks)), poisoned(layers, start + kept[1] if kept[1] else kept[0])
    score(hidden, *scorers, scores, start)
    exact = [
        s.weight.double() @ h.double() + s.bias.double()
        for s, h in zip(scorers, hidden.split(ranks), strict=True)
        if s is not None
    ]
    close(torch.cat((scores[:, : kept[0]], scores[:, start : start + kept[1]]), 1), torch.cat(exact, 1))


def test_score_8_bit():
    weight = torch.randint(-127, 128, (2, 10, 16), dtype=torch.int8, device=DEVICE)
    scorer, hidden, scores = Scorer(weight, random(2, 10), random(2, 10)), random(16), poisoned(2, 10)
    score(hidden, None, scorer, scores, 0)
    close(scores, scorer.scale.double() * (weight.double() @ hidden.double()) + scorer.bias.double())


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("activation, parts, rms", [("relu", 1, False), ("silu", 2, True), ("gated_relu", 2, True)])
@pytest.mark.parametrize("bits, width", [(4, 24), (4, 1160), (3, 1000), (2, 64)])  # one and several pieces of a row
def test_scores_of_packed_copies(bits, width, activation, parts, rms, sequences, monkeypatch):
    monkeypatch.setattr(kernels.low_bit, "TILE", 512)  # few rows at a time, several times in some programs
    monkeypatch.setattr(kernels.low_bit, "COLUMNS", 64)
    neurons, middle = 11, (2**bits - 1) / 2
    codes = torch.randint(0, 2**bits, (neurons * parts, width), dtype=torch.int32, device=DEVICE)
    steps, norms, bias = random(neurons * parts).abs() / 50, random(neurons).abs(), random(neurons * parts)
    copy, gain, shift = (codes - middle) * steps[:, None], random(width), None if rms else random(width)
    x, out = random(sequences, width), Normed.empty(sequences, width, torch.float32, DEVICE)
    embed(torch.arange(sequences, device=DEVICE), None, x, None, torch.empty_like(x), gain, out)
    scores = poisoned(sequences, neurons + 5)
    layer = PackedLayer(packed(codes, bits), steps, *folded(copy, bias, gain, shift, rms), norms)
    score_neurons(out._replace(eps=1e-5, rms=rms), layer, scores[:, :neurons], activation, bits)
    exact = normed_exactly(x.double(), gain, shift, rms) @ copy.double().T + bias.double()
    exact = activate(exact.unflatten(1, (neurons, parts)), activation).abs() * norms
    close(scores[:, :neurons], exact)
    assert scores[:, neurons:].isnan().all()


def indices(scores, kept):
    return top_units(scores, kept).nonzero()[:, 1].view(len(scores), kept)


@pytest.mark.parametrize("kept", [0, 13, 50])
@pytest.mark.parametrize("values", ["random", "few different", "all equal", "signed zeros"])
def test_select_is_the_policy(values, kept, monkeypatch):
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
    monkeypatch.setattr(kernels.select, "MOST_LAYERS", 2)
    assert torch.equal(kernels.select.top_units(scores.view(3, 1, 54), kept)[:, 0], top_units(scores, kept))


@pytest.mark.parametrize("programs", [1, 10])
def test_select_shares_the_writing_and_long_layers(programs, monkeypatch):
    monkeypatch.setattr(kernels.select, "processors", lambda device: programs)
    scores, out = random(2, 9000), torch.full((2, 4500), -1, dtype=torch.int32, device=DEVICE)
    scores[:, 1000:7000] = scores[:, :1].round()  # ties across chunks
    select(scores, [Choice(0, 9000, 4500, out)])
    assert torch.equal(out.long(), indices(scores, 4500))


@pytest.mark.parametrize("sequences, kept", [(3, 13), (64, 1)])
def test_units_of_a_batch_are_united(sequences, kept):
    scores = random(sequences * 2, 50)
    flags = torch.full((sequences, 2, 50), 7, dtype=torch.int8, device=DEVICE)
    select(scores, [Choice(0, 50, kept, flags.view(-1, 50))])
    keep = top_units(scores, kept).view(sequences, 2, 50)
    assert torch.equal(flags.bool(), keep)
    index, rows = (torch.full((2, 64), -1, dtype=dtype, device=DEVICE) for dtype in (torch.int32, torch.int64))
    count = torch.zeros(2, 16, dtype=torch.int32, device=DEVICE)
    unite(flags, index, rows, count)
    for layer in range(2):
        units = keep[:, layer].any(0).nonzero()[:, 0]
        assert count[layer, 0] == len(units) and torch.equal(index[layer, : len(units)].long(), units)
        assert torch.equal(rows[layer, : len(units)], bits_of(keep[:, layer, units]))


def test_tokens_are_chosen_greedily_and_drawn_with_their_probabilities():
    sequences, vocabulary = (16, 1100)
    scores = random(sequences, vocabulary)
    scores[0, [5, 1050]] = 9.0  # a tie across programs: the first
    chooser, position = Chooser(sequences, vocabulary, DEVICE), torch.tensor([3], device=DEVICE)
    token, emitted = (
        torch.zeros(sequences, dtype=torch.int64, device=DEVICE),
        torch.zeros(9, sequences, dtype=torch.int64, device=DEVICE),
    )
    chooser(scores, token, position, emitted)
    assert token[0] == 5 and torch.equal(token, scores.argmax(1)) and torch.equal(emitted[3], token)
    assert position.item() == 4
    # few words that count, at a temperature: as often as their probability says, within four standard errors
    few = torch.full((sequences, 8), 0.0, device=DEVICE) + torch.arange(8, device=DEVICE) / 2
    chooser, counts, draws = Chooser(sequences, 8, DEVICE), torch.zeros(8), 12
    chooser.temperature.fill_(0.7)
    for seed in range(draws):
        chooser.seed.fill_(seed)
        position.fill_(seed % 5)
        chooser(few, token, position, emitted)
        counts += token.cpu().bincount(minlength=8)
    shares, total = (few[0].cpu() / 0.7).softmax(0), draws * sequences
    assert ((counts / total - shares).abs() <= 4 * (shares * (1 - shares) / total).sqrt()).all()
