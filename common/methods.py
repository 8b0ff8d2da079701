"""The contract of a method: the only place where a method meets a model."""

import dataclasses
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from common.encoders import Branch, Place, head_parameters, layer_norm_parameters, pooler
from common.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent


Model = TypeVar("Model", bound=nn.Module)


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Method:
    """Options of a fine-tuning method and what they do to a model.

    Parameters that the method creates are trained; parameters that it finds stay frozen unless it unfreezes them. A
    method says where it adds what, in `branches`, or overrides `inject`. All other hooks do nothing by default.
    """

    default_lr: ClassVar[float]
    """Learning rate where the user gives none."""
    starts_at_pretrained: ClassVar[bool] = True
    """Whether the model computes what the pretrained one does until it is trained."""
    size: ClassVar[str | None] = None
    """The option that decides how many parameters are trained, for a parameter budget; None = there is none."""
    old_names: ClassVar[Mapping[str, str]] = {}
    """Pattern -> replacement: parameter names of adapters saved by earlier versions -> their names now."""

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        """What is added to the model, and where.

        Raises:
            DoesNotFit: the options are not for this model.
        """
        return iter(())

    def inject(self, model: nn.Module) -> None:
        """Change a frozen model in place; override it to unfreeze. It must never freeze, so that methods combine."""
        for place, branch in self.branches(model):
            place.add(branch)

    def penalty(self, model: nn.Module) -> Any:
        """A scalar that is added once to the mean loss of every optimizer step."""
        return 0.0

    def on_step(self, model: nn.Module, done: float) -> None:
        """Called in every optimizer step, after the backward pass and before the update.

        Args:
            done: share of the run's steps that lie behind, from 0 to below 1.
        """

    def stored(self, model: nn.Module) -> "tuple[Method, Mapping[str, torch.Tensor]]":
        """What is saved and counted of a trained model: the method that loads it, and its tensors by name.

        They are parameters or buffers of a model with that method, of any type.
        """
        return self, trainable(model)

    def variants(self, model: nn.Module) -> Iterator[str]:
        """Forms of the trained model that are worth a score each: the model has one while its name is out."""
        return iter(())

    def positions(self) -> int:
        """Positions of the encoder that the method takes for itself, so that the text has fewer."""
        return 0

    def uses_all(self) -> bool:
        """False where a forward pass may leave trained parameters without a gradient."""
        return True

    def options(self) -> dict[str, Any]:
        """The fields by name, as they are stored."""
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """The folder that the method lives in."""
        return type(self).__module__.partition(".")[0]


def apply(method: Method, model: Model) -> Model:
    """Freeze the model, inject the method and unfreeze the head; what is trained is true by this order alone.

    The names of the parameters and buffers that were there before are kept as `model.found`.
    """
    model.requires_grad_(False)
    found = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with next(model.parameters()).device:
        method.inject(model)
    every = (*model.named_parameters(), *model.named_buffers())
    model.found = frozenset(name for name, tensor in every if id(tensor) in found)  # type: ignore[assignment]
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained: the optimizer's, the counted and the saved set alike."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def own_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that the method has brought, which change as it likes: a checkpoint holds them too."""
    return {name: buffer for name, buffer in model.named_buffers() if name not in model.found}  # type: ignore[operator]


def count(tensors: Mapping[str, torch.Tensor]) -> int:
    """Number of scalars in these tensors."""
    return sum(tensor.numel() for tensor in tensors.values())


def count_without_head(model: nn.Module) -> int:
    """Trained scalars outside the head: the figure that papers on these methods give."""
    head = head_parameters(model)
    return count({name: parameter for name, parameter in trainable(model).items() if name not in head})


def count_by_kind(model: nn.Module) -> dict[str, int]:
    """What `apply` has made trained, in scalars: the method's own parameters and each kind of the model's.

    Keys: own, weights (matrices of the encoder), biases, layer_norms, pooler, head.
    """
    head, norms = head_parameters(model), layer_norm_parameters(model)
    pool = pooler(model)
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
    """Every method of the repository: the folders that have a method.py."""
    return sorted(path.parent.name for path in REPOSITORY.glob("*/method.py"))


def find(name: str) -> type[Method]:
    """The method that lives in a folder. Raises InputError for an unknown one."""
    if name not in names():
        raise InputError(f"unknown method {name!r}: there are {', '.join(names())}")
    module = importlib.import_module(f"{name}.method")
    (method,) = (
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Method) and kind.__module__ == module.__name__
    )
    return method
