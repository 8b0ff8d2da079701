"""Generate a target text from a source, such as a sentence from a table, or one in another language.

With a causal language model an example is the tokens of the source, a separator, those of the target and the end of
text, as in Li and Liang (2021) and Hu et al. (2021); with an encoder-decoder, the encoder reads the source. The loss is
that of the target and its end.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common import likelihood, pairs
from common.checkpoints import decoder_start, load_generator, load_tokenizer, meta_generator
from common.data import Examples
from common.errors import check
from common.options import GenerateOptions, Pooling
from common.own_task import GeneratedTask, search_of
from common.pair_tokens import Form, PairTokens, encode
from common.runtime import files, locks
from common.text_metrics import bert_scorer, measure, one_line, repeated

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
        self.facts = GeneratedTask(self.name, self.fields, search=self.search, prefix=options.source_prefix).facts
        self.facts["validation_from"] = self.parts[1]

    @cached_property
    def parts(self) -> tuple[dict[str, Examples], str]:
        """Split -> pairs, and what those of validation are. Raises InputError for unusable data."""
        if self.options.bertscore is not None and self.options.generate != "never":
            bert_scorer(self.options.bertscore)  # whether it is there; not kept in memory
        found = pairs.read(self.options.data, self.fields, self.name)
        if os.environ.get("RANK", "0") == "0":
            n = {split: (len(each), len(pairs.references(each))) for split, each in found[0].items()}
            said = ", ".join(
                f"{size:,} pairs of {sources:,} sources for {split}" for split, (size, sources) in n.items()
            )
            print(f"{self.name}: {said} ({found[1]})")
        return found

    def load(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return load_generator(checkpoint)

    def meta(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        """The model on the meta device. Raises InputError if its tokenizer cannot end a text, too."""
        model = meta_generator(checkpoint)
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
    ) -> PairTokens:
        form = Form(tokenizer, max_length, self.options.source_prefix)
        return encode(examples, form, decoder_start(self.options.checkpoint))

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
            scores |= self.measure(texts, tokens)[0]
        return scores, sums

    def floor(self, train: Any, validation: Any) -> dict[str, float]:
        """Guess each token with its frequency in the training targets; always say the most frequent of these."""
        known = torch.tensor(sorted({*train.form.tokenizer.get_vocab().values()}))
        scores = likelihood.unigram(train.targets, known, validation.targets)
        if self.options.generate == "never":
            return scores
        ((text, _),) = Counter(target for each in train.references.values() for target in each).most_common(1)
        return scores | self.measure([text] * len(validation.references), validation)[0]

    def measure(self, texts: Sequence[str], tokens: Any) -> tuple[dict[str, float], dict[str, str]]:
        """Scores of generated texts by name, and signatures. tokens: of their sources, with the references."""
        return measure(texts, list(tokens.references.values()), self.options.bertscore)

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
        scores, signatures = self.measure(texts, tokens)
        return {f"dev_{name}": value for name, value in scores.items()} | signatures


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
