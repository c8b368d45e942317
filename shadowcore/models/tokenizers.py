"""Load the tokenizer of a model folder, and make one of bytes."""

import json
from importlib.util import find_spec
from pathlib import Path

from shadowcore.errors import SourceError
from shadowcore.models.weights import reason_of

END_OF_TEXT = "<|end|>"


def load_tokenizer(folder: Path):
    """The tokenizer of a model folder; SourceError if there is none, or if it has neither a BOS nor an EOS token."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    present = [name for name in ("tokenizer.json", "vocab.json", "tokenizer.model") if (folder / name).is_file()]
    if not present:
        raise SourceError(f"{folder}: no tokenizer; the folder must have tokenizer.json (or tokenizer.model)")
    if present == ["tokenizer.model"] and find_spec("sentencepiece") is None:
        raise SourceError(
            f"{folder}: tokenizer.model needs the package 'sentencepiece', which is not installed; install it, "
            "or add the tokenizer as tokenizer.json (`save_pretrained` of transformers writes it)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise SourceError(f"{folder}: damaged or unsupported tokenizer ({reason})") from None
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise SourceError(
            f"{folder}: the tokenizer has neither a BOS nor an EOS token; name one of them in tokenizer_config.json"
        )
    return tokenizer


def fit_tokenizer(tokenizer, vocabulary: int, where: str):
    """The tokenizer, if the model has an embedding for each of its tokens. vocabulary: number of embeddings.

    A padding token without an embedding is removed, because the study does not use it; a text with its name is then
    read letter by letter. Raises SourceError, naming `where`, for any other token without an embedding.
    """
    pad, used = tokenizer.pad_token, (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    if pad in _beyond(tokenizer, vocabulary) and pad not in used:
        _take_out(tokenizer, pad)
    if beyond := _beyond(tokenizer, vocabulary):
        name = min(beyond, key=beyond.get)
        raise SourceError(
            f"{where}: the tokenizer's token {name!r} has id {beyond[name]}, but the model's vocabulary has "
            f"{vocabulary} tokens; every id must be smaller than {vocabulary}, except that of a padding token"
        )
    return tokenizer


def _beyond(tokenizer, vocabulary: int) -> dict[str, int]:
    """Ids of the tokens, also added ones, that have no embedding, by name."""
    return {name: number for name, number in tokenizer.get_vocab().items() if number >= vocabulary}


def _take_out(tokenizer, name: str) -> None:
    """Remove an added token; the package tokenizers has no call for it."""
    from tokenizers import Tokenizer

    if not tokenizer.is_fast:
        return
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != name]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pad_token = None


def byte_tokenizer():
    """A tokenizer of the 256 bytes and one token that begins and ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable letter per byte
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
