"""The cost of a variant is measured against full fine-tuning, each in a process of its own."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from benchmarks.cost import FULL, inference_flops, pscp


@pytest.mark.parametrize(
    ("score", "parameters", "tera_flops", "gigabytes", "wanted"),
    [
        (74.7, 196_608, 0.31, 28.41, 55.62),
        (80.1, 14_680_064, 0.0, 27.75, 60.08),
        (45.9, 34_177_536, 0.01, 27.61, 33.18),
    ],
)
def test_pscp_is_the_score_times_three_penalties(score, parameters, tera_flops, gigabytes, wanted):
    """Costs of PEFT-Bench's (IA)3, LoRA and prefix with Llama 3 8B."""
    assert pscp(score, parameters, tera_flops * 1e12, gigabytes * 1e9) == pytest.approx(wanted, abs=0.01)


def test_extra_flops_are_those_of_what_is_added(bert):
    """LoRA of rank 8 on query and value: two products of hidden size by 8 each, for each token, in each layer."""
    hidden, layers, tokens = 32, 2, 64 // 2
    lora, bitfit, adapters, plain = (inference_flops(name, bert) for name in ("lora", "bitfit", "adapters", FULL))
    assert lora - plain == 2 * tokens * 8 * 2 * hidden * 2 * layers
    assert bitfit == plain
    assert adapters - plain == 2 * tokens * 64 * 2 * hidden * 2 * layers


@pytest.mark.long
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


@pytest.mark.long
def test_a_run_that_fails_is_named(bert, tmp_path):
    command = [sys.executable, "-m", "benchmarks.cost", "--variants", "lora", "--checkpoint", bert]
    command += ["--data", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: fine-tuning failed: error: " in done.stderr
