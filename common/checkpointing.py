"""The checkpoint of a run: everything that is needed to resume it with the same result."""

import dataclasses
import math
import random
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common.errors import InputError, check
from common.loading import misfit, shapes_of
from common.methods import Tensors, own_buffers, trainable
from common.runs import CHECKPOINT
from common.runtime import files, shards
from common.runtime.device import peak_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

MOMENTS = ("exp_avg", "exp_avg_sq")
"""State of AdamW that has the shape of a parameter; the other part is a count of steps."""
OPTIMIZER = ("optimizer.step", *(f"optimizer.{moment}" for moment in MOMENTS))


@dataclass
class Progress:
    """The progress of a run. The epoch is len(history)."""

    step: int = 0
    """Optimizer steps done."""
    bad_steps: int = 0
    """Steps skipped because of a non-finite gradient."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Validation scores of each finished epoch."""
    best_epoch: int = 0
    """The epoch whose adapter is kept, counted from 1; 0 = none so far."""
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
    threads: list[int] = field(default_factory=list)
    """Number of threads of the first launch, and of each launch that had another number than the one before."""


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
    n_steps: int
    steps_per_epoch: int
    metrics: Collection[str]
    """Names that the scores of each epoch have."""

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
            tensors[f"weights.{name}"] = weights = shards.unshard(parameter)
            # A parameter without a gradient so far has no state. Zeros are where AdamW will begin.
            zeros = {"step": torch.zeros(())} | {moment: torch.zeros_like(weights) for moment in MOMENTS}
            state = self.optimizer.state.get(parameter) or zeros
            tensors |= {f"optimizer.{key}.{name}": shards.unshard(state[key]) for key in zeros}
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
        self._refuse_other_run(path, notes.get("facts"))
        try:
            progress = self._check(tensors, notes)
            self._restore(tensors, notes)
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            what = error if isinstance(error, InputError) else f"it was written by another version ({error!r})"
            raise InputError(f"{path} does not fit this run: {what}; --no_resume restarts the run") from error
        progress.n_resumed += 1
        return progress

    def _refuse_other_run(self, path: Path, facts: Any) -> None:
        found = facts if isinstance(facts, dict) else {}
        changed = [
            f"{key} was {found.get(key)} and is {now}" for key, now in self.facts.items() if found.get(key) != now
        ]
        if changed:
            raise InputError(f"{path} belongs to another run: {', '.join(changed)}; change it back, or use --no_resume")

    def _check(self, tensors: Tensors, notes: dict[str, Any]) -> Progress:
        """The progress in a checkpoint. Raises InputError unless all of its contents can be from this run."""
        if wrong := misfit(shapes_of(tensors), shapes_of(self._wanted())):
            raise InputError(wrong)
        progress = self._read_progress(notes["progress"])
        for name in trainable(self.model):
            weights, step, first, second = (tensors[f"{kind}.{name}"] for kind in ("weights", *OPTIMIZER))
            is_count = 0 <= float(step) <= progress.step and float(step).is_integer()
            finite = all(bool(tensor.isfinite().all()) for tensor in (weights, first, second))
            check(
                {
                    f"{name} or a moment of it is not finite": not finite,
                    f"a second moment of {name} is negative": bool(second.lt(0).any()),
                    f"the step of {name} is {float(step):g}, wanted 0 to {progress.step}": not is_count,
                }
            )
        for rank in range(self.accelerator.num_processes):
            recent = tensors[f"process.{rank}.recent"]
            possible = bool(recent.isfinite().all()) and bool(recent[1:].ge(0).all())
            check({f"the sums of process {rank} are {recent.tolist()}": not possible})
        scaler, stored = self.accelerator.scaler, notes["scaler"]
        wanted_keys = None if scaler is None else scaler.state_dict().keys()
        is_scaler = stored is None if wanted_keys is None else isinstance(stored, dict) and stored.keys() == wanted_keys
        if not is_scaler or not all(_is_number(value) and value >= 0 for value in _leaves(stored or {})):
            raise InputError(f"the state of the gradient scaler is {stored}")
        return progress

    def _wanted(self) -> Tensors:
        """Tensors with the names, shapes and dtypes of a checkpoint of this run."""
        wanted: Tensors = {}
        for name, parameter in trainable(self.model).items():
            like = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            wanted |= {f"{kind}.{name}": like for kind in ("weights", *OPTIMIZER)}
            wanted[f"optimizer.step.{name}"] = torch.empty((), device="meta")
        wanted |= {f"buffers.{name}": buffer for name, buffer in own_buffers(self.model).items()}
        own = _random_states(self.accelerator.device) | {"recent": self.recent}
        for rank in range(self.accelerator.num_processes):
            wanted |= {f"process.{rank}.{name}": tensor for name, tensor in own.items()}
        return wanted

    def _read_progress(self, values: dict[str, Any]) -> Progress:
        """The progress of a run. Raises InputError unless all types and numbers can be from this run."""
        import typeguard

        every = typeguard.CollectionCheckStrategy.ALL_ITEMS
        own = {"scalars": [tuple(point) for point in values["scalars"]], "best_epoch": values["best_epoch"]}
        progress = Progress(**values | own)
        for name, wanted in typing.get_type_hints(Progress).items():
            value = getattr(progress, name)
            try:
                typeguard.check_type(value, wanted, collection_check_strategy=every)
            except typeguard.TypeCheckError as error:
                raise InputError(f"{name} is of another type ({error})") from error
            numbers = list(_leaves(value))
            check({f"{name} has {n}, which is not a finite number": not _is_number(n) for n in numbers})
            is_count = name not in ("history", "variant_scores", "scalars")
            check({f"{name} is {value}": is_count and any(n < 0 for n in numbers)})
        n_epochs, last = len(progress.history), f"of a run that is at step {progress.step}"
        first_step, last_step = n_epochs * self.steps_per_epoch, (n_epochs + 1) * self.steps_per_epoch
        names = [scores.keys() for scores in progress.history]
        check(
            {
                f"step is {progress.step}, wanted 1 to {self.n_steps}": not 1 <= progress.step <= self.n_steps,
                f"history has {n_epochs} epochs {last}": not first_step <= progress.step <= last_step,
                f"history has other scores than {', '.join(self.metrics)}": any(
                    each != names[0] or not each >= {"score", *self.metrics} for each in names
                ),
                f"best_epoch is {progress.best_epoch} of {n_epochs}": progress.best_epoch > n_epochs,
                f"bad_steps is {progress.bad_steps} {last}": progress.bad_steps > progress.step,
                f"recent_steps is {progress.recent_steps} {last}": progress.recent_steps > progress.step,
                "train_seconds ends before logged_at": progress.train_seconds < progress.logged_at,
            }
        )
        return progress

    def _restore(self, tensors: Tensors, notes: dict[str, Any]) -> None:
        for name, parameter in trainable(self.model).items():
            parameter.data.copy_(shards.shard_like(tensors[f"weights.{name}"], parameter))
            # Copied, since the tensors are views of the file's bytes and may not be aligned.
            state = {k: tensors[f"optimizer.{k}.{name}"].to(parameter.device, copy=True) for k in ("step", *MOMENTS)}
            self.optimizer.state[parameter] = state | {k: shards.shard_like(state[k], parameter) for k in MOMENTS}
        for name, buffer in own_buffers(self.model).items():
            buffer.copy_(tensors[f"buffers.{name}"])
        prefix = f"process.{self.accelerator.process_index}."
        self.recent.copy_(tensors[f"{prefix}recent"])
        _set_random_states({n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(notes["scaler"])


def _leaves(value: Any) -> Iterator[Any]:
    """The values inside of nested lists and dicts, without the names in dicts."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number of at most 64 bits; a bool is none."""
    return type(value) in (int, float) and abs(value) < 2**63


def _random_states(device: torch.device) -> Tensors:
    """The states of this process's random generators: torch's, numpy's and Python's, which a method may use."""
    _, words_np, position, has_gauss, gauss_np = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*words_np, position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(gauss_np, dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: Tensors) -> None:
    """Set the random generators of this process. Raises InputError, or what they raise, for an impossible state."""
    torch.set_rng_state(states["torch"])
    *words, position, has_gauss = states["numpy"].tolist()
    if not 0 <= position <= len(words):  # numpy would read behind its words
        raise InputError(f"numpy's generator is at word {position} of {len(words)}")
    gauss = states["numpy_gauss"].item()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, gauss))
    version, *inner = states["python"].tolist()
    spare = states["python_gauss"].item()
    random.setstate((version, tuple(inner), None if math.isnan(spare) else spare))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
