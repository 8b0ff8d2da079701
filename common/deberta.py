"""DeBERTa-v2 and -v3 with an exchangeable attention function, which transformers' own modules of it do not have.

These classes take the places of transformers' own, under the same names. They hand keyword arguments down to the
attention, which calls the attention function of its config. Unless a place or packed batches set another one than
"eager", attention and padded forward pass are those of transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.models.deberta_v2 import modeling_deberta_v2


class Relative:
    """Keys and queries by distance of a layer, whose products with the queries and keys of tokens are scores too."""

    def __init__(self, attention: Any, table: torch.Tensor, kept: dict[Any, Any]):
        """table: embeddings of the relative positions, (rows, hidden). kept: for all layers of a forward pass."""
        self.attention, self.table, self.kept = attention, table, kept

    def __call__(self, low: int, high: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Keys and queries of the distances from low to high, position of the key minus that of the query.

        Each (high - low + 1, heads, size), or None where the encoder has none.
        """
        attention = self.attention
        if (low, high) not in self.kept:
            self.kept[low, high] = [x.to(self.table.device) for x in self._rows(low, high).unique(return_inverse=True)]
        rows, of_distances = self.kept[low, high]
        table = attention.pos_dropout(F.embedding(rows, self.table))
        projections = {"c2p": attention.key_proj, "p2c": attention.query_proj}
        key, query = (
            F.embedding(of_distances, project(table)).unflatten(-1, (attention.num_attention_heads, -1))
            if name in attention.pos_att_type
            else None
            for name, project in projections.items()
        )
        return key, query

    def _rows(self, low: int, high: int) -> torch.Tensor:
        """Rows of the table, (distances,), on the CPU: a GPU would be waited for. Far positions share rows."""
        attention, positions = self.attention, -torch.arange(low, high + 1)
        if attention.position_buckets > 0:
            sizes = attention.position_buckets, attention.max_relative_positions
            positions = modeling_deberta_v2.make_log_bucket_position(positions, *sizes).long()
        span = attention.pos_ebd_size
        return (positions + span).clamp(0, 2 * span - 1)


class DisentangledSelfAttention(modeling_deberta_v2.DisentangledSelfAttention):
    config: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        query_states: Any = None,
        relative_pos: torch.Tensor | None = None,
        rel_embeddings: Any = None,
        kept: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states: (batch, length, hidden) -> the same, and None

        The scores by distance of padded batches, (batch, heads, length, length), are a part of the mask for the
        attention function.
        """
        name = self.config._attn_implementation
        if name == "eager":
            return super().forward(hidden_states, attention_mask, output_attentions, None, relative_pos, rel_embeddings)
        heads, size, n_terms = self.num_attention_heads, self.attention_head_size, 1 + len(self.pos_att_type)
        query, key, value = (
            project(hidden_states).unflatten(-1, (heads, size)).transpose(1, 2)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        if attention_mask is None:
            kwargs["relative"] = Relative(self, rel_embeddings, kept)
        else:
            flat_query, flat_key, table = query.flatten(0, 1), key.flatten(0, 1), self.pos_dropout(rel_embeddings)
            scores = self.disentangled_attention_bias(flat_query, flat_key, relative_pos, table, n_terms)
            scores = scores.unflatten(0, (-1, heads))
            attention_mask = scores.masked_fill(~attention_mask.bool(), torch.finfo(scores.dtype).min)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        scaling, dropout = (n_terms * size) ** -0.5, self.dropout.p if self.training else 0.0
        out, _ = attend(self, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        return out.flatten(2), None


class DebertaV2Attention(modeling_deberta_v2.DebertaV2Attention):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        attended, weights = self.self(hidden_states, *args, **kwargs)
        return self.output(attended, hidden_states), weights


class DebertaV2Layer(modeling_deberta_v2.DebertaV2Layer):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        attended, weights = self.attention(hidden_states, *args, **kwargs)
        return self.output(self.intermediate(attended), attended), weights


class DebertaV2Encoder(modeling_deberta_v2.DebertaV2Encoder):
    def forward(self, hidden_states: torch.Tensor, *args: Any, packing: Any = None, **kwargs: Any) -> Any:
        if packing is None:
            return super().forward(hidden_states, *args, **kwargs)
        table, kept = self.get_rel_embedding(), dict[Any, Any]()
        for layer in self.layer:
            hidden_states, _ = layer(hidden_states, packing=packing, rel_embeddings=table, kept=kept)
        return BaseModelOutput(last_hidden_state=hidden_states)


class DebertaV2Model(modeling_deberta_v2.DebertaV2Model):
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        packing: Any = None,
        **_: Any,
    ) -> Any:
        """The output of the encoder, which places may have changed; transformers' own takes its hidden states."""
        found: Any = input_ids if inputs_embeds is None else inputs_embeds
        if packing is None and attention_mask is None:
            attention_mask = torch.ones(found.shape[:2], dtype=torch.long, device=found.device)
        embedded = self.embeddings(input_ids, token_type_ids, position_ids, attention_mask, inputs_embeds)
        if packing is not None:
            return self.encoder(embedded, packing=packing)
        return self.encoder(embedded, attention_mask, output_hidden_states=self.config.output_hidden_states)


class DebertaV2ForSequenceClassification(modeling_deberta_v2.DebertaV2ForSequenceClassification):
    def forward(self, *args: Any, packing: Any = None, **kwargs: Any) -> Any:
        if packing is None:
            return super().forward(*args, **kwargs)
        hidden = self.deberta(*args, packing=packing, **kwargs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(self.pooler(hidden))))


OURS: dict[Any, Any] = {
    getattr(modeling_deberta_v2, ours.__name__): ours
    for ours in (
        DisentangledSelfAttention, DebertaV2Attention, DebertaV2Layer, DebertaV2Encoder, DebertaV2Model,
        DebertaV2ForSequenceClassification,
    )
}  # fmt: skip


def take_attention_functions(model: Any) -> None:
    """Put these classes in the place of transformers' own, in a model as it was loaded."""
    for module in model.modules():
        module.__class__ = OURS.get(type(module), type(module))
        if isinstance(module, DisentangledSelfAttention):
            module.config = model.config
