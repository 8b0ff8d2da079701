"""Generate a target text from a source, such as a sentence from a table, with a causal language model.

An example is the tokens of the source, a separator, those of the target and the end of text, as in Li and Liang (2021)
and Hu et al. (2021). The loss is that of the last two.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common import likelihood, pairs
from common.checkpoints import load_causal_lm, load_tokenizer, meta_causal_lm
from common.data import Examples
from common.decoding import generate
from common.errors import InputError, check
from common.options import GenerateOptions, Pooling
from common.own_task import GeneratedTask, Search, search_of
from common.runtime import files, locks
from common.runtime.device import send
from common.text_metrics import measure, one_line, repeated
from common.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Generation:
    """A `task_data.Task` for pairs of texts. Each token of a target, and its end, is one target.

    There is no head: the output layer has the matrix of the word embeddings, which belongs to the model.
    """

    validations: tuple[str, ...] = ("validation",)
    metrics, n_texts = GeneratedTask.metrics, 2

    def __init__(self, options: GenerateOptions):
        self.name, self.options = options.task_name, options
        self.fields, self.search = (options.source_field, options.target_field), search_of(vars(options))
        self.facts = GeneratedTask(self.name, self.fields, search=self.search).facts
        self.facts["validation_from"] = self.parts[1]

    @cached_property
    def parts(self) -> tuple[dict[str, Examples], str]:
        """Split -> pairs, and what those of validation are. Raises InputError for unusable data."""
        found = pairs.read(self.options.data, self.fields)
        if os.environ.get("RANK", "0") == "0":
            n = {split: (len(each), len(pairs.references(each))) for split, each in found[0].items()}
            said = ", ".join(
                f"{size:,} pairs of {sources:,} sources for {split}" for split, (size, sources) in n.items()
            )
            print(f"{self.name}: {said} ({found[1]})")
        return found

    def load(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return load_causal_lm(checkpoint)

    def meta(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        """The model on the meta device. Raises InputError if its tokenizer cannot end a text, too."""
        model = meta_causal_lm(checkpoint)
        check(
            {
                f"the tokenizer of {checkpoint} has no eos_token, which ends a text: name one in its config": (
                    load_tokenizer(checkpoint).eos_token_id is None
                )
            }
        )
        return model

    def read(self, split: str, source: str) -> Examples:
        return self.parts[0][split]

    def is_there(self, split: str, source: str) -> bool:
        return split in self.parts[0]

    def encode(
        self, examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int, cache: Path | None = None
    ) -> "PairTokens":
        return encode(examples, tokenizer, max_length)

    def loss(self, model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Sum over the tokens of the targets of a batch. labels: (tokens,)"""
        return likelihood.loss(model, batch, labels)

    def score(
        self, model: nn.Module, tokens: Any, batch_size: int, accelerator: Any
    ) -> tuple[dict[str, float], np.ndarray]:
        """Log-likelihood, perplexity and accuracy of the targets, and if so chosen scores of generated texts.

        Also sums of each example, (examples, 2).
        """
        scores, sums = likelihood.score(model, tokens, batch_size, accelerator)
        if self.options.generate == "epoch":
            texts = tokens.generated(model, self.search, batch_size, accelerator)
            scores |= measure(texts, list(tokens.references.values()))[0]
        return scores, sums

    def floor(self, train: Any, validation: Any) -> dict[str, float]:
        """Guess each token with its frequency in the training targets; always say the most frequent of these."""
        known = torch.tensor(sorted({*train.tokenizer.get_vocab().values()}))
        scores = likelihood.unigram(train.targets, known, validation.targets)
        if self.options.generate == "never":
            return scores
        ((text, _),) = Counter(target for each in train.references.values() for target in each).most_common(1)
        return scores | measure([text] * len(validation.references), list(validation.references.values()))[0]

    def finish(
        self,
        best_model: Callable[[], nn.Module],
        splits: Mapping[str, Any],
        batch_size: int,
        accelerator: Any,
        folder: Path,
    ) -> dict[str, Any]:
        """Generate for the validation set with the model of the best epoch; write the texts into the run's folder."""
        if self.options.generate == "never":
            return {}
        ((split, tokens),) = splits.items()
        texts = tokens.generated(best_model(), self.search, batch_size, accelerator)
        if accelerator.is_main_process:
            write(folder, split, texts, tokens.references)
        scores, signatures = measure(texts, list(tokens.references.values()))
        return {f"dev_{name}": value for name, value in scores.items()} | signatures


def special(tokenizer: Any) -> tuple[int, int]:
    """The ids of the token between source and target, and of the one that ends a text: bos_token and eos_token.

    In GPT-2 they are one. A tokenizer without bos_token has eos_token in both places.
    """
    end = int(tokenizer.eos_token_id)
    return (end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)), end


@dataclass(frozen=True)
class PairTokens(Tokens):
    """Pairs of a source and a target. Labels are the numbers of target tokens, with the end of text, (examples,)."""

    tokenizer: Any
    references: dict[str, list[str]]
    """Source -> its targets."""
    max_length: int

    def n_targets(self, indices: torch.Tensor) -> int:
        return int(self.labels[indices].sum())

    @property
    def targets(self) -> torch.Tensor:
        """The tokens of all targets, (tokens,)."""
        within = torch.arange(len(self.columns["input_ids"])) - self.starts.repeat_interleave(self.lengths)
        first = (self.lengths - self.labels).repeat_interleave(self.lengths)
        return self.columns["input_ids"][within >= first].long()

    def batch(self, indices: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """As of `Tokens`, with `places`: example and position of the token before each target, (targets, 2).

        labels: (targets,). There is no mask, since padding is at the end, where no token of the text sees it.
        """
        inputs, _ = super().batch(indices, torch.device("cpu"))
        n, lengths = self.labels[indices], self.lengths[indices]
        examples = torch.arange(len(indices)).repeat_interleave(n)
        within = torch.arange(len(examples)) - (n.cumsum(0) - n)[examples]
        positions = (lengths - n)[examples] + within
        labels = inputs["input_ids"][examples, positions]
        places = torch.stack((examples, positions - 1), dim=1)
        sent = send({"input_ids": inputs["input_ids"], "places": places, "labels": labels}, device)
        labels = sent.pop("labels")
        return sent, labels

    def generated(self, model: nn.Module, search: Search, batch_size: int, accelerator: Any) -> list[str]:
        """A text for each source, in the order of `references`."""
        settings = self.tokenizer, self.max_length, search, batch_size, accelerator
        return generated(model, list(self.references), *settings)


def _joined(ids: Sequence[int], *more: int) -> torch.Tensor:
    return torch.tensor([*ids, *more])


def encode(examples: Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> PairTokens:
    """Tokenize pairs. Of one that is too long the longer text loses its end; a target that does has no end of text.

    Raises:
        InputError: no token of a text would be left.
    """
    room = max_length - 2
    if room < 2:
        raise InputError(f"max_length is {max_length}: wanted at least 4, for source, target and the tokens after each")
    separator, end = special(tokenizer)
    parts: list[torch.Tensor] = []
    n_targets: list[int] = []
    n_cut = 0
    targets = _ids(tokenizer, [f" {target}" for target in examples.texts[1]])
    for source, target in zip(_ids(tokenizer, examples.texts[0]), targets, strict=True):
        kept = source[: max(room - len(target), room // 2)]
        said = [*target, end][: room - len(kept) + (len(target) <= room - len(kept))]
        n_cut += len(kept) < len(source) or len(said) <= len(target)
        parts.append(_joined(kept, separator, *said))
        n_targets.append(len(said))
    if n_cut and os.environ.get("RANK", "0") == "0":
        print(f"{n_cut:,} of {len(parts):,} pairs have more than {max_length} tokens and are cut")
    return PairTokens(
        {"input_ids": torch.cat(parts).int()},
        torch.tensor([len(part) for part in parts]),
        torch.tensor(n_targets),
        {"input_ids": end},
        None,
        tokenizer,
        pairs.references(examples),
        max_length,
    )


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def generated(
    model: nn.Module,
    sources: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    search: Search,
    batch_size: int,
    accelerator: Any,
    progress: Callable[[int], Any] = lambda n_sources: None,
) -> list[str]:
    """A text for each source."""
    room, (separator, end) = max_length - 2, special(tokenizer)
    longest = max(room - search.max_new_tokens, room // 2)
    prompts = [_joined(source[:longest], separator) for source in _ids(tokenizer, sources)]
    found = generate(model, prompts, search, end, max_length, batch_size, accelerator, progress)
    return [one_line(str(tokenizer.decode(ids, skip_special_tokens=True))) for ids in found]


def write(folder: Path, split: str, texts: Sequence[str], references: Mapping[str, Sequence[str]]) -> list[Path]:
    """Write generated texts, one a line, and their references, between tabs: sacrebleu's command line reads both."""
    contents = {f"generated-{split}.txt": list(texts)}
    if all(references.values()):
        lines = ["\t".join(map(one_line, own)) for own in repeated(list(references.values()))]
        contents[f"references-{split}.tsv"] = lines
    for name, some in contents.items():
        text = "\n".join([*some, ""])
        with locks.lock_file(folder / name):
            files.write_atomically(folder / name, partial(_write_text, text=text))
    return [folder / name for name in contents]


def _write_text(part: Path, text: str) -> None:
    part.write_text(text, encoding="utf-8")
