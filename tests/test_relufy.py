"""A ReLU model made of one without: it learns its teacher, its zeros are zeros, and a killed training goes on."""

import copy
import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT, TINY, refused, run_job, write_benchmarks, write_words
from fork_server import forking
from test_calibration import job
from test_workflow import prepared, snakemake, tiny_study, waiting

from shadowcore import artifacts, preflight
from shadowcore.config import parse_study
from shadowcore.jobs import Jobs
from shadowcore.method.relufy import (
    Distillation,
    Relufied,
    hidden_states,
    in_16_bits,
    judge,
    relu_twin,
    rows_together,
    write,
    zero_shares,
)
from shadowcore.method.training_state import Checkpoint
from shadowcore.method.zero_penalty import PenalisedReLU, spread_gradient
from shadowcore.models.families import dimensions_of, ffn_activation, layers_of
from shadowcore.models.folders import load_model
from shadowcore.models.losses import divergences, example_losses
from shadowcore.plan import work
from shadowcore.stages import relufy
from shadowcore.states import outputs

RECIPE = {"written_tokens": 128, "steps": 24, "batch": 4, "learning_rate": 0.0003}


def recipe(**changes):
    return Relufied(**({"teacher": "teacher", "text": "words"} | RECIPE | changes))


@pytest.fixture(params=["silu", "gelu"])
def teacher(request):
    """A tiny SwiGLU Llama, or an OPT with GELU."""
    torch.manual_seed(0)
    model = TINY["opt" if request.param == "gelu" else "llama"]()
    if request.param == "gelu":
        model.config.activation_function = "gelu"
        model = type(model)(model.config)
    return model.eval()


@pytest.fixture
def real():
    """Windows (6, 16) of real text."""
    return torch.randint(3, 96, (6, 16), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("zeros", [None, 0.7])
def test_the_student_comes_nearer_and_a_killed_training_ends_in_the_same_bytes(teacher, real, zeros, tmp_path):
    def trained(kill=None):
        def progress(done, total):
            if done == kill:
                raise KeyboardInterrupt

        training = Distillation(copy.deepcopy(teacher), real, recipe(zeros=zeros), seed=0)
        training.run(progress, Checkpoint(tmp_path / "card.json", {}, seconds=0.0))
        return training

    whole = trained()
    (tmp_path / ".card.checkpoint.safetensors").unlink()
    for kill in (0, RECIPE["steps"]):  # after the text was written, and before the last checkpoint
        with pytest.raises(KeyboardInterrupt):
            trained(kill)
    resumed = trained()
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    report = whole.report(whole.written)
    assert report == resumed.report(whole.written)
    parts = report["divergence_by_tenth_of_the_steps"]
    assert len(parts) == 10 and parts[-1] < parts[0] / 2
    assert report["heldout"]["divergence"] < judge(teacher, relu_twin(teacher), whole.written)["divergence"] * 0.6
    assert report["tokens"] == {"written": 8 * 16, "real": 6 * 16, "seen": 24 * 4 * 16}
    assert (report["penalty"] > 0) == (zeros is not None)


def test_a_step_goes_down_the_gradient_of_the_mean_divergence(teacher, real):
    """Logits in parts, and the head's gradient apart from the rest's, are only another way to compute it."""
    training = Distillation(teacher, real, recipe(batch=2), seed=0)
    twin, ids = relu_twin(teacher), real[:2]
    scored = torch.ones(2, 17, dtype=torch.bool)
    logits = [model(ids, use_cache=False).logits for model in (twin, teacher)]
    torch.testing.assert_close(twin.get_output_embeddings()(hidden_states(twin, ids)), logits[0])
    loss = divergences(logits[0], logits[1].detach(), scored).mean()
    loss.backward()
    gradients = {}
    training.descent.step = lambda: gradients.update(
        {name: one.grad.clone() for name, one in training.student.named_parameters()}
    )
    training._learn(ids, lambda *parts: _divergence_of(*parts))
    torch.testing.assert_close(training.losses[0], loss.detach())
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def _divergence_of(hidden, wanted, head, teacher_head):
    p, q = teacher_head(wanted).softmax(-1), head(hidden).softmax(-1)
    return (p * (p / q).log()).sum()


def test_the_penalty_is_the_spread_of_activations():
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    active = x.relu()
    spread = (active.sum(-1) ** 2 / (8 * (active**2).sum(-1))).mean()
    (exact,) = torch.autograd.grad(spread, x)
    torch.testing.assert_close(spread_gradient(active.detach()), exact)
    assert not spread_gradient(torch.zeros(2, 8)).any()
    penalised = PenalisedReLU(torch.tensor(0.6, dtype=torch.float64), layers=3)(x)
    assert torch.equal(penalised, active)
    (found,) = torch.autograd.grad((2 * penalised).sum(), x)
    torch.testing.assert_close(found, 2 * (x > 0) + 0.2 * exact)


def test_zeros_and_losses_are_counted_as_by_hand(teacher, real):
    student = relu_twin(teacher)
    seen = []
    down = "fc2" if teacher.config.model_type == "opt" else "mlp.down_proj"
    hooks = [
        layer.get_submodule(down).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for layer in layers_of(student)
    ]
    student(real)
    for hook in hooks:
        hook.remove()
    by_hand = [(units == 0).sum().item() / units.numel() for units in seen]
    found = judge(teacher, student, real)
    assert found["zeros_by_layer"] == pytest.approx(by_hand) and 0.2 < found["zeros"] < 0.8
    scored = torch.ones_like(real, dtype=torch.bool)
    for key, model in (("teacher_loss", teacher), ("student_loss", student)):
        loss = example_losses(model(real[:, :-1]).logits, real, scored).mean().item()
        assert found[key] == pytest.approx(loss, rel=1e-5)
    assert zero_shares(teacher, real).max() < 1e-3


def test_the_teacher_writes_whole_windows_after_real_tokens(teacher, real):
    end = teacher.config.eos_token_id
    torch.manual_seed(0)
    parts = [write(teacher, real, 5, 0, part) for part in (0, 3, 3)]
    assert torch.equal(parts[1], parts[2]) and parts[0].shape == (5, 16)
    starts = {tuple(window[i : i + 4].tolist()) for window in real for i in range(13)}
    assert {tuple(window[:4].tolist()) for window in parts[1]} <= starts
    assert not any((part[:, 4:] == end).any() for part in parts)
    sizes = dimensions_of(teacher.config)
    assert rows_together(sizes, 32) == rows_together(sizes, 16) // 2


# ---- the stage, and a study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Jobs of a study with a relufied model, and the configuration."""
    folder = tmp_path_factory.mktemp("relufied")
    write_words(folder / "words")
    write_benchmarks(folder / "benchmarks")
    data = tiny_study(folder)
    data["models"]["relu"] = {"source": {"relufied": {"teacher": "tiny-llama", "text": "words"} | RECIPE}}
    data["models"]["relu"]["source"]["relufied"]["written_tokens"] = 4 * 80
    return Jobs(parse_study(data, "study"), folder / "results"), data


@pytest.fixture(scope="module")
def made(study):
    """Files of the teacher, the text and the student."""
    jobs, _ = study
    for rule, name in (("fetch_model", "tiny-llama"), ("prepare_text", "words"), ("relufy", "relu")):
        assert run_job(jobs, rule, name) == 0
    teacher, student = (jobs.root / "models" / name for name in ("tiny-llama", "relu"))
    made = {"card": student / "card.json", "weights": student / "weights"}
    made |= {"documents": jobs.root / "texts" / "words" / "documents.parquet"}
    return made | {"teacher_card": teacher / "card.json", "teacher_weights": teacher / "weights"}


def test_a_card_says_how_the_model_was_made(study, made):
    jobs, _ = study
    card, teacher = (artifacts.read_record(made[key], relufy.CARD_SCHEMA) for key in ("card", "teacher_card"))
    assert card["source"] == {"kind": "relufied", "zeros": None, "teacher": "tiny-llama", "text": "words"} | RECIPE | {
        "written_tokens": 320
    }
    assert card["dimensions"] == teacher["dimensions"] and card["origin"].startswith(teacher["origin"])
    assert card["training"]["heldout"]["windows"] == jobs.study.traces.heldout_windows
    assert artifacts.read_header(made["card"])["inputs"]["teacher_card"] == [artifacts.digest(made["teacher_card"])]
    model = load_model(made["weights"], "float32")
    assert ffn_activation(model.config) == "relu"
    assert json.loads((made["weights"] / "config.json").read_text())["hidden_act"] == "relu"
    assert not list(made["card"].parent.glob(".*checkpoint*"))
    assert set(outputs(jobs.root, "relufy", "relu")) == {made["card"], made["weights"]}


@pytest.mark.slow
def test_the_rule_makes_the_model_after_its_teacher_and_nothing_twice(study, tmp_path):
    folder = prepared(tmp_path)
    data = study[1] | {"study": "relufied"}
    (folder / "config" / "tiny.yaml").write_text(yaml.safe_dump(data))
    card = "results/relufied/models/relu/card.json"
    with forking(folder / ".bin"):
        done = snakemake(folder, card)
        assert done.returncode == 0, done.stderr[-3000:]
        assert artifacts.read_record(folder / card, relufy.CARD_SCHEMA)["source"]["teacher"] == "tiny-llama"
        assert {path.parent.name for path in (folder / "results/relufied/logs").rglob("*.log")} == {
            "fetch_model", "prepare_text", "relufy",
        }  # fmt: skip
        assert not waiting(folder, card)


def test_only_training_documents_are_learned_from(study, made, tmp_path):
    """Other words in held-out and evaluation documents change the card's losses and no weight."""
    jobs, _ = study
    table = pq.read_table(made["documents"])
    rows = table.to_pandas()
    rows.loc[rows["split"] != "train", "text"] = rows["text"].str.swapcase()
    changed = table.set_column(table.schema.get_field_index("text"), "text", [rows["text"].tolist()])
    pq.write_table(changed, tmp_path / "words.parquet")
    out = {"card": tmp_path / "card.json", "weights": tmp_path / "weights"}
    inputs = {key: made[key] for key in ("teacher_card", "teacher_weights")} | {"documents": tmp_path / "words.parquet"}
    job(jobs.relufy("relu"), "relufy", out, **inputs)
    ours, theirs = (artifacts.read_record(path, relufy.CARD_SCHEMA) for path in (made["card"], out["card"]))
    assert ours["files"]["model.safetensors"] == theirs["files"]["model.safetensors"]
    assert ours["training"]["heldout"] != theirs["training"]["heldout"]


def test_a_teacher_in_16_bits_is_the_model_that_is_loaded_so(made, tokens):
    loaded, ours = load_model(made["weights"], "bfloat16"), in_16_bits(load_model(made["weights"], "float32"))
    tokens = tokens.repeat(1, 8)  # at these positions, frequencies of 16 bits would be visible
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, ours(tokens).logits)
        assert not torch.equal(loaded(tokens).logits, load_model(made["weights"], "float32").bfloat16()(tokens).logits)


def test_a_relu_teacher_and_too_little_real_text_are_refused(made, study):
    spec, out = study[0].relufy("relu"), {"card": made["card"].with_name("x.json"), "weights": made["weights"] / "x"}
    inputs = {key: made[key] for key in ("teacher_card", "teacher_weights", "documents")}
    refused("traces.windows .* 10000 windows", job, spec | {"windows": 10_000}, "relufy", out, **inputs)
    student = {"teacher_card": made["card"], "teacher_weights": made["weights"]}
    refused("teacher: .*'relu'", job, spec, "relufy", out, **inputs | student)
    assert not out["card"].exists()


def test_a_teacher_may_be_a_student_itself_but_not_its_own_students(study):
    data = copy.deepcopy(study[1])
    source = data["models"]["relu"]["source"]["relufied"]
    data["models"]["other"] = {"source": {"relufied": source | {"teacher": "relu"}}}
    jobs = Jobs(parse_study(data, "study"))
    assert {one.rule for one in work(jobs) if one.name in ("relu", "other")} >= {"relufy"}
    source["teacher"] = "other"
    refused("other from relu from other|relu from other from relu", parse_study, data, "study")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"teacher": "tiny-lama"}, "models.relu.source.relufied.teacher: unknown 'tiny-lama'.*'tiny-llama'"),
        ({"text": "word"}, "models.relu.source.relufied.text: unknown 'word'.*'words'"),
        ({"teacher": "relu"}, "models.relu.source.relufied.teacher: .*relu from relu"),
        ({"written_tokens": 319}, "models.relu.source.relufied.written_tokens: 319 is too small; .* 320"),
        ({"stepz": 3}, "models.relu.source.relufied: unknown key 'stepz'; did you mean 'steps'"),
        ({"steps": 0}, "models.relu.source.relufied.steps: 0 found"),
        ({"zeros": 1.0}, "models.relu.source.relufied.zeros: 1.0 found; .* between 0 and 1"),
        ({"learning_rate": -1.0}, "models.relu.source.relufied.learning_rate: -1.0 found"),
    ],
)
def test_a_mistake_is_one_sentence(study, changes, names):
    data = copy.deepcopy(study[1])
    data["models"]["relu"]["source"]["relufied"] |= changes
    refused(names, lambda: preflight.check(Jobs(parse_study(data, "study"))))


def test_what_it_learned_from_is_kept_apart_from_what_it_is_measured_on(study):
    data = copy.deepcopy(study[1])
    data["texts"]["more"] = data["texts"]["words"]
    data["models"]["relu"]["source"]["relufied"]["text"] = "more"
    jobs = Jobs(parse_study(data, "study"))
    key = next(key for key in jobs.evaluations if key[0] == "relu")
    assert f"{jobs.root}/checks/disjoint/more+words.json" in jobs.inputs("evaluate", *key)["after"]
    assert "more+words" in {one.name for one in work(jobs) if one.rule == "check_disjoint"}


def test_the_plan_counts_the_training(study):
    jobs, _ = study
    (one,) = [one for one in work(jobs, strict=True) if one.rule == "relufy"]
    tokens = RECIPE["steps"] * RECIPE["batch"] * jobs.study.traces.window_tokens
    sizes = 3 * (4 * 16 * 16 + 3 * 16 * 24) + 320 * 16  # multiplied weights
    assert one.flops == sizes * (8 * tokens + 2 * 320) and not one.gpus
    large = yaml.safe_load((ROOT / "config" / "relu.yaml").read_text())
    (one,) = [one for one in work(Jobs(parse_study(large, "relu")), strict=True) if one.rule == "relufy"]
    assert one.gpus == 1
