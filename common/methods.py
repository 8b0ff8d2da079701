"""The interface of a fine-tuning method, how it is applied to a model, and what it trains."""

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from common.encoders import Branch, Place, head_parameters, layer_norm_parameters, layers, pooler, sharing
from common.errors import DoesNotFit, InputError, check_types

REPOSITORY = Path(__file__).resolve().parent.parent
Model = TypeVar("Model", bound=nn.Module)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """Options of a fine-tuning method, and how it changes a model.

    Parameters that a method adds are trained. Parameters of the model stay frozen unless the method unfreezes them. A
    method defines what it adds in `branches`, or overrides `inject`. All other hooks do nothing by default.
    """

    default_lr: ClassVar[float]
    """Default learning rate."""
    starts_at_pretrained: ClassVar[bool] = True
    """Whether the model has the output of the pretrained model before training."""
    written: ClassVar[str] = ""
    """The name in legends and tables, as papers write it; empty = the name of its folder."""
    symbols: ClassVar[Mapping[str, str]] = {}
    """Option -> how papers write it, such as r for a rank."""
    size: ClassVar[str | None] = None
    """The option that sets the number of trained parameters, for a parameter budget; None = there is none."""
    later: ClassVar[Mapping[str, Any]] = {}
    """Options that earlier versions did not have. At these values they are not stored, so that runs keep their names
    and adapters load."""
    old_names: ClassVar[Mapping[str, str]] = {}
    """Pattern -> replacement: parameter names in adapters of earlier versions -> current names."""

    def __post_init__(self) -> None:
        """Refuse options of another type. A method that refuses more calls this first."""
        check_types(self)

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        """The branches to add and their places. Raises DoesNotFit if the options do not fit this model."""
        return iter(())

    def inject(self, model: nn.Module) -> None:
        """Change a frozen model in place; override it to unfreeze. It must never freeze, so that methods combine."""
        for place, branch in self.branches(model):
            place.add(branch)

    def penalty(self, model: nn.Module) -> Any:
        """A scalar that is added once to the mean loss of every optimizer step."""
        return 0.0

    def on_step(self, model: nn.Module, done: float) -> None:
        """Called in every optimizer step between backward pass and update. done: share of the steps done, [0, 1)."""

    def on_epoch(self, model: nn.Module, done: float) -> bool:
        """Called after every epoch, before its scores. done: share of the steps done, (0, 1].

        Returns whether the model has its final form. If not, the epoch is scored, but its adapter is not saved. After
        the last epoch it must be True.
        """
        return True

    def stored(self, model: nn.Module) -> "tuple[Method, Mapping[str, torch.Tensor]]":
        """What is saved of a trained model and counted: the method that loads it, and its tensors by name.

        They are parameters or buffers of a model with that method, of any type.
        """
        return self, trainable(model)

    def variants(self, model: nn.Module) -> Iterator[str]:
        """Change the trained model into each form that is also scored, yield the form's name, and change it back."""
        return iter(())

    def positions(self) -> int:
        """Number of the encoder's positions that the method uses, so that fewer are left for the text."""
        return 0

    def of_size(self, size: int) -> "Method":
        """The method with another size, for a parameter budget. Override it if another option follows the size."""
        return dataclasses.replace(self, **{str(self.size): size})

    def kept(self) -> "Method":
        """The method whose parameters a budget counts: the stored form, if fewer parameters are stored than trained."""
        return self

    def uses_all(self) -> bool:
        """False if a forward pass may leave trained parameters without a gradient."""
        return True

    def options(self) -> dict[str, Any]:
        """Options by name, as they are stored."""
        found = dataclasses.asdict(self)
        return {name: value for name, value in found.items() if name not in self.later or value != self.later[name]}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Method":
        """The method with these options, as from `options`. Raises InputError for missing, unknown or wrong ones."""
        names, given = {field.name for field in dataclasses.fields(cls)}, {**cls.later, **options}
        if set(given) != names:
            raise InputError(f"wanted the options {', '.join(sorted(names))}")
        return cls(**given)

    @property
    def name(self) -> str:
        """The folder of the method, as a package."""
        return package(type(self))


@dataclass(frozen=True)
class ByLayer(Method):
    """A method that changes the Transformer layers, or some of them."""

    layers: str = field(default="all", kw_only=True)
    """Transformer layers to change, the lowest is 0: all, or numbers and ranges such as 0-2,5."""

    later: ClassVar[Mapping[str, Any]] = {"layers": "all"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers != "all":
            object.__setattr__(self, "layers", ranges(numbers_in(self.layers)))  # one spelling; frozen for others

    def changed(self, model: nn.Module) -> dict[int, Any]:
        """The layers to change by number, lowest first. Raises DoesNotFit if the encoder has fewer."""
        stack = layers(model)
        numbers = range(len(stack)) if self.layers == "all" else numbers_in(self.layers)
        if numbers[-1] >= len(stack):
            last = f"{len(stack) - 1}{sharing(model)}"
            raise DoesNotFit(f"layers are {self.layers}, but the encoder has those from 0 to {last}")
        return {number: stack[number] for number in numbers}


def numbers_in(text: str) -> list[int]:
    """The layers of 0-2,5, for example: [0, 1, 2, 5]. Raises InputError for another form."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise InputError(f"layers are {text!r}: choose all, or numbers and ranges such as 0-2,5")
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return sorted(found)


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5": the inverse of `numbers_in`, in one spelling."""
    begins = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(begins, ends, strict=True))


def apply(method: Method, model: Model) -> Model:
    """Freeze the model, inject the method and unfreeze the head. This order alone decides what is trained.

    The model stays in its mode, training or evaluation, all of it. The names of the parameters and buffers that it had
    before are kept as `model.found`.
    """
    model.requires_grad_(False)
    found = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with next(model.parameters()).device:
        method.inject(model)
    tensors = (*model.named_parameters(), *model.named_buffers())
    model.found = frozenset(name for name, tensor in tensors if id(tensor) in found)  # type: ignore[assignment]
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)
    model.train(model.training)  # what is new is in training mode, whatever the mode of the model
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters: the optimizer, the counts and the saved adapter all use this set."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def own_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that the method added. It may change them, so that a checkpoint holds them too."""
    return {name: buffer for name, buffer in model.named_buffers() if name not in model.found}  # type: ignore[operator]


def count(tensors: Mapping[str, torch.Tensor]) -> int:
    """Number of parameters: the scalars of floating-point tensors. Integers, such as indices, are none."""
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def count_without_head(model: nn.Module) -> int:
    """Number of trained scalars outside the head, which papers on these methods report."""
    head = head_parameters(model)
    return count({name: parameter for name, parameter in trainable(model).items() if name not in head})


def count_by_kind(model: nn.Module) -> dict[str, int]:
    """Number of trained scalars of each kind.

    Keys: own (added by the method), weights (matrices of the encoder), biases, layer_norms, pooler, head.
    """
    head, norms, pool = head_parameters(model), layer_norm_parameters(model), pooler(model)
    pooled = {id(parameter) for parameter in pool.parameters()} if pool is not None else set()
    kinds = dict.fromkeys(("own", "weights", "biases", "layer_norms", "pooler", "head"), 0)
    for name, parameter in trainable(model).items():
        if name in head:
            kind = "head"
        elif name not in model.found:  # type: ignore[operator]
            kind = "own"
        elif id(parameter) in pooled:
            kind = "pooler"
        elif name in norms:
            kind = "layer_norms"
        else:
            kind = "biases" if parameter.ndim == 1 else "weights"
        kinds[kind] += parameter.numel()
    return kinds


def names() -> list[str]:
    """All methods of the repository: the folders with a method.py."""
    return sorted(path.parent.name for path in REPOSITORY.glob("*/method.py"))


def package(kind: type[Method]) -> str:
    """The package of a method: lora for lora.method, parity.peft for parity.peft.method."""
    name = kind.__module__
    return name.removesuffix(".method") if name.endswith(".method") else name.partition(".")[0]


def find(name: str) -> type[Method]:
    """The method class in a package, such as lora. Raises InputError for an unknown name."""
    others = [f"parity.{path.parent.name}" for path in REPOSITORY.glob("parity/*/method.py")]
    if name not in names() + others:
        raise InputError(f"unknown method {name!r}: choose one of {', '.join(names())}")
    try:
        module = importlib.import_module(f"{name}.method")
    except ModuleNotFoundError as error:
        if error.name != f"{name}.method":
            raise
        raise InputError(
            f"{name} is another package, in {', '.join(sys.modules[name].__path__)}, wanted that of this repository: "
            f"start Python in {REPOSITORY}, or put this folder first in PYTHONPATH"
        ) from error
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Method)]
    (method,) = (kind for kind in kinds if kind.__module__ == module.__name__)
    return method
