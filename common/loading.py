"""Load a saved adapter. Its files are checked against each other before memory is allocated."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from common import own_task
from common.checkpoints import (
    base_of,
    load_generator,
    load_masked_lm,
    load_model,
    meta_generator,
    meta_masked_lm,
    meta_model,
)
from common.encoders import encoder, head_parameters, pooler
from common.errors import DoesNotFit, InputError
from common.fitting import apply_on_meta
from common.methods import Method, apply, find, own_buffers, trainable
from common.options import Pooling, canonical_text
from common.runs import ADAPTER, BELOW, CONFIG, RESUMABLE
from common.runtime import shards
from common.runtime.files import non_finite, read_json, read_tensors, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def read_method(folder: Path, config: dict[str, Any]) -> Method:
    """The method in an adapter.json, with its options.

    Raises:
        InputError: an unknown method, or an option with a type or value that the command line would refuse.
    """
    name, options = str(config.get("method")), config.get("options")
    kind = find(name)
    try:
        return kind.from_options(options if isinstance(options, dict) else {})
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error


@dataclass(frozen=True)
class Adapter:
    """A saved adapter as its adapter.json describes it."""

    folder: Path
    config: dict[str, Any]
    method: Method


def read_adapter(folder: Path) -> Adapter:
    """The description of a saved adapter. Raises InputError if it is missing or damaged."""
    config = read_json(folder / CONFIG)
    method = read_method(folder, config)
    require(folder / CONFIG, config, base_checkpoint=str, base_sha256=str, n_outputs=int)
    pooling, known = config.get("pooling"), (None, *get_args(Pooling))
    if pooling not in known:
        raise InputError(f"{folder / CONFIG} is damaged: pooling is {pooling!r}, wanted one of {known}")
    return Adapter(folder, config, method)


def read_stack(folder: Path) -> list[Adapter]:
    """A saved adapter and, before it, those that it was trained on top of, the lowest first.

    Raises:
        InputError: one of them is missing or damaged, or is not the one that this adapter was trained on.
    """
    top, below = read_adapter(folder), folder / BELOW
    if "below" not in top.config:
        return [top]
    found, wanted = digest_of(below), top.config["below"]
    if found != wanted:
        raise InputError(f"{below} has SHA-256 {found[:12]}..., wanted {str(wanted)[:12]}...: restore it")
    return [*read_stack(below), top]


def swap_language(stack: list[Adapter], language: Path) -> list[Adapter]:
    """A stack with the adapter of another run of masked language modelling in place of its own (Pfeiffer et al., 2020).

    Of several such adapters it is the uppermost.

    Raises:
        InputError: the stack has no such adapter, or changed its values too; or the other run is missing, damaged, of
            classification, has another method or other options, or was trained on top of something else.
    """
    top, other = stack[-1], read_stack(language)
    if "mask_share" not in other[-1].config:
        raise InputError(f"language is {language}, a run of classification: wanted one of masked language modelling")
    places = [place for place, adapter in enumerate(stack[:-1]) if "mask_share" in adapter.config]
    if not places:
        raise InputError(
            f"{top.folder} was trained on no language adapter: give a run of masked language modelling as --on"
        )
    own, above = stack[places[-1]], stack[places[-1] + 1 :]
    if other[-1].method != own.method:
        raise InputError(f"{language} has {other[-1].method}, wanted {own.method}, as {top.folder} was trained on")
    if other[-1].config.get("below") != own.config.get("below"):
        raise InputError(f"{language} was trained on top of another model than the language adapter of {top.folder}")
    for adapter in above:
        if both := sorted(_contents(own.folder / ADAPTER)[0].keys() & _contents(adapter.folder / ADAPTER)[0].keys()):
            said = f"trained {both[0]} of the language adapter further ({len(both)} such tensors)"
            raise InputError(f"{adapter.folder} {said}: choose a method that leaves it as it is")
    return [*other, *above]


def digest_of(folder: Path) -> str:
    """SHA-256 of a saved adapter: its tensors, its method and what is below it. Raises InputError if it is missing."""
    adapter, path = read_adapter(folder), folder / ADAPTER
    try:
        with path.open("rb") as file:
            tensors = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    facts = [tensors, adapter.method.name, adapter.method.options(), adapter.config.get("below")]
    return hashlib.sha256(canonical_text(facts).encode()).hexdigest()


def load_adapter(
    folder: Path | str, checkpoint: str | None = None, language: Path | str | None = None
) -> tuple["PreTrainedModel", Method]:
    """The model with a saved adapter, in evaluation mode, and its method.

    Args:
        folder: with adapter.safetensors and adapter.json. If this names classes, so does the model's config.
        checkpoint: the base model, if it has moved since training; None = as in training.
        language: a run whose adapter takes the place of the language adapter (`swap_language`).

    Raises:
        InputError: a file is missing or damaged, or an adapter was trained on another base model, or the language
            adapters cannot be swapped.
    """
    stack = read_stack(Path(folder))
    *below, top = swap_language(stack, Path(language)) if language is not None else stack
    config = top.config
    own = own_task.of(config) if config.get("label_field") is not None else None
    if own is not None and own.n_outputs != config["n_outputs"]:
        wanted = f"n_outputs is {config['n_outputs']}, wanted {own.n_outputs}"
        raise InputError(f"{top.folder / CONFIG} is damaged: {wanted}")
    if not (1 <= config["n_outputs"] <= _contents(top.folder / ADAPTER)[1] or "max_new_tokens" in config):
        raise InputError(f"{top.folder / ADAPTER} does not fit {CONFIG} beside it: n_outputs is {config['n_outputs']}")
    checkpoint = checkpoint or config["base_checkpoint"]
    # On the meta device first, to compare all tensors with their configs before allocating memory.
    for load in _loaders(config):
        model = load(checkpoint)
        try:
            add_below(below, model)
            add(top.method, model)
        except DoesNotFit as error:
            raise InputError(f"{top.folder / CONFIG} does not fit {checkpoint}: {error}") from error
        check_base(top, model)
        fill(top, model, with_head=True)
    if own is not None and own.labels:
        model.config.id2label = dict(enumerate(own.labels))
        model.config.label2id = {name: index for index, name in enumerate(own.labels)}
    return model.eval(), top.method


def _loaders(config: Mapping[str, Any]) -> tuple[Callable[[str], Any], ...]:
    """What makes the model of an adapter from a checkpoint, first on the meta device and then with its values."""
    if "mask_share" in config:
        return meta_masked_lm, load_masked_lm
    if "max_new_tokens" in config:
        return meta_generator, load_generator
    head = {"n_outputs": config["n_outputs"], "pooling": config.get("pooling")}
    return partial(meta_model, **head), partial(load_model, **head)


def add(method: Method, model: nn.Module) -> None:
    """Apply a method to a model, which may be on the meta device. Raises DoesNotFit if it does not fit there."""
    (apply_on_meta if _is_meta(model) else apply)(method, model)


def add_below(adapters: Sequence[Adapter], model: Any) -> None:
    """Add saved adapters with their values, the lowest first, all frozen by the next method that is applied.

    What they take of the encoder's positions is noted as `model.positions_below`.

    Raises:
        InputError: the model has another base than they had, or a file is damaged.
        DoesNotFit: they do not fit this encoder.
    """
    for adapter in adapters:
        check_base(adapter, model)
        add(adapter.method, model)
        fill(adapter, model, with_head=False)
        model.positions_below = getattr(model, "positions_below", 0) + adapter.method.positions()


def check_base(adapter: Adapter, model: nn.Module) -> None:
    """Raise InputError if an adapter was trained on another base model; on the meta device nothing is known."""
    base, config = base_of(model), adapter.config
    known = {base.sha256} | ({base.without_pooler} if "mask_share" in config else set())
    if not _is_meta(model) and config["base_sha256"] not in known:
        raise InputError(
            f"{adapter.folder} was trained on another base model ({config['base_checkpoint']}, SHA-256 "
            f"{config['base_sha256'][:12]}...) than {base.checkpoint} ({base.sha256[:12]}...)"
        )


def fill(adapter: Adapter, model: nn.Module, with_head: bool) -> None:
    """Copy the values of an adapter into a model with its method; on the meta device, compare the shapes alone.

    with_head: whether the head is the adapter's too, or one of another task.

    Raises:
        InputError: the file is damaged, or has other tensors than its method has in this model.
    """
    path, method = adapter.folder / ADAPTER, adapter.method
    found, wanted = _contents(path)[0], shapes_of(_loaded_by(method, model))
    names = {name: _current_name(name, method) if name not in wanted else name for name in found}
    if not with_head:  # a trained pooler is in the encoder
        inside = tuple(f"{name}." for name, child in model.named_children() if child is encoder(model))
        head = {name for name in head_parameters(model) if not name.startswith(inside)}
        names = {name: new for name, new in names.items() if new not in head}
        wanted = {name: shape for name, shape in wanted.items() if name not in head}
        if "mask_share" in adapter.config:  # whose head has names of its own, and whose encoder has no pooler
            names = {name: new for name, new in names.items() if new.startswith(inside)}
            pools = {id(parameter) for pool in [pooler(model)] if pool is not None for parameter in pool.parameters()}
            kept = {name for name, parameter in model.named_parameters() if id(parameter) in pools}
            wanted = {name: shape for name, shape in wanted.items() if name not in kept}
    if wrong := misfit({new: found[name] for name, new in names.items()}, wanted):
        raise InputError(f"{path} does not fit {CONFIG} beside it: {wrong}")
    if _is_meta(model):
        return
    tensors, _ = read_tensors(path)
    if bad := non_finite(tensors):
        raise InputError(f"{path} is damaged: {bad[0]} has NaN or infinite values ({len(bad)} tensors): train again")
    copy_into(model, {new: tensors[name] for name, new in names.items()})


def _is_meta(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


def _contents(path: Path) -> tuple[dict[str, str], int]:
    """Type and shape of each tensor in a file, and the number of scalars. Raises InputError if it is damaged."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types_shapes = {n: f"{slices[n].get_dtype()} {shape}" for n, shape in shapes.items()}
            return types_shapes, sum(map(math.prod, shapes.values()))
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): restore it or train again") from error


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Type and shape of each tensor in the format of `_contents`."""
    return {n: f"{SAFETENSORS_TYPES.get(t.dtype, t.dtype)} {tuple(t.shape)}" for n, t in tensors.items()}


def misfit(found: dict[str, str], wanted: dict[str, str]) -> str:
    """The first tensor whose type and shape are not the wanted ones, and the number of such; empty if there is none."""
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if not wrong:
        return ""
    sides = f"{found.get(wrong[0], 'missing')}, wanted {wanted.get(wrong[0], 'none')}"
    return f"{wrong[0]} is {sides} ({len(wrong)} such tensors)"


def _loaded_by(method: Method, model: nn.Module) -> Mapping[str, torch.Tensor]:
    """The tensors in the file of an adapter: what the method stores, or its trained form (`resumable`)."""
    used, stored = method.stored(model)
    return stored if used == method else trainable(model) | own_buffers(model)


def _current_name(name: str, method: Method) -> str:
    """The current name of a tensor in a file of an earlier version."""
    for pattern, new in method.old_names.items():
        name = re.sub(pattern, new, name)
    return name


def copy_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the parameters and buffers of a model by name, sharded or not."""
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        targets[name].data.copy_(shards.shard_like(tensor, targets[name]))


def restore(folder: Path, model: nn.Module, method: Method) -> None:
    """Copy the trained form of a saved adapter back into its model. Raises InputError if it is damaged or another's."""
    stored = folder / RESUMABLE / ADAPTER
    path = stored if stored.is_file() else folder / ADAPTER
    tensors, _ = read_tensors(path)
    if wrong := misfit(shapes_of(tensors), shapes_of(_loaded_by(method, model))):
        raise InputError(f"{path} does not fit this run: {wrong}; --no_resume restarts the run")
    copy_into(model, tensors)
