"""The checkpoint of a run: everything that is needed to resume it with the same result."""

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common.errors import InputError
from common.methods import Tensors, own_buffers, trainable
from common.runs import CHECKPOINT
from common.runtime import files, shards
from common.runtime.device import peak_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

MOMENTS = ("exp_avg", "exp_avg_sq")
"""State of AdamW that has the shape of a parameter; the other part is a count of steps."""


@dataclass
class Progress:
    """The progress of a run. The epoch is len(history)."""

    step: int = 0
    """Optimizer steps done."""
    bad_steps: int = 0
    """Steps skipped because of a non-finite gradient."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation scores of each finished epoch."""
    variant_scores: dict[str, float] = field(default_factory=dict)
    """Scores of the method's variants in the best epoch."""
    scalars: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    """All logged values, as (step, Unix time, name -> value)."""
    recent_steps: int = 0
    """Steps since training scalars were last logged."""
    logged_at: float = 0.0
    """`train_seconds` at that time."""
    train_seconds: float = 0.0
    train_tokens: int = 0
    peak_memory: int = 0
    """Bytes, the maximum over all launches of the run."""
    n_resumed: int = 0
    """How often the run was resumed."""


@dataclass(frozen=True)
class TrainingState:
    """What training changes besides the progress. Saves and loads both as a checkpoint."""

    model: nn.Module
    optimizer: Any
    recent: torch.Tensor
    """This process's sums since the last log."""
    accelerator: "Accelerator"
    facts: dict[str, Any]
    """What must be the same when a run is resumed: base model, number of examples, steps and processes."""

    def save(self, folder: Path, progress: Progress) -> None:
        """Replace the checkpoint in a run's folder; all processes must call this.

        Raises:
            InputError: it cannot be written; the previous checkpoint is kept.
        """
        from accelerate.utils import gather_object

        progress.peak_memory = max(progress.peak_memory, peak_memory(self.accelerator.device))
        states = gather_object([_random_states(self.accelerator.device) | {"recent": self.recent.cpu()}])
        tensors: Tensors = {}
        for name, parameter in trainable(self.model).items():
            tensors[f"weights.{name}"] = shards.unshard(parameter)
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{key}.{name}": shards.unshard(value) for key, value in moments.items()}
        tensors |= {f"buffers.{name}": buffer for name, buffer in own_buffers(self.model).items()}
        if self.accelerator.is_main_process:
            for rank, state in enumerate(states):
                tensors |= {f"process.{rank}.{name}": value for name, value in state.items()}
            scaler = self.accelerator.scaler
            files.write_tensors(
                folder / CHECKPOINT,
                tensors,
                progress=dataclasses.asdict(progress),
                facts=self.facts,
                scaler=scaler.state_dict() if scaler is not None else None,
            )
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> Progress:
        """Restore the state from the checkpoint in a run's folder; all processes must call this.

        Raises:
            InputError: it is damaged, or belongs to another run.
        """
        path = folder / CHECKPOINT
        try:
            tensors, notes = files.read_tensors(path)
        except InputError as error:
            raise InputError(f"{error}; --no_resume restarts the run") from error
        try:
            return self._restore(path, tensors, notes)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} was written by another version ({error!r}): --no_resume restarts the run"
            ) from error

    def _restore(self, path: Path, tensors: Tensors, notes: dict[str, Any]) -> Progress:
        changed = [key for key, value in self.facts.items() if notes["facts"].get(key) != value]
        if changed:
            found = ", ".join(f"{key} was {notes['facts'].get(key)} and is {self.facts[key]}" for key in changed)
            raise InputError(f"{path} belongs to another run: {found}; change it back, or use --no_resume")
        progress = Progress(**notes["progress"])
        progress.n_resumed += 1
        for name, parameter in trainable(self.model).items():
            parameter.data.copy_(shards.shard_like(tensors[f"weights.{name}"], parameter))
            if f"optimizer.step.{name}" in tensors:  # a parameter without a gradient so far has no state
                # Copied, since the tensors are views of the file's bytes and may not be aligned.
                state = {
                    k: tensors[f"optimizer.{k}.{name}"].to(parameter.device, copy=True) for k in ("step", *MOMENTS)
                }
                state |= {k: shards.shard_like(state[k], parameter) for k in MOMENTS}
                self.optimizer.state[parameter] = state
        for name, buffer in own_buffers(self.model).items():
            buffer.copy_(tensors[f"buffers.{name}"])
        prefix = f"process.{self.accelerator.process_index}."
        self.recent.copy_(tensors[f"{prefix}recent"])
        _set_random_states({n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(notes["scaler"])
        return progress


def _random_states(device: torch.device) -> Tensors:
    """The states of this process's random generators: torch's, numpy's and Python's, which a method may use."""
    _, words_np, position, has_gauss, gauss_np = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*words_np, position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(gauss_np, dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: Tensors) -> None:
    torch.set_rng_state(states["torch"])
    *words, position, has_gauss = states["numpy"].tolist()
    gauss = states["numpy_gauss"].item()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, gauss))
    version, *inner = states["python"].tolist()
    random.setstate((version, tuple(inner), next(iter(states["python_gauss"].tolist()), None)))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
