"""The modules that methods work on are found in every kind of encoder."""

import pytest
import torch
from conftest import HIDDEN, INTERMEDIATE, KINDS, LAYERS, perturb, random_batch, save_checkpoint

from common import methods
from common.checkpoints import load_model, load_tokenizer
from common.encoders import head_parameters, layers, linear, longest_input, pooler
from common.methods import apply, find, trainable


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_is_found_in_every_kind_of_encoder(kind, make_model):
    sizes = {}
    for layer in layers(make_model(kind)):
        for name in ("query", "key", "value", "attention_output", "intermediate", "output"):
            host = linear(layer, name).host
            sizes[name] = tuple(host.weight.shape)
            assert sizes[name] == (host.out_features, host.in_features)
    square = (HIDDEN, HIDDEN)
    wanted = dict.fromkeys(("query", "key", "value", "attention_output"), square)
    inner = INTERMEDIATE * (2 if kind == "modernbert" else 1)  # it has a gate too
    assert sizes == wanted | {"intermediate": (inner, HIDDEN), "output": (HIDDEN, INTERMEDIATE)}
    assert len(layers(make_model(kind))) == (1 if kind == "albert" else LAYERS)  # one layer that runs twice


def test_the_head_is_all_that_is_outside_the_encoder(make_model):
    heads = {kind: {name.partition(".")[0] for name in head_parameters(make_model(kind))} for kind in KINDS}
    assert heads.pop("distilbert") == {"pre_classifier", "classifier"}
    assert heads.pop("deberta-v2") == {"pooler", "classifier"}
    assert heads.pop("modernbert") == {"head", "classifier"}
    assert set(map(frozenset, heads.values())) == {frozenset({"classifier"})}


def test_only_bert_and_albert_have_a_pooler(make_model):
    assert [kind for kind in KINDS if pooler(make_model(kind)) is not None] == ["bert", "albert"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_input_is_the_number_of_positions_and_fits(kind, make_model, checkpoints):
    model, tokenizer = make_model(kind), load_tokenizer(checkpoints[kind])
    limit = longest_input(model, tokenizer)
    # RoBERTa's positions start after its padding index, here 0, and MPNet's after 1.
    assert limit == {"roberta": 63, "mpnet": 62}.get(kind, 64)
    model(**random_batch(model, length=limit))


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
@pytest.mark.parametrize("method", methods.names())
def test_xlm_roberta_and_camembert_work_with_every_method(kind, method, tmp_path):
    model = load_model(str(save_checkpoint(kind, tmp_path)), 2).eval()
    batch = random_batch(model)
    before = model(**batch).logits
    model = apply(find(method)(), model).eval()
    perturb(trainable(model).values())
    after = model(**batch).logits
    assert after.isfinite().all()
    assert not torch.allclose(before, after)
