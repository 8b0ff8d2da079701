"""A run is repeated from its row, and what is equal or differs is said."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, few

from common.errors import InputError
from common.methods import find, names
from common.options import GenerateOptions, MaskedLMOptions, TuneOptions, parse
from common.runs import ADAPTER, RESULT, append_once
from common.runtime.files import read_tensors, read_yaml, write_tensors, write_yaml
from common.study import recipes
from common.training import train
from lora.method import Lora
from scripts import replay

LAUNCHED = {"n_processes": 1, "mixed_precision": "no"}


def replayed(monkeypatch, *words: object) -> int:
    """The exit code of scripts.replay."""
    monkeypatch.setattr(sys, "argv", ["replay", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        replay.main()
    return stop.value.code


@pytest.mark.slow
def test_a_run_replayed_gives_the_same_bits_and_a_changed_row_is_seen(options, monkeypatch, capsys, tmp_path):
    folder, result = train(Lora(rank=2, dropout=0.1), options(n_epochs=2))
    here = ("--output_dir", tmp_path / "again")
    assert replayed(monkeypatch, folder, *here) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"equal: {folder.name} ({tmp_path}/again/lora/")
    assert replayed(monkeypatch, folder, *here) == 0  # it is trained again

    rows = tmp_path / "rows.jsonl"
    history = [{**epoch, "accuracy": epoch["accuracy"] + 1e-9} for epoch in result["history"]]
    append_once(rows, result | {"history": history, "torch_version": "1.0", "train_seconds": 1.0, "run": "other"})
    append_once(rows, result)
    assert replayed(monkeypatch, rows, "--run", "other", *here) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" was ")[0] for line in lines if "differs" in line] == ["differs: history"]
    assert "not the same either: torch_version was 1.0, is " in "\n".join(lines)
    with pytest.raises(InputError, match=r"rows.jsonl has 2 rows, and run is None: choose one with --run, such as oth"):
        replay.find_row(rows, None)

    tensors, notes = read_tensors(folder / ADAPTER)
    write_tensors(folder / ADAPTER, tensors | {name: tensors[name] + 1e-6 for name in [min(tensors)]}, **notes)
    assert replayed(monkeypatch, folder, *here) == 1
    assert "differs: trained values was those of the run, is others" in capsys.readouterr().out


@pytest.mark.parametrize("name", few(names()))
def test_the_configuration_of_a_row_is_that_of_its_run(name):
    method = find(name)()
    for options in (
        TuneOptions(task_name="rte", lr=1e-3, betas=(0.5, 0.9)),
        MaskedLMOptions(lr=2e-3, mask_share=0.3),
        GenerateOptions(lr=2e-3, num_beams=2, source_field="in"),
    ):
        row = json.loads(json.dumps({"method": name, "run": "x", **vars(options), **method.options()}))
        assert recipes.configuration(row) == (method, options)
        kind = type(options)
        found, read = parse(
            f"{name}.{kind.command}",
            recipes.command(row).split()[3:],
            options=kind(lr=method.default_lr),
            method=find(name)(),
        )
        assert (read, found) == (method, options)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_of_masked_language_modelling_is_replayed_too(bert, monkeypatch, tmp_path):
    small = {"checkpoint": bert, "n_epochs": 1, "max_length": 16, "line_by_line": True, "lr": 1e-2}
    options = MaskedLMOptions(**small, output_dir=str(tmp_path), report_to=("none",))
    folder, _ = train(Lora(rank=2), options)
    assert replayed(monkeypatch, folder, "--output_dir", tmp_path / "again") == 0
    assert list((tmp_path / "again" / "lora" / "english").glob(f"*/{RESULT}"))


def test_a_recipe_is_a_file_for_tune_and_numbers_stay_numbers(monkeypatch, capsys, tmp_path):
    options = TuneOptions(task_name="rte", lr=1e-3, eps=1e-30, on="no", data="demo")
    row = {"method": "lora", "run": "x", **vars(options), **Lora(alpha=4.0, targets=("key",)).options()}
    write_yaml(tmp_path / "recipe.yaml", {"method": "lora", **recipes.recipe(row)})
    (options_found, method) = parse(
        "lora.tune", ["--config", str(tmp_path / "recipe.yaml")], options=TuneOptions(lr=5e-4), method=Lora()
    )
    assert (method, options_found) == (Lora(alpha=4.0, targets=("key",)), options)
    (tmp_path / "by_hand.yml").write_text("on: run\nlr: 1e-3\n# a comment\ntargets: [query]\n")
    assert read_yaml(tmp_path / "by_hand.yml") == {"on": "run", "lr": 1e-3, "targets": ["query"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nlr: 2", r'found duplicate key "lr" with value "2" \(original value: "1"\)'),
        ("lr: .nan", "NaN is not a JSON number"),
        ("lr: [1", "expected ',' or ']'"),
        ("- lr", "wanted options by name, found a list"),
        ("lr: 2026-11-27", "date is not JSON serializable"),
        ("lr: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(text, said, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as refused:
        read_yaml(tmp_path / "x.yaml")
    assert "\n" not in str(refused.value)


def test_a_run_is_replayed_as_it_was_launched(monkeypatch):
    replay.check_launch(LAUNCHED)
    row = LAUNCHED | {"n_processes": 2, "device": "x CPU, 1 threads"}
    with pytest.raises(InputError, match="had 2 processes in precision no: accelerate launch --cpu --num_p"):
        replay.check_launch(row)
    monkeypatch.setenv("WORLD_SIZE", "2")
    replay.check_launch(row)


@pytest.mark.slow
def test_a_committed_row_is_written_as_a_recipe(tmp_path):
    rows = REPOSITORY / "results" / "autopeft.jsonl"
    run = json.loads(rows.read_text().splitlines()[-1])["run"]
    words = ["-m", "scripts.replay", str(rows), "--run", run, "--write", str(tmp_path / "recipe.yaml")]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    options, method = parse(
        "lora.tune", ["--config", str(tmp_path / "recipe.yaml")], options=TuneOptions(lr=1.0), method=Lora()
    )
    assert (method.rank, options.seed, options.task_name) == (4, 44, "rte")
