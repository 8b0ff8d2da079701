"""The likelihood of tokens: loss and scores of language models, whose targets are some tokens of each text."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.evaluation import collect
from common.tokens import Tokens


def loss(model: nn.Module, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Sum over the targets of a batch. labels: (targets,), the tokens at the `places` of the batch"""
    return F.cross_entropy(model(**batch).logits[0].float(), labels, reduction="sum")


def score(model: nn.Module, tokens: Tokens, batch_size: int, accelerator: Any) -> tuple[dict[str, float], np.ndarray]:
    """Log-likelihood, perplexity and accuracy of the targets; and sums of each example, (examples, 2)."""
    sums = collect(model, tokens, batch_size, accelerator, 2, _sums)
    log_likelihood, right = sums.sum(axis=0, dtype=np.float64) / int(tokens.n_targets(torch.arange(len(tokens))))
    return _scores(log_likelihood, right), sums


def unigram(seen: torch.Tensor, possible: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """The scores of guessing each target with its frequency among the tokens seen, plus one, as probability.

    seen: (tokens,); possible: (n,), ids in order, no others are guessed; targets: (targets,)
    """
    n = int(possible.max()) + 1
    counts = torch.bincount(seen, minlength=n)[possible].double() + 1
    probabilities = torch.zeros(n, dtype=torch.float64)
    probabilities[possible] = counts / counts.sum()
    likely = probabilities.argmax()
    return _scores(float(probabilities[targets].log().mean()), float((targets == likely).double().mean()))


def _scores(log_likelihood: float, accuracy: float) -> dict[str, float]:
    """The scores by name. The perplexity of a model that has diverged is finite too."""
    perplexity = math.exp(min(-log_likelihood, 700))
    return {"log_likelihood": float(log_likelihood), "perplexity": perplexity, "accuracy": float(accuracy)}


def _sums(logits: torch.Tensor, batch: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Log-likelihood and right answers of the targets of each example. logits: (1, targets, vocabulary)"""
    values = torch.stack((-F.cross_entropy(logits[0], labels, reduction="none"), logits[0].argmax(1) == labels), dim=1)
    examples = batch["places"][:, 0]
    return values.new_zeros(int(examples[-1]) + 1, 2).index_add(0, examples, values)
