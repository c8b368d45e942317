"""Checks of the arguments of the library's functions; each raises ConfigError with one sentence."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from numbers import Real

import torch

from shadowcore.errors import ConfigError, one_of
from shadowcore.method.predictors import Predictor
from shadowcore.models.families import KINDS_OF, Dimensions, Kind, dimensions_of, require_positions
from shadowcore.models.tokenizers import fit_tokenizer
from shadowcore.texts.documents import Document

WINDOW_TOKENS = 128
NOT_COMPARED = ("kv_heads", "vocabulary", "positions")  # sizes that no predictor depends on


def percent(sparsity: float) -> int:
    """Convert a sparsity from a fraction to a whole percentage, 0 to 99."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0 <= sparsity < 1:
        raise ConfigError(
            f"sparsity: {sparsity!r} is not allowed; it must be a fraction from 0 to below 1, such as 0.5 for half of "
            "the units"
        )
    whole = round(100 * sparsity)
    if abs(100 * sparsity - whole) > 1e-6 or whole == 100:
        raise ConfigError(f"sparsity: {sparsity!r} is not a whole number of percent; use two decimals, such as 0.55")
    return whole


def at_least(least: int, **numbers: int) -> None:
    """Raise ConfigError, naming the argument, unless every number is a whole number of at least `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ConfigError(f"{name}: {number!r} is not allowed; it must be a whole number of at least {least}")


def require_model(model: torch.nn.Module) -> Dimensions:
    """The dimensions of a causal model of a supported family that is in evaluation mode."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise ConfigError(
            f"model: {type(model).__name__} found; it must be a causal model of transformers, such as "
            "AutoModelForCausalLM.from_pretrained returns"
        )
    sizes = dimensions_of(model.config)
    if model.training:
        raise ConfigError("model: it is in training mode, where dropout changes its numbers; call model.eval() first")
    return sizes


def require_fit(predictor: Predictor, model: torch.nn.Module) -> Dimensions:
    """The dimensions of a model; ConfigError if the predictor was trained for other dimensions."""
    if not isinstance(predictor, Predictor):
        raise ConfigError(
            f"predictor: {type(predictor).__name__} found; it must be what train_predictor or "
            "Predictor.from_pretrained returns"
        )
    sizes = require_model(model)
    trained, here = asdict(predictor.sizes), asdict(sizes)
    if differ := [name for name in trained if name not in NOT_COMPARED and trained[name] != here[name]]:
        found = ", ".join(f"{name.replace('_', ' ')} {trained[name]}" for name in differ)
        needed = ", ".join(f"{name.replace('_', ' ')} {here[name]}" for name in differ)
        raise ConfigError(f"predictor: it was trained for a model of {found}; this model has {needed}")
    return sizes


def kinds_of(predictor: Predictor, units: str | None) -> tuple[Kind, ...]:
    """The kinds of unit to skip: those that `units` names, or all that the predictor scores."""
    if units is None:
        return predictor.kinds
    kinds = KINDS_OF[one_of(units, KINDS_OF, "units")]
    if missing := [kind for kind in kinds if kind not in predictor.kinds]:
        raise ConfigError(
            f"units: '{units}' needs scores of {missing[0]}; this predictor scores {' and '.join(predictor.kinds)} only"
        )
    return kinds


def placed(predictor: Predictor, device: torch.device, dtype: torch.dtype) -> Predictor:
    """The predictor on a device in a number format; a copy, unless it is there already."""
    weight = next(predictor.parameters())
    if weight.device == device and weight.dtype == dtype:
        return predictor
    return copy.deepcopy(predictor).to(device, dtype)


def fitted(tokenizer, sizes: Dimensions):
    """A copy of the tokenizer without a padding token that the model does not have (see `fit_tokenizer`)."""
    if not hasattr(tokenizer, "get_vocab"):
        raise ConfigError(
            f"tokenizer: {type(tokenizer).__name__} found; it must be a tokenizer of transformers, such as "
            "AutoTokenizer.from_pretrained returns"
        )
    return fit_tokenizer(copy.deepcopy(tokenizer), sizes.vocabulary, "tokenizer")


def documents_of(texts: Iterable[str]) -> list[Document]:
    """Texts as documents; equal texts count once."""
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise ConfigError(f"texts: {type(texts).__name__} found; it must be a list of texts")
    documents: dict[str, Document] = {}
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"texts[{place}]: {type(text).__name__} found; every text must be a str")
        document = Document.of(f"texts[{place}]", text)
        documents.setdefault(document.id, document)
    return list(documents.values())


def window_length(sizes: Dimensions, window_tokens: int | None) -> int:
    """Tokens per window: the argument, or by default WINDOW_TOKENS or the model's positions if they are fewer."""
    if window_tokens is None:
        return min(WINDOW_TOKENS, sizes.positions)
    at_least(2, window_tokens=window_tokens)
    require_positions(sizes.positions, window_tokens, "window_tokens", "the model")
    return window_tokens
