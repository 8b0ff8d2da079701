"""What the head reads of a text: its first token, with or without the pretrained pooler, the mean, or some tokens.

BERT's papers read [CLS] through the pooler. Sentence encoders were trained to give a good mean of all tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from common.encoders import encoder, generates, pooler, sequences, stack
from common.errors import check
from common.options import Pooling
from common.sequences import Sequences


def set_pooling(model: Any, pooling: Pooling | None) -> None:
    """Choose what the head of a pretrained model reads, before a method is applied; None = as the encoder has it.

    Heads of RoBERTa, DistilBERT and ELECTRA have a trained layer of their own between this and the outputs.

    Raises:
        InputError: the encoder has no pooler.
    """
    config = encoder(model).config
    if hasattr(config, "classifier_pooling"):  # ModernBERT's own, which knows nothing of packed batches
        pooling, config.classifier_pooling = pooling or config.classifier_pooling, "cls"
    model.pooling = pooling
    if pooling is None:
        return
    has_pooler, kind = pooler(model) is not None, config.model_type
    needs_pooler = pooling in ("pooler", "trained_pooler")
    check({f"pooling is {pooling}: {kind} has no pooler, choose cls or mean": needs_pooler and not has_pooler})
    if has_pooler and not needs_pooler:
        encoder(model).pooler = First()
        if hasattr(encoder(model), "pooler_activation"):
            encoder(model).pooler_activation = nn.Identity()
    if pooling == "mean":
        model.reads_all_tokens = True
        stack(model).register_forward_hook(_Mean(sequences(model)), with_kwargs=True)


def is_read_as_usual(model: Any) -> bool:
    """Whether the head reads what transformers' own model gives it, so that its weights alone are enough elsewhere."""
    return model.pooling != "mean" and not isinstance(getattr(encoder(model), "pooler", None), First)


def set_places(model: Any) -> None:
    """Let the head of a language model read the tokens at `places` alone, if the model is called with them."""
    model.pooling, model.reads_all_tokens = None, True
    hooks = _Places(_at if generates(model) else sequences(model).at)
    model.register_forward_pre_hook(hooks.keep, with_kwargs=True)
    stack(model).register_forward_hook(hooks.pick, with_kwargs=True)


class First(nn.Module):
    """In place of the pooler: the first token. (batch, length, hidden), ALBERT: (batch, hidden) -> (batch, hidden)"""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if hidden.ndim == 2 else hidden[:, 0]


class _Mean:
    """A hook that makes the output of the layers the mean over the text, (batch, 1, hidden)."""

    def __init__(self, of_model: Sequences):
        self.sequences = of_model

    def __call__(self, _stack: nn.Module, _args: Any, _kwargs: dict[str, Any], output: Any) -> Any:
        output.last_hidden_state = self.sequences.mean_of_text(output.last_hidden_state)[:, None]
        return output


def _at(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`Sequences.at` for a model whose batches are never packed."""
    return hidden[places[:, 0], places[:, 1]]


class _Places:
    """Hooks that take `places`, see `Sequences.at`, and make the output of the layers these tokens, (1, n, hidden)."""

    def __init__(self, at: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        self.at = at
        self.places: torch.Tensor | None = None

    def keep(self, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.places = kwargs.pop("places", None)
        return args, kwargs

    def pick(self, _stack: nn.Module, _args: Any, _kwargs: dict[str, Any], output: Any) -> Any:
        if self.places is not None:
            output.last_hidden_state = self.at(output.last_hidden_state, self.places)[None]
        return output
