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


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    tokens: Tokens,
    batch_size: int,
    accelerator: "Accelerator",
    progress: Callable[[int], Any] = lambda n_examples: None,
) -> np.ndarray:
    """The model's outputs for all examples, in their order and on every process: (examples, outputs).

    The outputs of an example of several sequences follow each other in its row.

    The split into batches does not depend on the number of processes, so that the outputs do not either. Each example
    is computed on one process and is 0 on the others, so that a sum collects all of them.

    Args:
        model: without the wrapper for several processes, whose forward pass would wait for all of them.
        progress: called with the number of examples done in each round of batches.
    """
    model.eval()
    logits = torch.zeros(len(tokens), tokens.n_sequences * n_outputs(model), device=accelerator.device)
    longest = tokens.lengths.view(len(tokens), -1).amax(1)
    batches = longest.argsort(stable=True).split(batch_size)  # sorted by length, to need little padding
    for first in range(0, len(batches), accelerator.num_processes):
        per_process = batches[first : first + accelerator.num_processes]
        # A process without a batch repeats the last one: a sharded model needs all processes in a forward pass.
        indices = per_process[min(accelerator.process_index, len(per_process) - 1)]
        batch, _ = tokens.batch(indices, accelerator.device)
        outputs = model(**batch).logits.float().view(len(indices), -1)
        if accelerator.process_index < len(per_process):
            logits[indices.to(logits.device)] = outputs
        progress(sum(map(len, per_process)))
    reshard(model)
    return accelerator.reduce(logits, reduction="sum").cpu().numpy()
