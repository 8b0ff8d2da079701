"""Baselines train the parameters that they are named after, in the numbers of the README's table."""

import pytest
import torch
import torch.nn.functional as F
from conftest import bert_base, perturbed, random_batch

from baseline.method import Baseline, SparseUpdate
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


def test_random_entries_are_added_to_weights_and_biases_of_linear_layers(make_model):
    """As y = (W + D) x + b + e, where D and e are 0 but for the trained entries."""
    model = perturbed(Baseline(random_params=3000), make_model())
    assert count_without_head(model) == 3000
    updates = [
        (host, child) for host in model.modules() for child in host.children() if isinstance(child, SparseUpdate)
    ]
    assert len(updates) == 12  # of all linear layers of both layers
    in_biases = 0
    for host, update in updates:
        change = torch.zeros(host.weight.numel() + host.bias.numel())
        for place, delta in zip(update.places.tolist(), update.delta.tolist(), strict=True):
            change[place] += delta
        assert len(set(update.places.tolist())) == len(update.delta)
        weight, bias = change[: host.weight.numel()].view_as(host.weight), change[host.weight.numel() :]
        in_biases += int((bias != 0).sum())
        x = torch.randn(3, host.in_features)
        torch.testing.assert_close(host(x), F.linear(x, host.weight + weight, host.bias + bias), atol=1e-5, rtol=1e-5)
    n_biases, n_all = 2 * (5 * 32 + 64), 2 * (4 * 32 * 33 + 32 * 64 + 64 + 64 * 32 + 32)
    assert in_biases == pytest.approx(3000 * n_biases / n_all, rel=0.4)


def test_random_entries_depend_on_their_seed_only_and_start_at_the_pretrained_output(make_model):
    def chosen(seed):
        model = apply(Baseline(random_params=300, random_seed=seed), make_model())
        return {name: tensor.tolist() for name, tensor in model.named_buffers() if name.endswith("places")}

    assert chosen(0) == chosen(0) != chosen(1)
    model, batch = make_model(), random_batch(make_model())
    before = model(**batch).logits
    assert torch.equal(apply(Baseline(random_params=300), model)(**batch).logits, before)
    with pytest.raises(DoesNotFit, match="random_params is 10,000,000"):
        apply(Baseline(random_params=10**7), make_model())
