"""Adapters in the formats of peft and of AdapterHub's library, written without them; peft's are read too.

What only a method knows, its settings and the names of its tensors there, is in METHOD/exchange.py: `to_peft`, and
`from_peft` where adapters of others can be read; or `to_adapterhub`.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from common.checkpoints import load_model, meta_model
from common.encoders import Branch, Linear, head_parameters, layers, linear
from common.errors import DoesNotFit, InputError
from common.fitting import apply_on_meta
from common.loading import copy_into, misfit, shapes_of
from common.methods import REPOSITORY, Method, Tensors, apply, find, names, ranges
from common.places import Rows
from common.pooling import is_read_as_usual
from common.runtime.files import non_finite, read_json

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OF_ADAPTERHUB = ("bert", "roberta", "xlm-roberta", "electra")
"""Kinds of encoders with the same names of layers in AdapterHub's library as here."""
IN_FRONT = "prompt_embeddings"
"""peft's name of all that comes in front of the text."""


@dataclass(frozen=True)
class Peft:
    """An adapter in peft's format."""

    settings: dict[str, Any]
    """The contents of adapter_config.json."""
    tensors: Tensors
    """Those of adapter_model.safetensors."""
    difference: str = ""
    """What peft computes otherwise with them, in one line; empty = nothing."""
    remedy: str = ""
    """Python that makes peft's `model` compute the same."""


def _exchange(method: str) -> Any:
    """The module METHOD.exchange; None if there is none."""
    find(method)
    return importlib.import_module(f"{method}.exchange") if (REPOSITORY / method / "exchange.py").is_file() else None


def to_peft(method: Method, model: Any, tensors: Mapping[str, torch.Tensor] | None = None) -> Peft:
    """A method of a model in peft's format, with the head.

    Args:
        tensors: by our names, such as gradients; None = what the method stores.

    Raises:
        InputError: peft has nothing that computes the same.
    """
    used, stored = method.stored(model)
    tensors, exchange = stored if tensors is None else tensors, _exchange(used.name)
    if not hasattr(exchange, "to_peft"):
        raise InputError(f"peft's format has nothing for {used.name} as it is here: try --to merged")
    _check_pooling(model)
    fused = [name for name, module in model.named_modules() if isinstance(module, Rows)]
    if any(name.startswith(f"{rows}.") for rows in fused for name in tensors):
        raise InputError(
            f"{used.name} has its own part in query, key or value, which are one layer of {model.config.model_type}, "
            "and peft has one for the whole layer: try --to merged"
        )
    head = head_parameters(model)
    found = exchange.to_peft(used, model, {n: tensor for n, tensor in tensors.items() if n not in head})
    base = "base_model." if IN_FRONT in found.tensors else "base_model.model."
    parts = {name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for name in head}
    settings = {"task_type": "SEQ_CLS", "inference_mode": True, "modules_to_save": sorted(parts)} | found.settings
    every = found.tensors | {name: tensor for name, tensor in tensors.items() if name in head}
    named = {name if name == IN_FRONT else base + name: tensor for name, tensor in every.items()}
    return Peft(settings, named, found.difference, found.remedy)


def _check_pooling(model: Any) -> None:
    if not is_read_as_usual(model):
        raise InputError(
            f"the head was trained on what --pooling {model.pooling} gives, and transformers' model gives it the "
            "encoder's usual output: train without --pooling, or with trained_pooler, to use the adapter elsewhere"
        )


def to_adapterhub(method: Method, model: Any, name: str) -> tuple[dict[str, Any], Tensors, Tensors]:
    """Configuration and tensors of an adapter of this name in the format of AdapterHub's library, and of the head.

    Raises:
        InputError: the library has nothing that computes the same, or it is not written here.
    """
    used, stored = method.stored(model)
    exchange, kind = _exchange(used.name), model.config.model_type
    if not hasattr(exchange, "to_adapterhub"):
        raise InputError(f"of {used.name} nothing is written in AdapterHub's format: try --to peft or merged")
    if kind not in OF_ADAPTERHUB:
        known = ", ".join(OF_ADAPTERHUB)
        raise InputError(f"{kind} has other names of layers in AdapterHub's format, and is not written: {known} are")
    _check_pooling(model)
    head = {name: tensor for name, tensor in stored.items() if name in head_parameters(model)}
    if inside := [name for name in head if name.startswith(f"{model.base_model_prefix}.")]:
        raise InputError(f"{inside[0]} was trained too, for which AdapterHub's format has no place: try --to peft")
    own = {name: tensor for name, tensor in stored.items() if name not in head}
    return *exchange.to_adapterhub(used, model, own, name), head


def on_modules(settings: dict[str, Any], ends: Mapping[str, str], model: nn.Module, tensors: Tensors) -> Peft:
    """A method whose tensors belong to modules of the model.

    ends: the end of our name of a tensor, after that of its module -> peft's.
    """
    found, modules = {}, set()
    for name, tensor in tensors.items():
        end = next(end for end in ends if name.endswith(f".{end}"))
        module = name.removesuffix(f".{end}")
        modules.add(module)
        found[f"{module}.{ends[end]}"] = tensor
    return Peft(settings | {"target_modules": shortest_ends(modules, model)}, found)


def shortest_ends(wanted: set[str], model: nn.Module) -> list[str]:
    """Ends of modules' names that match these modules and no other: ["query", "value"] if they are those of all layers.

    peft compares them with the ends of names after a dot, so the layers need no setting of their own.
    """
    added = {part for module in model.modules() if isinstance(module, Branch) for part in module.modules()}
    every = {f".{name}" for name, module in model.named_modules() if module not in added}
    found = set()
    for name in wanted:
        parts = name.split(".")
        ends = (".".join(parts[first:]) for first in reversed(range(len(parts))))
        matched = ((end, {other[1:] for other in every if other.endswith(f".{end}")}) for end in ends)
        found.add(next(end for end, modules in matched if modules <= wanted))
    return sorted(found)


class Found:
    """An adapter of peft that is read: its settings, and its tensors by their names in the base model."""

    def __init__(self, settings: dict[str, Any], tensors: Tensors, model: nn.Module):
        """model: the base model on the meta device."""
        self.settings, self.tensors, self.model = settings, tensors, model
        self.used: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """A setting, for which the method has an option."""
        self.used.add(name)
        return self.settings.get(name, default)

    def places(self, end: str, where: Callable[[torch.Tensor], bool] = lambda tensor: True) -> tuple[str, list[Any]]:
        """The layers, as in --layers, and the linear layers with tensors of this name for which `where` is true.

        Raises:
            InputError: they are not the same in all of these layers, or outside of them.
        """
        ids = {id(module): name for name, module in self.model.named_modules()}
        known = {
            ids[id(linear(layer, name).host)]: (number, name)
            for number, layer in enumerate(layers(self.model))
            for name in get_args(Linear)
        }
        modules = [n.removesuffix(f".{end}") for n, t in self.tensors.items() if n.endswith(f".{end}") and where(t)]
        if outside := sorted(set(modules) - known.keys()):
            raise InputError(f"it changes {outside[0]}: wanted {', '.join(get_args(Linear))} of the layers alone")
        places = {known[module] for module in modules}
        numbers = sorted({number for number, _ in places})
        linears = [name for name in get_args(Linear) if name in {name for _, name in places}]
        if len(places) < len(numbers) * len(linears):
            raise InputError("it changes other linear layers in one layer than in another: wanted the same in all")
        return "all" if len(numbers) in (0, len(layers(self.model))) else ranges(numbers), linears


_OF_ANY_ADAPTER = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "feedforward_modules",
    "inference_mode", "init_ia3_weights", "init_weights", "layers_pattern", "layers_to_transform", "megatron_core",
    "module_dropout", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "rank_dropout", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip
"""Settings that change no output of a trained adapter, or that its tensors say too."""
_USUAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # the others change the base model's weights
}


def from_peft(folder: Path, checkpoint: str | None = None) -> tuple[Any, Method, str]:
    """The model with an adapter of peft, in evaluation mode; the method; and the name of the base model.

    Args:
        checkpoint: the base model; None = the one that the adapter names.

    Raises:
        InputError: the files are damaged, or no method here computes the same.
    """
    settings = read_json(folder / SETTINGS)
    tensors = _read(folder / TENSORS)
    checkpoint = checkpoint or settings.get("base_model_name_or_path")
    if not isinstance(checkpoint, str) or not checkpoint:
        raise InputError(f"{folder / SETTINGS} names no base model: give it with --checkpoint")
    last = next(name for name, p in head_parameters(meta_model(checkpoint, 1)).items() if p.shape == (1,))
    if last not in tensors:
        raise InputError(f"{folder / TENSORS} has no {last}: wanted an adapter with its head for classification")
    n_outputs, pooling = len(tensors[last]), None
    if any(".pooler." in name for name in tensors):
        pooling = "trained_pooler"
    meta = meta_model(checkpoint, n_outputs, pooling)  # type: ignore[arg-type]
    method = _method(folder, Found(settings, tensors, meta))
    try:
        stored = method.stored(apply_on_meta(method, meta))[1]
        counterpart = to_peft(method, meta).tensors
    except DoesNotFit as error:
        raise InputError(f"{folder / SETTINGS} does not fit {checkpoint}: {error}") from error
    # The head has its own names on both sides, and the rest the order of the method's tensors.
    head = head_parameters(meta)
    ours = [name for name in stored if name not in head] + [name for name in stored if name in head]
    theirs = {name.removeprefix("base_model.model."): tensor for name, tensor in counterpart.items()}
    if wrong := misfit(shapes_of(tensors), shapes_of(theirs)):
        raise InputError(f"{folder} is read as {method.name}, but {wrong}")
    model = apply(method, load_model(checkpoint, n_outputs, pooling))  # type: ignore[arg-type]
    copy_into(model, {name: tensors[other].view(stored[name].shape) for name, other in zip(ours, theirs, strict=True)})
    return model.eval(), method, checkpoint


def _method(folder: Path, found: Found) -> Method:
    """The method that computes what an adapter of peft does. Raises InputError if there is none."""
    readers = {name: module.from_peft for name in names() if hasattr(module := _exchange(name), "from_peft")}
    try:
        method = next(filter(None, (read(found) for read in readers.values())), None)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"cannot read {folder}: {error}") from error
    if method is None:
        kind = found.settings.get("peft_type")
        raise InputError(f"{folder} has the peft_type {kind!r}: those of {', '.join(readers)} can be read")
    for name, value in found.settings.items():
        is_usual = not value or value in _USUAL.get(name, ())
        if name not in found.used and name not in _OF_ANY_ADAPTER and not is_usual:
            raise InputError(f"{folder / SETTINGS} has {name} {value!r}, which {method.name} does not have here")
    return method


def _read(path: Path) -> Tensors:
    """The tensors of a file of others, by their names in the base model. Raises InputError if it is damaged."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}); a pickle (.bin) can run code and is not read"
        ) from error
    if bad := non_finite(tensors):
        raise InputError(f"{path} is damaged: {bad[0]} has NaN or infinite values")
    # Old versions of peft kept the name of the wrapper around a trained module.
    plain = {re.sub(r"\.modules_to_save(\.default)?\.", ".", name): tensor for name, tensor in tensors.items()}
    return {re.sub(r"^base_model\.(model\.)?", "", name): tensor.float() for name, tensor in plain.items()}
