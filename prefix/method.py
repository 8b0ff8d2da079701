"""Prefix tuning: softmax(Q [P_K; K]^T / sqrt(size)) [P_V; V], P_K and P_V trained in each layer (Li & Liang, 2021)."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from common.encoders import Branch, Place, embeddings, head_size, keys_values, n_heads, sublayers
from common.errors import check
from common.methods import ByLayer, Method, trainable


class Prefix(Branch):
    """Keys and values of all layers as one table, (l, layers * 2 * hidden), trained directly or through an MLP.

    The table is `embedding`; with an MLP (section 4.3 of the paper) it is MLP(embedding) with embedding: (l, hidden).
    """

    adds = False

    def __init__(self, length: int, n_layers: int, width: int, heads: int, hidden_dim: int):
        """
        Args:
            length: l.
            n_layers: attentions with a prefix, one a layer, or two in a decoder with cross-attention.
            width: features of all heads, the hidden size of most encoders.
            hidden_dim: hidden units of the MLP; 0 = no MLP.
        """
        super().__init__()
        self.n_layers, self.heads = n_layers, heads
        features = n_layers * 2 * width
        self.embedding = nn.Parameter(torch.empty(length, width if hidden_dim else features))
        nn.init.normal_(self.embedding, std=0.02)  # as BERT initializes its embeddings
        self.mlp = None
        if hidden_dim:
            self.mlp = nn.Sequential(nn.Linear(width, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, features))
        self.current = torch.empty(0)

    def table(self) -> torch.Tensor:
        return self.embedding if self.mlp is None else self.mlp(self.embedding)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> None:
        """Compute them once per forward pass, before the lowest layer, and add nothing."""
        table = self.table().unflatten(1, (self.n_layers, 2, self.heads, -1))
        self.current = table.permute(1, 2, 3, 0, 4)  # (layers, 2, heads, l, size)


class OfLayer(Branch):
    """The keys and values of one layer."""

    def __init__(self, prefix: Prefix, number: int):
        super().__init__()
        self.prefix, self.number = (prefix,), number  # in a tuple, so that it is not registered with every layer

    def forward(self, x: torch.Tensor, out: tuple[torch.Tensor, ...], host: nn.Module) -> tuple[torch.Tensor, ...]:
        """Keys and values, each (heads, l, size)."""
        return self.prefix[0].current[self.number].unbind()


@dataclass(frozen=True)
class PrefixTuning(ByLayer):
    """Trained keys and values before those of the text, in the attention of every layer (Li & Liang, 2021)."""

    prefix_length: int = 20
    """l: number of keys and values before those of the text."""
    hidden_dim: int = 0
    """Hidden units of an MLP that computes them during training; 0 = no MLP, they are trained directly."""

    default_lr: ClassVar[float] = 3e-2
    starts_at_pretrained: ClassVar[bool] = False
    size: ClassVar[str] = "prefix_length"
    written: ClassVar[str] = "prefix tuning"
    symbols: ClassVar[dict[str, str]] = {"prefix_length": "l"}
    old_names: ClassVar[dict[str, str]] = {r"\.(encoder|transformer)\.prefix\.": ".embeddings.prefix."}

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            {
                f"prefix_length is {self.prefix_length}: choose at least 1": self.prefix_length < 1,
                f"hidden_dim is {self.hidden_dim}: choose at least 1, or 0 for no MLP": self.hidden_dim < 0,
            }
        )

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        stack = self.changed(model).values()
        places = [keys_values(x, name) for x in stack for name in sublayers(x) if name != "feedforward"]
        heads = n_heads(model)
        prefix = Prefix(self.prefix_length, len(places), heads * head_size(model), heads, self.hidden_dim)
        yield embeddings(model), prefix
        for number, place in enumerate(places):
            yield place, OfLayer(prefix, number)

    def stored(self, model: nn.Module) -> tuple[Method, Mapping[str, torch.Tensor]]:
        """With an MLP, only its output is stored, which loads as a prefix without an MLP."""
        if not self.hidden_dim:
            return self, trainable(model)
        kept: dict[str, torch.Tensor] = dict(trainable(model))
        for name, prefix in model.named_modules():
            if isinstance(prefix, Prefix) and prefix.mlp is not None:  # not one of an earlier run, which is frozen
                kept = {n: tensor for n, tensor in kept.items() if not n.startswith(f"{name}.")}
                kept[f"{name}.embedding"] = prefix.table()
        return dataclasses.replace(self, hidden_dim=0), kept
