"""`shadowcore generate`: continue a prompt with a study's model, dense and sparse, with the speed of each."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shadowcore.errors import ConfigError, one_of
from shadowcore.models.families import KINDS_OF

SUFFIX = ".safetensors"
PREFERRED = {"criterion": "plainact"}  # the default if the study has several


class Trained(NamedTuple):
    """A trained predictor of a study: the parts of its path."""

    model: str
    calibration: str
    method: str
    criterion: str
    predictor: str
    path: Path


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="a study's results folder, such as results/quick")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument(
        "--method", default="shadow", help="design of a predictor, or a proxy such as proxy4 (default: shadow)"
    )
    parser.add_argument("--sparsity", type=int, default=50, metavar="PERCENT", help="units to skip (default: 50 %%)")
    for name in ("model", "calibration", "criterion", "predictor"):
        parser.add_argument(f"--{name}", metavar="NAME", help="which one, if the study has several")
    parser.add_argument("--units", default="neurons", choices=list(KINDS_OF), help="units to skip (default: neurons)")
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N", help="at most (default: 48)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (default: float32, bfloat16 on a GPU)")


def run(parsed: argparse.Namespace) -> None:
    if not 0 <= parsed.sparsity < 100:
        raise ConfigError(f"--sparsity: {parsed.sparsity} is not allowed; it must be a percentage from 0 to 99")
    if parsed.method.startswith("proxy"):
        trained, origin = None, "low-bit copies of the weights, without training"
        model_name = model_in(parsed.results, parsed.model)
    else:
        trained = chosen(predictors_in(parsed.results), parsed)
        origin = f"{trained.criterion} (predictor {trained.predictor}, trained on {trained.calibration})"
        model_name = trained.model
    # imported here, so that `--help` is fast
    from shadowcore.library.decoding import decoder
    from shadowcore.measure.latency import bytes_per_step
    from shadowcore.models.families import dimensions_of
    from shadowcore.stages import inputs

    folder = parsed.results / "models" / model_name
    files = inputs.Model(folder / "card.json", folder / "weights")
    tokenizer = files.tokenizer
    model = files.model(parsed.dtype or ("bfloat16" if inputs.device().type == "cuda" else "float32"), spread=False)
    predictor = inputs.read_predictor(trained.path, dimensions_of(model.config)) if trained else parsed.method
    both = decoder(model, predictor, parsed.sparsity / 100, parsed.units)
    ids, read = tokenizer(parsed.prompt)["input_ids"], []
    for name, dense, variant in (("dense", True, both.dense), (parsed.method, False, both.sparse)):
        both.generate(ids, tokenizer, 2, dense=dense)  # the first call compiles kernels and allocates memory
        started = time.perf_counter()
        new = both.generate(ids, tokenizer, parsed.max_new_tokens, dense=dense)
        seconds = time.perf_counter() - started
        read.append(bytes_per_step(variant))
        print(f"{name}: {len(new) / seconds:.1f} tokens per second")
        print(f"{tokenizer.decode([*ids, *new.tolist()], skip_special_tokens=True)}\n")
    print(
        f"{parsed.method} skips {parsed.sparsity} % of the {parsed.units} of {model_name} by {origin}; it reads "
        f"{read[1] / read[0]:.0%} of the weights that the dense model reads"
    )


def model_in(results: Path, wanted: str | None) -> str:
    """The model of a study's results folder, or the wanted one of several."""
    known = sorted(path.parent.name for path in results.glob("models/*/card.json"))
    if wanted is not None and known:
        return one_of(wanted, known, "--model")
    if len(known) != 1:
        raise ConfigError(f"--model: {results} has {', '.join(known) or 'no models'}; a proxy needs the name of one")
    return known[0]


def predictors_in(results: Path) -> list[Trained]:
    """All predictors of a study's results folder."""
    if not results.is_dir():
        raise ConfigError(f"{results}: no such folder; name a study's results, such as results/quick")
    predictors = []
    for path in sorted((results / "predictors").glob(f"*/*/*{SUFFIX}")):
        parts = path.name.removesuffix(SUFFIX).split("+", 2)
        if not path.name.startswith(".") and len(parts) == 3:
            predictors.append(Trained(path.parts[-3], path.parts[-2], *parts, path))
    if not predictors:
        raise ConfigError(f"{results}: it has no trained predictors; run a study that trains one, such as `make study`")
    return predictors


def chosen(predictors: Sequence[Trained], parsed: argparse.Namespace) -> Trained:
    """The predictor that the options name; ConfigError lists the choices if there are several."""
    for name in ("model", "calibration", "method", "criterion", "predictor"):
        known = sorted({getattr(one, name) for one in predictors})
        wanted = getattr(parsed, name)
        if wanted is None and PREFERRED.get(name) in known:
            wanted = PREFERRED[name]
        if wanted is None and len(known) > 1:
            raise ConfigError(f"--{name}: the study has several: {', '.join(known)}; name one of them")
        if wanted is not None:
            one_of(wanted, known, f"--{name}")
            predictors = [one for one in predictors if getattr(one, name) == wanted]
    return predictors[0]
