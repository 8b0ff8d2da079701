"""Branches on linear layers merge into their weights, alone and together, and come out again bit for bit."""

import itertools

import pytest
import torch
from conftest import perturb, random_batch

from adapters.method import Adapters
from baseline.method import Baseline
from common.encoders import layers, linear
from common.errors import InputError
from common.merging import merge, unmerge
from common.methods import apply, trainable
from common.places import Branch
from dora.method import Dora
from hybrid.method import Hybrid
from hybrid.parts import part_of
from ia3.method import Ia3
from loha.method import Loha
from lora.method import Lora

ALL = ("query", "key", "value", "attention_output", "intermediate", "output")
MERGEABLE = {
    "lora": Lora(rank=4, alpha=6, targets=ALL),
    "dora": Dora(rank=4, alpha=6, targets=ALL),
    "loha": Loha(rank=2, alpha=6, targets=ALL),
    "loha_by_product": Loha(rank=6, alpha=3, targets=ALL),
    "ia3": Ia3(outputs=ALL, inputs=ALL),
    "baseline": Baseline(random_params=2_000),
}
PAIRS = [pair for pair in itertools.permutations(MERGEABLE, 2) if "loha" not in pair or "loha_by_product" not in pair]


def changed(method, model):
    apply(method, model).eval()
    perturb(trainable(model).values(), scale=0.02)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "albert", "modernbert"])
@pytest.mark.parametrize("name", MERGEABLE)
def test_a_merged_model_gives_the_same_logits(name, kind, dtype, tolerance, make_model):
    model = changed(MERGEABLE[name], make_model(kind)).to(dtype)
    batch = random_batch(model)
    before = model(**batch).logits
    merge(model)
    torch.testing.assert_close(model(**batch).logits, before, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_methods_on_the_same_layers_merge_together(first, second, make_model):
    model = changed(Hybrid((part_of(MERGEABLE[first]), part_of(MERGEABLE[second]))), make_model()).double()
    batch, before = random_batch(model), {name: value.clone() for name, value in model.state_dict().items()}
    wanted = model(**batch).logits
    merge(model)
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-13, rtol=1e-13)
    unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_twice_is_merging_once_and_unmerging_restores_every_bit(name, make_model):
    model = changed(MERGEABLE[name], make_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge(model)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    merge(model)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, once[name]) for name, value in before.items())
    unmerge(model)
    unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_does_not_change_a_weight_that_another_model_shares(name, make_model):
    model = make_model()
    shared = layers(model)[0].attention.self.query.weight
    values = shared.clone()
    merge(changed(MERGEABLE[name], model))
    assert torch.equal(shared, values)
    assert layers(model)[0].attention.self.query.weight is not shared


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_merged_model_refuses_to_train(name, make_model):
    model = changed(MERGEABLE[name], make_model()).train()
    merge(model)
    with pytest.raises(RuntimeError, match="unmerge"):
        model(**random_batch(model))


def test_a_model_without_anything_to_merge_is_refused(make_model):
    with pytest.raises(InputError, match="nothing to merge"):
        merge(apply(Adapters(), make_model()))


def test_a_layer_with_a_branch_that_cannot_be_merged_is_refused_and_nothing_is_merged(make_model):
    class Other(Branch):
        def forward(self, x, out, host):
            return out * out.mean()

    model = changed(Lora(), make_model())
    linear(layers(model)[1], "value").add(Other())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"layer\.1\.attention\.self\.value cannot be merged"):
        merge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
