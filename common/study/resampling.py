"""The metrics of common/metrics.py on many resamples of the examples at once."""

from collections.abc import Callable

import numpy as np

Counts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each resample and class, (resamples, classes): right answers, answers, labels."""


def resampled(name: str, answers: np.ndarray, labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """A metric on each resample, (resamples,).

    Args:
        name: of the metric; roc_auc, which is not of answers, is not there.
        answers: (examples,), class indices or scores.
        labels: (examples,)
        index: the examples of each resample, (resamples, examples).
    """
    if name in OF_SCORES:
        parts = np.array_split(index, max(1, index.size // 1_000_000))  # which bounds the memory
        return np.concatenate([OF_SCORES[name](answers[part], labels[part]) for part in parts])
    return OF_CLASSES[name](_counts(answers, labels, index))


def _counts(answers: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Counts:
    classes = range(int(max(answers.max(), labels.max(), 1)) + 1)
    sides = [[(side == k)[index].sum(1) for k in classes] for side in (answers, labels)]
    right = [((answers == k) & (labels == k))[index].sum(1) for k in classes]
    tp, answered, wanted = (np.stack(each, 1).astype(float) for each in (right, *sides))
    return tp, answered, wanted


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _f1(counts: Counts) -> np.ndarray:
    """Of each class, (resamples, classes)."""
    tp, answered, wanted = counts
    return _ratio(2 * tp, answered + wanted)


def _f1_macro(counts: Counts) -> np.ndarray:
    _, answered, wanted = counts
    return _f1(counts).sum(1) / (answered + wanted > 0).sum(1)


def _matthews(counts: Counts) -> np.ndarray:
    """R_K of Gorodkin (2004), which is Matthews' coefficient for two classes."""
    tp, answered, wanted = counts
    n = wanted.sum(1)
    above = tp.sum(1) * n - (answered * wanted).sum(1)
    return _ratio(above, np.sqrt((n**2 - (answered**2).sum(1)) * (n**2 - (wanted**2).sum(1))))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (side - side.mean(1, keepdims=True) for side in (x.astype(float), y.astype(float)))
    return _ratio((x * y).sum(1), np.sqrt((x**2).sum(1) * (y**2).sum(1)))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import scipy.stats

    return _pearson(scipy.stats.rankdata(x, axis=1), scipy.stats.rankdata(y, axis=1))


OF_CLASSES: dict[str, Callable[[Counts], np.ndarray]] = {
    "accuracy": lambda counts: counts[0].sum(1) / counts[2].sum(1),
    "f1": lambda counts: _f1(counts)[:, 1],
    "f1_macro": _f1_macro,
    "matthews_correlation": _matthews,
}
OF_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"pearson": _pearson, "spearmanr": _spearman}
