"""Hybrids: several methods on one encoder, optionally with gates (Mao et al., 2022; He et al., 2022)."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from common.encoders import generates, sequences
from common.errors import DoesNotFit, check
from common.methods import ByLayer, Method, trainable
from hybrid.gates import gated
from hybrid.parts import PFEIFFER, PRESETS, method_of, part_of


@dataclass(frozen=True)
class Hybrid(ByLayer):
    """Several methods on one encoder, with or without gates (Mao et al., 2022; He et al., 2022)."""

    parts: tuple[str, ...] = ("lora", PFEIFFER, "prefix:prefix_length=10")
    """Methods to combine: NAME or NAME:OPTION=VALUE:..., such as lora:rank=4:targets=key,value."""
    gates: bool = False
    """Multiply what each branch of a part adds by a trained gate."""
    preset: Literal["unipelt", "unipelt_ap", "mam"] | None = None
    """Parts and gates of a paper: UniPELT with or without LoRA, or MAM adapters. None = those given."""
    largest: int | None = None
    """Size of the largest part; the sizes of the others keep their ratio to it. None = as in parts."""

    default_lr: ClassVar[float] = 6e-4
    size: ClassVar[str] = "largest"

    def __post_init__(self) -> None:
        """Refuse wrong options; preset and largest are put into parts, which get one spelling."""
        super().__post_init__()
        parts, gates = (self.parts, self.gates) if self.preset is None else PRESETS[self.preset]
        is_own = self.preset is not None and (self.parts != type(self).parts or self.gates)
        check({f"preset is {self.preset}, and parts or gates are given too: choose one": is_own})
        found = [method_of(part) for part in parts]
        sizes = {n: getattr(m, m.size) for n, m in enumerate(found) if m.size and getattr(m, m.size)}
        if self.largest is not None and self.largest >= 1 and sizes:
            new = {n: max(1, round(size * self.largest / max(sizes.values()))) for n, size in sizes.items()}
            found = [m.of_size(new[n]) if n in new else m for n, m in enumerate(found)]
        not_by_layer = [m.name for m in found if not isinstance(m, ByLayer)]
        check(
            {
                "parts are empty: name at least one method": not found,
                "parts have a hybrid among them: name its parts instead": any(isinstance(m, Hybrid) for m in found),
                f"parts are {' '.join(parts)}: name each once": len({part_of(m) for m in found}) < len(found),
                f"largest is {self.largest}: choose at least 1": self.largest is not None and self.largest < 1,
                f"largest is {self.largest}, but no part has a size": self.largest is not None and not sizes,
                f"layers are {self.layers}, but {' '.join(not_by_layer)} does not work by layer": (
                    self.layers != "all" and bool(not_by_layer)
                ),
            }
        )
        one = {"parts": tuple(part_of(m) for m in found), "gates": gates, "preset": None, "largest": None}
        for name, value in one.items():
            object.__setattr__(self, name, value)  # frozen for everybody else

    def methods(self) -> list[Method]:
        """The parts; those that work by layer, and name no layers, change the layers of the hybrid."""
        found = (method_of(part) for part in self.parts)
        return [
            dataclasses.replace(method, layers=self.layers)
            if isinstance(method, ByLayer) and method.layers == "all"
            else method
            for method in found
        ]

    def inject(self, model: nn.Module) -> None:
        if self.gates and generates(model):
            raise DoesNotFit(
                "gates are computed from the mean over all tokens, which would show a model those that it has to "
                "predict: leave gates out"
            )
        of_model = sequences(model) if self.gates else None
        for method in self.methods():
            (method if of_model is None else gated(method, of_model)).inject(model)

    def penalty(self, model: nn.Module) -> Any:
        return sum(method.penalty(model) for method in self.methods())

    def on_step(self, model: nn.Module, done: float) -> None:
        for method in self.methods():
            method.on_step(model, done)

    def on_epoch(self, model: nn.Module, done: float) -> bool:
        are_final = [method.on_epoch(model, done) for method in self.methods()]  # called for every part
        return all(are_final)

    def stored(self, model: nn.Module) -> tuple[Method, Mapping[str, torch.Tensor]]:
        trained: Mapping[str, torch.Tensor] = trainable(model)
        tensors, parts = dict(trained), []
        for part, method in zip(self.parts, self.methods(), strict=True):
            used, own = method.stored(model)
            tensors = {name: tensor for name, tensor in tensors.items() if name in own or name not in trained}
            tensors |= {name: tensor for name, tensor in own.items() if tensor is not trained.get(name)}
            parts.append(part if used == method else part_of(used))
        return dataclasses.replace(self, parts=tuple(parts)), tensors

    def variants(self, model: nn.Module) -> Iterator[str]:
        for method in self.methods():
            yield from method.variants(model)

    def positions(self) -> int:
        return sum(method.positions() for method in self.methods())

    def kept(self) -> Method:
        return dataclasses.replace(self, parts=tuple(part_of(method.kept()) for method in self.methods()))

    def uses_all(self) -> bool:
        return all(method.uses_all() for method in self.methods())

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        return all(method.starts_at_pretrained for method in self.methods())
