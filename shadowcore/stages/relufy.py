"""Replace a model's activation by ReLU and distil the original model into it; the card has the losses."""

from pathlib import Path

import torch

from shadowcore import artifacts
from shadowcore.method.relufy import Distillation, Relufied
from shadowcore.method.training_state import Checkpoint
from shadowcore.models import sources
from shadowcore.stages.base import CARD_SCHEMA, Frozen, Outputs, Progress, header, read_card
from shadowcore.stages.inputs import ModelAndText

SECONDS_BETWEEN = 120.0  # between checkpoints, which have three times the bytes of the weights


class Spec(Frozen):
    """recipe: of the model's source; dtype: of the weights that are written; windows: of real text to train on;
    heldout_windows: for the losses in the card."""

    recipe: Relufied
    dtype: str
    windows: int
    heldout_windows: int
    window_tokens: int
    seed: int


class Inputs(Frozen):
    """documents: the real text."""

    teacher_card: Path
    teacher_weights: Path
    documents: Path


def run(spec: Spec, inputs: Inputs, outputs: Outputs) -> None:
    progress = Progress(f"relufy {spec.recipe.teacher}")
    spec.recipe.check("recipe")
    spec.recipe.require_tokens(spec.window_tokens, "recipe")
    torch.set_float32_matmul_precision("high")  # allows TF32, which is precise enough for training, not for measuring
    teacher_card = read_card(inputs.teacher_card)
    read = ModelAndText(inputs.teacher_card, inputs.teacher_weights, inputs.documents)
    real, heldout = read.training_ids(spec, spec.seed)
    teacher = read.model("float32", spread=False)
    head = header("relufy", spec, inputs)
    checkpoint = Checkpoint(outputs.card, head, SECONDS_BETWEEN)
    training = Distillation(teacher, real, spec.recipe, spec.seed)
    training.run(progress, checkpoint)
    report = training.report(heldout)

    def put_into(folder: Path) -> tuple[str | None, str]:
        training.student.to(getattr(torch, spec.dtype)).save_pretrained(folder)
        read.tokenizer.save_pretrained(folder)
        return teacher_card["licence"], f"{teacher_card['origin']}; with ReLU in its FFN, distilled into itself"

    card = sources.put(spec.recipe, put_into, outputs.weights) | {"training": report}
    artifacts.write_record(outputs.card, CARD_SCHEMA, card, head)
    checkpoint.remove()
