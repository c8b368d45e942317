"""Save and load a trained predictor as a folder that can be published: config.json, model.safetensors and a card."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from shadowcore import __version__
from shadowcore.atomic import replacing, writable
from shadowcore.errors import ArtifactError, ConfigError, one_of
from shadowcore.library.checks import require_fit
from shadowcore.method import predictors
from shadowcore.method.weight_quantization import load, stored
from shadowcore.models.families import Dimensions, Kind
from shadowcore.provenance import file_sha256

SCHEMA = "shadowcore-predictor/1"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class PredictorConfig:
    """The content of config.json.

    ranks: hidden width by kind of unit; segments: number of MLPs of the design `segments`; bits: per weight; block:
    number of neighbouring neurons that share a score; model, dimensions: of the model that it was trained for;
    training: record of the training.
    """

    schema: Literal["shadowcore-predictor/1"]
    version: str
    design: str
    criterion: str
    ranks: dict[Kind, PositiveInt]
    segments: PositiveInt
    bits: Literal[16, 8]
    block: PositiveInt
    model: str
    dimensions: Dimensions
    training: dict[str, Any]
    licence: str
    weights_sha256: str


class Predictor(predictors.Predictor):
    """A predictor with its criterion, the name of its model and a record of its training.

    training: windows, tokens, epochs, seed and held-out losses of `train_predictor`. If `heldout_loss` is close to
    `heldout_loss_of_mean_scores`, the predictor has learned little more than the units' mean scores.
    """

    def __init__(
        self, design: str, sizes: Dimensions, ranks: Mapping[Kind, int], segments: int = 1, bits: int = 16,
        block: int = 1, *, criterion: str, model: str = "", training: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        one_of(design, predictors.DECODED, "design")
        super().__init__(design, sizes, ranks, segments, bits, block)
        self.criterion, self.model_name, self.trained = criterion, model, dict(training or {})

    def save_pretrained(self, folder: str | Path, licence: str = "unknown") -> None:
        """Write config.json, model.safetensors and README.md (a model card) into a folder, which is made if needed.

        licence: a name of the Hugging Face hub such as "apache-2.0"; it depends on the licences of the model and the
        texts. Raises ConfigError if the folder has other files with these names.
        """
        from safetensors.torch import save_file

        folder = Path(folder).expanduser()
        _require_own(folder)
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous().cpu() for name, value in stored(self.state_dict(), self.bits).items()}
        with replacing(folder / WEIGHTS) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        config = dataclasses.asdict(PredictorConfig(
            schema=SCHEMA, version=__version__, design=self.design, criterion=self.criterion, ranks=self.ranks,
            segments=len(self.groups) if self.design == "segments" else 1, bits=self.bits,
            block=self.blocks["neurons"], model=self.model_name, dimensions=self.sizes, training=self.trained,
            licence=licence, weights_sha256=file_sha256(folder / WEIGHTS),
        ))  # fmt: skip
        for name, text in ((CARD, card(config)), (CONFIG, json.dumps(config, indent=1) + "\n")):
            with replacing(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: Any = None) -> Self:
        """The predictor in a folder that `save_pretrained` wrote, on the CPU in float32, in evaluation mode.

        model: the transformers model that it is used with; if given, its dimensions are checked, as `sparsify` and
        `decoder` always do. Raises ArtifactError for missing or damaged files.
        """
        from safetensors.torch import load_file

        folder = Path(folder).expanduser()
        config = read_config(folder)
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise ArtifactError(f"{weights}: no such file; the folder must have {CONFIG} and {WEIGHTS}")
        if file_sha256(weights) != config.weights_sha256:
            raise ArtifactError(f"{weights}: the file is damaged, or it does not belong to {CONFIG}; get both again")
        predictor = cls(
            config.design, config.dimensions, config.ranks, config.segments, config.bits, config.block,
            criterion=config.criterion, model=config.model, training=config.training,
        )  # fmt: skip
        load(predictor, load_file(weights), str(weights), f"get it and {CONFIG} again, or train again")
        if model is not None:
            require_fit(predictor, model)
        return predictor.eval()


def read_config(folder: Path) -> PredictorConfig:
    """Read config.json in a predictor's folder; ArtifactError, naming the key, if it is missing or wrong."""
    path = folder / CONFIG
    if not path.is_file():
        raise ArtifactError(
            f"{path}: no such file; name a folder that save_pretrained wrote (`hf download` gets one from the hub)"
        )
    try:
        config = TypeAdapter(PredictorConfig).validate_json(path.read_bytes())
        one_of(config.design, predictors.DECODED, "design")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise ArtifactError(f"{path}: {where}: {first['msg']}; it must be as save_pretrained writes it") from None
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return config


def _require_own(folder: Path) -> None:
    """Raise ConfigError if writing a predictor into a folder would overwrite other files."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: it is a file; name a folder to save the predictor in")
    present = [name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).exists()]
    if not present:
        return
    try:
        read_config(folder)
    except ArtifactError:
        raise ConfigError(
            f"{folder}: it has a {present[0]} that is not a predictor's and would be overwritten; choose an empty or a "
            "new folder"
        ) from None


def card(config: Mapping[str, Any]) -> str:
    """The model card of a predictor, with the header that the Hugging Face hub reads."""
    sizes = config["dimensions"]
    model = config["model"] or "a model without a name"
    ranks = ", ".join(f"{rank} for {kind}" for kind, rank in config["ranks"].items())
    training = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in config["training"].items())
    base = f"base_model: {config['model']}\n" if "/" in config["model"] else ""
    return f"""---
license: {config["licence"]}
library_name: shadowcore
{base}tags:
- contextual-sparsity
---

# Predictor of contextual sparsity for {model}

This predictor scores the units (attention heads or FFN neurons) of a language model for each token. A sparse model
skips the units with the lowest scores.

- Licence: {config["licence"]}
- Trained for: {model} ({sizes["layers"]} layers, width {sizes["width"]}, {sizes["heads"]} heads of \
{sizes["head_width"]}, {sizes["neurons"]} neurons a layer)
- Design: {config["design"]}, {config["segments"]} segment(s)
- Criterion: {config["criterion"]}
- Ranks (hidden widths): {ranks}
- Weights: {config["bits"]} bits, blocks of {config["block"]} neuron(s)

## Training

{training or "- not recorded"}

## Use

```python
import shadowcore as sc

predictor = sc.Predictor.from_pretrained("path/of/this/folder")
with sc.sparsify(model, predictor, sparsity=0.5) as sparse:
    output = sparse.generate(**tokenizer("The capital of", return_tensors="pt"))
```
"""
