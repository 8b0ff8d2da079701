"""Masked language modelling (Devlin et al., 2019): predict tokens of a text that were hidden from the model.

Lines are joined and cut into blocks, or are examples of their own. What is masked depends on the text, the seed and the
epoch alone: it is the same for every method, on any number of processes and after a resume.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common import likelihood, synthetic
from common.checkpoints import load_masked_lm, load_tokenizer, meta_masked_lm
from common.data import LONGEST_LINE, Examples, read_lines
from common.errors import InputError, check
from common.options import MaskedLMOptions, Pooling
from common.own_files import SPLITS
from common.own_task import TextTask
from common.runtime.device import send
from common.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PASSAGES = 200
"""Passages of consecutive lines into which a text is divided before a tenth of them is held out."""
LINES = 10_000
"""Lines that are tokenized at a time."""
FIXED = (0, 0)
"""Seed and epoch of the masks of held-out text, which are the same in every run."""


class MaskedLanguageModelling:
    """A `task_data.Task` for text without labels. Each masked token is one target.

    The head is trained but for the matrix of its output layer, which is that of the word embeddings.
    """

    validations: tuple[str, ...] = ("validation",)
    metrics, n_texts = TextTask.metrics, 1

    def __init__(self, options: MaskedLMOptions):
        self.name, self.options = options.task_name, options
        chosen = {name: getattr(options, name) for name in ("mask_share", "whole_words", "line_by_line")}
        self.facts = chosen | {"validation_from": self.parts[2]}

    @cached_property
    def parts(self) -> tuple[list[str], list[str], str]:
        """Lines to train on and held-out lines, and what the latter are. Raises InputError for unusable text."""
        found = read(self.options.data, self.name)
        if os.environ.get("RANK", "0") == "0":
            print(f"{self.name}: {len(found[0]):,} lines to train on, {len(found[1]):,} held out: {found[2]}")
        return found

    def load(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return load_masked_lm(checkpoint, announce=True)

    def meta(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        """The model on the meta device. Raises InputError if its tokenizer cannot mask, too."""
        tokenizer, whole_words = load_tokenizer(checkpoint), self.options.whole_words
        check(
            {
                f"the tokenizer of {checkpoint} has no mask token: choose a checkpoint for masked language modelling": (
                    tokenizer.mask_token_id is None
                ),
                f"the tokenizer of {checkpoint} does not tell words: leave out whole_words": (
                    whole_words and not tokenizer.is_fast
                ),
            }
        )
        return meta_masked_lm(checkpoint)

    def read(self, split: str, source: str) -> Examples:
        train, held_out, _ = self.parts
        return Examples((train if split == "train" else held_out,), None)

    def is_there(self, split: str, source: str) -> bool:
        return True

    def encode(
        self, examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int, cache: Path | None = None
    ) -> "MaskedTokens":
        return encode(examples.texts[0], tokenizer, max_length, self.options)

    def loss(self, model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Sum over the masked tokens of a batch. labels: (masked,), what they were"""
        return likelihood.loss(model, batch, labels)

    def score(
        self, model: nn.Module, tokens: Tokens, batch_size: int, accelerator: Any
    ) -> tuple[dict[str, float], np.ndarray]:
        """Log-likelihood, perplexity and accuracy of masked tokens; and sums of each example, (examples, 2)."""
        return likelihood.score(model, tokens, batch_size, accelerator)

    def floor(self, train: Any, validation: Any) -> dict[str, float]:
        """The scores of guessing each token with its frequency in the training text, plus one, as probability."""
        ordinary = torch.from_numpy(train.masking.ordinary)
        return likelihood.unigram(train.clean, ordinary, validation.clean[validation.masked])

    def finish(self, best_model: Any, splits: Any, batch_size: int, accelerator: Any, folder: Path) -> dict[str, Any]:
        """Everything is known after each epoch."""
        return {}


def read(data: str, name: str) -> tuple[list[str], list[str], str]:
    """Lines to train on and held-out lines, without empty ones, and what the latter are.

    Held out is the file or folder `validation` of a folder; else a tenth of the text, in passages of consecutive lines,
    the same in every run.

    Raises:
        InputError: it is not there, no UTF-8, binary or empty, or too short to hold out a part.
    """
    if data == "demo":
        train, validation = (synthetic.text(name, split) for split in ("train", "validation"))
        return train, validation, "other sentences of the same grammar"
    path = Path(data)
    if not path.exists():
        raise InputError(f"data {path} not found: give a text file (.txt) or a folder with text files")
    files = [path] if path.is_file() else sorted(path.rglob("*.txt"))
    if not files:
        raise InputError(f"{path} has no text files: wanted names that end in .txt")
    if files == [path] and path.suffix != ".txt":
        raise InputError(f"{path}: wanted a text file, whose name ends in .txt")
    within = [] if path.is_file() else files
    held_out = [file for file in within if {*file.relative_to(path).with_suffix("").parts} & {*SPLITS["validation"]}]
    train = [line for file in sorted({*files}.difference(held_out)) for line in _lines(file)]
    if held_out:
        check({f"{path} has validation text alone: wanted text to train on beside it": len(held_out) == len(files)})
        said = ", ".join(str(file.relative_to(path)) for file in held_out)
        return train, [line for file in held_out for line in _lines(file)], said
    if len(train) < 2:
        raise InputError(f"{path} has one line: wanted more, to hold out a part, or a folder with validation.txt")
    passages = np.array_split(np.arange(len(train)), min(PASSAGES, len(train)))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(passages), generator=generator)[: max(1, len(passages) // 10)]
    out = {int(number) for index in chosen for number in passages[index]}
    parts = [[line for number, line in enumerate(train) if (number in out) == which] for which in (False, True)]
    return parts[0], parts[1], "passages that are a tenth of the text"


def _lines(path: Path) -> list[str]:
    """The lines of a text file that have text. Raises InputError if there is none, or it cannot be read."""
    lines = read_lines(path)
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_LINE:
            raise InputError(f"{path}, line {number}: {len(line):,} characters, wanted at most {LONGEST_LINE:,}")
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} has no text: wanted at least one line that is not empty")
    return found


@dataclass(frozen=True)
class Masking:
    """Which tokens may be masked, and what they become."""

    share: float
    words: np.ndarray
    """(tokens,), a number for each word, or for each token if words are not kept whole; -1: it is never masked."""
    mask_id: int
    ordinary: np.ndarray
    """Ids of the tokens that are not special, in order."""

    def chosen(self, examples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Indices of the tokens to predict, in order: words in random order until they are the share, or more.

        examples: (tokens,), the number of each token's example.
        """
        may = np.flatnonzero(self.words >= 0)
        of, words = examples[may], self.words[may]
        begins = np.ones(len(may), dtype=bool)
        begins[1:] = (words[1:] != words[:-1]) | (of[1:] != of[:-1])  # a block may end within a word
        unit, first = begins.cumsum() - 1, np.flatnonzero(begins)
        order = np.lexsort((rng.random(len(first)), of[first]))
        sizes = np.bincount(unit)[order]
        n = np.bincount(of)  # tokens of each example
        wanted = np.maximum(1, np.round(self.share * n))
        own = of[first][order]
        taken = sizes.cumsum() - sizes - (n.cumsum() - n)[own] < wanted[own]
        is_chosen = np.zeros(len(first), dtype=bool)
        is_chosen[order] = taken
        return may[is_chosen[unit]]

    def hidden(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What tokens become: 80 % the mask token, 10 % a random ordinary token, 10 % what they are. (n,) -> (n,)"""
        what, others = rng.random(len(ids)), rng.choice(self.ordinary, len(ids))
        return np.where(what < 0.8, self.mask_id, np.where(what < 0.9, others, ids))


@dataclass(frozen=True)
class MaskedTokens(Tokens):
    """Tokens of which some are hidden. Labels are the numbers of masked tokens, (examples,)."""

    clean: torch.Tensor
    """(tokens,), the ids before masking."""
    masked: torch.Tensor
    """(masked,), indices of the tokens to predict, in order."""
    masking: Masking

    def n_targets(self, indices: torch.Tensor) -> int:
        return int(self.labels[indices].sum())

    def of_epoch(self, seed: int, epoch: int) -> "MaskedTokens":
        """The same examples with the masks of an epoch."""
        rng = np.random.default_rng((seed, epoch))
        examples = torch.arange(len(self)).repeat_interleave(self.lengths)
        masked = self.masking.chosen(examples.numpy(), rng)
        ids = self.clean.numpy().copy()
        ids[masked] = self.masking.hidden(ids[masked], rng)
        where = torch.from_numpy(masked)
        return replace(
            self,
            columns=self.columns | {"input_ids": torch.from_numpy(ids)},
            masked=where,
            labels=torch.bincount(examples[where], minlength=len(self)),
        )

    def batch(self, indices: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """As of `Tokens`, with `places`: example and position of each masked token, (masked, 2); labels: (masked,)"""
        inputs, _ = super().batch(indices, device)
        n = self.labels[indices]
        examples = torch.arange(len(indices)).repeat_interleave(n)
        ends = self.labels.cumsum(0)[indices]
        chosen = self.masked[torch.arange(len(examples)) + (ends - n.cumsum(0))[examples]]
        places = torch.stack((examples, chosen - self.starts[indices][examples]), dim=1)
        sent = send({"places": places, "labels": self.clean[chosen].long()}, device)
        labels = sent.pop("labels")
        return inputs | sent, labels


def encode(
    lines: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int, options: MaskedLMOptions
) -> MaskedTokens:
    """Blocks of at most `max_length` tokens, masked as held-out text is. No token is left out: the last is shorter.

    Special tokens stand around each block, as around any input. They, and those that are written in the text, such as
    unknown ones, are never masked.

    Raises:
        InputError: no line has a token that could be masked.
    """
    before, after = _special(tokenizer)
    room = max_length - len(before) - len(after)
    special = torch.tensor(tokenizer.all_special_ids)
    ids, words, lengths = _tokenized(lines, tokenizer, options.whole_words)
    words[torch.isin(ids, special)] = -1
    texts = lengths.tolist() if options.line_by_line else [len(ids)]
    sizes = [min(room, n - start) for n in texts for start in range(0, n, room)]
    pairs = zip(ids.split(sizes), words.split(sizes), strict=True)
    parts = [(part, own) for part, own in pairs if own.max() >= 0]
    if not parts:
        raise InputError(f"{options.data}: the tokenizer of {options.checkpoint} knows no token of this text")
    never = [torch.full((len(some),), -1) for some in (before, after)]
    clean = torch.cat([each for part, _ in parts for each in (before, part, after)])
    around = torch.cat([each for _, part in parts for each in (never[0], part, never[1])])
    ordinary = sorted({*tokenizer.get_vocab().values()}.difference(special.tolist()))
    masking = Masking(options.mask_share, around.numpy(), int(tokenizer.mask_token_id), np.array(ordinary))  # type: ignore[arg-type]
    columns = {name: torch.zeros_like(clean) for name in tokenizer.model_input_names if name == "token_type_ids"}
    padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
    lengths = torch.tensor([len(before) + len(part) + len(after) for part, _ in parts])
    none = torch.empty(0, dtype=torch.int64)
    return MaskedTokens(columns, lengths, none, padding, None, clean, none, masking).of_epoch(*FIXED)


def _special(tokenizer: "PreTrainedTokenizerBase") -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens before and after a text, (n,) of int32."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    own = [place for place, is_special in enumerate(encoded["special_tokens_mask"]) if not is_special]
    ids = torch.tensor(encoded["input_ids"], dtype=torch.int32)
    return ids[: own[0]], ids[own[-1] + 1 :]


def _tokenized(
    lines: Sequence[str], tokenizer: "PreTrainedTokenizerBase", whole_words: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, (tokens,) of int32; the number of each token's word, or of the token; tokens of a line, (lines,)."""
    ids, words, lengths, n = list[torch.Tensor](), list[torch.Tensor](), list[int](), 0
    for first in range(0, len(lines), LINES):
        some = list(lines[first : first + LINES])
        encoded = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids += [torch.tensor(each, dtype=torch.int32) for each in encoded["input_ids"]]
        for number, each in enumerate(encoded["input_ids"]):
            own = torch.tensor(encoded.word_ids(number) if whole_words else range(len(each)), dtype=torch.int64)
            words.append(own + n)
            n += len(each)  # no line has more words than tokens
        lengths += [len(each) for each in encoded["input_ids"]]
    return torch.cat(ids), torch.cat(words), torch.tensor(lengths)
