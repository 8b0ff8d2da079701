"""Baselines train the parameters that they are named after, in the numbers of the README's table."""

import pytest
import torch
from conftest import bert_base, random_batch

from baseline.method import Baseline
from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.methods import apply, count, count_without_head, trainable


@pytest.mark.parametrize(
    ("top_k", "wanted"), [(None, 109_482_240), (0, 0), (1, 7_678_464), (4, 28_942_080), (12, 85_645_056)]
)
def test_bert_base_gets_the_expected_number_of_trained_parameters(top_k, wanted):
    model = apply(Baseline(top_k), bert_base())
    assert count_without_head(model) == wanted
    assert count(trainable(model)) == wanted + 1_538


def test_top_k_trains_the_layers_next_to_the_head(make_model):
    model = apply(Baseline(top_k=1), make_model())
    frozen, trained = ([p.requires_grad for p in layer.parameters()] for layer in layers(model))
    assert not any(frozen)
    assert all(trained)


def test_no_gradient_is_computed_below_the_lowest_trained_layer(make_model):
    model = apply(Baseline(top_k=1), make_model()).train()
    needs_gradient = []
    for layer in layers(model):
        layer.register_forward_hook(lambda _module, _args, output: needs_gradient.append(output.requires_grad))
    model(**random_batch(model))
    assert needs_gradient == [False, True]


def test_more_layers_than_the_encoder_has_are_refused(make_model):
    with pytest.raises(DoesNotFit, match="2 layers"):
        apply(Baseline(top_k=3), make_model())
    with pytest.raises(InputError, match="top_k is -1"):
        Baseline(top_k=-1)


def test_lora_and_top_k_train_the_same_parameters_in_either_order(make_model):
    from lora.method import Lora

    sets = []
    for order in ((Lora(), Baseline(top_k=1)), (Baseline(top_k=1), Lora())):
        model = make_model()
        model.requires_grad_(False)
        torch.manual_seed(0)
        for method in order:
            method.inject(model)
        sets.append(set(trainable(model)))
    assert sets[0] == sets[1]
    assert any("lora.A" in name for name in sets[0])
