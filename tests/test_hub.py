"""Without a network the caches are used at once; a hub that gives any answer counts as reached."""

import http.server
import os
import shutil
import subprocess
import sys
import threading

import huggingface_hub
import pytest
from conftest import REPOSITORY

from common.checkpoints import load_model
from common.errors import InputError
from common.runtime.hub import go_offline_if_unreachable

pytestmark = pytest.mark.slow


@pytest.fixture
def online(monkeypatch):
    """Switch off the offline mode of the tests, for one test."""
    import datasets

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server():
    """A local server that answers every request with 404."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_hub_that_answers_404_counts_as_reached(online, server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server)
    assert go_offline_if_unreachable()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_without_an_answer_of_the_hub_offline_mode_is_switched_on(online, monkeypatch):
    import datasets

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not go_offline_if_unreachable()
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            [],
            "error: cannot load mrpc/train of nyu-mll/glue (the hub cannot be reached and the data is not cached)",
            marks=pytest.mark.long,
        ),
        (["--data", "demo"], "error: cannot load the checkpoint 'bert-base-uncased'"),
    ],
)
def test_an_empty_cache_without_a_network_is_reported_in_one_line_within_seconds(arguments, message, tmp_path):
    """As for a user: in a new process that is not in offline mode."""
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "lora.tune", *arguments],
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | unreachable,
        cwd=REPOSITORY, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_cached_hub_checkpoint_needs_no_network(bert, tmp_path):
    """The cache has the layout of the hub's library, with a revision that the run has to record."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "home" / "hub" / "models--someone--tiny"
    shutil.copytree(bert, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    arguments = ["--checkpoint", "someone/tiny", "--data", "demo", "--max_train_samples", "16", "--n_epochs", "1"]
    arguments += ["--max_eval_samples", "8", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "lora.tune", *arguments],
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (config,) = (tmp_path / "out").rglob("adapter.json")
    assert f'"base_revision": "{revision}"' in config.read_text()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            "bin",
            "pytorch_model.bin, tokenizer.json, tokenizer_config.json, vocab.txt: its weights are pytorch_model.bin,",
        ),
        ("none", "vocab.txt: it has no weights: wanted model.safetensors"),
    ],
)
def test_a_cached_checkpoint_that_cannot_be_used_is_told_by_what_was_found(change, found, bert, tmp_path, monkeypatch):
    repository = tmp_path / "models--someone--tiny"
    home = repository / "snapshots" / ("0" * 40)
    shutil.copytree(bert, home)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (home / "model.safetensors").unlink()
    if change == "bin":
        (home / "pytorch_model.bin").write_bytes(b"a pickle")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as refused:
        load_model("someone/tiny", 2)
    assert str(refused.value).startswith("cannot load someone/tiny, of which the cache has config.json, ")
    assert found in str(refused.value)


@pytest.mark.long
def test_a_run_with_local_files_needs_no_home_and_no_cache(bert, tmp_path):
    """Both are below a file, where nobody can write, not even root."""
    nowhere = {"HF_HOME": "/dev/null/hf", "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    small = ["--checkpoint", bert, "--data", "demo", "--max_train_samples", "16", "--max_eval_samples", "8"]
    small += ["--n_epochs", "1", "--output_dir", str(tmp_path), "--task_name", "sst2"]
    for words in (["lora.tune", *small], ["lora.test", "--task_name", "sst2", "--output_dir", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env=os.environ | nowhere, cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
