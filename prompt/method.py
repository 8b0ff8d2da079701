"""Prompt tuning: [p_1; ...; p_n; text], where only the input vectors p_i are trained (Lester et al., 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from common.checkpoints import base_of, load_tokenizer
from common.encoders import Branch, Level, Place, front, word_embeddings
from common.errors import InputError, check
from common.methods import Method


class Prompt(Branch):
    """n trained vectors, (n, features), the same for every text."""

    adds = False

    def __init__(self, start: torch.Tensor):
        super().__init__()
        self.vectors = nn.Parameter(start)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor:
        return self.vectors


@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained vectors before the embeddings of the text (Lester et al., 2021)."""

    prompt_length: int = 20
    """n: number of vectors before the text."""
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    """Initial values. random: from -0.5 to 0.5; vocabulary: embeddings of random words; text: those of --init_text."""
    init_text: str = ""
    """Text for --init text; its tokens are repeated or cut to n."""
    level: Level = "words"
    """words: the vectors enter as word embeddings and get positions, token types and LayerNorm;
    embeddings: they enter after the embedding layer and take no positions from the text."""

    default_lr: ClassVar[float] = 1e-1
    starts_at_pretrained: ClassVar[bool] = False
    size: ClassVar[str] = "prompt_length"
    written: ClassVar[str] = "prompt tuning"
    symbols: ClassVar[dict[str, str]] = {"prompt_length": "n"}
    old_names: ClassVar[dict[str, str]] = {r"\.word_embeddings\.prompt$": ".prompt.vectors"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            {
                f"prompt_length is {self.prompt_length}: choose at least 1": self.prompt_length < 1,
                f"init is {self.init} and init_text {self.init_text!r}: give a text with init text alone": (
                    (self.init == "text") != bool(self.init_text)
                ),
            }
        )

    def branches(self, model: nn.Module) -> Iterator[tuple[Place, Branch]]:
        start = self.start(model, word_embeddings(model).weight)
        yield front(model, self.prompt_length, self.level), Prompt(start)

    def positions(self) -> int:
        return self.prompt_length if self.level == "words" else 0

    def start(self, model: nn.Module, table: torch.Tensor) -> torch.Tensor:
        """Initial values, (n, features), from the word embeddings, (words, features)."""
        if self.init == "random" or table.is_meta:  # on the meta device only the shape matters
            return torch.rand(self.prompt_length, table.shape[1], device=table.device) - 0.5
        tokenizer = load_tokenizer(base_of(model).checkpoint)
        if self.init == "text":
            ids = torch.tensor(tokenizer(self.init_text, add_special_tokens=False)["input_ids"])
            if len(ids) == 0:
                raise InputError(f"init_text {self.init_text!r} has no tokens: give a text with at least one word")
        else:
            special = set(tokenizer.all_special_ids)
            words = (i for token, i in tokenizer.get_vocab().items() if i not in special and "[unused" not in token)
            ids = torch.tensor(sorted(words))
            ids = ids[torch.randperm(len(ids))]
        return table.detach()[ids[torch.arange(self.prompt_length) % len(ids)]].clone()
