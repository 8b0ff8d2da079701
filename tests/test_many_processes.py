"""Runs on three and four processes resume with the bits of an uninterrupted run."""

import itertools
from pathlib import Path

import pytest
from conftest import KINDS, on_processes, outcome

from common.errors import Interrupted
from common.methods import find, names
from common.options import TuneOptions
from common.training import train

pytestmark = [pytest.mark.slow, pytest.mark.long]


def run_all(runs: list[tuple[str, dict]], home: Path) -> int:
    """Each run whole, and again interrupted after its first step and resumed; how many were interrupted."""
    n_interrupted = 0
    for name, settings in runs:
        for out, limit in (("whole", None), ("cut", 1e-6), ("cut", None)):
            options = TuneOptions(**settings, output_dir=str(home / out), time_limit=limit)
            try:
                train(find(name)(), options)
            except Interrupted as stop:
                n_interrupted += "after step 1 of" in str(stop)
    return n_interrupted


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
    assert on_processes(n_processes, run_all, runs, tmp_path) == [len(runs)] * n_processes
    wholes = [path.parent for path in (tmp_path / "whole").rglob("result.json")]
    assert len(wholes) == len(runs)
    for whole in wholes:
        cut = tmp_path / "cut" / whole.relative_to(tmp_path / "whole")
        assert outcome(cut) == outcome(whole), whole
