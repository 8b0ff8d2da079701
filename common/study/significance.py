"""Statistical significance: confidence intervals, paired tests and correction for multiple comparisons."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from common.errors import InputError

EXACT = 16
"""Number of pairs up to which all 2^n sign flips are tested."""
N_RANDOM = 100_000
"""Number of random sign flips for more pairs."""


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """mean -+ t s / sqrt(n), with t of n - 1 degrees of freedom and s with divisor n - 1 (Student, 1908).

    Raises:
        InputError: fewer than two values.
    """
    import scipy.stats

    if len(values) < 2:
        raise InputError(f"{len(values)} values have no confidence interval: wanted at least two")
    mean, error = float(np.mean(values)), float(scipy.stats.sem(values))
    if error == 0:  # scipy returns NaN
        return mean, mean
    low, high = scipy.stats.t.interval(level, len(values) - 1, mean, error)
    return float(low), float(high)


def permutation_test(a: Sequence[float], b: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a paired permutation test (Fisher, 1935).

    p is the share of sign flips s with |sum s_i d_i| >= |sum d_i|, where d = a - b. It is exact up to 16 pairs, and at
    least 2 / 2^n. For more pairs it is (1 + hits) / (1 + 10^5) over random flips, which is never 0 (Phipson and Smyth,
    2010).

    Raises:
        InputError: a and b differ in length, or are empty.
    """
    differences = np.asarray(a, float) - _paired(a, b)
    n = len(differences)
    if n <= EXACT:
        flips = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        flips = np.random.default_rng(seed).integers(0, 2, (N_RANDOM, n), dtype=np.int8)
    sums = (1 - 2 * flips) @ differences
    # Rounding makes equal sums differ in their last bits.
    hits = int(np.sum(np.abs(sums) >= abs(differences.sum()) - 1e-9 * np.abs(differences).sum()))
    return hits / 2**n if n <= EXACT else (1 + hits) / (1 + N_RANDOM)


def mcnemar(a_correct: Sequence[bool] | np.ndarray, b_correct: Sequence[bool] | np.ndarray) -> float:
    """Two-sided exact p of McNemar (1947): of the n examples that one side alone has right, a has Binomial(n, 1/2).

    Raises:
        InputError: a and b differ in length, or are empty.
    """
    import scipy.stats

    a, b = np.asarray(a_correct, bool), _paired(a_correct, b_correct).astype(bool)
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_bootstrap(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    references: Sequence[float] | np.ndarray,
    metric: Callable[[np.ndarray, np.ndarray], float],
    n: int = 10_000,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Two-sided p and 95 % percentile interval of D = metric(a) - metric(b) over resampled examples.

    With several runs on a side, such as seeds, the metric is their mean: examples are resampled, runs are not.
    p = (1 + #{|D* - D| >= |D|}) / (1 + n): the resampled differences D*, shifted to mean 0, against the observed D
    (Efron and Tibshirani, 1993, chapter 16; for predictions, Koehn, 2004, and Berg-Kirkpatrick et al., 2012).

    Args:
        a: predictions of a method, (examples,) or (runs, examples).
        b: those of another one for the same examples.
        references: (examples,).
        metric: function of predictions and references, as in common/metrics.py.

    Raises:
        InputError: a, b and references differ in length, or have fewer than two examples.
    """
    import scipy.stats

    wanted = np.asarray(references)
    sides = [np.atleast_2d(side) for side in (a, b)]  # (runs, examples)
    for runs in sides:
        _paired(wanted, runs[0])
    if len(wanted) < 2:
        raise InputError("1 example cannot be resampled: wanted at least two")

    def difference(index: np.ndarray) -> float:
        means = [np.mean([metric(run[index], wanted[index]) for run in runs]) for runs in sides]
        return float(means[0] - means[1])

    index = np.arange(len(wanted))
    result = scipy.stats.bootstrap((index,), difference, n_resamples=n, vectorized=False, method="percentile", rng=seed)
    observed = difference(index)
    hits = int(np.sum(np.abs(result.bootstrap_distribution - observed) >= abs(observed) - 1e-12))
    return (1 + hits) / (1 + n), (float(result.confidence_interval.low), float(result.confidence_interval.high))


def interval_over_examples(
    answers: np.ndarray, references: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float], n: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of metric(answers, references) over resampled examples (Efron and Tibshirani, 1993).

    Args:
        answers: (examples,)
        references: (examples,)
    """
    generator = np.random.default_rng(0)
    samples = (generator.integers(0, len(references), len(references)) for _ in range(n))
    low, high = np.percentile([metric(answers[index], references[index]) for index in samples], (2.5, 97.5))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the given order: max over j <= rank of (m - j + 1) p_(j), at most 1 (Holm, 1979)."""
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    """Check that a and b make pairs, and return b as an array."""
    if len(a) != len(b) or len(a) == 0:
        raise InputError(f"{len(a)} and {len(b)} values make no pairs: wanted equally many, and at least one")
    return np.asarray(b)
