"""(IA)3 computes what the paper says, and what peft computes on the same layers."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_equals_peft, bert_base, perturbed

from common.encoders import layers
from common.errors import InputError
from common.methods import apply, count_without_head
from ia3.method import Ia3

FEED_FORWARD = r".*layer\.\d+\.output\.dense"


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_equals_peft_with_copied_weights(kind, make_model):
    """peft needs a pattern for it; AdapterHub has the same three vectors."""
    peft = pytest.importorskip("peft")
    targets = rf".*\.(key|value)|{FEED_FORWARD}"
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=targets, feedforward_modules=FEED_FORWARD)
    assert_equals_peft(Ia3(), apply(Ia3(), make_model(kind)), peft.get_peft_model(make_model(kind), config))


def test_the_default_of_peft_scales_the_input_of_the_attention_output_too(make_model):
    """Its pattern for the feed-forward part, output.dense, matches attention.output.dense."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(make_model(), peft.IA3Config(task_type="SEQ_CLS"))
    method = Ia3(inputs=("output", "attention_output"))
    assert_equals_peft(method, apply(method, make_model()), theirs)


def test_bert_base_gets_the_expected_number_of_trained_parameters():
    assert count_without_head(apply(Ia3(), bert_base())) == 55_296
    assert count_without_head(apply(Ia3(inputs=("output", "attention_output")), bert_base())) == 64_512


def test_outputs_are_multiplied_with_their_bias_and_inputs_before_the_layer(make_model):
    assert layers(perturbed(Ia3(outputs=("intermediate",)), make_model()))[0].intermediate.dense.ia3.l.shape == (64,)
    model = perturbed(Ia3(), make_model())
    layer, x, h = layers(model)[0], torch.randn(3, 32), torch.randn(3, 64)
    key, output = layer.attention.self.key, layer.output.dense
    plain = F.linear(x, key.weight, key.bias)
    torch.testing.assert_close(key(x), key.ia3.l * plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output(h), F.linear(output.ia3.l * h, output.weight, output.bias), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"outputs": (), "inputs": ()}, {"outputs": ("key", "key")}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Ia3(**wrong)
