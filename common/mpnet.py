"""MPNet with an exchangeable attention function, which transformers' own modules of it do not have.

These classes take the places of transformers' own, under the same names. They hand keyword arguments down to the
attention, which calls the attention function of its config. Unless a place or packed batches set another one than
"eager", attention, position bias and padded forward pass are those of transformers.
"""

from typing import Any

import torch
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)  # fmt: skip
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.models.mpnet import modeling_mpnet


class DistanceBias:
    """What is added to the attention scores of packed batches: trained numbers by head and distance of the key."""

    def __init__(self, encoder: Any):
        self.encoder = encoder
        self.kept: dict[Any, Any] = {}
        """What the attention function computes from it once for all layers of a forward pass."""

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        """distances: positions of keys minus those of their queries, (...) -> (..., heads)"""
        return self.encoder.relative_attention_bias(self.encoder.relative_position_bucket(distances))


class MPNetSelfAttention(modeling_mpnet.MPNetSelfAttention):
    config: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        """hidden_states: (batch, length, hidden) -> the same, in a tuple

        The bias of padded batches, (batch, heads, length, length), is a part of the mask for the attention function.
        """
        name = self.config._attn_implementation
        if name == "eager":
            return super().forward(hidden_states, attention_mask, position_bias, output_attentions)
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        if position_bias is not None:
            attention_mask = position_bias if attention_mask is None else attention_mask + position_bias
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        scaling, dropout = self.attention_head_size**-0.5, self.dropout.p if self.training else 0.0
        out, weights = attend(self, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return (self.o(out.flatten(2)), *((weights,) if output_attentions else ()))


class MPNetAttention(modeling_mpnet.MPNetAttention):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        attended, *others = self.attn(hidden_states, *args, **kwargs)
        return (self.LayerNorm(self.dropout(attended) + hidden_states), *others)


class MPNetLayer(modeling_mpnet.MPNetLayer):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        attended, *others = self.attention(hidden_states, *args, **kwargs)
        return (self.output(self.intermediate(attended), attended), *others)


class MPNetEncoder(modeling_mpnet.MPNetEncoder):
    def forward(self, hidden_states: torch.Tensor, *args: Any, packing: Any = None, **kwargs: Any) -> Any:
        if packing is None:
            return super().forward(hidden_states, *args, **kwargs)
        bias = DistanceBias(self)
        for layer in self.layer:
            hidden_states, *_ = layer(hidden_states, packing=packing, bias=bias)
        return BaseModelOutput(last_hidden_state=hidden_states)


class MPNetModel(modeling_mpnet.MPNetModel):
    def forward(self, input_ids: Any = None, *args: Any, packing: Any = None, **kwargs: Any) -> Any:
        if packing is None:
            return super().forward(input_ids, *args, **kwargs)
        embedded = self.embeddings(input_ids, kwargs["position_ids"])
        return BaseModelOutputWithPooling(self.encoder(embedded, packing=packing).last_hidden_state)


class MPNetForSequenceClassification(modeling_mpnet.MPNetForSequenceClassification):
    def forward(self, *args: Any, packing: Any = None, **kwargs: Any) -> Any:
        if packing is None:
            return super().forward(*args, **kwargs)
        hidden = self.mpnet(*args, packing=packing, **kwargs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(hidden))


class MPNetForMaskedLM(modeling_mpnet.MPNetForMaskedLM):
    def forward(self, *args: Any, packing: Any = None, **kwargs: Any) -> Any:
        if packing is None:
            return super().forward(*args, **kwargs)
        return MaskedLMOutput(logits=self.lm_head(self.mpnet(*args, packing=packing, **kwargs).last_hidden_state))


OURS: dict[Any, Any] = {
    getattr(modeling_mpnet, ours.__name__): ours
    for ours in (
        MPNetSelfAttention, MPNetAttention, MPNetLayer, MPNetEncoder, MPNetModel, MPNetForSequenceClassification,
        MPNetForMaskedLM
    )
}  # fmt: skip


def take_attention_functions(model: Any) -> None:
    """Put these classes in the place of transformers' own, in a model as it was loaded."""
    for module in model.modules():
        module.__class__ = OURS.get(type(module), type(module))
        if isinstance(module, MPNetSelfAttention):
            module.config = model.config
