"""Runs on three and four processes resume with the bits of an uninterrupted run."""

import itertools
import json
import subprocess
import sys

import pytest
from conftest import KINDS, REPOSITORY, outcome

from common.methods import names

pytestmark = [pytest.mark.slow, pytest.mark.long]

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]

INTERRUPTED_RUNS = """
import json, sys
sys.path.insert(0, {repository!r})
from common.runtime.launching import start_cpu_processes
start_cpu_processes()
from common.errors import Interrupted
from common.methods import find
from common.options import TuneOptions
from common.runtime.processes import destroy_group_at_end
from common.training import train

with destroy_group_at_end():
    for name, settings in json.load(open(sys.argv[1])):
        for out, limit in (("whole", None), ("cut", 1e-6), ("cut", None)):
            try:
                train(find(name)(), TuneOptions(**settings, output_dir=f"{{sys.argv[2]}}/{{out}}", time_limit=limit))
            except Interrupted as stop:
                print(stop)
"""


@pytest.mark.parametrize(
    ("n_processes", "methods"), [(3, list(zip(names(), itertools.cycle(KINDS), strict=False))), (4, [("lora", "bert")])]
)
def test_three_and_four_processes_resume_with_the_bits_of_an_uninterrupted_run(
    n_processes, methods, checkpoints, tmp_path
):
    """With three or more, the order of a sum of gradients depends on where they lie in the buckets that are sent."""
    small = {"data": "demo", "task_name": "sst2", "max_train_samples": 24, "max_eval_samples": 6, "n_epochs": 1}
    small |= {"batch_size": 2, "lr": 1e-2}
    runs = [(name, small | {"checkpoint": checkpoints[kind]}) for name, kind in methods]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED_RUNS.format(repository=str(REPOSITORY)))
    command = [*LAUNCH, "--num_processes", str(n_processes), str(script), str(tmp_path / "runs.json"), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped by the time limit after step 1 of") == len(runs) * n_processes, done.stdout
    wholes = [path.parent for path in (tmp_path / "whole").rglob("result.json")]
    assert len(wholes) == len(runs)
    for whole in wholes:
        cut = tmp_path / "cut" / whole.relative_to(tmp_path / "whole")
        assert outcome(cut) == outcome(whole), whole
