"""`shadowcore generate`: continue a prompt with a study's model, dense and sparse, with the speed of each."""

import argparse
import time
from pathlib import Path
from typing import Any

from shadowcore.errors import ConfigError, one_of
from shadowcore.models.families import KINDS_OF

SUFFIX = ".safetensors"
PARTS = ("model", "calibration", "method", "criterion", "predictor")  # of the path of a predictor
PREFERRED = "plainact"  # the criterion if the study has several


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="a study's results folder, such as results/quick")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument(
        "--method", default="shadow", help="design of a predictor, or a proxy such as proxy4 (default: shadow)"
    )
    parser.add_argument("--sparsity", type=int, default=50, metavar="PERCENT", help="units to skip (default: 50 %%)")
    for name in (part for part in PARTS if part != "method"):
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
        trained = chosen(parsed)
        origin = "{criterion} (predictor {predictor}, trained on {calibration})".format(**trained)
        model_name = trained["model"]
    # imported here, so that `--help` is fast
    from shadowcore.library.decoding import decoder
    from shadowcore.measure.latency import bytes_per_step
    from shadowcore.models.families import dimensions_of
    from shadowcore.stages import inputs

    folder = parsed.results / "models" / model_name
    files = inputs.Model(folder / "card.json", folder / "weights")
    tokenizer = files.tokenizer
    model = files.model(parsed.dtype or ("bfloat16" if inputs.device().type == "cuda" else "float32"), spread=False)
    predictor = inputs.read_predictor(trained["path"], dimensions_of(model.config)) if trained else parsed.method
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


def chosen(parsed: argparse.Namespace) -> dict[str, Any]:
    """The parts of the path of the predictor that the options name; ConfigError lists the choices of several."""
    if not parsed.results.is_dir():
        raise ConfigError(f"{parsed.results}: no such folder; name a study's results, such as results/quick")
    found = []
    for path in sorted((parsed.results / "predictors").glob(f"*/*/[!.]*{SUFFIX}")):
        names = (*path.parts[-3:-1], *path.name.removesuffix(SUFFIX).split("+", 2))
        if len(names) == len(PARTS):
            found.append(dict(zip(PARTS, names, strict=True)) | {"path": path})
    if not found:
        raise ConfigError(
            f"{parsed.results}: it has no trained predictors; run a study that trains one, such as `make study`"
        )
    for part in PARTS:
        known = sorted({one[part] for one in found})
        wanted = getattr(parsed, part) or (PREFERRED if PREFERRED in known else None)
        if wanted is None and len(known) > 1:
            raise ConfigError(f"--{part}: the study has several: {', '.join(known)}; name one of them")
        found = [one for one in found if one[part] == one_of(wanted or known[0], known, f"--{part}")]
    return found[0]
