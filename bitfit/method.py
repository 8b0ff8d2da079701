"""BitFit: y = W x + b, where only the biases b of the encoder are trained (Ben Zaken et al., 2022)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from common.encoders import (
    Linear,
    embedding_layer_norms,
    embedding_projection,
    final_layer_norm,
    layer_norm,
    linears,
    pooler,
    sublayers,
    whole_bias,
)
from common.errors import DoesNotFit, check
from common.methods import ByLayer

Group = Literal[Linear, "attention_layernorm", "output_layernorm", "embeddings"]
"""Biases of every layer by the module they belong to; `embeddings` are those below the lowest layer."""

LAYER_NORMS: dict[str, tuple[str, ...]] = {
    "attention_layernorm": ("attention", "cross_attention"), "output_layernorm": ("feedforward",),
}  # fmt: skip
SETS: dict[str, tuple[str, ...]] = {"all": get_args(Group), "query_mlp": ("query", "intermediate")}


@dataclass(frozen=True)
class BitFit(ByLayer):
    """Train the biases of the encoder, or some groups of them (Ben Zaken et al., 2022)."""

    terms: tuple[Literal[Group, "all", "query_mlp"], ...] = ("all",)
    """Groups of biases to train; all = all groups, query_mlp = query and intermediate, the subset of the paper."""
    pooler_bias: bool = True
    """Train the bias of the pooler too, as in the authors' code, if the encoder has a pooler (BERT)."""

    default_lr: ClassVar[float] = 3e-3
    written: ClassVar[str] = "BitFit"

    def __post_init__(self) -> None:
        super().__post_init__()
        each_once = 0 < len(self.groups()) == len(set(self.groups()))
        outside = self.layers != "all" and self.groups() == ["embeddings"]
        check(
            {
                f"terms are {' '.join(self.terms)}: name at least one, and each once": not each_once,
                f"layers are {self.layers} and terms are embeddings, which are below them: choose one": outside,
            }
        )

    def groups(self) -> list[str]:
        return [group for term in self.terms for group in SETS.get(term, (term,))]

    def inject(self, model: nn.Module) -> None:
        """With some layers only, what is outside of the layers stays frozen.

        Raises:
            DoesNotFit: the encoder has none of these biases, or only a part of one is chosen.
        """
        chosen: dict[nn.Parameter, int] = {}
        for module in (module for group in self.groups() for module in self.with_bias(model, group)):
            if (bias := whole_bias(module)) is not None:
                chosen[bias] = chosen.get(bias, 0) + module.bias.numel()
        terms = f"terms are {' '.join(self.terms)}, and this encoder"
        if not chosen:
            raise DoesNotFit(
                f"{terms} has no such biases, so that only the head would be trained: choose other terms, or lntuning, "
                "which trains the gains of LayerNorms, or lora"
            )
        if any(n < bias.numel() for bias, n in chosen.items()):
            raise DoesNotFit(f"{terms} has one bias for query, key and value: choose all three or none")
        for bias in chosen:
            bias.requires_grad_(True)
        if self.layers == "all" and self.pooler_bias and (pool := pooler(model)) is not None:
            next(p for p in pool.parameters() if p.ndim == 1).requires_grad_(True)

    def with_bias(self, model: nn.Module, group: Any) -> Iterator[Any]:
        """Modules whose bias belongs to a group, found by their place in the encoder, not by parts of names."""
        if group == "embeddings":
            if self.layers == "all":
                yield from embedding_layer_norms(model)
                if (projection := embedding_projection(model)) is not None:
                    yield projection
            return
        for layer in self.changed(model).values():
            if group in LAYER_NORMS:
                yield from (layer_norm(layer, name) for name in sublayers(layer) if name in LAYER_NORMS[group])
            else:
                yield from (place.host for place in linears(layer, group))
        if group == "output_layernorm" and self.layers == "all":
            yield final_layer_norm(model)  # None but in ModernBERT
