"""LN tuning trains the LayerNorms, all of them and nothing else, as peft does."""

import pytest
from conftest import assert_equals_peft, bert_base

from common.methods import apply, count_without_head
from lntuning.method import LnTuning


def test_bert_base_gets_the_expected_number_of_trained_parameters():
    assert count_without_head(apply(LnTuning(), bert_base())) == 38_400


def test_equals_peft_with_copied_weights(make_model):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(make_model(), peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]))
    assert_equals_peft(LnTuning(), apply(LnTuning(), make_model()), theirs)
