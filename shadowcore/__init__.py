"""shadowcore: predictor-based contextual sparsity for large language models, checkable end to end."""

__version__ = "0.1.0"
