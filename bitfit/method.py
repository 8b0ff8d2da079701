"""BitFit: of the pretrained encoder, only bias terms are trained (Ben Zaken et al., 2022)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from common.encoders import (
    Linear,
    Sublayer,
    embedding_layer_norm,
    embedding_projection,
    layer_norm,
    layers,
    linear,
    pooler,
)
from common.errors import check
from common.methods import Method

Group = Literal[Linear, "attention_layernorm", "output_layernorm", "embeddings"]
"""Bias terms of every layer by their place in it; `embeddings` are those below the lowest layer."""

LAYER_NORMS: dict[str, Sublayer] = {"attention_layernorm": "attention", "output_layernorm": "feedforward"}
SETS: dict[str, tuple[str, ...]] = {"all": get_args(Group), "query_mlp": ("query", "intermediate")}


@dataclass(frozen=True)
class BitFit(Method):
    """Train the encoder's bias terms, or some groups of them (Ben Zaken et al., 2022)."""

    terms: tuple[Group | Literal["all", "query_mlp"], ...] = ("all",)
    """Groups of bias terms; all = every one of them, query_mlp = query and intermediate, the paper's subset."""
    pooler_bias: bool = True
    """Also the pooler's, as in the authors' code, where the encoder has a pooler (BERT)."""

    default_lr: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        groups = self.groups()
        check(
            {
                f"terms are {' '.join(self.terms)}: name at least one, and each once": (
                    not groups or len(set(groups)) < len(groups)
                )
            }
        )

    def groups(self) -> list[str]:
        """The groups that `terms` stands for."""
        return [group for term in self.terms for group in SETS.get(term, (term,))]

    def inject(self, model: nn.Module) -> None:
        for group in self.groups():
            for module in with_bias(model, group):
                module.bias.requires_grad_(True)
        pool = pooler(model)
        if self.pooler_bias and pool is not None:
            next(p for p in pool.parameters() if p.ndim == 1).requires_grad_(True)


def with_bias(model: nn.Module, group: Any) -> Iterator[Any]:
    """The modules whose bias belongs to a group, found by their place and never by parts of names."""
    if group == "embeddings":
        yield embedding_layer_norm(model)
        projection = embedding_projection(model)
        if projection is not None:
            yield projection
        return
    for layer in layers(model):
        yield layer_norm(layer, LAYER_NORMS[group]) if group in LAYER_NORMS else linear(layer, group).host
