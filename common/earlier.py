"""Begin from the model of an earlier run (`--on`): with the values of its method, or on top of it, frozen.

The first is fine-tuning on an intermediate task, such as MNLI before RTE (Phang et al., 2018; Hu et al., 2021). The
second stacks a method on another, as MAD-X puts task adapters on a language adapter (Pfeiffer et al., 2020).
"""

import dataclasses
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import DoesNotFit, InputError
from common.loading import Adapter, add_below, check_base, digest_of, fill, read_adapter, read_stack
from common.methods import Method, apply
from common.options import MaskedLMOptions, TuneOptions, command_line, non_default
from common.results import read_result
from common.runs import ADAPTER, BELOW, CONFIG, RESULT, RESUMABLE, is_finished
from common.runtime.files import require, write_atomically
from common.task_data import Task


@dataclass(frozen=True)
class Start:
    """What a run begins from; without an earlier run the pretrained encoder alone."""

    below: tuple[Adapter, ...] = ()
    """Adapters in the encoder, frozen, the lowest first."""
    values: Adapter | None = None
    """The adapter whose values the method begins with; None = as it initializes them."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For result.json and adapter.json. on: the earlier run; on_sha256: digest of its adapter; after: what was trained
    before; below: digest of the uppermost adapter below."""

    def meta(self, task: Task, options: TuneOptions) -> nn.Module:
        """The model on the meta device, before the method is applied. Raises InputError as `put_below`."""
        return self.put_below(task.meta(options.checkpoint, options.pooling), options)

    def put_below(self, model: nn.Module, options: TuneOptions) -> nn.Module:
        """Put what is below into a model on the meta device. Raises InputError as `loading.add_below`."""
        try:
            add_below(self.below, model)
        except InputError as error:
            raise InputError(f"{options.on} cannot be used with {options.checkpoint}: {error}") from error
        return model

    def check(self, method: Method) -> None:
        """Raise DoesNotFit if the method cannot begin with the values of the earlier run."""
        if self.values is None or self.values.method == method:
            return
        changed = non_default(self.values.method, method)
        was = ", ".join(f"{name} was {value} and is {getattr(method, name)}" for name, value in changed.items())
        words = command_line(non_default(self.values.method, type(method)()), type(method))
        raise DoesNotFit(
            f"{self.facts['on']} has other options of {method.name} ({was}): give those of that run "
            f"({' '.join(words) or 'the defaults'}), or --stack to add {method.name} on top of it"
        )

    def apply(self, method: Method, model: nn.Module) -> None:
        """Apply a method to a pretrained model, on top of what is below, with the values that it begins with.

        Raises:
            InputError: the earlier run had another base model, or its adapter is damaged.
        """
        add_below(self.below, model)
        apply(method, model)
        if self.values is not None:
            check_base(self.values, model)
            fill(self.values, model, with_head=False)

    def save_below(self, folder: Path) -> None:
        """Copy the adapters below into the folder of a run, so that its adapter can be loaded without theirs."""
        for adapter in reversed(self.below):
            folder = folder / BELOW
            for source in (adapter.folder / CONFIG, adapter.folder / ADAPTER):
                write_atomically(folder / source.name, partial(shutil.copyfile, source))

    def __str__(self) -> str:
        how = "on top of" if self.values is None else "with the values of"
        names = " and ".join(adapter.method.name for adapter in self.below)
        frozen = f" (frozen below: {names})" if names else ""
        return f"{how} {self.facts['on']}{frozen}, after {self.facts['after']}"


def find_start(method: Method, options: TuneOptions) -> tuple[Start, TuneOptions]:
    """What a run begins from, and its options with `stack` as it is used: always for a run of another method.

    Raises:
        InputError: the earlier run is missing, unfinished or damaged, or its head read something else of a text
            or predicted classes, and that of this run predicts tokens.
    """
    if options.on is None:
        return Start(), options
    folder = Path(options.on)
    if not is_finished(folder):
        wanted = f"wanted the folder of a finished run, with {RESULT}, {CONFIG} and {ADAPTER}"
        raise InputError(f"on is {folder}, which is {'not finished' if folder.is_dir() else 'not there'}: {wanted}")
    result = read_result(folder)
    require(folder / RESULT, result, train_examples=int)
    *below, top = read_stack(folder)
    of_text = "mask_share" in result
    if isinstance(options, MaskedLMOptions) and not of_text:
        raise InputError(f"on is {folder}, a run of classification: wanted one of masked language modelling")
    pooling = result.get("pooling")  # the option; the adapter has what it means for the encoder
    if pooling != options.pooling and not of_text:
        wanted = "leave --pooling out" if pooling is None else f"give --pooling {pooling}"
        raise InputError(f"pooling is {options.pooling}, and was {pooling} in {folder}: {wanted}")
    stack, resumable = options.stack or top.method.name != method.name, folder / RESUMABLE
    used = top if stack or not (resumable / CONFIG).is_file() else read_adapter(resumable)
    earlier = f"{result['after']}, " if "after" in result else ""
    facts = {"on": options.on, "on_sha256": digest_of(used.folder)}
    facts["after"] = f"{earlier}{result['task_name']} ({result['train_examples']:,} examples)"
    below += [top] * stack
    facts |= {"below": digest_of(below[-1].folder)} if below else {}
    return Start(tuple(below), None if stack else used, facts), dataclasses.replace(options, stack=stack)
