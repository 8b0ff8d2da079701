"""Each bad input ends in one clear line and exit code 2, before anything is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, exits_with_one_line, save_checkpoint

from common.prediction import predict
from common.training import train, tune
from lora.method import Lora


def fails(capfd, *arguments):
    return exits_with_one_line(capfd, *arguments, program=lambda: tune(Lora))


@pytest.fixture
def small(bert, tmp_path):
    """Arguments of a run that would be fine."""
    return ["--checkpoint", bert, "--data", "demo", "--output_dir", str(tmp_path / "out")]


def rte(folder: Path, text: str) -> str:
    (folder / "RTE").mkdir()
    (folder / "RTE" / "train.tsv").write_text(text)
    return str(folder)


def test_unknown_task(capfd, small):
    line = fails(capfd, *small, "--task_name", "glue")
    assert "invalid choice 'glue' for argument '--task_name'" in line
    assert "'mrpc'" in line


def test_unknown_option(capfd, small):
    line = fails(capfd, *small, "--rnak", "8")
    assert "--rnak" in line
    assert "--rank" in line


def test_a_word_where_a_number_is_wanted(capfd, small):
    assert "--rank: invalid literal for int() with base 10: 'many'" in fails(capfd, *small, "--rank", "many")


def test_missing_folder(capfd, small, tmp_path):
    line = fails(capfd, *small, "--data", str(tmp_path / "nowhere"))
    assert f"data folder {tmp_path / 'nowhere'} not found" in line


def test_a_broken_row(capfd, small, tmp_path):
    folder = rte(tmp_path, "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tonly this\n")
    line = fails(capfd, *small, "--data", folder, "--task_name", "rte")
    assert "RTE/train.tsv, line 3: 2 tab-separated fields, wanted 4 as in the header" in line


def test_an_empty_train_file(capfd, small, tmp_path):
    line = fails(capfd, *small, "--data", rte(tmp_path, ""), "--task_name", "rte")
    assert "RTE/train.tsv is empty: wanted a header line" in line


def test_unknown_checkpoint_without_a_network(capfd, small):
    line = fails(capfd, *small, "--checkpoint", "nobody/no-such-encoder")
    assert "'nobody/no-such-encoder'" in line
    assert all(way in line for way in ("HF_HOME", "local folder", "minilm"))


def test_missing_checkpoint_folder(capfd, small):
    assert "checkpoint folder nowhere/at/all not found" in fails(capfd, *small, "--checkpoint", "./nowhere/at/all")


def test_rank_0(capfd, small):
    assert "rank is 0: choose at least 1" in fails(capfd, *small, "--rank", "0")


def test_rank_larger_than_the_layer(capfd, small):
    assert "rank 64 is larger than a layer of 32 to 32 features" in fails(capfd, *small, "--rank", "64")


def test_negative_learning_rate(capfd, small):
    assert "lr is -0.1: choose a number above 0" in fails(capfd, *small, "--lr", "-0.1")


def test_all_wrong_numbers_are_named_at_once(capfd, small):
    line = fails(capfd, *small, "--lr", "nan", "--batch_size", "0", "--warmup_ratio", "2")
    assert all(text in line for text in ("lr is nan", "batch_size is 0", "warmup_ratio is 2.0"))


def test_a_tracker_that_is_not_installed(capfd, small):
    line = fails(capfd, *small, "--report_to", "nonesuch")
    assert "report_to names 'nonesuch': installed are" in line
    assert "tensorboard" in line


def test_more_tokens_than_the_encoder_takes(capfd, small):
    assert "max_length is 65, but" in fails(capfd, *small, "--max_length", "65")


def test_an_output_folder_that_cannot_be_made(capfd, small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = fails(capfd, *small, "--max_train_samples", "8", "--output_dir", str(tmp_path / "file" / "out"))
    assert "cannot write" in line


def test_nothing_is_written_by_a_run_that_cannot_start(capfd, small, tmp_path):
    fails(capfd, *small, "--rank", "64")
    assert not list((tmp_path / "out").rglob("*"))


@pytest.fixture
def run(options):
    folder, _ = train(Lora(rank=2), options())
    return folder


def refuses(capfd, *arguments):
    return exits_with_one_line(capfd, *arguments, program=lambda: predict(Lora))


def test_a_corrupt_adapter(capfd, run):
    path = run / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "adapter.safetensors is missing or damaged" in refuses(capfd, "--run", str(run))


def test_an_adapter_that_does_not_fit_its_options(capfd, run):
    config = json.loads((run / "adapter.json").read_text())
    config["options"]["rank"] = 3
    (run / "adapter.json").write_text(json.dumps(config))
    assert "does not fit adapter.json beside it" in refuses(capfd, "--run", str(run))


def test_an_adapter_for_another_base(capfd, run, tmp_path):
    other = save_checkpoint("bert", tmp_path / "other", seed=1)
    line = refuses(capfd, "--run", str(run), "--checkpoint", str(other))
    assert "was trained on another base model" in line


def test_an_adapter_of_another_method(capfd, run):
    config = json.loads((run / "adapter.json").read_text())
    config["method"] = "baseline"
    (run / "adapter.json").write_text(json.dumps(config))
    assert "holds an adapter of baseline: use baseline.test" in refuses(capfd, "--run", str(run))


def test_a_run_of_another_task(capfd, run):
    line = refuses(capfd, "--run", str(run), "--task_name", "rte")
    assert "was trained on sst2: it cannot answer rte" in line


def test_neither_task_nor_run(capfd):
    assert "give --task_name, or --run FOLDER" in refuses(capfd)


def test_no_run_yet(capfd, tmp_path):
    line = refuses(capfd, "--task_name", "cola", "--output_dir", str(tmp_path))
    assert "no finished lora run for cola" in line


def test_debug_shows_the_traceback(small, monkeypatch):
    from common.errors import InputError

    monkeypatch.setattr(sys, "argv", ["lora.tune", *small, "--rank", "64", "--debug"])
    with pytest.raises(InputError):
        tune(Lora)


def test_the_same_from_a_shell(small):
    done = subprocess.run(
        [sys.executable, "-m", "lora.tune", *small, "--data", "/no/such/folder"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: data folder /no/such/folder not found")
    assert done.stderr.count("\n") == 1
