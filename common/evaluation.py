"""Outputs and scores of a model, for training and for prediction."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from common.encoders import n_outputs
from common.errors import Diverged
from common.metrics import mean_score
from common.runtime.shards import reshard
from common.task_data import Task
from common.tokens import Tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

COLLAPSED = "collapsed"
"""Name of a score: 1 if the model gives the same answer for all examples of the validation set, which is useless."""


def evaluate(
    task: Task, model: nn.Module, splits: dict[str, Tokens], batch_size: int, accelerator: "Accelerator"
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores by name, and outputs by split, (examples, outputs).

    Names of scores have a suffix from the second split on; `score` is the mean of the first split's metrics.

    Raises:
        Diverged: an output or a score is not finite.
    """
    scores, outputs = dict[str, float](), dict[str, np.ndarray]()
    for split, tokens in splits.items():
        values, outputs[split] = task.score(model, tokens, batch_size, accelerator)
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value}")
        suffix = "_" + split.removeprefix("validation_") if scores else ""
        scores |= {name + suffix: value for name, value in values.items() if not suffix or name != COLLAPSED}
    return scores | {"score": mean_score(scores[name] for name in task.metrics)}, outputs


def predict_logits(
    model: nn.Module,
    tokens: Tokens,
    batch_size: int,
    accelerator: "Accelerator",
    progress: Callable[[int], Any] = lambda n_examples: None,
) -> np.ndarray:
    """The model's logits for all examples: (examples, outputs), see `collect`.

    Those of an example of several sequences follow each other in its row.
    """
    n = tokens.n_sequences * n_outputs(model)
    return collect(model, tokens, batch_size, accelerator, n, lambda logits, _batch, _labels: logits, progress)


@torch.no_grad()
def collect(
    model: nn.Module,
    tokens: Tokens,
    batch_size: int,
    accelerator: "Accelerator",
    n_values: int,
    values_of: Callable[[torch.Tensor, dict[str, Any], torch.Tensor], torch.Tensor],
    progress: Callable[[int], Any] = lambda n_examples: None,
) -> np.ndarray:
    """Some values of each example, in the order of the examples and on every process: (examples, n_values).

    The split into batches does not depend on the number of processes, so that the outputs do not either. Each example
    is computed on one process and is 0 on the others, so that a sum collects all of them.

    Args:
        model: without the wrapper for several processes, whose forward pass would wait for all of them.
        n_values: values of an example.
        values_of: logits, batch and labels, as from `Tokens.batch` -> the values of its examples.
        progress: called with the number of examples done in each round of batches.
    """
    model.eval()
    found = torch.zeros(len(tokens), n_values, device=accelerator.device)
    longest = tokens.lengths.view(len(tokens), -1).amax(1)
    batches = longest.argsort(stable=True).split(batch_size)  # sorted by length, to need little padding
    for first in range(0, len(batches), accelerator.num_processes):
        per_process = batches[first : first + accelerator.num_processes]
        # A process without a batch repeats the last one: a sharded model needs all processes in a forward pass.
        indices = per_process[min(accelerator.process_index, len(per_process) - 1)]
        batch, labels = tokens.batch(indices, accelerator.device)
        values = values_of(model(**batch).logits.float(), batch, labels).view(len(indices), -1)
        if accelerator.process_index < len(per_process):
            found[indices.to(found.device)] = values
        progress(sum(map(len, per_process)))
    reshard(model)
    return accelerator.reduce(found, reduction="sum").cpu().numpy()
