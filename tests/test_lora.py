"""LoRA computes what the paper says and what peft computes."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_equals_peft, bert_base, perturb, perturbed, random_batch

from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.merging import merge, unmerge
from common.methods import apply, count, count_without_head, trainable
from common.places import Place
from lora.method import Lora, LowRank

ALL = ("query", "key", "value", "attention_output", "intermediate", "output")
PEFT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": r"layer\.\d+\.output.dense",
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [("query", "value"), ALL])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_equals_peft_with_copied_weights(kind, targets, rslora, make_model):
    """Logits, loss and every gradient, to 1e-6 in float32."""
    peft = pytest.importorskip("peft")
    method = Lora(rank=4, alpha=6, targets=targets, rslora=rslora)
    names = "|".join(PEFT_NAMES[target] for target in targets)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=rf".*\.({names})", use_rslora=rslora, task_type="SEQ_CLS"
    )
    theirs = peft.get_peft_model(make_model(kind), config)
    assert_equals_peft(method, apply(method, make_model(kind)), theirs)


def with_branch(linear, update):
    Place(linear).add(update)
    return linear


def test_two_updates_of_one_layer_are_merged_and_unmerged(make_model):
    model = make_model().eval()
    for _ in range(2):
        apply(Lora(rank=2), model).eval()
    perturb([p for n, p in model.named_parameters() if ".lora" in n])
    batch, before = random_batch(model), {name: value.clone() for name, value in model.state_dict().items()}
    wanted = model(**batch).logits
    merge(model)
    torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-6, rtol=1e-6)
    unmerge(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_base_weights_are_not_copied(make_model):
    model = make_model()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    apply(Lora(targets=ALL), model)
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert all(after[name] == pointer for name, pointer in before.items())


def test_scaling_is_alpha_over_rank_or_with_rslora_over_its_root(make_model):
    for rslora, scaling in ((False, 32 / 16), (True, 32 / 4)):
        model = perturbed(Lora(rank=16, alpha=32, rslora=rslora), make_model())
        host, x = layers(model)[0].attention.self.query, torch.randn(3, 32)
        plain = F.linear(x, host.weight, host.bias)
        torch.testing.assert_close(host(x), plain + scaling * x @ host.lora.A.T @ host.lora.B.T, atol=1e-5, rtol=1e-5)


def test_a_starts_as_the_weight_of_a_linear_layer_and_b_at_0():
    """nn.Linear samples its weight uniformly between -1 / sqrt(in) and 1 / sqrt(in)."""
    torch.manual_seed(0)
    update = LowRank(torch.nn.Linear(400, 300), rank=50, scaling=1.0, dropout=0.0)
    assert 0.999 / 20 < update.A.abs().max().item() <= 1 / 20
    assert update.A.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert not update.B.any()


def test_dropout_acts_on_the_update_only(make_model):
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8)
    update = LowRank(linear, rank=2, scaling=1.0, dropout=0.9).train()
    x, plain = torch.randn(4, 8), linear(torch.ones(4, 8))
    adapted = with_branch(linear, update)
    assert torch.equal(adapted(torch.ones(4, 8)), plain)  # B is zero, so dropout has no effect
    perturb([update.B])
    assert not torch.equal(adapted(x), adapted(x))


def test_bert_base_gets_the_expected_number_of_trained_parameters():
    """2 L r 2 d without the head, and 769 more for each class."""
    for rank, wanted in ((4, 147_456), (8, 294_912), (16, 589_824)):
        model = apply(Lora(rank=rank), bert_base())
        assert count_without_head(model) == wanted
        assert count(trainable(model)) == wanted + 1_538
    assert count_without_head(apply(Lora(targets=ALL), bert_base())) == 1_327_104


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Lora(**wrong)


def test_a_rank_above_the_width_of_the_layer_is_refused(make_model):
    with pytest.raises(DoesNotFit, match="rank 33 is larger than a layer of 32 to 32"):
        apply(Lora(rank=33), make_model())
