"""The official metrics of GLUE and SuperGLUE, computed locally, since evaluate.load would download code at run time."""

import tempfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from common.tasks import GlueTask

if TYPE_CHECKING:
    import evaluate


def mean_score(values: Iterable[float]) -> float:
    """The score of a run: the mean of its task's metrics, as in the GLUE average."""
    scores = list(values)
    return sum(scores) / len(scores)


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Fraction of correct predictions."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1; 0 if class 1 is neither predicted nor in the references."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, zero_division=0))


def f1_macro(predictions: np.ndarray, references: np.ndarray) -> float:
    """Unweighted mean of the F1 of each class that is predicted or in the references, as on the hub for CB."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0))


def roc_auc(margins: np.ndarray, references: np.ndarray) -> float:
    """Area under the ROC curve of class 1 against class 0; 0.5 if the references have only one class.

    margins: the logit of class 1 minus that of class 0, (examples,), or constant answers.
    """
    from sklearn.metrics import roc_auc_score

    return 0.5 if _constant(references) else float(roc_auc_score(references, margins))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation coefficient; 0 if predictions or references have only one class."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions, references):  # sklearn gives 0 too, but warns if both have one class
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation; 0 if predictions or references are constant (undefined, and scipy would warn)."""
    from scipy.stats import pearsonr

    return 0.0 if _constant(predictions, references) else float(pearsonr(predictions, references).statistic)


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman's rank correlation; 0 if predictions or references are constant."""
    import scipy.stats

    if _constant(predictions, references):
        return 0.0
    return float(scipy.stats.spearmanr(predictions, references).statistic)


def _constant(*arrays: np.ndarray) -> bool:
    return any(np.ptp(array) <= 1e-12 * max(1.0, float(np.max(np.abs(array)))) for array in arrays)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    metric.__name__: metric for metric in (accuracy, f1, f1_macro, matthews_correlation, roc_auc, pearson, spearmanr)
}
NAMES = tuple(METRICS)
OF_SCORES = ("pearson", "spearmanr")
"""The metrics of a regression; the others are of classes."""
OF_TWO = ("f1", "roc_auc")
"""The metrics of two classes, of which the second is the positive one."""


def measure(task: GlueTask, logits: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The metrics of a task, by name. logits: (examples, outputs). Raises Diverged if they are not finite."""
    answers = task.targets.answers(logits)
    margins = logits[:, -1] - logits[:, 0]
    return {name: METRICS[name](margins if name == "roc_auc" else answers, references) for name in task.reported}


def load(task: GlueTask) -> "evaluate.Metric":
    """The metrics of a task as one evaluate.Metric. compute() returns name -> value, from 0 or -1 to 1."""
    import datasets
    import evaluate

    dtype = task.targets.dtype

    class Glue(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features({"predictions": datasets.Value(dtype), "references": datasets.Value(dtype)})
            return evaluate.MetricInfo(
                description=f"{task.benchmark.name} metrics of {task.name}",
                citation="Wang et al. (2019). GLUE: A multi-task benchmark and analysis platform",
                inputs_description="predictions and references: class indices, or scores of a regression",
                features=features,
                format="numpy",
            )

        def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
            return {name: METRICS[name](predictions, references) for name in task.reported}

    # evaluate makes a folder in its cache, which may be read-only, and writes nothing there.
    with tempfile.TemporaryDirectory() as folder:
        return Glue(keep_in_memory=True, cache_dir=folder)
