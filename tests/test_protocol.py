"""The protocol: each search is followed by runs of its best trial with all seeds, each once, also after a stop."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from common.errors import InputError
from common.methods import find, names
from common.options import TuneOptions, given, parse
from common.runs import read_rows
from common.study import protocol
from common.study.protocol import Driver, Part, Protocol, jobs
from common.study.space import Same, SearchOptions, space_of

pytestmark = pytest.mark.slow
SMALL = ["--data", "demo", "--max_train_samples", "60", "--max_eval_samples", "20"]
CHANGES = ["--n_epochs", "1", "--batch_size", "16"]

PROTOCOL = protocol.read()


def test_every_method_is_in_the_protocol_and_each_search_comes_before_its_seeds():
    assert {each.split()[0] for each in PROTOCOL.variants.values()} == {*names()}
    every = list(jobs(PROTOCOL, list(PROTOCOL.parts)))
    assert len({job.name for job in every}) == len(every)
    seen = set()
    for job in every:
        assert job.seed is None or job.search.name in seen
        seen.add(job.name)
    with pytest.raises(InputError, match="unknown part 'z': choose from a, b, c, d, e"):
        list(jobs(PROTOCOL, ["z"]))


@pytest.mark.parametrize("variant", PROTOCOL.variants)
def test_a_search_varies_the_options_of_the_loop_alone(variant):
    job = next(job for job in jobs(PROTOCOL, ["a"]) if job.variant == variant)
    words = job.command([])[3:]
    kind = find(words[0])
    options, search, method = parse(
        "program", words[1:], options=TuneOptions(lr=kind.default_lr), search=SearchOptions(), method=kind()
    )
    space = space_of(method, options, search, given(words))
    varied = {name for name, what in space.items() if not isinstance(what, Same)}
    own = {name for name in varied if name in vars(method)}
    assert {"lr", "n_epochs", "batch_size"} <= varied
    assert not own
    assert (search.trials, options.select) == (6, "holdout")
    assert (options.frozen_dtype == "bfloat16") == (variant not in ("fine-tuning", "head", "top-2"))


@pytest.fixture
def small(bert):
    """small(lntuning="lntuning"): the jobs of two variants with two seeds."""

    def make(lntuning: str = "lntuning"):
        part, variants = (
            Part(bert, ["sst2"], ["lntuning", "bitfit"], 2),
            {"lntuning": lntuning, "bitfit": "bitfit --terms all"},
        )
        return list(jobs(Protocol(variants, PROTOCOL.searched, [42, 7], {"a": part}), ["a"]))

    return make


@pytest.mark.long
def test_the_best_trial_of_each_search_is_trained_with_all_seeds_once(small, tmp_path):
    driver = Driver(tmp_path / "jobs", tmp_path / "rows.jsonl", [*SMALL, "--output_dir", str(tmp_path)], CHANGES)
    driver.run(small(), 2)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert sorted((row["variant"], row["seed"]) for row in rows) == [
        ("bitfit", 7), ("bitfit", 42), ("lntuning", 7), ("lntuning", 42),
    ]  # fmt: skip
    for row in rows:
        assert row["protocol"].endswith("changed by --n_epochs 1 --batch_size 16")
        trials = [each for each in read_rows(tmp_path / row["method"] / "sst2" / "search.jsonl") if each["seed"] == 42]
        assert len(trials) == 2
        assert row["lr"] == max(trials, key=lambda each: each["best_score"])["lr"]
    before = json.loads(driver.path.read_text())
    again = Driver(tmp_path / "jobs", tmp_path / "rows.jsonl", driver.where, CHANGES)
    again.run(small(), 2)
    assert json.loads(driver.path.read_text()) == before
    assert len(before) == 6
    assert again.left(small(), 2) == "0:00 h"


@pytest.mark.long
def test_a_job_that_fails_stops_no_other_and_is_named(small, tmp_path):
    driver = Driver(tmp_path / "jobs", tmp_path / "rows.jsonl", [*SMALL, "--output_dir", str(tmp_path)], CHANGES)
    with pytest.raises(InputError, match=r"1 of 6 jobs failed, such as .* sst2 lntuning search: exit code 2, see"):
        driver.run(small("lntuning --layers 7"), 1)
    assert {row["variant"] for row in read_rows(tmp_path / "rows.jsonl")} == {"bitfit"}


@pytest.mark.long
def test_after_ctrl_c_the_same_command_goes_on(tmp_path):
    words = "--data demo --parts a --variants lora --tasks mrpc --workers 1 --n_epochs 1 --max_train_samples 300"
    words += f" --output_dir {tmp_path} --out {tmp_path / 'rows.jsonl'}"
    command = [sys.executable, "-m", "scripts.results", *words.split()]
    first = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("lora/mrpc/search.jsonl")) and first.poll() is None:  # one trial is finished
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGINT)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 75, error
    assert "the same command goes on" in error
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert sorted(row["seed"] for row in read_rows(tmp_path / "rows.jsonl")) == [42, 43, 44]


def test_the_commands_can_be_shown(tmp_path):
    words = [sys.executable, "-m", "scripts.results", "--dry_run", "--parts", "c", "--variants", "lora"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    search, *seeds = (shlex.split(line) for line in done.stdout.splitlines())
    assert search[:4] == ["python", "-m", "scripts.search", "lora"]
    assert [line[-2:] for line in seeds[1:]] == [["--seed", "43"], ["--seed", "44"]]
