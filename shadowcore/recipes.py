"""The configuration of predictors: sizes and training, and which predictor another one begins with."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from shadowcore.config_types import AboveZero, Number, Percent, Positive, Strict, Within, among
from shadowcore.method.tracing import EXAMPLES
from shadowcore.method.training import EPOCHS_KEPT, SCALINGS, STARTS, TARGETS, Recipe
from shadowcore.models.families import KINDS_OF


class MaskingConfig(Strict):
    """Masks on the model while a predictor learns: kinds of unit, and the range of sparsities in percent."""

    units: among(KINDS_OF)
    lowest_pct: Percent
    highest_pct: Percent

    @model_validator(mode="after")
    def in_order(self) -> Self:
        """The range must not be empty."""
        if self.lowest_pct > self.highest_pct:
            raise ValueError(f"lowest_pct ({self.lowest_pct}) must not be above highest_pct ({self.highest_pct})")
        return self


class TuningConfig(MaskingConfig):
    """Settings for tuning predictors with `tuned_from`; see `shadowcore.method.tuning`."""

    epochs: Positive
    batch: Positive
    learning_rate: AboveZero
    temperature: AboveZero


# recipes that a configuration can name; numbers in the configuration replace those of the recipe
PUBLISHED = {
    "rank_heads": 2048, "rank_neurons": 1024, "target": "score", "scaling": "min_max",
    "epochs": 20, "epochs_heads": 100, "batch": 512, "learning_rate": 0.001, "weight_decay": 0.01,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    # ShadowLLM (arXiv 2406.16635): sizes, loss and optimiser of its accuracy results; the batch is ours, and so is that
    # examples are tokens, which the protocol `token` needs
    "published": PUBLISHED,
    # the same for the protocol `lookahead`, as published: whole windows, scaling of each example, random weights at the
    # start, the last epoch
    "published_lookahead": PUBLISHED
    | {"scaling": "per_example", "batch": 32, "examples": "windows", "epoch_kept": "last", "start": "random"},
    # Deja Vu (arXiv 2310.17157): widths and loss; epochs, batch and learning rate are ours
    "dejavu": {
        "rank_heads": 512, "rank_neurons": 1000, "target": "active", "scaling": "standard",
        "epochs": 8, "batch": 512, "learning_rate": 0.001, "weight_decay": 0.01,
    },
    # ours, for many training tokens; best when it is also retrained and tuned on the sparse model
    "best": {
        "rank_heads": 256, "rank_neurons": 1024, "target": "sqrt", "scaling": "standard",
        "epochs": 6, "batch": 512, "learning_rate": 0.001, "weight_decay": 0.01,
    },
}  # fmt: skip


class PredictorConfig(Strict):
    """A predictor that is trained on the dense model; see `shadowcore.method.training`.

    recipe: one of RECIPES, the defaults of all keys. epochs_heads: epochs for heads, by default those for neurons.
    tokens: how many of the traced tokens are trained on, the first ones; all by default.
    """

    parent: ClassVar[None] = None
    tuned_from: ClassVar[None] = None
    recipe: among(RECIPES) | None = None
    rank_heads: Positive
    rank_neurons: Positive
    segments: Positive = 1
    target: among(TARGETS)
    scaling: among(SCALINGS) = "standard"
    epochs: Positive
    epochs_heads: Positive | None = None
    batch: Positive
    learning_rate: AboveZero
    weight_decay: Annotated[Number, Field(ge=0)]
    tokens: Positive | None = None
    bits: Literal[16, 8] = 16
    block: Positive = 1
    examples: among(EXAMPLES) = "tokens"
    epoch_kept: among(EPOCHS_KEPT) = "best"
    start: among(STARTS) = "constant"
    active_pct: Annotated[Percent, Field(ge=1)] = 50

    @model_validator(mode="before")
    @classmethod
    def of_a_recipe(cls, data: Any) -> Any:
        """Add the values of the named recipe for keys that are not given."""
        name = data.get("recipe") if isinstance(data, dict) else None
        return RECIPES[name] | data if isinstance(name, str) and name in RECIPES else data

    def training_recipe(self) -> Recipe:
        """The recipe in the form that the training stage takes."""
        rank = {"heads": self.rank_heads, "neurons": self.rank_neurons}
        epochs = {"heads": self.epochs_heads or self.epochs, "neurons": self.epochs}
        own = {"recipe", "rank_heads", "rank_neurons", "epochs_heads", "epochs"}
        return Recipe(rank=rank, epochs=epochs, **self.model_dump(exclude=own))

    def examples_in(self, windows: int, tokens_per_window: int) -> int:
        """Number of examples in so many windows."""
        return windows if self.examples == "windows" else windows * tokens_per_window


class DerivedConfig(Strict):
    """A predictor that begins with another one (its parent) and has the same sizes and recipe.

    retrained_from: the parent; the predictor is trained on traces of the model under the parent's masks
    (`traces.on_policy`).
    tuned_from: the parent, which is tuned on the sparse model that its own masks make (`tuning`).
    tuning_rate: learning rate of this tuning, by default that of the section `tuning`.
    """

    retrained_from: str | None = None
    tuned_from: str | None = None
    tuning_rate: AboveZero | None = None

    @model_validator(mode="after")
    def of_one(self) -> Self:
        """Exactly one parent must be given."""
        if (self.retrained_from is None) == (self.tuned_from is None):
            raise ValueError("must have either retrained_from or tuned_from, with the name of another predictor")
        if self.tuning_rate and not self.tuned_from:
            raise Within("tuning_rate", "needs tuned_from; a retrained predictor has the learning_rate of its recipe")
        return self

    @property
    def parent(self) -> str:
        """Name of the predictor that it begins with."""
        return self.retrained_from or self.tuned_from


def _kind(value: Any) -> str:
    # by the beginning of the keys, so that a misspelt one gets the right message
    derived = isinstance(value, dict) and any(str(key).startswith(("retrain", "tun")) for key in value)
    return "<DerivedConfig>" if derived or isinstance(value, DerivedConfig) else "<PredictorConfig>"


AnyPredictor = Annotated[
    Annotated[PredictorConfig, Tag("<PredictorConfig>")] | Annotated[DerivedConfig, Tag("<DerivedConfig>")],
    Discriminator(_kind),
]
