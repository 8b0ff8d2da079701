"""Intervals and tests equal those of scipy and those computed by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from common import metrics
from common.errors import InputError
from common.study import significance

PAIRS = [
    ([0.82, 0.81, 0.85], [0.80, 0.79, 0.81]),
    ([0.82, 0.81, 0.85, 0.80], [0.80, 0.83, 0.85, 0.79]),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5], [2.0, 1.0, 3.5, 3.0, 4.0, 6.0, 9.0]),
    (np.random.default_rng(1).normal(0.5, 1, 12), np.random.default_rng(2).normal(0, 1, 12)),
]


@pytest.mark.parametrize("values", [[0.8, 0.9], [0.80, 0.82, 0.85], list(np.random.default_rng(0).normal(size=20))])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_students_t_interval(values, level):
    wanted = scipy.stats.t.interval(level, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert significance.confidence_interval(values, level) == pytest.approx(wanted)
    assert significance.confidence_interval(values, level) == pytest.approx(
        tuple(scipy.stats.ttest_1samp(values, 0).confidence_interval(level))
    )


def test_the_interval_of_three_values_is_that_computed_by_hand():
    # mean 2, s = 1, t(0.975, 2) = 4.3027 in every table
    low, high = significance.confidence_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_equal_values_have_an_interval_of_width_0_and_one_value_has_none():
    assert significance.confidence_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(InputError, match="wanted at least two"):
        significance.confidence_interval([0.5])


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_exact_permutation_test_equals_that_of_scipy(a, b):
    wanted = scipy.stats.permutation_test(
        (np.asarray(a), np.asarray(b)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert significance.permutation_test(a, b) == pytest.approx(wanted.pvalue)


def test_the_permutation_test_is_that_computed_by_hand():
    assert significance.permutation_test([3, 3, 3], [1, 2, 1]) == 2 / 8  # all of one sign: +++ and --- only
    # d = 1, 2, -3: a sum of 0, which every flip reaches
    assert significance.permutation_test([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]) == 1.0
    assert (
        significance.permutation_test([5, 1, 1], [1, 0, 2]) == 6 / 8
    )  # d = 4, 1, -1: 6, 4, 4 and 2 by flips, and 4 found


def test_equal_sides_or_a_single_pair_have_a_p_value_of_1():
    assert significance.permutation_test([0.1, 0.7], [0.1, 0.7]) == 1.0
    assert significance.permutation_test([0.9], [0.1]) == 1.0


def test_the_random_p_value_of_many_pairs_is_close_to_the_exact_one_and_repeatable():
    draw = np.random.default_rng(5)
    a, b = draw.normal(0.35, 1, 17), draw.normal(0, 1, 17)
    signs = np.array(list(itertools.product((-1, 1), repeat=17)))
    exact = np.mean(np.abs(signs @ (a - b)) >= abs(np.sum(a - b)) - 1e-9)
    found = significance.permutation_test(a, b, seed=3)
    assert found == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 100_000) ** 0.5)
    assert found == significance.permutation_test(a, b, seed=3) != significance.permutation_test(a, b, seed=4)


def test_the_random_p_value_is_never_0():
    assert significance.permutation_test([1.0] * 40, [0.0] * 40) == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 0), (8, 2), (2, 8), (30, 15), (5, 5)])
def test_mcnemar_is_the_binomial_test_of_the_examples_that_differ(only_a, only_b):
    a = [True] * 20 + [True] * only_a + [False] * only_b + [False] * 7
    b = [True] * 20 + [False] * only_a + [True] * only_b + [False] * 7
    wanted = scipy.stats.binomtest(only_b, only_a + only_b, 0.5).pvalue
    assert significance.mcnemar(a, b) == pytest.approx(wanted)


def test_mcnemar_is_that_computed_by_hand():
    # 5 against 0: 2 / 2^5
    assert significance.mcnemar([1] * 5 + [0], [0] * 5 + [0]) == pytest.approx(2 / 32)
    assert significance.mcnemar([1, 0, 1], [1, 0, 1]) == 1.0


def predictions(share, seed, references):
    wrong = np.random.default_rng(seed).random(len(references)) > share
    return np.where(wrong, 1 - references, references)


def test_the_bootstrap_of_accuracy_is_near_the_normal_interval_and_the_z_test():
    references = np.random.default_rng(0).integers(0, 2, 500)
    a, b = predictions(0.85, 1, references), predictions(0.80, 2, references)
    p, (low, high) = significance.paired_bootstrap(a, b, references, metrics.accuracy, n=1000)
    gains = (a == references).astype(float) - (b == references)
    error = scipy.stats.sem(gains)
    assert (low, high) == pytest.approx((gains.mean() - 1.96 * error, gains.mean() + 1.96 * error), abs=0.006)
    assert p == pytest.approx(2 * scipy.stats.norm.sf(abs(gains.mean()) / error), abs=0.04)


def test_the_bootstrap_takes_metrics_that_are_not_means():
    references = np.random.default_rng(0).integers(0, 2, 200)
    good, poor = predictions(0.9, 1, references), predictions(0.6, 2, references)
    for metric in (metrics.f1, metrics.matthews_correlation):
        p, (low, high) = significance.paired_bootstrap(good, poor, references, metric, n=300)
        assert p == pytest.approx(1 / 301)
        assert 0 < low < metric(good, references) - metric(poor, references) < high


def test_the_bootstrap_of_several_runs_is_that_of_their_mean():
    references = np.random.default_rng(0).integers(0, 2, 100)
    a, b, c = (predictions(share, seed, references) for seed, share in enumerate((0.9, 0.8, 0.7), start=1))
    one = significance.paired_bootstrap(a, b, references, metrics.accuracy, n=200)
    assert one == significance.paired_bootstrap([a, a], [b, b, b], references, metrics.accuracy, n=200)

    def right(answers, references):  # the answers are already shares of runs that are right
        return float(np.mean(answers))

    counts = (a == references).astype(float) + (c == references)
    p, interval = significance.paired_bootstrap(counts / 2, b == references, references, right, n=200)
    found = significance.paired_bootstrap([a, c], b, references, metrics.accuracy, n=200)
    assert found[0] == p
    assert found[1] == pytest.approx(interval)


def test_the_bootstrap_resamples_whole_pairs_and_depends_on_its_seed():
    references = np.linspace(0, 5, 50)
    a = references + np.random.default_rng(1).normal(size=50)
    b = references + np.random.default_rng(2).normal(size=50)
    assert significance.paired_bootstrap(a, a, references, metrics.pearson, n=100) == (1.0, (0.0, 0.0))
    first = significance.paired_bootstrap(a, b, references, metrics.spearmanr, n=100, seed=1)
    assert first == significance.paired_bootstrap(a, b, references, metrics.spearmanr, n=100, seed=1)
    assert first != significance.paired_bootstrap(a, b, references, metrics.spearmanr, n=100, seed=2)


def test_holms_correction_is_that_computed_by_hand():
    # in order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be below what came before
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.6, 0.7]) == [1.0, 1.0]
    assert significance.holm([0.2]) == [0.2]
    assert significance.holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    for seed in range(50):
        p_values = np.random.default_rng(seed).random(6) ** 3
        rejected, ranks = set(), np.argsort(p_values)
        for number, place in enumerate(ranks):
            if p_values[place] > 0.05 / (6 - number):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(significance.holm(list(p_values))) if p <= 0.05} == rejected


@pytest.mark.parametrize("test", [significance.permutation_test, significance.mcnemar])
def test_values_that_make_no_pairs_are_refused(test):
    for sides in (([1, 0], [1]), ([], [])):
        with pytest.raises(InputError, match="make no pairs"):
            test(*sides)
    with pytest.raises(InputError, match="make no pairs"):
        significance.paired_bootstrap([1, 0], [1, 0], [1], metrics.accuracy)
    with pytest.raises(InputError, match="resampled"):
        significance.paired_bootstrap([1], [1], [1], metrics.accuracy)
