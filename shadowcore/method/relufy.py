"""A model with ReLU in its FFN, made from a model of another activation by distilling that model into itself.

The student begins as the teacher's weights with ReLU in place of SiLU or GELU, and learns the teacher's next-token
distributions, KL(teacher || student) at every position, on text that the teacher writes and on real text (after
"ReLU Strikes Back", Mirzadeh et al. 2023, which trains on labels). Training can also ask for a share of exact zeros:
the weight of a penalty (`method/zero_penalty.py`) rises while there are fewer than asked for.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from shadowcore.errors import ConfigError
from shadowcore.method.training_state import Checkpoint, Descent
from shadowcore.method.zero_penalty import penalise
from shadowcore.models.families import Dimensions, dimensions_of, family_of, ffn_activation, layers_of
from shadowcore.models.losses import token_divergences, token_losses
from shadowcore.models.recording import visiting

REAL_COPIES = 3  # of the real text in a pass over the written text
PROMPT_TOKENS = 11  # of real text before a written one: 1 to so many
WARM_UP = 0.03  # of the steps
CLIPPED_NORM = 1.0  # of the gradient
CACHE_BYTES = 32e9  # of keys and values of texts that are written side by side
LOGITS_AT_ONCE = 2**28
PENALTY, MOST, LEAST = 0.03, 10.0, 1e-3  # weight of the penalty, in nats: at first, and its range
CHECKED = 25  # steps between two looks at the zeros, ...
CHECKED_WINDOWS = 8  # ... in so many windows of a batch
JUDGED_WINDOWS = 8  # held-out windows in a batch
SAID = 50  # steps between two lines of progress
TENTHS = 10


@dataclass(frozen=True)
class Relufied:
    """A ReLU model that is distilled from another model of the study, its teacher.

    teacher: name of a model; text: name of the text whose training windows are real text and prompts; written_tokens:
    what the teacher writes; batch: windows a step; zeros: share of zero activations to reach, None for no penalty.
    """

    KIND: ClassVar[str] = "relufied"
    teacher: str
    text: str
    written_tokens: int
    steps: int
    batch: int
    learning_rate: float
    zeros: float | None = None

    def check(self, where: str = "source") -> None:
        for name in ("written_tokens", "steps", "batch", "learning_rate"):
            if (found := getattr(self, name)) <= 0:
                raise ConfigError(f"{where}.{name}: {found} found; it must be larger than 0")
        if self.zeros is not None and not 0 < self.zeros < 1:
            raise ConfigError(f"{where}.zeros: {self.zeros} found; it must be between 0 and 1")

    def require_tokens(self, window_tokens: int, where: str) -> None:
        """Raise ConfigError if the teacher writes fewer windows than a step needs."""
        if self.written_tokens < (least := self.batch * window_tokens):
            raise ConfigError(
                f"{where}.written_tokens: {self.written_tokens} is too small; it must be at least batch x "
                f"traces.window_tokens = {least}, the tokens of one step"
            )


def relu_twin(model: nn.Module) -> nn.Module:
    """A copy of a causal model, in float32, with ReLU in its FFN; ConfigError if it has one already."""
    from transformers import AutoModelForCausalLM

    if ffn_activation(model.config) == "relu":
        raise ConfigError("teacher: its activation is 'relu' already; it must be another one, such as 'silu' or 'gelu'")
    config = copy.deepcopy(model.config)
    setattr(config, family_of(config).activation_key, "relu")
    twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    twin.load_state_dict(model.state_dict(), strict=True)
    twin.generation_config = copy.deepcopy(model.generation_config)
    return twin.to(model.device).eval()  # without dropout, as the teacher


def in_16_bits(model: nn.Module) -> nn.Module:
    """A model with its parameters in bfloat16, in place; buffers, such as rotary frequencies, stay in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


class Distillation:
    """A training under way: the teacher writes, then the student learns. A checkpoint holds all that changes."""

    def __init__(self, teacher: nn.Module, real: torch.Tensor, recipe: Relufied, seed: int):
        """real: windows (N, T) of real text. The teacher is turned into 16 bits on a GPU. ConfigError: see relu_twin"""
        self.student, self.real, self.recipe, self.seed = relu_twin(teacher), real, recipe, seed
        self.on_gpu = teacher.device.type == "cuda"
        self.teacher = (in_16_bits(teacher) if self.on_gpu else teacher).requires_grad_(False)
        self.sizes = dimensions_of(teacher.config)
        self.descent = Descent(self.student.parameters(), recipe.learning_rate, 0.0, recipe.steps, WARM_UP)
        self.written = real.new_zeros(0, real.shape[1])
        self.step = 0
        self.penalty = torch.tensor(0.0 if recipe.zeros is None else PENALTY, device=teacher.device)
        self.losses = torch.zeros(recipe.steps, device=teacher.device)
        if recipe.zeros is not None:
            penalise(self.student, self.penalty)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that writing and training changed."""
        found = {"step": torch.tensor(self.step), "written": self.written.to(torch.int32)}
        if not self.step:
            return found
        found |= {"penalty": self.penalty, "losses": self.losses}
        found |= {f"weight:{name}": value.detach() for name, value in self.student.named_parameters()}
        return found | {f"descent:{name}": value for name, value in self.descent.tensors().items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from there."""
        self.step, self.written = int(tensors["step"]), tensors["written"].to(self.real.dtype)
        if not self.step:
            return
        self.penalty.copy_(tensors["penalty"])
        self.losses.copy_(tensors["losses"])
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                parameter.copy_(tensors[f"weight:{name}"])
        start = "descent:"
        self.descent.load({key.removeprefix(start): tensors[key] for key in tensors if key.startswith(start)})

    def run(self, progress: Callable[[int, int], None], checkpoint: Checkpoint | None = None) -> None:
        """Write and train to the end, or from where the checkpoint left off."""
        if checkpoint:
            checkpoint.resume(self)
        rows = -(-self.recipe.written_tokens // self.real.shape[1])
        together = rows_together(self.sizes, self.real.shape[1])
        while (done := len(self.written)) < rows:
            chunk = write(self.teacher, self.real, min(together, rows - done), self.seed, done // together)
            self.written = torch.cat((self.written, chunk))
            progress(0, self.recipe.steps)
            if checkpoint:
                checkpoint.save(self)
        pool = torch.cat((self.written, *[self.real] * REAL_COPIES)).to(self.teacher.device)
        with _compiled(self.teacher, self.student) if self.on_gpu else nullcontext():
            divergence = torch.compile(_divergence, dynamic=False) if self.on_gpu else _divergence
            while self.step < self.recipe.steps:
                self._learn(pool[self._batch(len(pool)).to(pool.device)], divergence)
                if self.step % SAID == 0 or self.step == self.recipe.steps:
                    progress(self.step, self.recipe.steps)
                if checkpoint:
                    checkpoint.save(self)

    def _batch(self, windows: int) -> torch.Tensor:
        """Indices of the next step's windows: every pass is an order of its own, which leaves a few out."""
        turn, place = divmod(self.step, windows // self.recipe.batch)
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(self.seed + turn))
        return order[place * self.recipe.batch : (place + 1) * self.recipe.batch]

    def _learn(self, ids: torch.Tensor, divergence: Callable[..., torch.Tensor]) -> None:
        """One step on windows (B, T): the loss is a mean over all their tokens."""
        if self.recipe.zeros is not None and self.step % CHECKED == 0:
            with torch.compiler.set_stance("force_eager"):
                zeros = zero_shares(self.student, ids[:CHECKED_WINDOWS], self.autocast).mean()
            self.penalty.mul_(torch.exp(self.recipe.zeros - zeros)).clamp_(LEAST, MOST)
        with torch.no_grad():
            wanted = hidden_states(self.teacher, ids).flatten(0, 1)
        with self.autocast():
            hidden = hidden_states(self.student, ids).flatten(0, 1)
        leaf, loss = hidden.detach().requires_grad_(), self.losses[self.step]
        heads = [model.get_output_embeddings() for model in (self.student, self.teacher)]
        together = 2 ** int(math.log2(max(1, LOGITS_AT_ONCE // self.sizes.vocabulary)))
        for some, some_wanted in zip(leaf.split(together), wanted.split(together), strict=True):
            with self.autocast():
                part = divergence(some, some_wanted, *heads) / ids.numel()
            part.backward()
            loss += part.detach()
        hidden.backward(leaf.grad)
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIPPED_NORM)
        self.descent.step()
        self.step += 1

    def autocast(self):
        """Products in bfloat16 on a GPU; weights and their moments stay in float32."""
        return torch.autocast("cuda", torch.bfloat16) if self.on_gpu else nullcontext()

    def report(self, heldout: torch.Tensor) -> dict[str, Any]:
        """What was trained, and how teacher and student do on held-out windows (M, T), in nats per token."""
        found = judge(self.teacher, self.student, heldout.to(self.teacher.device), self.autocast)
        parts = [part.mean().item() for part in self.losses.tensor_split(TENTHS) if len(part)]
        seen = self.recipe.steps * self.recipe.batch * self.real.shape[1]
        return {
            "tokens": {"written": self.written.numel(), "real": self.real.numel(), "seen": seen},
            "divergence_by_tenth_of_the_steps": parts,
            "penalty": self.penalty.item(),
            "heldout": found,
        }


def hidden_states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What the output embedding of a causal model reads (B, T, D)."""
    return model.base_model(ids, use_cache=False).last_hidden_state


def _divergence(hidden: torch.Tensor, wanted: torch.Tensor, head: nn.Module, teacher_head: nn.Module) -> torch.Tensor:
    """Sum over tokens of KL(teacher || student), from hidden states (N, D) of both."""
    return token_divergences(head(hidden), teacher_head(wanted.to(teacher_head.weight.dtype))).sum()


@contextmanager
def _compiled(*models: nn.Module) -> Iterator[None]:
    """While the block runs, layers are compiled: one piece of code for all layers of a model."""
    layers = [layer for model in models for layer in layers_of(model)]
    try:
        for layer in layers:
            layer.compile(dynamic=False)
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def rows_together(sizes: Dimensions, length: int) -> int:
    """Texts that are written side by side, a power of two of them: it decides what is drawn, on every machine."""
    cache = 4 * sizes.layers * sizes.kv_heads * sizes.head_width * length  # bytes of keys and values in 16 bits
    return 2 ** int(math.log2(max(1, CACHE_BYTES / cache)))


@torch.no_grad()
def write(teacher: nn.Module, real: torch.Tensor, rows: int, seed: int, part: int) -> torch.Tensor:
    """Windows (rows, T) that the teacher writes at temperature 1 after a few tokens of real windows (N, T).

    The end of a text is never drawn, so that a window is one text. Other parts have other prompts and random numbers.
    """
    from transformers import GenerationConfig

    prompt, length = min(1 + part % PROMPT_TOKENS, real.shape[1] - 1), real.shape[1]
    draw = torch.Generator().manual_seed(seed + part)
    window = torch.randint(len(real), (rows, 1), generator=draw)
    start = torch.randint(length - prompt + 1, (rows, 1), generator=draw)
    ids = real[window, start + torch.arange(prompt)].to(teacher.device)
    end = teacher.config.eos_token_id
    # without `eos_token_id` nothing stops early; of what is not said here, transformers takes the model's own
    teacher.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length - prompt, pad_token_id=0,
        suppress_tokens=[end] if isinstance(end, int) else end,
    )  # fmt: skip
    with torch.random.fork_rng([teacher.device] if teacher.device.type == "cuda" else []):
        torch.manual_seed(seed + part)
        written = teacher.generate(ids, attention_mask=torch.ones_like(ids))
    return written.to(real.device, real.dtype)


@torch.no_grad()
def zero_shares(model: nn.Module, ids: torch.Tensor, autocast=nullcontext) -> torch.Tensor:
    """Shares (L,) of neurons' activations that are exactly zero on windows (B, T)."""
    shares = []

    def see(site, x: torch.Tensor) -> None:
        if site.what == "neurons":
            shares.append((x == 0).float().mean())

    with visiting(model, see, ["neurons"]), autocast():
        hidden_states(model, ids)
    return torch.stack(shares)


@torch.no_grad()
def judge(teacher: nn.Module, student: nn.Module, windows: torch.Tensor, autocast=nullcontext) -> dict[str, Any]:
    """Mean losses per token of teacher and student on windows (M, T), in nats, their divergence, and zeros by layer."""
    sums, zeros = torch.zeros(3, dtype=torch.float64), []
    for ids in windows.split(JUDGED_WINDOWS):
        with autocast():
            dense, relu = (model(ids[:, :-1], use_cache=False).logits for model in (teacher, student))
        parts = [token_losses(dense, ids), token_losses(relu, ids), token_divergences(relu, dense)]
        sums += torch.stack([part.double().sum() for part in parts]).cpu()
        zeros.append(len(ids) * zero_shares(student, ids, autocast).double().cpu())
    teacher_loss, student_loss, divergence = (sums / windows[:, 1:].numel()).tolist()
    by_layer = (sum(zeros) / len(windows)).tolist()
    return {
        "windows": len(windows), "teacher_loss": teacher_loss, "student_loss": student_loss,
        "divergence": divergence, "zeros": sum(by_layer) / len(by_layer), "zeros_by_layer": by_layer,
    }  # fmt: skip
