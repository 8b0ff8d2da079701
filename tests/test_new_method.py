"""A method is added by one folder: tune, test and the tests of all methods then work for it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.long]

METHOD = '''"""Train the LayerNorms alone."""
from dataclasses import dataclass
from typing import ClassVar

from common.encoders import layer_norm_parameters
from common.methods import Method


@dataclass(frozen=True)
class Norms(Method):
    """Train the LayerNorms alone."""

    default_lr: ClassVar[float] = 1e-3

    def inject(self, model):
        for parameter in layer_norm_parameters(model).values():
            parameter.requires_grad_(True)
'''


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository with one more folder and no other change."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("common", "hybrid", "lora", "scripts", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    shutil.copytree(root / "lora", root / "norms")
    (root / "norms" / "method.py").write_text(METHOD)
    about = "trained = (2 * layers + 1) * 2 * hidden\n\nThe default learning rate is 1e-3.\n"
    (root / "norms" / "README.md").write_text(about)
    for verb in ("tune", "test", "predict", "experiment"):
        text = (root / "lora" / f"{verb}.py").read_text()
        (root / "norms" / f"{verb}.py").write_text(text.replace("lora.method", "norms.method").replace("Lora", "Norms"))
    return root


def run(clone, *words):
    done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()


def test_the_new_method_is_trained_and_predicts(clone, bert):
    small = f"--checkpoint {bert} --data demo --task_name rte --max_train_samples 32 --n_epochs 1".split()
    folder = run(clone, "-m", "norms.tune", *small, "--output_dir", str(clone / "runs"))[-1]
    with open(os.path.join(folder, "result.json")) as file:
        result = json.load(file)
    assert (result["method"], result["trained_layer_norms"]) == ("norms", 5 * 2 * 32)
    assert any(line.endswith("RTE.tsv") for line in run(clone, "-m", "norms.test", "--run", folder))


def test_the_tests_of_all_methods_find_the_new_one(clone):
    lines = run(clone, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests/test_methods.py", "-k", "norms")
    passed = [line for line in lines if line.startswith("PASSED")]
    assert len(passed) > 25
    assert all("norms" in line for line in passed)
