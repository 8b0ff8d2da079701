"""The metrics against values computed by hand."""

import math
import warnings

import numpy as np
import pytest

from common import metrics
from common.metrics import mean_score
from common.tasks import TASKS, find


def compute(name, predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return metrics.load(find(name)).compute(predictions=np.array(predictions), references=np.array(references))


def test_matthews_correlation_is_that_computed_by_hand():
    # TP 3, TN 2, FP 1, FN 2: (3*2 - 1*2) / sqrt(4 * 5 * 3 * 4)
    found = compute("cola", [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 1])
    assert found == {"matthews_correlation": pytest.approx(4 / math.sqrt(240))}


def test_accuracy_and_f1_are_those_computed_by_hand():
    # precision 2/3, recall 2/4
    found = compute("mrpc", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0])
    assert found == {"accuracy": pytest.approx(0.5), "f1": pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))}


def test_macro_f1_is_the_mean_of_the_f1_of_the_classes():
    # F1 of class 0: 2 * (2/3) * (2/3) / (4/3), of class 1: 0 of 1 is right, of class 2: precision 1/2, recall 1
    found = compute("cb", [0, 0, 0, 2, 2], [0, 0, 1, 0, 2])
    assert found == {"accuracy": pytest.approx(3 / 5), "f1_macro": pytest.approx((2 / 3 + 0 + 2 / 3) / 3)}


def test_further_metrics_are_computed_too():
    # F1 of class 1: precision 2/3, recall 1; of class 0: precision 1, recall 1/2
    found = compute("boolq", [1, 1, 1, 0], [1, 1, 0, 0])
    assert found["f1"] == pytest.approx(0.8)
    assert found["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["accuracy"] == 0.75


def test_roc_auc_is_the_share_of_pairs_in_the_right_order_and_half_for_one_class():
    # of the pairs (1 and 0): .9 > .1, .9 > .6, .4 > .1, but .4 < .6; a tie counts half
    assert metrics.roc_auc(np.array([0.9, 0.1, 0.4, 0.6]), np.array([1, 0, 1, 0])) == pytest.approx(3 / 4)
    assert metrics.roc_auc(np.array([0.5, 0.5]), np.array([1, 0])) == 0.5
    assert metrics.roc_auc(np.array([0.9, 0.1]), np.array([1, 1])) == 0.5


def test_correlations_are_those_computed_by_hand():
    # deviations (-1.5, -.5, .5, 1.5) and (-1, 0, -1, 2) times 1: 4 / sqrt(5 * 6); ranks of the second (1.5, 3, 1.5, 4)
    found = compute("stsb", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 1.0, 4.0])
    assert found["pearson"] == pytest.approx(4 / math.sqrt(30))
    assert found["spearmanr"] == pytest.approx(3 / math.sqrt(5 * 4.5))


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.targets.has_classes])
def test_predicting_one_class_has_defined_scores_and_gives_no_warning(name):
    found = compute(name, [0, 0, 0, 0], [0, 1, 0, 1])
    assert set(found) == set(find(name).reported)
    assert found.get("accuracy", 0.5) == 0.5
    assert found.get("matthews_correlation", 0.0) == 0.0
    assert found.get("f1", 0.0) == 0.0


def test_one_class_in_predictions_and_references_has_defined_scores():
    assert compute("cola", [1, 1], [1, 1]) == {"matthews_correlation": 0.0}
    assert compute("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}


@pytest.mark.parametrize("constant", [0.0, 2.7, 1e6])
def test_constant_values_have_a_correlation_of_0(constant):
    assert compute("stsb", [constant] * 3, [1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert compute("stsb", [1.0, 2.0, 3.0], [constant] * 3) == {"pearson": 0.0, "spearmanr": 0.0}


def test_the_score_of_a_task_is_the_mean_of_its_metrics():
    assert mean_score([0.8, 0.9]) == pytest.approx(0.85)


def test_the_majority_class_is_that_of_the_training_set():
    assert find("mrpc").targets.floor([1, 1, 0], 4).tolist() == [1, 1, 1, 1]
    assert find("stsb").targets.floor([1.0, 2.0], 2).tolist() == [1.5, 1.5]


def test_predictions_are_classes_or_scores():
    assert find("rte").targets.answers(np.array([[0.1, 0.2], [3.0, -1.0]])).tolist() == [1, 0]
    assert find("stsb").targets.answers(np.array([[2.5], [7.0]])).tolist() == [2.5, 7.0]
    assert [find("rte").targets.format(answer) for answer in (0, 1)] == ["entailment", "not_entailment"]
    assert [find("wnli").targets.parse(text) for text in ("1", "0", "entailment")] == [1, 0, None]
