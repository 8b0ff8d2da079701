"""Several methods on one model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.errors import check
from common.methods import Method, trainable


@dataclass(frozen=True)
class Combined(Method):
    """Several methods on one model, injected one after the other. For use from Python, not from a command line."""

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            {
                f"{self.name}: wanted at least two methods": len(self.parts) < 2,
                f"{self.name}: each method can be used only once": len({p.name for p in self.parts}) < len(self.parts),
                f"{self.name}: a combination cannot contain another one": any(
                    isinstance(part, Combined) for part in self.parts
                ),
            }
        )

    def inject(self, model: nn.Module) -> None:
        for part in self.parts:
            part.inject(model)

    def penalty(self, model: nn.Module) -> Any:
        return sum(part.penalty(model) for part in self.parts)

    def on_step(self, model: nn.Module, done: float) -> None:
        for part in self.parts:
            part.on_step(model, done)

    def stored(self, model: nn.Module) -> tuple[Method, Mapping[str, torch.Tensor]]:
        trained: Mapping[str, torch.Tensor] = trainable(model)
        tensors, parts = dict(trained), []
        for part in self.parts:
            used, own = part.stored(model)
            for name in trained.keys() - own.keys():  # replaced by other tensors
                del tensors[name]
            tensors |= {name: tensor for name, tensor in own.items() if tensor is not trained.get(name)}
            parts.append(used)
        return Combined(tuple(parts)), tensors

    def variants(self, model: nn.Module) -> Iterator[str]:
        for part in self.parts:
            yield from part.variants(model)

    def positions(self) -> int:
        return sum(part.positions() for part in self.parts)

    def uses_all(self) -> bool:
        return all(part.uses_all() for part in self.parts)

    def options(self) -> dict[str, Any]:
        """Name of each method -> its options."""
        return {part.name: part.options() for part in self.parts}

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        return all(part.starts_at_pretrained for part in self.parts)

    @property
    def old_names(self) -> dict[str, str]:  # type: ignore[override]
        return {pattern: new for part in self.parts for pattern, new in part.old_names.items()}

    @property
    def name(self) -> str:
        """The names of the methods in the order of their injection."""
        return "+".join(part.name for part in self.parts)
