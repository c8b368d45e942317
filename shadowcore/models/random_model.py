"""Models of random weights, for tests and for measuring speed, which does not depend on the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shadowcore.devices import reserved
from shadowcore.errors import ConfigError, SourceError, one_of
from shadowcore.models.families import FAMILIES
from shadowcore.models.tokenizers import byte_tokenizer, fit_tokenizer, load_tokenizer
from shadowcore.provenance import device_name

SHARD_BYTES = 2 * 10**9  # size of a file of weights; small, because a file is copied to memory to be written


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
        multiple = round(2 / family.rotary) if family.rotary else 1  # rotary positions turn pairs of numbers
        grouped = "num_key_value_heads" in family.own_keys or kv_heads == self.heads
        for name, served, allowed in (
            ("width", self.width % self.heads == 0, f"a multiple of heads ({self.heads})"),
            ("width", self.width // self.heads % multiple == 0, f"heads ({self.heads}) times a multiple of {multiple}, "
             f"because of the rotary positions of family {self.family}"),
            ("kv_heads", grouped, f"the number of heads ({self.heads}) in the family {self.family}"),
            ("kv_heads", self.heads % kv_heads == 0, f"a divisor of heads ({self.heads})"),
            ("seed", 0 <= self.seed < 2**63, "at least 0 and smaller than 2^63"),
        ):  # fmt: skip
            if not served:
                raise ConfigError(f"{where}.{name}: {getattr(self, name)} found; it must be {allowed}")
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
            "num_hidden_layers": self.layers, "hidden_size": self.width, "num_attention_heads": self.heads,
            family.neurons_key: self.neurons, "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
        }  # fmt: skip
        own = {"num_key_value_heads": self.kv_heads or self.heads, "head_dim": self.width // self.heads}
        own |= {"sliding_window": None, "layer_types": None}
        # only keys that the family's class reads; other keys would mislead readers of the configuration
        sizes |= {key: own[key] for key in family.own_keys}
        return sizes if family.rotary else sizes | {"word_embed_proj_dim": self.width}
