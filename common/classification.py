"""The GLUE tasks for the training loop: classify or score a text or a pair of texts."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common import data, metrics, tasks
from common.checkpoints import load_model, meta_model
from common.evaluation import COLLAPSED, predict_logits
from common.options import Pooling
from common.tokens import Tokens, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find(name: str) -> "TextClassification":
    """The task with this name. Raises InputError for an unknown name."""
    return TextClassification(tasks.find(name))


class TextClassification:
    """A `task_data.Task` for a GLUE task."""

    def __init__(self, glue: tasks.GlueTask):
        self.glue, self.name, self.metrics, self.validations = glue, glue.name, glue.metrics, glue.validations

    def load(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return load_model(checkpoint, self.glue.targets.n_outputs, pooling)

    def meta(self, checkpoint: str, pooling: Pooling | None = None) -> nn.Module:
        return meta_model(checkpoint, self.glue.targets.n_outputs, pooling)

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
        values = self.metric.compute(predictions=answers, references=tokens.labels.numpy())
        return values | {COLLAPSED: float(np.ptp(answers) < 1e-3)}, logits  # the range of equal scores is not exactly 0

    def floor(self, train: Tokens, validation: Tokens) -> dict[str, float]:
        """The metrics of always answering the majority class, or the mean score."""
        constant = self.glue.targets.floor(train.labels.tolist(), len(validation))
        return self.metric.compute(predictions=constant, references=validation.labels.numpy())

    @cached_property
    def metric(self) -> Any:
        return metrics.load(self.glue)
