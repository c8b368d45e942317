"""shadowcore: predictor-based contextual sparsity for large language models, checkable end to end.

As a library (docs/library.md): `train_predictor`, `Predictor`, `sparsify`, `perplexity`, `evaluate`, `decoder` and
`benchmark`. Their types are in `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# where each name of the library is defined; imported at its first use, because torch and lm-eval take seconds
_DEFINED_IN = {
    "Predictor": "predictor", "SparseCausalLM": "sparse", "SparseDecoder": "decoding", "benchmark": "decoding",
    "decoder": "decoding", "evaluate": "quality", "perplexity": "quality", "sparsify": "sparse",
    "train_predictor": "training",
}  # fmt: skip
__all__ = ["__version__", *_DEFINED_IN]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'shadowcore' has no attribute '{name}'; it has {', '.join(__all__)}")
    value = getattr(import_module(f"shadowcore.library.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
