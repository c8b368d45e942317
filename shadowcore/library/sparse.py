"""Make a transformers model sparse while a block runs, by masks through hooks.

This is protocol `token` (measure.protocols): each position has its own mask, and a prompt is dense except for its last
position, which predicts the first new token.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from shadowcore.errors import ConfigError
from shadowcore.library.checks import kinds_of, percent, placed, require_fit
from shadowcore.measure.sparsity import PredictedMasks
from shadowcore.method.predictors import Predictor
from shadowcore.models.masking import choosing
from shadowcore.models.recording import Choose, Site


class SparseCausalLM:
    """A causal model whose units are skipped by a predictor whenever it is run through this object.

    The hooks are only on the model during a call, so `model(...)` itself stays dense.
    """

    def __init__(self, model: torch.nn.Module, masks: PredictedMasks):
        self.model, self.masks, self.closed = model, masks, False

    @property
    def config(self):
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; every position of the input gets its own mask."""
        with self._masked(0):
            return self.model(*args, **kwargs)

    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Call transformers' `generate` with all its arguments: the prompt is dense, then each new token gets a mask.

        Prompts in a batch must be padded on the left, as transformers requires.
        """
        prompts = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((prompt for prompt in prompts if prompt is not None), None)
        # a compiled step would use the masks of the first step for all steps
        if kwargs.get("generation_config") is not None:
            kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
            kwargs["generation_config"].disable_compile = True
        else:
            kwargs["disable_compile"] = True
        with self._masked(0 if prompt is None else prompt.shape[1] - 1):
            return self.model.generate(inputs, **kwargs)

    def require_open(self) -> None:
        """Raise ConfigError after the end of the `with` block."""
        if self.closed:
            raise ConfigError("sparsify: its block has ended; use the sparse model inside the `with` block")

    @contextmanager
    def _masked(self, first: int) -> Iterator[None]:
        """While the block runs, mask every pass from position `first` of the rows on."""
        self.require_open()
        names = inspect.signature(self.model.forward)
        choose: Choose | None = None
        dense = 0  # number of positions at the beginning of the current pass without masks

        def begin(module, args, kwargs):
            nonlocal choose, dense
            given = names.bind_partial(*args, **kwargs).arguments
            tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
            cache = given.get("past_key_values")
            rows, length = tokens.shape[:2]
            past = 0 if cache is None else int(cache.get_seq_length())
            dense = min(max(first - past, 0), length)
            every = torch.ones(rows, length - dense + 1, dtype=torch.bool, device=tokens.device)
            choose = self.masks.begin(every.long(), every)

        def keep(site: Site, x: torch.Tensor) -> torch.Tensor | None:
            if dense == x.shape[1]:
                return None
            with torch.no_grad():
                kept = choose(site, x[:, dense:])
            return None if kept is None else functional.pad(kept, (0, 0, dense, 0), value=True)

        handle = self.model.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            with choosing(self.model, keep, self.masks.sites):
                yield
        finally:
            handle.remove()


@contextmanager
def sparsify(
    model: torch.nn.Module, predictor: Predictor, sparsity: float = 0.5, units: str | None = None,
    policy: str = "per_layer",
) -> Iterator[SparseCausalLM]:  # fmt: skip
    """Make a sparse view of a model: `with sparsify(model, predictor, sparsity=0.5) as sparse: sparse.generate(...)`.

    model: a causal model of transformers, in evaluation mode; it is not changed.
    predictor: trained for a model of the same dimensions.
    sparsity: the fraction of units to skip in every layer but the first, from 0 to below 1, with two decimals.
    units: neurons, heads or both; by default all kinds that the predictor scores.
    policy: per_layer, global or floored (docs/method.md).

    The view can be called like the model, has `generate`, and can be given to `perplexity` and `evaluate`, until the
    block ends. Raises ConfigError for wrong arguments.
    """
    require_fit(predictor, model)
    kinds, pct = kinds_of(predictor, units), percent(sparsity)
    # as in the evaluation, the predictor of a 16-bit model computes in 32 bits
    scorer = placed(predictor, model.device, torch.promote_types(model.dtype, torch.float32))
    sparse = SparseCausalLM(model, PredictedMasks(scorer, kinds, policy, pct))
    try:
        yield sparse
    finally:
        sparse.closed = True
