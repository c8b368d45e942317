"""A model on several GPUs computes what it computes on one device: on pretended GPUs, where no two may meet."""

from contextlib import contextmanager
from itertools import chain

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import random_predictor
from pretended_devices import PretendedGPUs
from test_chain import chain as stages
from test_chain import here
from test_chain import tiny as tiny_study
from test_sparsity import baselines, likelihoods, losses_of, sources

import shadowcore as sc
from shadowcore.config import parse_study
from shadowcore.jobs import Jobs
from shadowcore.measure.oracle import OracleMasks, OraclePass
from shadowcore.measure.protocols import PROTOCOLS
from shadowcore.measure.sparsity import PredictedMasks, SparseModel, no_context
from shadowcore.method import policies
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.predictors import PREDICTORS, Predictor
from shadowcore.method.thresholds import neuron_magnitudes
from shadowcore.method.tracing import TracePlan, trace
from shadowcore.method.tuning import Tuning, tune
from shadowcore.models import folders
from shadowcore.models.families import KINDS, device_of, dimensions_of
from shadowcore.models.masking import masked
from shadowcore.models.recording import Site, visiting

FOLDERS = ("traces", "scores", "predictors", "outcomes")
READERS = {".parquet": pd.read_parquet, ".safetensors": safetensors.torch.load_file}


@pytest.fixture
def loading(monkeypatch):
    """Pretended GPUs, and transformers without what needs real ones: worker threads, and memory asked for ahead."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    monkeypatch.setattr("transformers.modeling_utils.caching_allocator_warmup", lambda *arguments: None)
    current = [torch.device("cuda", 0)]

    @contextmanager
    def using(device):
        current.append(device)
        yield
        current.pop()

    def top_units(scores, count):
        assert scores.device == current[-1]  # a kernel starts on the current device
        return policies.top_units(scores, count)

    monkeypatch.setattr(torch.cuda, "device", using)
    monkeypatch.setattr("shadowcore.decode.kernels.select.top_units", top_units)
    with PretendedGPUs():
        yield


@pytest.fixture
def both(tiny, tmp_path, loading):
    """A tiny model on the CPU, and the same spread over three GPUs: layers 0 and 1, layer 2, layer 3."""
    tiny.save_pretrained(tmp_path)
    spread = folders.load_model(tmp_path, "float32", 3)
    assert [device_of(spread, layer) for layer in range(4)] == [torch.device("cuda", gpu) for gpu in (0, 0, 1, 2)]
    return tiny, spread


def equal(found, wanted):
    """Whether two dictionaries of tensors are equal bit by bit, wherever the tensors are."""
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value.cpu(), wanted[name].cpu()), name
    return True


def test_two_devices_may_not_meet(loading):
    here, there = torch.ones(3), torch.ones(3).to("cuda:1")
    assert (there * torch.tensor(2.0)).device == torch.device("cuda", 1) and there[:2].view(2, 1).is_cuda
    assert torch.arange(3, device=there.device).device == there.device and there.cpu().numpy().sum() == 3
    wrong = (lambda: here + there, lambda: torch.cat([there, there.to("cuda:0")]), lambda: there[torch.arange(2)])
    for work in wrong:
        with pytest.raises(RuntimeError, match="got tensors on"):
            work()
    with pytest.raises(TypeError):
        there.numpy()


def test_every_site_is_seen_on_the_device_of_its_layer_and_the_logits_where_the_tokens_are(both, tokens):
    seen = {}
    with torch.no_grad(), visiting(both[1], lambda site, x: seen.update({site: x.device})):
        logits = both[1](tokens.to(both[1].device)).logits
    assert {str(there) for site, there in seen.items() if site.layer == 2} == {"cuda:1"} and len(seen) == 4 * 5
    keep = {kind: torch.rand(4, dimensions_of(both[0].config).units(kind)) < 0.5 for kind in KINDS}
    with torch.no_grad(), masked(both[0], keep), masked(both[1], keep):
        assert torch.equal(both[1](tokens.to("cuda:0")).logits.cpu(), both[0](tokens).logits)
    assert logits.device == both[1].device == torch.device("cuda", 0)
    assert torch.equal(logits.cpu(), both[0](tokens).logits)


@pytest.mark.parametrize("design", [None, "shadow", "layerwise"])
def test_a_trace_is_the_same(both, tokens, design):
    first = [name for name, one in CRITERIA.items() if one.order < 2 and one.least_tokens == 1]
    criteria = first if design else list(CRITERIA)
    sites = [Site(layer, what) for layer in range(4) for what in ("residual", "heads")]
    plan = TracePlan(criteria, ["plainact", "l2_norm"], 4, 6, sites, seed=0)
    found = []
    for model in both:
        predictor = random_predictor(model, design or "shadow").put_on(model)
        masks = PredictedMasks(predictor, KINDS, "per_layer", 50)
        masking = lambda ids, scored, masks=masks: masks.begin(ids, scored, no_context) if design else None  # noqa: E731
        found.append(trace(model, tokens, plan, 2, masking=masking))
    assert equal(*reversed(found))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_mask_on_it_gives_the_same_outcomes(both, protocol):
    """Questions with shared prompts and windows, without a prompt and after one; and the measured sparsity."""
    rows = torch.randint(3, 96, (4, 12), generator=torch.Generator().manual_seed(4))
    requests = [(row[:5], row[5 : 12 - i % 2]) for i, row in enumerate(rows[[0, 0, 1, 2]].tolist())]
    found = []
    for model in both:
        every = chain(sources(model), baselines(model, protocol), [None], oracles(model))
        outcomes = {}
        for number, masks in enumerate(every):
            if isinstance(masks, PredictedMasks) and number % 2:  # a predictor may also be on one device
                masks.predictor.put_on(model)
            elif isinstance(masks, PredictedMasks):
                masks.predictor.to(model.device)
            outcomes[f"questions {number}"] = likelihoods(model, masks, requests, 3, [2, 0, 1, 3], protocol=protocol)
            for prompt in (1, 6):
                sparse = SparseModel(model, masks, PROTOCOLS[protocol])
                outcomes[f"windows {number} {prompt}"] = losses_of(sparse, rows, 2, prompt)
                measured = list(sparse.measured_sparsity(KINDS).values())
                outcomes[f"sparsity {number} {prompt}"] = torch.tensor(measured)
        found.append(outcomes)
    assert equal(*reversed(found)) and len(found[0]) > 30


def oracles(model):
    shared = OraclePass(model)
    for criterion, policy in (("plainact", "global"), ("l2_norm", "per_layer")):
        yield OracleMasks(shared, criterion, KINDS, policy, 50)
    yield OracleMasks(OraclePass(model), "l2_norm", KINDS, "global", 50)  # without a backward pass


def test_thresholds_are_the_same(both, tokens):
    found = [neuron_magnitudes(model, tokens, 1, ["threshold", "cats"]) for model in both]
    assert equal(*({name: one.counts for name, one in methods.items()} for methods in found))


@pytest.mark.parametrize("design", PREDICTORS)
def test_tuning_gives_the_same_predictor(both, tokens, design):
    tuning = Tuning(epochs=1, batch=1, learning_rate=0.02, lowest_pct=30, highest_pct=60, temperature=0.5)
    found = []
    for model in both:
        torch.manual_seed(0)
        predictor = Predictor(design, dimensions_of(model.config), {"heads": 6, "neurons": 6}).to(model.device)

        def masking(pct, ids, scored, predictor=predictor):
            return PredictedMasks(predictor, KINDS, "per_layer", pct).begin(ids, scored, no_context)

        tune(model, predictor, KINDS, tokens, tokens, tuning, 0, masking)
        found.append(predictor.state_dict())
    assert equal(*reversed(found))


def test_the_library_makes_it_sparse(both, tokens):
    with (
        sc.sparsify(both[0], random_predictor(both[0])) as one,
        sc.sparsify(both[1], random_predictor(both[0])) as spread,
    ):
        assert torch.equal(one(tokens).logits, spread(tokens.to(spread.device)).logits.cpu())


@pytest.mark.slow
def test_every_stage_writes_the_same_numbers_with_two_gpus_as_with_one(tmp_path, monkeypatch, loading):
    """From the traces to the oracle, as benchmarks/chain.py runs them; the jobs see one GPU, then two."""
    study = parse_study(tiny_study(tmp_path), "tiny")
    monkeypatch.setattr("shadowcore.method.trace_dataset._room", lambda device: 0)
    monkeypatch.setattr("shadowcore.models.products._has_onednn", lambda: False)  # as on GPUs
    written, spread, device_map = [], [], folders.device_map
    monkeypatch.setattr(folders, "device_map", lambda config, gpus: spread.append(gpus) or device_map(config, gpus))
    for gpus in (1, 2):
        made = stages.Chain(Jobs(study, tmp_path / f"{gpus}"))
        with torch._C.DisableTorchFunction():
            jobs = [*made.of(""), *(job for job in made.of("one") if job.stage == "fetch-model")]
            assert stages.run(made.root, "shared", jobs, float("inf"), here)
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            patched.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
            stages.run(made.root, "one", made.of("one"), float("inf"), here)
        rows = pd.read_parquet(made.root / "measured" / "one.parquet")
        assert not rows["error"].any(), rows["error"].tolist()
        written.append({})
        for path in (path for folder in FOLDERS for path in (made.root / folder).rglob("*.*")):
            if path.suffix in READERS:
                written[-1][path.relative_to(made.root)] = READERS[path.suffix](path)
    assert set(spread) == {2} and written[0].keys() == written[1].keys() and len(written[0]) > 12
    for path, content in written[0].items():
        if path.suffix == ".parquet":
            pd.testing.assert_frame_equal(content, written[1][path])
        else:
            assert equal(content, written[1][path]), path
