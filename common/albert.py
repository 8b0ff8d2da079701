"""ALBERT with a module where its feed-forward sublayer ends, which transformers' own layer does not have.

The class takes the place of transformers' own, under the same name; its output is the same.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.albert import modeling_albert


class AlbertLayer(modeling_albert.AlbertLayer):
    dropout: Any

    def ff_chunk(self, attention_output: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().ff_chunk(attention_output))


def take_places(model: Any) -> None:
    """Put this class in the place of transformers' own, whose `dropout` is not used and so drops nothing here."""
    for module in model.modules():
        if type(module) is modeling_albert.AlbertLayer:
            layer: Any = module
            layer.__class__, layer.dropout = AlbertLayer, nn.Identity()
