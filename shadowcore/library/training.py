"""Train a predictor for a model on texts, with the functions that the study's stages call."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from shadowcore import artifacts
from shadowcore.errors import ConfigError, one_of
from shadowcore.library.checks import at_least, documents_of, fitted, require_model, window_length
from shadowcore.library.predictor import Predictor
from shadowcore.method import tracing
from shadowcore.method.criteria import CRITERIA
from shadowcore.method.predictors import DECODED
from shadowcore.method.trace_dataset import open_traces
from shadowcore.method.training import Recipe, fit
from shadowcore.models.families import KINDS_OF
from shadowcore.texts import cutting
from shadowcore.texts.documents import Document

HELD_OUT = 0.1  # share of texts that are held out to choose the best epoch
WINDOWS_TO_HELD_OUT = 8  # training windows per held-out window


SPLITS = {"train": (64, 4), "heldout": (32, 8)}  # sampled tokens of a window, bits of a score; as in config/quick.yaml


def train_predictor(
    model: torch.nn.Module, tokenizer, texts: Iterable[str], design: str = "shadow", criterion: str = "plainact",
    rank: int = 128, *, units: str = "neurons", segments: int = 1, windows: int = 64,
    window_tokens: int | None = None, epochs: int = 3, learning_rate: float = 0.003, batch: int = 4, seed: int = 0,
) -> Predictor:  # fmt: skip
    """Train a predictor that scores a model's units for each token; the model is not changed.

    model: a causal model of transformers, in evaluation mode. texts: at least two, each of `window_tokens` tokens or
    more; a tenth is held out to choose the best epoch.
    design: shadow, layerwise, layerwise_own or segments (with this number of `segments`).
    criterion: the importance criterion (docs/method.md); it must have a score of a single token.
    rank: hidden width of the predictor. units: neurons, heads or both.
    windows: most windows of text to train on. window_tokens: tokens per window, by default 128 or the model's positions
    if they are fewer. batch: windows in one pass, which is limited by memory.
    epochs, learning_rate: of AdamW. seed: the same seed, texts and machine give the same predictor.

    Returns the predictor on the CPU. Raises ConfigError for wrong arguments and for too little text.
    """
    sizes = require_model(model)
    one_of(design, DECODED, "design")
    at_least(1, rank=rank, segments=segments, windows=windows, epochs=epochs, batch=batch)
    if not CRITERIA[one_of(criterion, CRITERIA, "criterion")].has_token_form:
        allowed = ", ".join(name for name, one in CRITERIA.items() if one.has_token_form)
        raise ConfigError(f"criterion: '{criterion}' has no score of a single token; it must be one of {allowed}")
    if not learning_rate > 0:
        raise ConfigError(f"learning_rate: {learning_rate!r} is not allowed; it must be above 0")
    kinds = KINDS_OF[one_of(units, KINDS_OF, "units")]
    length = window_length(sizes, window_tokens)
    parts = _windows(documents_of(texts), fitted(tokenizer, sizes), length, windows, seed)
    with torch.random.fork_rng(devices=[]):  # does not change the state of the caller's random numbers
        torch.default_generator.manual_seed(seed)
        predictor = Predictor(
            design, sizes, dict.fromkeys(kinds, rank), segments, criterion=criterion, model=_name_of(model)
        )
    _learn(predictor.to(model.device), model, parts, segments, epochs, float(learning_rate), batch, seed)
    return predictor.cpu().eval()


def _learn(
    predictor: Predictor, model: torch.nn.Module, parts: dict[str, torch.Tensor], segments: int, epochs: int,
    learning_rate: float, batch: int, seed: int,
) -> None:  # fmt: skip
    """Trace the model on the windows of both splits, train the predictor in place, and record the training."""
    sites = [group.site for group in predictor.groups]
    windows, length = parts["train"].shape
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        traces = {}
        for split, ids in parts.items():
            (sampled, bits), path = SPLITS[split], Path(folder) / f"{split}.safetensors"
            plan = tracing.TracePlan((), (predictor.criterion,), bits, min(sampled, length - 1), sites, seed)
            with bar(f"tracing {split} windows", len(ids)) as tick:
                artifacts.write_tensors(path, tracing.SCHEMA, tracing.trace(model, ids, plan, batch, tick), {})
            traces[split] = open_traces(stack, [path], predictor, predictor.criterion, bits)
        tokens = len(traces["train"])
        recipe = Recipe(
            rank=predictor.ranks, segments=segments, target="sqrt", epochs=dict.fromkeys(predictor.kinds, epochs),
            batch=min(64, tokens), learning_rate=learning_rate, weight_decay=0.01,
        )  # fmt: skip
        with bar("training epochs", epochs) as tick:
            fits = sum(fit(predictor, traces["train"], traces["heldout"], recipe, seed, tick).values(), [])
    predictor.trained = {
        "windows": windows, "window_tokens": length, "tokens": tokens, "epochs": epochs,
        "learning_rate": learning_rate, "seed": seed, "heldout_loss": sum(one.loss for one in fits) / len(fits),
        "heldout_loss_of_mean_scores": sum(one.loss_constant for one in fits) / len(fits),
    }  # fmt: skip


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; call it with the number of finished steps and their total."""
    with tqdm(desc=what, total=total) as one:
        yield lambda done, total: one.update(done - one.n)


def _windows(documents: Sequence[Document], tokenizer, length: int, windows: int, seed: int) -> dict[str, torch.Tensor]:
    """Token windows (N, length) by split: to train on, and held-out ones from other texts."""

    def ids(some: Sequence[Document], most: int) -> torch.Tensor:
        return torch.tensor([one.ids for one in cutting.windows(some, tokenizer, length, None, seed)[:most]])

    named = {one.document_id for one in cutting.windows(documents, tokenizer, length, None, seed)}
    long = [one for one in documents if one.id in named]
    if len(long) < 2:
        raise ConfigError(
            f"texts: {len(long)} of {len(documents)} different texts have window_tokens ({length}) tokens or more; at "
            "least 2 are needed, one to train on and one held out"
        )
    train, heldout = cutting.split(long, max(HELD_OUT, 1 / len(long)), seed)
    return {"train": ids(train, windows), "heldout": ids(heldout, -(-windows // WINDOWS_TO_HELD_OUT))}


def _name_of(model: torch.nn.Module) -> str:
    """The name that a model was loaded by; for a folder only its last part, because paths are private."""
    name = getattr(model.config, "_name_or_path", "") or ""
    return Path(name).expanduser().resolve().name if name and Path(name).expanduser().exists() else name
