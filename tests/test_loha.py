"""LoHa computes what the paper says and what peft computes, in both of its forms."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_equals_peft, bert_base, perturbed
from test_lora import ALL, PEFT_NAMES

from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.methods import apply, count_without_head
from loha.method import Hadamard, Loha, _Product


@pytest.mark.parametrize("rank", [2, 6])  # through inner size r^2, and through the product of the matrices
@pytest.mark.parametrize("targets", [("query", "value"), ALL])
def test_equals_peft_with_copied_weights(targets, rank, make_model):
    peft = pytest.importorskip("peft")
    names = "|".join(PEFT_NAMES[target] for target in targets)
    config = peft.LoHaConfig(r=rank, alpha=5, target_modules=rf".*\.({names})", task_type="SEQ_CLS")
    method, theirs = Loha(rank=rank, alpha=5, targets=targets), peft.get_peft_model(make_model(), config)
    assert_equals_peft(method, apply(method, make_model()), theirs)


def test_bert_base_gets_the_expected_number_of_trained_parameters():
    assert count_without_head(apply(Loha(), bert_base())) == 589_824
    assert count_without_head(apply(Loha(rank=4), bert_base())) == 294_912


@pytest.mark.parametrize("rank", [2, 6])
def test_the_update_is_the_scaled_hadamard_product_of_two_products(rank, make_model):
    model = perturbed(Loha(rank=rank, alpha=10), make_model())
    host, x = layers(model)[0].attention.self.query, torch.randn(3, 32)
    loha = host.loha
    assert loha.factored == (rank == 2)
    weight = host.weight + 10 / rank * (loha.A1 @ loha.B1) * (loha.A2 @ loha.B2)
    torch.testing.assert_close(host(x), F.linear(x, weight, host.bias), atol=1e-5, rtol=1e-5)


def test_the_update_can_have_a_rank_of_the_square_of_r():
    torch.manual_seed(0)
    a1, b1, a2, b2 = (torch.randn(shape, dtype=torch.float64) for shape in ((20, 3), (3, 20)) * 2)
    assert torch.linalg.matrix_rank((a1 @ b1) * (a2 @ b2)) == 9


def test_the_backward_pass_of_the_product_is_its_derivative_and_keeps_no_matrix():
    torch.manual_seed(0)
    factors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 2), (2, 7), (5, 2), (2, 7))]
    assert torch.autograd.gradcheck(_Product.apply, factors)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        _Product.apply(*factors)
    assert (5, 7) not in kept


def test_all_factors_but_one_start_as_weights_of_linear_layers():
    torch.manual_seed(0)
    update = Hadamard(torch.nn.Linear(400, 300), rank=50, alpha=1.0)
    assert not update.B2.any()
    for factor in (update.A1, update.B1, update.A2):
        bound = factor.shape[1] ** -0.5  # of Kaiming with a = sqrt(5)
        assert 0.99 * bound < factor.abs().max().item() <= bound


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Loha(**wrong)


def test_a_rank_above_the_width_of_the_layer_is_refused(make_model):
    with pytest.raises(DoesNotFit, match="rank 33 is larger than a layer of 32 to 32"):
        apply(Loha(rank=33), make_model())
