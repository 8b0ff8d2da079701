"""Tables and figures of the protocol's rows: scores at the best rate, and how many decades of rates are as good."""

import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import REPOSITORY

from common.runs import read_rows
from common.study import protocol, rates
from common.study.protocol import Cell
from common.study.significance import confidence_interval

CELL = Cell("minilm", "mrpc", "lora", ("lora", "--rank", "8"), (1e-4, 1e-3, 1e-2, 1e-1), (42, 43, 44))


def row(cell: Cell, lr: float, held_out: float, seed: int = 42, dev: float = 0.5) -> dict:
    found = {
        "run": f"{cell.name}-{lr}-{seed}",
        "protocol": cell.digest,
        "variant": cell.variant,
        "seed": seed,
        "lr": lr,
    }
    found |= {"best_score": held_out, "dev_score": dev, "dev_majority_score": 0.4, "select": "holdout"}
    return found | {"trainable_params_without_head": 73_728}


def cells_of(*parts: str) -> list[Cell]:
    return list(protocol.cells(protocol.read(), parts))


def rows_of(cell: Cell, *held_out: float) -> list[dict]:
    return [row(cell, lr, score) for lr, score in zip(cell.rates, held_out, strict=True)]


def test_a_variant_is_found_when_all_its_rates_are_tried_and_whole_with_all_seeds():
    some = rows_of(CELL, 0.6, 0.7, 0.71, 0.5)
    assert rates.find([CELL], some[1:]) == []
    assert rates.find([replace(CELL, words=("lora", "--rank", "4"))], some) == []  # of another protocol
    (found,) = rates.find([CELL], some)
    assert (found.rate, found.is_whole) == (1e-2, False)
    some += [row(CELL, 1e-2, 0.1, seed, dev) for seed, dev in ((43, 0.6), (44, 0.7))]
    (found,) = rates.find([CELL], [*some, row(CELL, 1e-3, 0.9, seed=43)])
    assert (found.rate, found.is_whole, found.scores) == (1e-2, True, [0.5, 0.6, 0.7])
    low, high = confidence_interval([0.5, 0.6, 0.7])
    assert found.text == f"0.600 ({low:.2f} to {high:.2f})"


@pytest.mark.parametrize(
    ("held_out", "decades", "at_an_end"),
    [
        ((0.6, 0.7, 0.71, 0.5), 2, False),  # 0.70 is within a point of the best
        ((0.6, 0.699, 0.71, 0.5), 1, False),
        ((0.71, 0.5, 0.71, 0.705), 1, True),  # of equal ones the lowest; good ones beyond a gap do not count
        ((0.5, 0.6, 0.7, 0.8), 1, True),
        ((0.8, 0.8, 0.8, 0.8), 4, True),
    ],
)
def test_the_tolerance_is_the_decades_without_a_gap_around_the_best_rate(held_out, decades, at_an_end):
    (found,) = rates.find([CELL], rows_of(CELL, *held_out))
    assert found.tolerance == pytest.approx(decades)
    assert found.at_an_end == at_an_end


def test_a_rate_that_diverged_has_been_tried():
    some, last = rows_of(CELL, 0.6, 0.7, 0.71, 0.5)[:3], row(CELL, 1e-1, 0.0)
    assert rates.find([CELL], some) == []
    (found,) = rates.find([CELL], some, [last])
    assert (found.rate, found.at_an_end, found.tolerance) == (1e-2, False, pytest.approx(2))
    assert rates.find([CELL], [], [row(CELL, lr, 0.0) for lr in CELL.rates]) == []


def test_tables_have_a_line_for_each_variant_and_only_whole_ones_have_scores():
    other, task = replace(CELL, variant="ia3"), replace(CELL, task="rte", words=("lora", "--task_name", "rte"))
    some = rows_of(CELL, 0.6, 0.7, 0.71, 0.5) + [row(CELL, 1e-2, 0.1, seed, 0.5) for seed in (43, 44)]
    some += rows_of(other, 0.6, 0.5, 0.4, 0.3) + rows_of(task, 0.6, 0.7, 0.71, 0.5)
    text = rates.tables(rates.find([CELL, other, task], some))
    assert "| majority class |  | 0.400 | 0.400 |" in text
    assert "| lora | 73,728 | 0.500 (0.50 to 0.50) |  |" in text
    assert "| ia3 | 73,728 |  |  |" in text
    assert "| lora | 0.01, 2.0 | 0.01, 2.0 |" in text
    assert "| ia3 | 0.0001 (at an end), 1.0 |  |" in text


def test_the_committed_rows_are_shown_with_a_figure_for_each_task(tmp_path):
    path = REPOSITORY / "results" / "protocol.jsonl"
    command = [sys.executable, "-m", "scripts.publish", "--rows", str(path), "--figures", str(tmp_path / "figures")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = read_rows(path)
    compared = [name for name, part in protocol.read().parts.items() if part.block == "answer"]
    found = rates.find(cells_of(*compared), rows)
    assert found
    assert all(rates.table_of_rates(some) in done.stdout for some in rates.by_encoder(found).values())
    tasks = {(each.cell.checkpoint, each.cell.task) for each in found}
    assert len([*(tmp_path / "figures").glob("rates-*.png")]) == len(tasks)


def test_without_rows_there_is_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    command = [sys.executable, "-m", "scripts.publish", "--rows", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "train them first" in done.stderr
