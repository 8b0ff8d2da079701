"""Load a saved adapter. Its files are checked against each other before memory is allocated."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from common.checkpoints import base_of, load_model, meta_model
from common.errors import DoesNotFit, InputError
from common.fitting import apply_on_meta
from common.methods import Method, apply, find, own_buffers, trainable
from common.options import Pooling
from common.runs import ADAPTER, CONFIG, RESUMABLE
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


def load_adapter(folder: Path | str, checkpoint: str | None = None) -> tuple["PreTrainedModel", Method]:
    """The model with a saved adapter, in evaluation mode, and its method.

    Args:
        folder: with adapter.safetensors and adapter.json.
        checkpoint: the base model, if it has moved since training; None = as in training.

    Raises:
        InputError: a file is missing or damaged, or the adapter was trained on another base model.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    method = read_method(folder, config)
    require(folder / CONFIG, config, base_checkpoint=str, base_sha256=str, n_outputs=int)
    pooling, known = config.get("pooling"), (None, *get_args(Pooling))
    if pooling not in known:
        raise InputError(f"{folder / CONFIG} is damaged: pooling is {pooling!r}, wanted one of {known}")
    # Compare the tensors in the file with those in its config before allocating memory.
    path = folder / ADAPTER
    found, n_scalars = _contents(path)
    if not 1 <= config["n_outputs"] <= n_scalars:
        raise InputError(f"{path} does not fit {CONFIG} beside it: n_outputs is {config['n_outputs']}")
    checkpoint = checkpoint or config["base_checkpoint"]
    meta = meta_model(checkpoint, config["n_outputs"], pooling)
    try:
        wanted = shapes_of(_loaded_by(method, apply_on_meta(method, meta)))
    except DoesNotFit as error:
        raise InputError(f"{folder / CONFIG} does not fit {checkpoint}: {error}") from error
    new_names = {name: _current_name(name, method) if name not in wanted else name for name in found}
    if wrong := misfit({new_names[name]: shape for name, shape in found.items()}, wanted):
        raise InputError(f"{path} does not fit {CONFIG} beside it: {wrong}")

    model = load_model(checkpoint, config["n_outputs"], pooling)
    base = base_of(model)
    if base.sha256 != config["base_sha256"]:
        raise InputError(
            f"{folder} was trained on another base model ({config['base_checkpoint']}, SHA-256 "
            f"{config['base_sha256'][:12]}...) than {base.checkpoint} ({base.sha256[:12]}...)"
        )
    apply(method, model)
    tensors, _ = read_tensors(path)
    if bad := non_finite(tensors):
        raise InputError(f"{path} is damaged: {bad[0]} has NaN or infinite values ({len(bad)} tensors): train again")
    copy_into(model, {new_names[name]: tensor for name, tensor in tensors.items()})
    return model.eval(), method


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
