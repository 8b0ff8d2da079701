"""A saved adapter is complete, holds the trained tensors only, and is loaded unchanged or refused."""

import hashlib
import json
import os
import re
import stat
from importlib.metadata import distributions

import pytest
import torch
from conftest import perturb, random_batch, save_checkpoint
from safetensors.torch import load_file

from common import loading, results, runs, saving
from common.errors import InputError
from common.merging import merge
from common.methods import apply, trainable
from common.runtime import files
from lora.method import Lora


@pytest.fixture
def saved(make_model, tmp_path):
    model = apply(Lora(rank=3, targets=("key", "output")), make_model())
    perturb(trainable(model).values())
    saving.save_adapter(tmp_path, model, Lora(rank=3, targets=("key", "output")), task_name="rte")
    return tmp_path, model


def test_only_trained_tensors_are_stored(saved):
    folder, model = saved
    assert set(load_file(folder / runs.ADAPTER)) == set(trainable(model))
    bytes_of_tensors = sum(4 * parameter.numel() for parameter in trainable(model).values())
    assert (folder / runs.ADAPTER).stat().st_size < bytes_of_tensors + 8192


def test_tuples_are_loaded_as_tuples(saved):
    _, method = loading.load_adapter(saved[0])
    assert method == Lora(rank=3, targets=("key", "output"))
    assert isinstance(method.targets, tuple)


def test_a_loaded_model_is_in_evaluation_mode_without_dropout_and_can_be_merged(make_model, tmp_path):
    method = Lora(dropout=0.5)
    model = apply(method, make_model())
    perturb(trainable(model).values())
    saving.save_adapter(tmp_path, model, method)
    loaded, _ = loading.load_adapter(tmp_path)
    assert not any(module.training for module in loaded.modules())
    batch = random_batch(loaded)
    once = loaded(**batch).logits
    assert torch.equal(loaded(**batch).logits, once)
    merge(loaded)
    torch.testing.assert_close(loaded(**batch).logits, once, atol=1e-5, rtol=1e-5)


def test_provenance_is_stored_with_the_adapter(saved):
    config = json.loads((saved[0] / runs.CONFIG).read_text())
    keys = {"method", "options", "base_checkpoint", "base_sha256", "base_revision", "git_commit", "git_dirty"}
    assert keys | {"torch_version", "transformers_version", "task_name", "environment_sha256"} <= set(config)


def install(site, name, version):
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n\nName: other\n")


def test_the_environment_digest_is_of_every_distribution_and_version():
    lines = set()
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        lines.add(f"{name}=={distribution.metadata['Version']}")
    assert results.environment_digest() == hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def test_the_environment_digest_changes_with_a_version_and_not_with_the_spelling_of_a_name(tmp_path, monkeypatch):
    digests = []
    for site, name, version in (("a", "One_Two", "1"), ("b", "one.two", "1"), ("c", "one-two", "1.1")):
        install(tmp_path / site, name, version)
        (tmp_path / site / "broken-2.dist-info").mkdir()
        monkeypatch.setattr("sys.path", [str(tmp_path / site)])
        digests.append(results.environment_digest())
    assert digests[0] == digests[1] == hashlib.sha256(b"one-two==1").hexdigest()[:16]
    assert digests[2] != digests[0]


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*file: No space left on device"):
        files.write_atomically(path, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_a_file_is_flushed_before_it_gets_its_name_and_its_folder_after_that(tmp_path, monkeypatch):
    """Else a power failure may leave the new name with half of the contents, or no name."""
    events, fsync, rename = [], os.fsync, os.replace

    def kind(handle):
        return "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes"

    monkeypatch.setattr(os, "fsync", lambda handle: events.append(kind(handle)) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("named") or rename(*paths))
    files.write_atomically(tmp_path / "file", lambda part: part.write_text("whole"))
    assert events == ["5 bytes", "named", "folder"]


def test_nan_is_not_written_as_a_result(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "result.json", {"score": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "os"}, "unknown method 'os'"),
        ({"method": "../lora"}, "unknown method"),
        ({"options": {"rank": 3}}, "wanted the options alpha, dropout, layers, rank, rslora, targets"),
        ({"options": None}, "wanted the options"),
        ({"n_outputs": "two"}, "n_outputs is .two., wanted int"),
    ],
)
def test_a_damaged_config_is_refused(saved, change, message):
    path = saved[0] / runs.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        loading.load_adapter(saved[0])


def test_a_config_that_is_not_json_is_refused(saved):
    (saved[0] / runs.CONFIG).write_text("{")
    with pytest.raises(InputError, match=r"adapter.json is damaged"):
        loading.load_adapter(saved[0])


def test_a_model_that_load_model_did_not_make_is_not_saved(make_model, tmp_path):
    model = apply(Lora(), make_model())
    del model.base
    with pytest.raises(InputError, match="load_model"):
        saving.save_adapter(tmp_path, model, Lora())


def test_an_adapter_of_another_base_model_is_refused(saved, tmp_path):
    other = save_checkpoint("bert", tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="trained on another base model"):
        loading.load_adapter(saved[0], str(other))


def test_an_adapter_whose_tensors_do_not_fit_its_config_is_refused(saved):
    path = saved[0] / runs.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"options": config["options"] | {"rank": 2}}))
    with pytest.raises(InputError, match=r"does not fit adapter\.json beside it"):
        loading.load_adapter(saved[0])


@pytest.mark.parametrize("wrong", [{"rank": True}, {"rank": 2.5}, {"alpha": "8"}, {"rslora": 1}, {"targets": "query"}])
def test_an_option_of_another_type_is_refused(saved, wrong):
    path = saved[0] / runs.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"options": config["options"] | wrong}))
    with pytest.raises(InputError, match=next(iter(wrong))):
        loading.load_adapter(saved[0])


def test_a_changed_byte_of_a_file_of_tensors_is_found(tmp_path):
    path = tmp_path / "file.safetensors"
    files.write_tensors(path, {"x": torch.arange(100.0)}, note={"a": [1, None]})
    tensors, notes = files.read_tensors(path)
    assert (tensors["x"].tolist(), notes) == (list(range(100)), {"note": {"a": [1, None]}})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="its SHA-256 is"):
        files.read_tensors(path)


@pytest.mark.parametrize("text", ["[1]", '{"a": NaN}', "{", "null"])
def test_a_file_that_is_not_a_json_object_is_refused(text, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"file\.json is damaged"):
        files.read_json(path)


def test_a_folder_that_links_out_of_its_home_is_refused(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    (home / "run").symlink_to(other)
    files.refuse_links(home, home / "inside")
    with pytest.raises(InputError, match="outside of"):
        files.refuse_links(home, home / "run")


def test_a_repeated_run_replaces_its_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in ({"run": "a", "x": 1}, {"run": "b", "x": 2}, {"run": "a", "x": 3}):
        runs.append_once(path, row)
    assert runs.read_rows(path) == [{"run": "b", "x": 2}, {"run": "a", "x": 3}]


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_files_have_the_mode_that_the_umask_gives(umask, tmp_path):
    before = os.umask(umask)
    try:
        files.write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)})
        files.write_json(tmp_path / "object", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}
