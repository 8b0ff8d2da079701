"""The cost of a variant is measured against full fine-tuning, each in a process of its own."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.long


def test_a_row_for_each_variant_with_ratios_to_full_fine_tuning(bert, tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.cost", "--variants", "bitfit", "--checkpoint", bert, "--rows", "64"]
    done = subprocess.run([*command, "--turns", "1", "--out", str(out)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full, bitfit = (json.loads(line) for line in out.read_text().splitlines())
    assert (full["variant"], full["time"], full["memory"], full["bytes"]) == ("fine-tuning", 1, 1, 1)
    assert bitfit["bytes"] == pytest.approx(bitfit["stored_bytes"] / full["stored_bytes"], abs=1e-3)
    assert 0 < bitfit["bytes"] < 0.5
    assert done.stdout.splitlines()[-1].startswith("| BitFit | ")


def test_a_run_that_fails_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks.cost", "--variants", "lora", "--checkpoint", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: fine-tuning failed: error: " in done.stderr
