"""An experiment writes one row for each run."""

import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from baseline.method import Baseline
from bitfit.method import BitFit
from common import runs
from common.classification import TextClassification
from common.errors import DoesNotFit, InputError
from common.experiments import ROWS, run_all, select_sizes, table
from common.runs import append_once, read_rows, run_folder
from common.runtime import locks
from common.training import train
from lora.method import Lora

pytestmark = pytest.mark.slow


def rows_on_disk(options):
    (path,) = Path(options.output_dir).rglob(ROWS)
    return read_rows(path)


def test_every_configuration_and_seed_gives_one_row(options):
    grid = [Lora(rank=rank) for rank in (1, 2)]
    rows = run_all(grid, options(), range(42, 45))
    assert [(row["rank"], row["seed"]) for row in rows] == [(r, s) for r in (1, 2) for s in (42, 43, 44)]
    assert rows_on_disk(options()) == rows


def test_a_larger_grid_repeats_no_run_and_duplicates_no_row(options):
    run_all([Lora(rank=1)], options(), range(42, 44))
    before = {path: path.stat().st_mtime_ns for path in Path(options().output_dir).rglob(runs.RESULT)}
    run_all([Lora(rank=1), Lora(rank=2)], options(), range(42, 44))
    assert len(before) == 2
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert sorted((row["rank"], row["seed"]) for row in rows_on_disk(options())) == [(1, 42), (1, 43), (2, 42), (2, 43)]


def test_more_seeds_later_join_the_configurations_of_the_first_ones(options):
    """The first run is read from its file, the others are fresh: the summary has one line for a configuration."""
    grid = [Lora(rank=rank) for rank in (1, 2)]
    run_all(grid, options(), range(42, 43))
    rows = run_all(grid, options(), range(42, 45))
    lines = table(rows).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["rank 1", "rank 2"]
    assert all("over 3 seeds" in line for line in lines)
    assert sorted(rows, key=lambda row: row["run"]) == sorted(rows_on_disk(options()), key=lambda row: row["run"])


def test_the_data_is_read_and_tokenised_once(options, monkeypatch):
    calls = []
    for name in ("read", "encode"):
        usual = getattr(TextClassification, name)
        monkeypatch.setattr(TextClassification, name, lambda *words, n=name, f=usual: calls.append(n) or f(*words))
    run_all([Lora(rank=1), Lora(rank=2)], options(), range(42, 45))
    assert sorted(calls) == ["encode"] * 2 + ["read"] * 2  # train and validation


def test_shared_task_data_changes_no_result(options, tmp_path):
    shared = run_all([Lora(rank=1)], options(), range(42, 44))
    single = [train(Lora(rank=1), options(seed=seed, output_dir=str(tmp_path / "other")))[0] for seed in (42, 43)]
    for row, folder in zip(shared, single, strict=True):
        home = run_folder(Lora(rank=1), options(seed=row["seed"]))
        assert (home / runs.ADAPTER).read_bytes() == (folder / runs.ADAPTER).read_bytes()


def test_a_finished_run_leaves_no_model_in_memory(options, monkeypatch):
    n_alive = []
    usual = TextClassification.load
    monkeypatch.setattr(TextClassification, "load", lambda *words: n_alive.append(n_models()) or usual(*words))
    gc.disable()  # a collection at some random time would hide a leak
    try:
        run_all([Lora(rank=1)], options(frozen_dtype="bfloat16"), range(42, 45))
    finally:
        gc.enable()
    assert n_alive == [n_alive[0]] * 3


def n_models():
    return sum(type(each).__name__ == "BertForSequenceClassification" for each in gc.get_objects())


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be reset elsewhere")
def test_memory_that_an_earlier_run_has_freed_is_returned_to_the_system():
    code = "import torch; from common.runtime import device; cpu = torch.device('cpu')\n"
    code += "kept = [torch.ones(1000) for _ in range(200_000)]; device.reset_peak_memory(cpu)\n"
    code += "most = device.peak_memory(cpu); last = kept.pop(); del kept\n"  # `last` comes after all that is freed
    code += "device.release_memory(); device.reset_peak_memory(cpu); print(most - device.peak_memory(cpu))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert int(done.stdout) > 0.9 * 200_000 * 4000, done.stderr


def test_the_progress_bar_shows_the_place_in_the_grid_and_the_time_left(options, capsys):
    run_all([Lora(rank=1)], options(), range(42, 45))
    said = capsys.readouterr().err
    assert "lora sst2 [run 1 of 3]" in said
    assert re.search(r"lora sst2 \[run 3 of 3, about 0:00:0\d left\]", said)


def test_some_sizes_of_a_grid_can_be_chosen():
    grid = [Lora(rank=rank, alpha=rank) for rank in (1, 2, 4)]
    assert select_sizes(grid, ("4", "1")) == [grid[0], grid[2]]
    assert select_sizes(grid, ()) == grid
    assert select_sizes([Baseline(top_k=1), Baseline()], ("None",)) == [Baseline()]
    with pytest.raises(InputError, match="no size 3 in the grid of lora: there are 1, 2, 4"):
        select_sizes(grid, ("3",))
    with pytest.raises(InputError, match="no size 3 in the grid of bitfit: there are none"):
        select_sizes([BitFit()], ("3",))


def test_configurations_that_do_not_fit_are_left_out_and_reported(options, capsys):
    rows = run_all([Lora(rank=1), Lora(rank=512)], options(), range(42, 43))
    assert len(rows) == 1
    assert "configuration 2 of 2 skipped: rank 512 is larger" in capsys.readouterr().out
    with pytest.raises(DoesNotFit):
        run_all([Lora(rank=512)], options(), range(42, 43))


@pytest.mark.parametrize("line", ['{"run": "b", "sco', "[]", '{"score": 1}', '{"run": ' * 10**5])
def test_damaged_rows_are_reported_before_anything_is_trained(line, options, tmp_path):
    path = run_folder(Lora(rank=1), options()).parent / ROWS
    append_once(path, {"run": "a"})
    with path.open("a") as file:
        file.write(line)
    before = path.read_text()
    with pytest.raises(InputError, match=r"experiment.jsonl, line 2 .*: remove it"):
        run_all([Lora(rank=1)], options(), range(42, 43))
    with pytest.raises(InputError, match="line 2"):
        append_once(path, {"run": "c"})
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == [ROWS]


def test_concurrent_processes_append_each_row_once(tmp_path):
    code = "import sys; from pathlib import Path; from common.runs import append_once\n"
    code += (
        "for n in range(25): append_once(Path(sys.argv[1]), {'run': f'{int(sys.argv[2]) % 2} {n}', 'x': 'y' * 5000})"
    )
    path = tmp_path / ROWS
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)], cwd=REPOSITORY) for n in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert len(read_rows(path)) == 50
    assert [entry.name for entry in tmp_path.iterdir()] == [ROWS]


def test_a_run_of_another_worker_is_waited_for_and_taken_over_when_that_worker_dies(options, monkeypatch):
    folders = {seed: run_folder(Lora(rank=1), options(seed=seed)) for seed in (42, 43)}
    holder = locks.lock_folder(folders[42])
    holder.__enter__()
    found_when_waiting = []

    def wait(_seconds):
        found_when_waiting.append([folder.is_dir() for folder in folders.values()])
        holder.__exit__(None, None, None)

    monkeypatch.setattr("common.experiments.time.sleep", wait)
    rows = run_all([Lora(rank=1)], options(), range(42, 44))
    assert [row["seed"] for row in rows] == [42, 43]
    assert found_when_waiting == [[True, True]]  # the free run was trained first
    assert len(rows_on_disk(options())) == 2


def test_the_table_has_the_mean_and_standard_deviation_computed_by_hand():
    base = {"method": "lora", "alpha": 8, "dropout": 0, "targets": [], "rslora": False, "majority_score": 0.5}
    base |= {"trainable_params_without_head": 1234, "task_name": "rte"}
    rows = [base | {"rank": 1, "best_score": score} for score in (0.6, 0.8)] + [base | {"rank": 2, "best_score": 0.7}]
    first, second = table(rows).splitlines()
    assert first.startswith("rank 1: 1,234 parameters without the head, score 0.7000 +- 0.1414 over 2 seeds")
    assert second.startswith("rank 2: ")
