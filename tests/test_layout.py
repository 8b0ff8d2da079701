"""The rules of the layout that a machine can check."""

import ast
import dataclasses
import importlib
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from common import methods
from common.options import PredictOptions, SweepOptions, TuneOptions
from common.study.space import SearchOptions

METHODS = methods.names()
PACKAGES = ["benchmarks", "common", "parity", "scripts", "torture", *METHODS]


def imports(path):
    """Modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_our_packages_win_over_others_of_the_same_name(package):
    assert importlib.import_module(package).__file__ == str(REPOSITORY / package / "__init__.py")


def test_common_names_and_imports_no_method():
    for path in (REPOSITORY / "common").rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & set(METHODS), path
        strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not strings & set(METHODS), path


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_six_files(method):
    files = {"__init__.py", "method.py", "tune.py", "test.py", "experiment.py", "README.md"}
    assert files <= {path.name for path in (REPOSITORY / method).iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_touches_neither_data_nor_files(method):
    allowed = {f"common.{name}" for name in ("encoders", "errors", "methods")}
    if method == "prompt":
        allowed.add("common.checkpoints")  # the tokenizer
    allowed |= {"collections", "dataclasses", "itertools", "math", "numpy", "torch", "typing"}
    found = set(imports(REPOSITORY / method / "method.py"))
    assert all(name in allowed or name.partition(".")[0] in allowed - {"common"} for name in found), found
    assert "torch.optim" not in found


@pytest.mark.parametrize("method", METHODS)
def test_options_have_names_of_their_own(method):
    own = {field.name for field in dataclasses.fields(methods.find(method))}
    for shared in (TuneOptions, PredictOptions, SweepOptions, SearchOptions):
        assert not own & {field.name for field in dataclasses.fields(shared)}


def test_nothing_in_common_looks_like_a_test_to_pytest():
    for path in (REPOSITORY / "common").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not node.name.lower().startswith("test"), path


@pytest.mark.parametrize("verb", ["tune", "test", "experiment"])
@pytest.mark.parametrize("method", METHODS)
def test_help_needs_neither_model_nor_data_nor_their_libraries(method, verb):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{verb}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{method}.{verb}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "heavy = {'transformers', 'datasets', 'evaluate', 'accelerate', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--debug" in done.stdout


def test_both_spellings_of_an_option_work(options, monkeypatch):
    from common.options import parse
    from lora.method import Lora

    for spelling in ("--batch_size", "--batch-size"):
        monkeypatch.setattr(sys, "argv", ["lora.tune", spelling, "3", "--betas", "0.8", "0.9", "--targets", "key"])
        tuned, method = parse("lora.tune", options=TuneOptions(), method=Lora())
        assert (tuned.batch_size, tuned.betas, method.targets) == (3, (0.8, 0.9), ("key",))


def test_requirements_are_pinned_and_keep_other_peoples_adapters_out():
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = [line for line in (REPOSITORY / name).read_text().splitlines() if line and line[0] not in "#-"]
        assert all("==" in line for line in lines)
        assert not {line.partition("==")[0] for line in lines} & {"adapters", *PACKAGES}
