"""A sweep yields one row for each run, once."""

import json

import pytest

from common.errors import DoesNotFit
from common.experiments import ROWS, append_once, run_all, table
from lora.method import Lora


def rows_on_disk(options):
    path = next(iter(__import__("pathlib").Path(options.output_dir).rglob(ROWS)))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_configuration_and_seed_is_one_row(options):
    grid = [Lora(rank=rank) for rank in (1, 2)]
    rows = run_all(grid, options(), range(42, 45))
    assert [(row["rank"], row["seed"]) for row in rows] == [(r, s) for r in (1, 2) for s in (42, 43, 44)]
    assert rows_on_disk(options()) == json.loads(json.dumps(rows))


def test_going_on_repeats_nothing_and_doubles_no_row(options):
    run_all([Lora(rank=1)], options(), range(42, 44))
    run_all([Lora(rank=1), Lora(rank=2)], options(), range(42, 44))
    assert len(rows_on_disk(options())) == 4


def test_configurations_that_do_not_fit_are_left_out_and_named(options, capsys):
    rows = run_all([Lora(rank=1), Lora(rank=512)], options(), range(42, 43))
    assert len(rows) == 1
    assert "configuration 2 of 2 left out: rank 512 is larger" in capsys.readouterr().out
    with pytest.raises(DoesNotFit):
        run_all([Lora(rank=512)], options(), range(42, 43))


def test_a_line_cut_short_by_a_crash_costs_that_line_only(tmp_path):
    path = tmp_path / ROWS
    append_once(path, {"run": "a"})
    with path.open("a") as file:
        file.write('{"run": "b", "sco')
    append_once(path, {"run": "c"})
    assert [json.loads(line)["run"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_the_table_has_mean_and_spread_by_hand():
    base = {"method": "lora", "alpha": 8, "dropout": 0, "targets": [], "rslora": False, "majority_score": 0.5}
    base |= {"trainable_params_without_head": 1234}
    rows = [base | {"rank": 1, "best_score": score} for score in (0.6, 0.8)] + [base | {"rank": 2, "best_score": 0.7}]
    first, second = table(rows).splitlines()
    assert first.startswith("rank 1: 1,234 parameters without the head, score 0.7000 +- 0.1414 over 2 seeds")
    assert second.startswith("rank 2: ")
