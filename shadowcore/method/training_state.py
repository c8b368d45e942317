"""The state of a training after an epoch, and its checkpoint, from which an interrupted training continues.

A checkpoint holds everything that an epoch changes: weights, the optimiser's moments and rates, random numbers, and the
best epoch so far. So a training that was killed ends with the same bytes as one that was not.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import nn

from shadowcore import artifacts, atomic

CHECKPOINT_SCHEMA = "checkpoint/1"
SECONDS_BETWEEN = 60.0


@dataclass(frozen=True)
class FitResult:
    """The result of training one scorer: its best epoch, the held-out loss then, and that of the constant predictor."""

    best_epoch: int
    loss: float
    loss_constant: float


class Descent:
    """AdamW (Loshchilov & Hutter 2019) with a cosine; warm_up: share of the steps in which the rate rises first."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, decay: float, steps: int, warm_up: float | None = None
    ):
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        schedules = torch.optim.lr_scheduler
        if warm_up is None:
            self.schedule = schedules.CosineAnnealingLR(self.optimizer, steps)
        else:
            self.schedule = schedules.OneCycleLR(
                self.optimizer, rate, total_steps=steps, pct_start=warm_up, cycle_momentum=False
            )

    def step(self) -> None:
        """Follow the gradients that are there, and forget them."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a step changes but the parameters."""
        moments = self.optimizer.state_dict()["state"]
        found = {f"{i}.{name}": value for i, state in moments.items() for name, value in state.items()}
        reached = [self.schedule.last_epoch, self.optimizer.param_groups[0]["lr"]]
        return found | {"reached": torch.tensor(reached, dtype=torch.float64)}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from there."""
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key != "reached":
                i, _, name = key.partition(".")
                moments.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        steps, rate = tensors["reached"].tolist()
        self.optimizer.load_state_dict({"state": moments, "param_groups": [{**groups[0], "lr": rate}]})
        done = {"last_epoch": int(steps), "_step_count": int(steps) + 1, "_last_lr": [rate]}
        self.schedule.load_state_dict(self.schedule.state_dict() | done)


class TrainingState:
    """A training under way: `module` learns by `descents`; `parts` of it are kept as they were in their best epochs."""

    def __init__(
        self, module: nn.Module, parts: Mapping[str, nn.Module], descents: Mapping[str, Descent],
        generator: torch.Generator, losses: Mapping[str, float], keep_last: bool = False,
    ):  # fmt: skip
        """losses: of the parts where training begins. keep_last: keep the last epoch, and not the best one."""
        self.module, self.parts, self.descents, self.generator = module, parts, descents, generator
        self.epoch, self.keep_last = 0, keep_last
        self.best = {name: FitResult(0, loss, loss) for name, loss in losses.items()}
        self.kept = {name: _copied(part) for name, part in parts.items()}

    def finish(self, epoch: int, losses: Mapping[str, float]) -> None:
        """An epoch is over: keep the parts whose held-out losses are the lowest yet, or all if the last one counts."""
        self.epoch = epoch
        for name, loss in losses.items():
            if self.keep_last or loss < self.best[name].loss:
                self.best[name] = FitResult(epoch, loss, self.best[name].loss_constant)
                self.kept[name] = _copied(self.parts[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training changed."""
        found = {"epoch": torch.tensor(self.epoch), "generator": self.generator.get_state()}
        found |= {f"fit.{name}": torch.tensor(astuple(fit), dtype=torch.float64) for name, fit in self.best.items()}
        held = {"module": self.module.state_dict()}
        held |= {f"kept.{name}": state for name, state in self.kept.items()}
        held |= {f"descent.{name}": descent.tensors() for name, descent in self.descents.items()}
        return found | {f"{name}:{key}": value for name, state in held.items() for key, value in state.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from there."""

        def state(name: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(f"{name}:"): tensors[key] for key in tensors if key.startswith(f"{name}:")}

        self.epoch = int(tensors["epoch"])
        self.generator.set_state(tensors["generator"])
        self.module.load_state_dict(state("module"))
        for name, descent in self.descents.items():
            descent.load(state(f"descent.{name}"))
        for name in self.parts:
            epoch, loss, constant = tensors[f"fit.{name}"].tolist()
            self.best[name], self.kept[name] = FitResult(int(epoch), loss, constant), state(f"kept.{name}")


def _copied(part: nn.Module) -> dict[str, torch.Tensor]:
    """Values of a part that may be views of others': its own, and no more."""
    return {name: value.clone() for name, value in part.state_dict().items()}


class Checkpoint:
    """The file of an interrupted training, next to the file that the training will write.

    made_from: the header of the latter; a checkpoint of another specification, input, code or version is ignored.
    """

    def __init__(self, result: Path, made_from: artifacts.Header, seconds: float = SECONDS_BETWEEN):
        self.path = result.with_name(f".{result.stem}.checkpoint.safetensors")
        self.made_from, self.seconds, self.saved = json.loads(json.dumps(made_from)), seconds, time.monotonic()

    def resume(self, state: TrainingState) -> None:
        """Load the file into a state, if there is one."""
        if self.path.exists() and artifacts.read_header(self.path) == self.made_from:
            state.load(artifacts.read_tensors(self.path, CHECKPOINT_SCHEMA))

    def save(self, state: TrainingState) -> None:
        """Write the file, unless the last time is less than `seconds` ago."""
        if time.monotonic() - self.saved >= self.seconds:
            artifacts.write_tensors(self.path, CHECKPOINT_SCHEMA, state.tensors(), self.made_from)
            self.saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file, because the result is written."""
        self.path.unlink(missing_ok=True)
        atomic.remove_abandoned(self.path)
