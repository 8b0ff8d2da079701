"""DoRA computes what the paper says and what peft computes."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_equals_peft, bert_base, perturbed
from test_lora import ALL, PEFT_NAMES

from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.methods import apply, count_without_head
from dora.method import Dora


@pytest.mark.parametrize("targets", [("query", "value"), ALL])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_equals_peft_with_copied_weights(kind, targets, make_model):
    """Logits, loss and every gradient, so that peft's norm is detached too; alpha is not the rank."""
    peft = pytest.importorskip("peft")
    names = "|".join(PEFT_NAMES[target] for target in targets)
    config = peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=rf".*\.({names})", task_type="SEQ_CLS")
    method, theirs = Dora(rank=4, alpha=6, targets=targets), peft.get_peft_model(make_model(kind), config)
    assert_equals_peft(method, apply(method, make_model(kind)), theirs)


def test_bert_base_gets_the_expected_number_of_trained_parameters():
    assert count_without_head(apply(Dora(), bert_base())) == 313_344


def test_the_weight_has_the_trained_magnitudes_and_the_direction_of_w_plus_the_update(make_model):
    model = perturbed(Dora(rank=4, alpha=10), make_model())
    host, x = layers(model)[0].attention.self.query, torch.randn(3, 32)
    directed = host.weight + 10 / 4 * host.dora.B @ host.dora.A
    weight = host.dora.m[:, None] * directed / directed.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight.norm(dim=1), host.dora.m.abs(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(host(x), F.linear(x, weight, host.bias), atol=1e-5, rtol=1e-5)


def test_no_gradient_flows_through_the_norm(make_model):
    """With the norm as a constant n, the gradient of sum(y) with respect to B is s (m / n) (sum of x) A^T."""
    model = perturbed(Dora(rank=4, alpha=10), make_model()).double()
    host, x = layers(model)[0].attention.self.query, torch.randn(3, 32, dtype=torch.float64)
    host(x).sum().backward()
    a, b, m = (getattr(host.dora, name).detach() for name in "ABm")
    n = (host.weight + 2.5 * b @ a).norm(dim=1)
    wanted = 2.5 * (m / n)[:, None] * (a @ x.sum(0))
    torch.testing.assert_close(host.dora.B.grad, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Dora(**wrong)


def test_a_rank_above_the_width_of_the_layer_is_refused(make_model):
    with pytest.raises(DoesNotFit, match="rank 33 is larger than a layer of 32 to 32"):
        apply(Dora(rank=33), make_model())
