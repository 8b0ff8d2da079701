"""Each bad input ends in one clear line and exit code 2, with nothing left behind, and the page of them is true."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from typing import get_type_hints

import bad_inputs
import pytest
from bad_inputs import DOCUMENT, SECTIONS
from conftest import REPOSITORY, exits_with_one_line

from common.errors import InputError
from common.methods import find, names
from common.options import MANY, TuneOptions
from common.training import train, tune
from lora.method import Lora

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ready():
    with bad_inputs.ready():
        yield


CASES = [case for cases in SECTIONS.values() for case in cases()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_each_is_told_in_one_line_with_exit_code_2_as_the_page_shows_and_leaves_nothing(case, ready):
    code, said, left = bad_inputs.run(case)
    assert (code, said.count("\n"), said[:7], left) == (2, 1, "error: ", []), said
    assert bad_inputs.row(case, said) in DOCUMENT.read_text().splitlines(), "make docs"


def test_the_page_has_a_row_for_each_and_no_other():
    page = bad_inputs.document(lambda case: bad_inputs.row(case, ""))
    said = "(?<=` [|] ).*"
    assert re.sub(said, "", page) == re.sub(said, "", DOCUMENT.read_text()), "make docs"
    assert len(CASES) >= 60


def test_a_tracebacks_words_are_no_line_of_ours():
    """What makes the tests above able to fail: a defect is shown as one."""
    code, said = bad_inputs.call("scripts.no_such_module")
    assert (code, said[:7]) == (1, "ImportE")


@pytest.fixture
def small(bert, tmp_path):
    """Arguments of a run that would be fine."""
    return ["--checkpoint", bert, "--data", "demo", "--output_dir", str(tmp_path / "out")]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_wrong_option_is_one_line_in_a_terminal_of_any_encoding(encoding, small):
    """Messages of the parser come in a box, drawn in other characters where the encoding has no lines."""
    done = subprocess.run(
        [sys.executable, "-m", "lora.tune", *small, "--task_name", "glue"],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: unknown task 'glue': choose one of cola")
    assert not set(done.stderr) & set("+|─│╭")


def test_a_narrow_terminal_puts_no_spaces_into_a_value(capfd, small, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    said = exits_with_one_line(capfd, *small, "--padding", "x" * 100, program=lambda: tune(Lora))
    assert "x" * 100 in said
    assert os.environ["COLUMNS"] == "50"


def test_an_error_line_is_short_however_long_the_value_is(capfd, small):
    said = exits_with_one_line(capfd, *small, "--padding", "x" * 10**6, program=lambda: tune(Lora))
    assert len(said) < 2100
    assert said.startswith("error: ")
    assert said.endswith("(--help lists the options)")


def test_debug_shows_the_traceback(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lora.tune", *small, "--rank", "64", "--debug"])
    with pytest.raises(InputError):
        tune(Lora)


def test_the_same_from_a_shell(small):
    done = subprocess.run(
        [sys.executable, "-m", "lora.tune", *small[:2], "--data", "/no/such/folder"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: data folder /no/such/folder not found")
    assert done.stderr.count("\n") == 1


@pytest.mark.long
def test_a_full_disk_in_a_launched_run_is_one_line_and_leaves_what_was_saved(small, tmp_path):
    """No file may grow above 16 KiB, which the checkpoint with the optimizer's state is the first to reach."""
    limited = "import resource, runpy, sys; sys.argv[:] = sys.argv[1:]\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))\n"
    limited += "runpy.run_module('lora.tune', run_name='__main__')"
    words = ["--max_train_samples", "32", "--max_eval_samples", "16", "--rank", "8", "--task_name", "sst2"]
    command = [sys.executable, "-c", limited, "lora.tune", *small, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "checkpoint.safetensors: File too large" in done.stderr.splitlines()[-1]
    (run,) = (tmp_path / "out" / "lora" / "sst2").iterdir()
    assert not list(run.glob("*.part"))
    assert json.loads((run / "adapter.json").read_text())["method"] == "lora"


@pytest.mark.parametrize("kind", [TuneOptions, *map(find, names())], ids=lambda kind: kind.__name__)
def test_no_option_that_is_a_number_takes_nan_or_infinity(kind):
    """But an infinite time limit, which is none."""
    fields = [name for name, hint in get_type_hints(kind).items() if hint is float and not name.startswith("default_")]
    for name, value in itertools.product(fields, (math.inf, -math.inf, math.nan)):
        with pytest.raises(InputError, match=name):
            kind(**{name: value})


@pytest.mark.parametrize("words", [["--rank", str(10**400)], ["--rank", str(-(2**70))], ["--param_budget", str(2**63)]])
def test_an_integer_that_no_tensor_can_have_as_a_size_is_refused(words, small, capfd):
    line = exits_with_one_line(capfd, *small, *words, program=lambda: tune(Lora))
    assert "choose a" in line


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "gradient_accumulation_steps", "max_length"])
def test_a_count_beyond_all_data_is_refused(name, options):
    with pytest.raises(InputError, match=f"{name} is 1{'0' * 30}: choose at most 100,000,000"):
        options(**{name: 10**30})


def test_the_largest_batches_that_are_allowed_can_be_trained(options):
    huge = dict.fromkeys(("batch_size", "eval_batch_size", "gradient_accumulation_steps"), MANY)
    assert train(Lora(), options(**huge, report_to=("none",)))[1]["best_epoch"] == 1
