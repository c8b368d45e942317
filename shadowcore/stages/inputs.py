"""Read the inputs of stages: a model checked against its card, windows of a text, mean scores, a predictor."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch

from shadowcore import artifacts
from shadowcore.errors import ArtifactError
from shadowcore.method.predictors import FIRST_SPARSE_LAYER, PREDICTOR_SCHEMA, Predictor
from shadowcore.method.weight_quantization import load
from shadowcore.models import families, folders
from shadowcore.models.contents import check_files
from shadowcore.models.families import Dimensions, Kind
from shadowcore.models.products import make_fast
from shadowcore.models.tokenizers import fit_tokenizer, load_tokenizer
from shadowcore.schemas import CRITERIA, THRESHOLDS
from shadowcore.stages.base import ModelFiles, read_card
from shadowcore.texts import cutting
from shadowcore.texts.documents import DOCUMENTS, Document, Window


def device() -> torch.device:
    """The device that models run on: the first visible GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


WINDOWS_KEYS = {"train": "traces.windows", "heldout": "traces.heldout_windows", "evaluation": "evaluation.windows"}


class Model(ModelFiles):
    """A model's card, and its folder, whose files are checked against the card before they are read."""

    @cached_property
    def tokenizer(self):
        content = read_card(self.card)
        check_files(self.weights, content)
        return fit_tokenizer(load_tokenizer(self.weights), content["dimensions"]["vocabulary"], str(self.weights))

    def model(self, dtype: str, spread: bool = True):
        """The unchanged Hugging Face model, on the device, or, with `spread`, on all GPUs that the job sees."""
        # cuDNN's attention makes a plan for every shape of a batch, and an evaluation has hundreds of shapes
        torch.backends.cuda.enable_cudnn_sdp(False)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() and spread else 1
        if gpus > 1:
            return self.loaded(dtype, gpus)
        return make_fast(self.loaded(dtype).to(device()))

    def loaded(self, dtype: str, gpus: int = 0):
        """The model spread over some GPUs (see `folders.device_map`), or by default in main memory."""
        check_files(self.weights, read_card(self.card))
        return folders.load_model(self.weights, dtype, gpus)


class ModelAndText(Model):
    """What most stages read: a model's card and folder, and the documents of a text."""

    documents: Path

    def windows(self, split: str, length: int, count: int, seed: int, key: str | None = None) -> list[Window]:
        """`count` windows of `length` token ids from a split: train, heldout or evaluation.

        key: the configuration's key for `count`, by default that in WINDOWS_KEYS. Raises ConfigError if the split has
        too few windows, or the model too few positions for a window.
        """
        families.require_positions(
            read_card(self.card)["dimensions"]["positions"], length, "window_tokens", "the model"
        )
        table, where = DOCUMENTS.read(self.documents), f"{key or WINDOWS_KEYS[split]} ({split} split)"
        rows = table.filter(pc.equal(table["split"], split)).drop_columns("split")
        documents = [Document(**row) for row in rows.to_pylist()]
        return cutting.windows(documents, self.tokenizer, length, count, seed, where)

    def ids(self, split: str, length: int, count: int, seed: int, key: str | None = None) -> torch.Tensor:
        """Token ids (N, T) of such windows."""
        return torch.tensor([window.ids for window in self.windows(split, length, count, seed, key)])

    def training_ids(self, spec: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids of training and of held-out windows. spec: has windows, heldout_windows and window_tokens."""
        counts = {"train": spec.windows, "heldout": spec.heldout_windows}
        return tuple(self.ids(split, spec.window_tokens, count, seed) for split, count in counts.items())


def read_mean_scores(
    path: Path, criterion: str, kinds: tuple[Kind, ...], sizes: Dimensions
) -> dict[Kind, torch.Tensor]:
    """Mean scores (L, U) per kind of one criterion from the table that `average` wrote."""
    table = CRITERIA.read(path).to_pandas()
    table = table[table["criterion"] == criterion].sort_values(["layer", "unit"])
    found = {kind: torch.tensor(table.loc[table["kind"] == kind, "mean"].to_numpy()) for kind in kinds}
    for kind, scores in found.items():
        needed = sizes.layers * sizes.units(kind)
        if len(scores) != needed or not scores.isfinite().all():
            raise ArtifactError(
                f"{path}: {int(scores.isfinite().sum())} scores of {kind} by {criterion} where {needed} are needed; "
                "delete the file and run the study again"
            )
    return {kind: scores.view(sizes.layers, sizes.units(kind)) for kind, scores in found.items()}


def read_thresholds(path: Path, method: str, sparsity_pct: int) -> torch.Tensor:
    """Thresholds (L,) of one method and sparsity from a table of `calibrate-thresholds`; layer 0 keeps all."""
    table = THRESHOLDS.read(path).to_pandas()
    wanted = (table["method"] == method) & (table["sparsity_pct"] == sparsity_pct)
    found = table[wanted].sort_values("layer")["threshold"].to_numpy()
    if not len(found):
        raise ArtifactError(
            f"{path}: no thresholds of method '{method}' at {sparsity_pct} %; delete the file and run the study again"
        )
    thresholds = torch.tensor(found)
    thresholds[:FIRST_SPARSE_LAYER] = -1
    return thresholds


def read_predictor(path: Path, sizes: Dimensions) -> Predictor:
    """The predictor that `train-predictor` wrote, on the CPU; ArtifactError if it is of a model of other sizes."""
    state, again = artifacts.read_tensors(path, PREDICTOR_SCHEMA), "delete the file and run the study again"
    try:
        made_by = artifacts.read_header(path)["spec"]
        shape = (made_by["recipe"][name] for name in ("rank", "segments", "bits", "block"))
        with torch.device("meta"):  # initial weights of a large model's predictor take longer than reading it
            predictor = Predictor(made_by["method"], sizes, *shape, made_by["recipe"].get("scaling") == "per_example")
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: its header describes no predictor ({error!r}); {again}") from None
    load(predictor, state, str(path), again)
    return make_fast(predictor.eval())
