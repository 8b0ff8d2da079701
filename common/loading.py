"""An adapter on disk -> a model; checked against its own description before memory is asked for."""

import contextlib
import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from common.checkpoints import base_of, load_model, meta_model
from common.combined import Combined
from common.errors import DoesNotFit, InputError
from common.fitting import apply_on_meta
from common.methods import Method, apply, find, trainable
from common.runs import ADAPTER, CONFIG, RESUMABLE
from common.runtime import shards
from common.runtime.files import read_json, read_tensors, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def read_method(folder: Path, config: dict[str, Any]) -> Method:
    """The method, with its options, that an adapter.json tells of.

    Raises:
        InputError: it is not one of ours, or an option has a type or a value that the command line would refuse.
    """
    name, options = str(config.get("method")), config.get("options")
    parts = name.split("+")
    if len(parts) > 1 and isinstance(options, dict):
        return Combined(tuple(read_method(folder, {"method": p, "options": options.get(p)}) for p in parts))
    kind = find(name)
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(options, dict) or set(options) != fields:
        raise InputError(f"{folder / CONFIG} is damaged: wanted the options {', '.join(sorted(fields))}")
    # JSON has lists only; every sequence among the options is a tuple.
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    hints = typing.get_type_hints(kind)
    try:
        for field in fields:
            _check_type(field, options[field], hints[field])
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error


def _check_type(name: str, value: Any, wanted: Any) -> None:
    """Raise InputError if an option has not the type that its field declares; True is no number here."""
    import typeguard

    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    with contextlib.suppress(typeguard.TypeCheckError):
        typeguard.check_type(value, wanted, collection_check_strategy=every)
        if not isinstance(value, bool) or bool in (wanted, *typing.get_args(wanted)):
            return
    text = wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
    raise InputError(f"{name} is {value!r}: wanted {text}")


def load_adapter(folder: Path | str, checkpoint: str | None = None) -> tuple["PreTrainedModel", Method]:
    """A model as it was saved, and its method.

    Args:
        folder: holds adapter.safetensors and adapter.json.
        checkpoint: where the base model lies now; None = where it lay when the adapter was trained.

    Raises:
        InputError: a file is missing or damaged, or the base is another one than the adapter was trained on.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    method = read_method(folder, config)
    require(folder / CONFIG, config, base_checkpoint=str, base_sha256=str, n_outputs=int)
    # Compared before any memory is asked for: what the file holds and what its config asks for.
    path = folder / ADAPTER
    found, at_least = _contents(path)
    if not 1 <= config["n_outputs"] <= at_least:
        raise InputError(f"{path} does not fit {CONFIG} beside it: n_outputs is {config['n_outputs']}")
    checkpoint = checkpoint or config["base_checkpoint"]
    blank = meta_model(checkpoint, config["n_outputs"])
    try:
        wanted = {name: _shape(tensor) for name, tensor in _loaded_by(method, apply_on_meta(method, blank)).items()}
    except DoesNotFit as error:
        raise InputError(f"{folder / CONFIG} does not fit {checkpoint}: {error}") from error
    now = {name: _name_now(name, method) if name not in wanted else name for name in found}
    found = {now[name]: shape for name, shape in found.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise InputError(
            f"{path} does not fit {CONFIG} beside it: {odd[0]} is {found.get(odd[0], 'missing')}, "
            f"wanted {wanted.get(odd[0], 'none')} ({len(odd)} such tensors)"
        )

    model = load_model(checkpoint, config["n_outputs"])
    base = base_of(model)
    if base.sha256 != config["base_sha256"]:
        raise InputError(
            f"{folder} was trained on another base model ({config['base_checkpoint']}, SHA-256 "
            f"{config['base_sha256'][:12]}...) than {base.checkpoint} ({base.sha256[:12]}...)"
        )
    apply(method, model)
    tensors, _ = read_tensors(path)
    copy_into(model, {now[name]: tensor for name, tensor in tensors.items()})
    return model, method


def _contents(path: Path) -> tuple[dict[str, str], int]:
    """Type and shape of each tensor in a file, and the number of scalars. Raises InputError if it is damaged."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return {n: f"{slices[n].get_dtype()} {shape}" for n, shape in shapes.items()}, sum(
                map(math.prod, shapes.values())
            )
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): restore it or train again") from error


def _shape(tensor: torch.Tensor) -> str:
    """Type and shape of a tensor as `_contents` has them."""
    return f"{SAFETENSORS_TYPES[tensor.dtype]} {tuple(tensor.shape)}"


def _loaded_by(method: Method, model: nn.Module) -> Mapping[str, torch.Tensor]:
    """The tensors that a file with this method holds: what it stores, or the trained form of what it stores."""
    used, stored = method.stored(model)
    return stored if used == method else trainable(model)


def _name_now(name: str, method: Method) -> str:
    """The name of a tensor in a file that an earlier version wrote."""
    for pattern, new in method.old_names.items():
        name = re.sub(pattern, new, name)
    return name


def copy_into(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the parameters and buffers of a model by name, sharded or not."""
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        held[name].data.copy_(shards.shard_like(tensor, held[name]))


def restore(folder: Path, model: nn.Module) -> None:
    """Put the trained form of a saved adapter back into the model that it was saved from."""
    stored = folder / RESUMABLE / ADAPTER
    tensors, _ = read_tensors(stored if stored.is_file() else folder / ADAPTER)
    copy_into(model, tensors)
