"""The contract of a method: the only place where a method meets a model."""

import importlib
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import nn

from common.encoders import head_parameters
from common.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Method(ABC):
    """Options of a fine-tuning method and what they do to a model.

    Parameters that `inject` creates are trained; parameters it finds stay frozen unless it unfreezes them.
    """

    default_lr: ClassVar[float]
    """Learning rate where the user names none."""
    starts_at_pretrained: ClassVar[bool] = True
    """Whether the injected model computes what the pretrained one does until it is trained."""

    @abstractmethod
    def inject(self, model: nn.Module) -> None:
        """Change a frozen model in place. Must never freeze, so that methods combine.

        Raises:
            DoesNotFit: the options are not for this model.
        """

    @property
    def name(self) -> str:
        """The folder that the method lives in."""
        return type(self).__module__.partition(".")[0]


def apply(method: Method, model: Model) -> Model:
    """Freeze the model, inject the method and unfreeze the head; what is trained is true by this order alone."""
    model.requires_grad_(False)
    method.inject(model)
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
