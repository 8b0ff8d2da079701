"""LN tuning trains the LayerNorms, all of them and nothing else, as peft does."""

import pytest
from conftest import bert_base

from common.methods import apply, count_without_head, trainable
from lntuning.method import LnTuning


def test_bert_base_gets_the_expected_number_of_trained_parameters():
    assert count_without_head(apply(LnTuning(), bert_base())) == 38_400


def test_the_trained_parameters_are_those_of_peft(make_model):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(make_model(), peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]))
    ours = {name for name in trainable(apply(LnTuning(), make_model())) if "LayerNorm" in name}
    trained = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad and "LayerNorm" in name}
    assert {name.replace("base_model.model.", "").replace(".ln_tuning_layers.default", "") for name in trained} == ours
    assert len(ours) == 2 * (2 * 2 + 1)
