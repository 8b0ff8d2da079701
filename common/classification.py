"""The tasks for the training loop: classify or score a text or a pair of texts, or choose one of several texts."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common import data, metrics, own_data, tasks
from common.checkpoints import load_model, meta_model
from common.evaluation import COLLAPSED, predict_logits
from common.options import Pooling, TuneOptions
from common.tokens import Tokens, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find(name: str) -> "TextClassification":
    """The task with this name. Raises InputError for an unknown name."""
    return by_description(tasks.find(name))


def by_description(task: tasks.GlueTask) -> "TextClassification":
    """The task for an entry of the table of tasks, or for one's own."""
    return MultipleChoice(task) if task.questions else TextClassification(task)


def of(options: TuneOptions) -> "TextClassification":
    """The task of a run: the one with its name or, for one's own data, the one that they make; they are read now."""
    return find(options.task_name) if options.label_field is None else OwnClassification(own_data.load(options))


class TextClassification:
    """A `task_data.Task` for a task with one sequence an example."""

    def __init__(self, glue: tasks.GlueTask):
        self.glue, self.name, self.metrics, self.validations = glue, glue.name, glue.metrics, glue.validations
        self.n_texts = glue.n_texts
        self.facts: dict[str, Any] = {}

    def load(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return load_model(checkpoint, self.glue.n_outputs, pooling)

    def meta(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return meta_model(checkpoint, self.glue.n_outputs, pooling)

    def read(self, split: str, source: str) -> data.Examples:
        return data.read(self.glue, split, source)

    def is_there(self, split: str, source: str) -> bool:
        return data.is_there(self.glue, split, source)

    def encode(
        self, examples: data.Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int, cache: Path | None = None
    ) -> Tokens:
        return tokenize(examples, tokenizer, max_length, cache)

    def loss(self, model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Sum over the examples of a batch; each example is one target."""
        return self.glue.targets.losses(model(**batch).logits, labels).sum()

    def score(
        self, model: nn.Module, tokens: Tokens, batch_size: int, accelerator: Any
    ) -> tuple[dict[str, float], np.ndarray]:
        """The official metrics, and whether all answers are the same; and the logits, (examples, outputs)."""
        logits = predict_logits(model, tokens, batch_size, accelerator)
        answers = self.glue.targets.answers(logits)
        values = self.measure(logits, tokens.labels.numpy())
        return values | {COLLAPSED: float(np.ptp(answers) < 1e-3)}, logits  # the range of equal scores is not exactly 0

    def measure(self, logits: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The metrics by name. logits: (examples, outputs), references: (examples,)"""
        return self.metric.compute(predictions=self.glue.targets.answers(logits), references=references)

    def floor(self, train: Tokens, validation: Tokens) -> dict[str, float]:
        """The metrics of always answering the majority class, or the mean score."""
        constant = self.glue.targets.floor(train.labels.tolist(), len(validation))
        return self.metric.compute(predictions=constant, references=validation.labels.numpy())

    def finish(self, best_model: Any, splits: Any, batch_size: int, accelerator: Any, folder: Path) -> dict[str, Any]:
        """Everything is known after each epoch."""
        return {}

    @cached_property
    def metric(self) -> Any:
        return metrics.load(self.glue)


class MultipleChoice(TextClassification):
    """A `task_data.Task` whose examples are a sequence for each choice: the premise with the question, and the choice.

    The head has one output, a score of the choice; softmax over the choices of an example gives the probabilities of
    the answers, as in BertForMultipleChoice of transformers.
    """

    def encode(
        self, examples: data.Examples, tokenizer: "PreTrainedTokenizerBase", max_length: int, cache: Path | None = None
    ) -> Tokens:
        premises, questions, *choices = examples.texts
        asked = [f"{text} {self.glue.questions[word]}" for text, word in zip(premises, questions, strict=True)]
        firsts = [text for text in asked for _ in choices]
        seconds = [choice for each in zip(*choices, strict=True) for choice in each]
        tokens = tokenize(data.Examples((firsts, seconds), None), tokenizer, max_length, cache)
        labels = torch.tensor(examples.labels or [])
        return replace(tokens, lengths=tokens.lengths.view(-1, len(choices)), labels=labels)

    def loss(self, model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
        """Sum over the examples of a batch, each with the logits of its choices; each example is one target."""
        return self.glue.targets.losses(model(**batch).logits.view(len(labels), -1), labels).sum()


class OwnClassification(TextClassification):
    """A `task_data.Task` for one's own data, which have been read."""

    def __init__(self, own: own_data.OwnData):
        super().__init__(own.task)
        self.own, self.facts = own, own.task.facts | {"validation_from": own.validation_from}

    def read(self, split: str, source: str) -> data.Examples:
        return self.own.splits[split]

    def is_there(self, split: str, source: str) -> bool:
        return split in self.own.splits

    def measure(self, logits: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return metrics.measure(self.glue, logits, references)
