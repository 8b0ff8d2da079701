"""The protocol: all learning rates of a cell are run, then the best with the other seeds, once, on any machine."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY, exits_with_one_line

from common.errors import InputError
from common.methods import names
from common.runs import read_rows
from common.study import protocol, rates
from common.study.protocol import Driver, Part, Protocol, cells, command, jobs
from scripts import results
from scripts.publish import submit

pytestmark = pytest.mark.slow
SMALL = ["--data", "demo"]
CHANGES = ["--n_epochs", "1", "--max_train_samples", "60", "--max_eval_samples", "20"]

PROTOCOL = protocol.read()


def test_every_method_is_in_the_protocol_and_takes_its_options():
    every = list(cells(PROTOCOL, list(PROTOCOL.parts)))
    assert {cell.words[0] for cell in every} == {*names(), "parity.peft"}
    assert {cell.variant for cell in every} == {*PROTOCOL.variants}
    assert len({cell.name for cell in every}) == len(every)
    protocol.check_options(every)
    with pytest.raises(InputError, match="unknown part 'z': choose from a, b, c, d, e, f, g, h, i"):
        list(cells(PROTOCOL, ["z"]))


def test_rates_span_two_decades_around_the_middle_and_come_before_the_other_seeds():
    cell = next(cell for cell in cells(PROTOCOL, ["a"]) if cell.variant == "lora")
    assert cell.rates == (0.0001, 0.00025, 0.00063, 0.0016, 0.004, 0.01)
    assert [(job.seed, job.rate) for job in jobs(cell)] == [
        *((42, rate) for rate in cell.rates), (43, None), (44, None),
    ]  # fmt: skip


def test_a_change_wins_over_the_option_of_the_protocol_and_changes_the_digest():
    plain = next(cells(PROTOCOL, ["e"]))
    changed = next(cells(PROTOCOL, ["e"], ["--n_epochs", "1", "--rank", "2"]))
    words = command(jobs(changed)[0], 1e-3)
    assert words.count("--n_epochs") == words.count("--rank") == 1
    assert words[words.index("--n_epochs") + 1] == "1"
    assert words[words.index("--alpha") + 1] == "8"
    assert plain.digest != changed.digest
    demo, files = (next(cells(PROTOCOL, ["e"], data=data)) for data in ("demo", "glue_data"))
    assert (files.digest, demo.digest == plain.digest) == (plain.digest, False)
    both = list(cells(PROTOCOL, ["a", "b"], ["--checkpoint", "bert"]))
    assert {cell.checkpoint for cell in both} == {"bert"}
    assert len({cell.name for cell in both}) == len(both) == len(list(cells(PROTOCOL, ["a"])))
    assert plain.digest == next(cells(PROTOCOL, ["e"])).digest
    assert plain.digest != replace(plain, rates=(1.0,)).digest


def test_the_digest_is_of_the_rules_and_not_of_the_parts(tmp_path, monkeypatch):
    first = next(cells(PROTOCOL, ["a"]))
    before, text = first.digest, protocol.TEXT.read_text()
    page = tmp_path / "PROTOCOL.md"
    monkeypatch.setattr(protocol, "TEXT", page)
    page.write_text(text + "\n| g | another part |\n")
    assert next(cells(PROTOCOL, ["a"])).digest == before
    page.write_text(text.replace("A tenth of the training examples is held out", "Nothing is held out"))
    assert next(cells(PROTOCOL, ["a"])).digest != before
    assert first.digest == before  # one driver writes one digest, also if the page is edited while it runs


@pytest.fixture
def small(bert):
    """small(lntuning="lntuning"): two variants with two rates and two seeds on one task."""

    def make(lntuning: str = "lntuning", highest: float = 10.0):
        part = Part(bert, ["sst2"], ["lntuning", "bitfit"])
        variants = {"lntuning": (1e-3, lntuning), "bitfit": (1e-2, "bitfit --terms all")}
        small = Protocol(variants, PROTOCOL.options, [0.1, highest], [42, 7], {"sst2": 1}, {"a": part})
        return list(cells(small, ["a"], CHANGES))

    return make


@pytest.mark.long
def test_the_best_rate_is_trained_with_the_other_seeds_and_nothing_twice(small, tmp_path):
    rows = tmp_path / "rows.jsonl"
    Driver(tmp_path / "jobs", rows, [*SMALL, "--output_dir", str(tmp_path / "runs")]).run(small(), 2)
    found = read_rows(rows)
    for cell in small():
        own = [row for row in found if row["variant"] == cell.variant]
        assert {row["protocol"] for row in own} == {cell.digest}
        trials = [row for row in own if row["seed"] == 42]
        assert sorted(row["lr"] for row in trials) == list(cell.rates)
        best = max(trials, key=lambda row: (row["best_score"], -row["lr"]))
        assert [row["lr"] for row in own if row["seed"] == 7] == [best["lr"]]

    answers = {protocol.identity(row): row["answers"] for row in read_rows(tmp_path / "rows-answers.jsonl")}
    assert {*answers} == {protocol.identity(row) for row in found}
    assert {len(each) for each in answers.values()} == {20}
    whole = rates.find(small(), found)
    submit(whole, tmp_path / "runs", tmp_path / "submissions", "demo")
    for cell in small():
        (path,) = (tmp_path / "submissions" / f"{Path(cell.checkpoint).name}-{cell.variant}").iterdir()
        assert path.read_text().startswith("index\tprediction\n0\t")

    before = rows.read_text()
    shutil.rmtree(tmp_path / "runs")  # another machine has the rows alone
    with pytest.raises(InputError, match="has none of the runs: give the --output_dir"):
        submit(whole, tmp_path / "runs", tmp_path / "submissions", "demo")
    again = Driver(tmp_path / "jobs", rows, ["--data", "nowhere"])
    again.run(small(), 2)
    assert rows.read_text() == before
    assert again.left([job for cell in small() for job in jobs(cell)], 2) == "0:00 h"


@pytest.mark.long
def test_a_rate_that_diverges_is_never_the_best_and_not_tried_again(small, tmp_path):
    wanted = [cell for cell in small(highest=1e30) if cell.variant == "lntuning"]
    rows, where = tmp_path / "rows.jsonl", [*SMALL, "--output_dir", str(tmp_path / "runs")]
    driver = Driver(tmp_path / "jobs", rows, where)
    driver.run(wanted, 2)
    assert [job.rate for job in driver.diverged] == [1e27]
    assert sorted((row["lr"], row["seed"]) for row in read_rows(rows)) == [(1e-4, 7), (1e-4, 42)]
    (found,) = rates.find(wanted, read_rows(rows), other := read_rows(driver.without_score))
    assert (found.rate, found.is_whole, found.at_an_end) == (1e-4, True, True)
    assert "infinite" in other[0]["reason"] or "finite" in other[0]["reason"]
    before = rows.read_text()
    Driver(tmp_path / "jobs", rows, ["--data", "nowhere"]).run(wanted, 2)
    assert rows.read_text() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_driver_itself_ends_it(workers, small, tmp_path, monkeypatch):
    def full(self, job):
        raise OSError("no space left")

    monkeypatch.setattr(Driver, "_attempt", full)
    with pytest.raises(OSError, match="no space left"):
        Driver(tmp_path / "jobs", tmp_path / "rows.jsonl", SMALL).run(small(), workers)


@pytest.mark.long
def test_a_job_that_fails_stops_no_other_and_is_named(small, tmp_path):
    driver = Driver(tmp_path / "jobs", tmp_path / "rows.jsonl", [*SMALL, "--output_dir", str(tmp_path)])
    with pytest.raises(
        InputError, match=r"2 of 6 runs failed, such as .* sst2 lntuning seed 42, lr 0.0001: exit code 2"
    ):
        driver.run(small("lntuning --layers 7"), 1)
    assert {row["variant"] for row in read_rows(tmp_path / "rows.jsonl")} == {"bitfit"}


@pytest.mark.long
def test_after_ctrl_c_the_same_command_resumes(bert, tmp_path):
    words = "--data demo --parts a --variants lora --tasks mrpc --workers 1 --n_epochs 1 --max_train_samples 300"
    words += f" --checkpoint {bert} --output_dir {tmp_path} --out {tmp_path / 'rows.jsonl'}"
    made = [sys.executable, "-m", "scripts.results", *words.split()]
    first = subprocess.Popen(made, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "rows.jsonl").is_file() and first.poll() is None:  # one run is finished
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGINT)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 75, error
    assert "the same command resumes" in error
    done = subprocess.run(made, cwd=REPOSITORY, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert sorted(row["seed"] for row in read_rows(tmp_path / "rows.jsonl")) == [*[42] * 6, 43, 44]


def test_the_commands_can_be_shown():
    words = [sys.executable, "-m", "scripts.results", "--dry_run", "--parts", "c", "--variants", "lora"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines] == [["python", "-m", "lora.tune"]] * 8
    assert [line[line.index("--lr") + 1] for line in lines][4:] == ["0.004", "0.01", "BEST", "BEST"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--data demo --rnak 4", "Unrecognized options: --rnak"),
        ("--variants lroa", "no variant 'lroa' in these parts: choose from adapters, "),
        ("--tasks mrcp", "no task 'mrcp' in these parts: choose from cola, "),
        ("--workers 0", "--workers is 0: choose 1 or more"),
        ("--data nowhere", "--data nowhere is no folder"),
        ("", "no data is named"),
        ("--lr 1e-3", "--lr is given, which the protocol chooses: leave it out"),
        ("--task_name rte", "--task_name is given, which --tasks chooses: leave it out"),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(words, line, tmp_path, capfd):
    words = ["--output_dir", str(tmp_path / "out"), *words.split()]
    assert line in exits_with_one_line(capfd, *words, program=results.main)
    assert not (tmp_path / "out").exists()
