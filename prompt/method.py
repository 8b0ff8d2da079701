"""Prompt tuning: [p_1; ...; p_n; text], where only the vectors p_i at the encoder's input are trained."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from common.checkpoints import base_of, load_tokenizer
from common.encoders import begin_with, embeddings, replace_words
from common.errors import InputError, check
from common.methods import Method


class PromptEmbedding(nn.Embedding):
    """A frozen word embedding and n trained vectors, which have the ids behind the vocabulary."""

    def __init__(self, words: nn.Embedding, start: torch.Tensor):
        """
        Args:
            words: the table of the vocabulary, whose weight is kept under its name.
            start: (n, features), the first values of the vectors.
        """
        nn.Module.__init__(self)  # nn.Embedding's own would allocate a second table
        self.num_embeddings, self.embedding_dim = words.num_embeddings, words.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = words.padding_idx, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.weight = words.weight
        self.prompt = nn.Parameter(start)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (batch, length) -> (batch, length, features)"""
        return self.overwrite(ids, F.embedding(ids.where(ids < self.num_embeddings, 0), self.weight))

    def overwrite(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x with the trained vectors where the ids are theirs. ids: (batch, length), x: (batch, length, features)"""
        vectors = F.embedding((ids - self.num_embeddings).clamp(min=0), self.prompt.to(x.dtype))
        return torch.where((ids >= self.num_embeddings)[..., None], vectors, x)


@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained vectors in front of the text (Lester et al., 2021)."""

    prompt_length: int = 20
    """n: vectors in front of the text."""
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    """Their first values: uniform from -0.5 to 0.5; embeddings of random words; embeddings of --init_text."""
    init_text: str = ""
    """Text whose tokens they start as, repeated or cut to n."""
    level: Literal["words", "embeddings"] = "words"
    """words: they stand where word embeddings stand, and get positions, type and LayerNorm; embeddings: they join
    behind all that, and leave the text its positions."""

    default_lr: ClassVar[float] = 1e-1
    starts_at_pretrained: ClassVar[bool] = False
    size: ClassVar[str] = "prompt_length"

    def __post_init__(self) -> None:
        check(
            {
                f"prompt_length is {self.prompt_length}: choose at least 1": self.prompt_length < 1,
                f"init is {self.init} and init_text {self.init_text!r}: give a text with init text alone": (
                    (self.init == "text") != bool(self.init_text)
                ),
            }
        )

    def inject(self, model: nn.Module) -> None:
        words = replace_words(model, lambda words: PromptEmbedding(words, self.start(model, words.weight)))
        if self.level == "embeddings":

            def overwrite(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
                return words.overwrite(args[0] if args else kwargs["input_ids"], output)

            embeddings(model).register_forward_hook(overwrite, with_kwargs=True)
        begin_with(model, words.num_embeddings + torch.arange(self.prompt_length), positions=self.level == "words")

    def positions(self) -> int:
        return self.prompt_length if self.level == "words" else 0

    def start(self, model: nn.Module, table: torch.Tensor) -> torch.Tensor:
        """The first values of the vectors, (n, features), from the table of the vocabulary, (words, features)."""
        if self.init == "random" or table.is_meta:  # a table without numbers: only the shape counts
            return torch.rand(self.prompt_length, table.shape[1], device=table.device) - 0.5
        tokenizer = load_tokenizer(base_of(model).checkpoint)
        if self.init == "text":
            ids = torch.tensor(tokenizer(self.init_text, add_special_tokens=False)["input_ids"])
            if len(ids) == 0:
                raise InputError(f"init_text {self.init_text!r} has no tokens: give words to start from")
        else:
            special = set(tokenizer.all_special_ids)
            words = (i for token, i in tokenizer.get_vocab().items() if i not in special and "[unused" not in token)
            ids = torch.tensor(sorted(words))
            ids = ids[torch.randperm(len(ids))]
        return table.detach()[ids.repeat(-(-self.prompt_length // len(ids)))[: self.prompt_length]].clone()
