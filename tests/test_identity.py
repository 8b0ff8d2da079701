"""What makes a run the same run: its options, and the data and the encoder that it read."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import save_checkpoint

from common import runs
from common.errors import InputError, Pruned
from common.options import PredictOptions, TuneOptions
from common.results import find_run
from common.runs import run_folder
from common.training import train
from hybrid.method import Hybrid
from lora.method import Lora

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(options, tmp_path):
    """Options of a run on files and an encoder that a test can change under their names."""
    for split in ("train", "dev"):
        lines = [f"{n}\ta man in {split} {n}\ta dog\t{'not_' * (n % 2)}entailment" for n in range(16)]
        path = tmp_path / "data" / "RTE" / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    encoder = save_checkpoint("bert", tmp_path / "encoder")
    return options(task_name="rte", data=str(tmp_path / "data"), checkpoint=str(encoder))


def change_data(settings):
    path = Path(settings.data) / "RTE" / "dev.tsv"
    path.write_text(path.read_text().replace("a dog", "no dog", 1))


def change_weights(settings):
    save_checkpoint("bert", Path(settings.checkpoint), seed=1)


def change_vocabulary(settings):
    for path in Path(settings.checkpoint).glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("entail", "entali") + "\n")


@pytest.mark.parametrize(
    ("change", "what"), [(change_data, "data"), (change_weights, "encoder"), (change_vocabulary, "encoder")]
)
def test_a_finished_run_is_not_shown_for_other_data_or_another_encoder(settings, change, what):
    folder, result = train(Lora(rank=2), settings)
    change(settings)
    with pytest.raises(InputError, match=f"and {what} .* changed since: repeat it with --overwrite"):
        train(Lora(rank=2), settings)
    assert json.loads((folder / runs.RESULT).read_text()) == result


def test_an_unfinished_run_is_not_resumed_with_other_data(settings):
    with pytest.raises(Pruned):
        train(Lora(rank=2), dataclasses.replace(settings, n_epochs=2), after_epoch=lambda *_: True)
    change_data(settings)
    with pytest.raises(InputError, match="belongs to another run: data_sha256 was"):
        train(Lora(rank=2), dataclasses.replace(settings, n_epochs=2))


def test_a_run_that_is_only_shown_again_says_when_it_was_finished(settings, capsys):
    folder, result = train(Lora(rank=2), settings)
    assert "finished on" not in capsys.readouterr().out
    assert train(Lora(rank=2), settings) == (folder, result)
    assert f"{folder}: finished on {result['finished_at']}; --overwrite repeats it\n" in capsys.readouterr().out


def test_a_run_of_before_is_shown_though_nothing_says_what_it_read(settings, capsys):
    folder, result = train(Lora(rank=2), settings)
    unknown = {"data_sha256", "checkpoint_digest", "finished_at"}
    (folder / runs.RESULT).write_text(json.dumps({k: v for k, v in result.items() if k not in unknown}))
    capsys.readouterr()
    assert unknown.isdisjoint(train(Lora(rank=2), settings)[1])
    assert "finished on 20" in capsys.readouterr().out


def test_a_run_whose_adapter_is_gone_is_trained_again(settings):
    folder, _ = train(Lora(rank=2), settings)
    (folder / runs.ADAPTER).unlink()
    with pytest.raises(InputError, match="no finished lora run"):
        find_run("lora", PredictOptions(task_name="rte", output_dir=settings.output_dir))
    train(Lora(rank=2), settings)
    assert (folder / runs.ADAPTER).is_file()


def test_a_folder_is_named_after_what_is_not_at_its_default(settings):
    usual = TuneOptions(lr=Lora.default_lr, checkpoint=settings.checkpoint, output_dir=settings.output_dir)

    def words(method, **changes):
        return run_folder(method, dataclasses.replace(usual, **changes)).name.rpartition("-")[0]

    assert words(Lora()) == "encoder-seed42"
    assert words(Lora(alpha=8)) == "encoder-seed42"
    assert words(Lora(rank=4), lr=0.001, seed=1) == "encoder-rank4-lr0.001-seed1"
    assert words(Hybrid(("lora", "bitfit")), lr=Hybrid.default_lr) == "encoder-seed42"
    assert run_folder(Lora(dropout=0.5), usual) != run_folder(Lora(), usual)


def test_a_run_in_a_folder_with_an_earlier_name_is_found(settings):
    folder, result = train(Lora(rank=2), settings)
    words = "encoder-rank2-alpha8-dropout0-lr0.01-n_epochs1-seed42-"
    earlier = folder.rename(folder.with_name(words + folder.name.rpartition("-")[2]))
    assert train(Lora(rank=2), settings) == (earlier, result)
    assert not folder.exists()
    assert run_folder(Lora(rank=3), settings).name.startswith("encoder-rank3-")
