"""The contract of a method: the only place where a method meets a model."""

import dataclasses
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from common.encoders import head_parameters, layer_norm_parameters, pooler
from common.errors import InputError, check

REPOSITORY = Path(__file__).resolve().parent.parent


Model = TypeVar("Model", bound=nn.Module)


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Method(ABC):
    """Options of a fine-tuning method and what they do to a model.

    Parameters that `inject` creates are trained; parameters it finds stay frozen unless it unfreezes them.
    """

    default_lr: ClassVar[float]
    """Learning rate where the user names none."""
    starts_at_pretrained: ClassVar[bool] = True
    """Whether the injected model computes what the pretrained one does until it is trained."""
    size: ClassVar[str | None] = None
    """The option that decides how many parameters are trained, for `within`; None = there is none."""

    @abstractmethod
    def inject(self, model: nn.Module) -> None:
        """Change a frozen model in place. Must never freeze, so that methods combine.

        Raises:
            DoesNotFit: the options are not for this model.
        """

    def positions(self) -> int:
        """Positions of the encoder that the method takes for itself, so that the text has fewer."""
        return 0

    def skips_some(self) -> bool:
        """Whether a forward pass may leave out trained parameters, which several processes have to know."""
        return False

    def to_use(self, model: nn.Module, tensors: Tensors) -> "tuple[Method, Tensors]":
        """A trained model as it is stored to be used: the method that loads it, and what it needs of the tensors."""
        return self, tensors

    def states(self, model: nn.Module) -> Iterator[str]:
        """States of the trained model that are worth a score each: the model is in one while its name is out."""
        return iter(())

    def options(self) -> dict[str, Any]:
        """The fields by name, as they are stored."""
        return dataclasses.asdict(self)

    @property
    def name(self) -> str:
        """The folder that the method lives in."""
        return type(self).__module__.partition(".")[0]


@dataclass(frozen=True)
class Combined(Method):
    """Several methods on one model, injected one after the other; for `train` and Python, not for a command line."""

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        check(
            {
                f"{self.name}: wanted two methods at least": len(self.parts) < 2,
                f"{self.name}: each method can be there once": len({p.name for p in self.parts}) < len(self.parts),
                f"{self.name}: a combination cannot be a part of another": any(
                    isinstance(part, Combined) for part in self.parts
                ),
            }
        )

    def inject(self, model: nn.Module) -> None:
        for part in self.parts:
            part.inject(model)

    def positions(self) -> int:
        return sum(part.positions() for part in self.parts)

    def skips_some(self) -> bool:
        return any(part.skips_some() for part in self.parts)

    def to_use(self, model: nn.Module, tensors: Tensors) -> tuple[Method, Tensors]:
        parts = []
        for part in self.parts:
            used, tensors = part.to_use(model, tensors)
            parts.append(used)
        return Combined(tuple(parts)), tensors

    def states(self, model: nn.Module) -> Iterator[str]:
        for part in self.parts:
            yield from part.states(model)

    def options(self) -> dict[str, Any]:
        """The options of each method, under its name."""
        return {part.name: part.options() for part in self.parts}

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        """Whether all of the methods do."""
        return all(part.starts_at_pretrained for part in self.parts)

    @property
    def name(self) -> str:
        """The names of the methods, in the order in which they are injected."""
        return "+".join(part.name for part in self.parts)


def apply(method: Method, model: Model) -> Model:
    """Freeze the model, inject the method and unfreeze the head; what is trained is true by this order alone.

    The names of the parameters that were there before are kept as `model.found`, for `table`.
    """
    model.requires_grad_(False)
    found = {id(parameter) for parameter in model.parameters()}
    with next(model.parameters()).device:
        method.inject(model)
    model.found = frozenset(n for n, p in model.named_parameters() if id(p) in found)  # type: ignore[assignment]
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained: the optimizer's, the counted and the saved set alike."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count(parameters: dict[str, nn.Parameter]) -> int:
    """Number of scalars in these parameters."""
    return sum(parameter.numel() for parameter in parameters.values())


def count_without_head(model: nn.Module) -> int:
    """Trained scalars outside the head: the figure that papers on these methods give."""
    head = head_parameters(model)
    return count({name: parameter for name, parameter in trainable(model).items() if name not in head})


def table(model: nn.Module) -> dict[str, int]:
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
