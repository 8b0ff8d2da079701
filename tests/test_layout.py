"""The rules of the layout that a machine can check."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY

from common import methods
from common.options import GenerateOptions, MaskedLMOptions, PredictOptions, SweepOptions, TextOptions, TuneOptions
from common.study.recommend import RecommendOptions
from common.study.space import SearchOptions

METHODS = methods.names()
PACKAGES = ["benchmarks", "common", "parity", "scripts", "torture", *METHODS]


MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (REPOSITORY / "common").rglob("*.py")
}
WINGS = ("common.fast", "common.runtime", "common.study")
PARSED = {path: ast.parse(path.read_text()) for path in MODULES.values()}


def imports(path):
    """Modules that a file imports, wherever in it: of ours, those that it takes names from."""
    for node in ast.walk(PARSED.get(path) or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in full)


def wing(module):
    """The part of common/ that a module belongs to: a wing, or the face."""
    return next((name for name in WINGS if module == name or module.startswith(f"{name}.")), "common")


@pytest.mark.parametrize("package", PACKAGES)
def test_our_packages_win_over_others_of_the_same_name(package):
    assert importlib.import_module(package).__file__ == str(REPOSITORY / package / "__init__.py")


def test_common_names_and_imports_no_method_and_none_of_its_options():
    """An option of the loop may have a method's word in its help; a method's own option is nowhere."""
    options = {field.name for name in METHODS for field in dataclasses.fields(methods.find(name))}
    for path, tree in PARSED.items():
        assert not {name.partition(".")[0] for name in imports(path)} & set(METHODS), path
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        texts = {text for text in constants if isinstance(text, str)}
        assert not texts & set(METHODS), path
        words = {word for text in texts for word in re.findall(r"\w+", text)}
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not (words | names) & {option for option in options if "_" in option}, path


def test_arrows_point_one_way():
    """Below all: errors and runtime. Above all: study. fast is reached through its door, by training and prediction."""
    allowed = {
        "common.runtime": lambda name: wing(name) == "common.runtime" or name == "common.errors",
        "common.fast": lambda name: wing(name) == "common.fast" or name in FACE_FOR_FAST,
        "common": lambda name: wing(name) in ("common", "common.runtime"),
        "common.study": lambda name: name != "common.fast" and wing(name) != "common.fast",
    }
    for module, path in MODULES.items():
        for name in imports(path):
            if name.startswith("common"):
                door = name == "common.fast" and module in ("common.training", "common.prediction", "common.serving")
                assert door or allowed[wing(module)](name), f"{module} imports {name}"


FACE_FOR_FAST = ("common.encoders", "common.errors", "common.places")


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: {name for name in imports(path) if name in MODULES} - {module} for module, path in MODULES.items()}

    def visit(module, above):
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for name in graph[module]:
                visit(name, [*above, module])
            done.add(module)

    done = set()
    for module in graph:
        visit(module, [])


def test_no_function_of_common_is_longer_than_sixty_lines():
    for path, tree in PARSED.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (path, node.name)


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("common.data", {"common.methods", "common.training", "common.encoders"}),
        ("common.runs", {"common.training", "common.checkpoints", "common.tokens"}),
        ("common.study.aggregation", {"common.training", "common.checkpoints", "common.tokens"}),
        ("common.study.tables", {"common.training", "common.checkpoints", "common.tokens"}),
    ],
)
def test_reading_data_or_rows_imports_no_method_no_loop_and_no_transformers(module, without):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    heavy = {"transformers", "datasets", "accelerate", "evaluate", "optuna"}
    assert not found & (without | heavy | {f"{name}.method" for name in METHODS})


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_seven_files(method):
    files = {"__init__.py", "method.py", "tune.py", "test.py", "predict.py", "experiment.py", "README.md"}
    assert files <= {path.name for path in (REPOSITORY / method).iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_touches_neither_data_nor_files(method):
    allowed = {f"common.{name}" for name in ("encoders", "errors", "merging", "methods")}
    if method == "prompt":
        allowed.add("common.checkpoints")  # the tokenizer
    allowed |= {"collections", "dataclasses", "itertools", "math", "numpy", "torch", "typing"}
    found = set(imports(REPOSITORY / method / "method.py"))
    allowed.add(method)  # its own other files
    assert all(name in allowed or name.partition(".")[0] in allowed - {"common"} for name in found), found
    assert "torch.optim" not in found


@pytest.mark.parametrize("method", METHODS)
def test_options_have_names_of_their_own(method):
    own = {field.name for field in dataclasses.fields(methods.find(method))}
    of_runs = (TuneOptions, MaskedLMOptions, GenerateOptions)
    for shared in (*of_runs, PredictOptions, TextOptions, SweepOptions, SearchOptions, RecommendOptions):
        assert not own & {field.name for field in dataclasses.fields(shared)}


def test_nothing_in_common_looks_like_a_test_to_pytest():
    for path in (REPOSITORY / "common").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not node.name.lower().startswith("test"), path


def test_help_needs_neither_model_nor_data_nor_their_libraries():
    modules = [f"{method}.{verb}" for method in METHODS for verb in ("tune", "test", "predict", "experiment")]
    modules += [
        f"{path.parent.name}.{verb}" for verb in ("mlm", "generate") for path in REPOSITORY.glob(f"*/{verb}.py")
    ]
    code = (
        "import contextlib, io, runpy, sys\n"
        f"for module in {modules}:\n"
        "    sys.argv, said, code = [module, '--help'], io.StringIO(), None\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(said):\n"
        "            runpy.run_module(module, run_name='__main__')\n"
        "    except SystemExit as stop:\n"
        "        code = stop.code\n"
        "    heavy = {'transformers', 'datasets', 'evaluate', 'accelerate', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "    assert (code, '--debug' in said.getvalue(), heavy) == (0, True, set()), (module, code, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_both_spellings_of_an_option_work(options, monkeypatch):
    from common.options import parse
    from lora.method import Lora

    for spelling in ("--batch_size", "--batch-size"):
        monkeypatch.setattr(sys, "argv", ["lora.tune", spelling, "3", "--betas", "0.8", "0.9", "--targets", "key"])
        tuned, method = parse("lora.tune", options=TuneOptions(), method=Lora())
        assert (tuned.batch_size, tuned.betas, method.targets) == (3, (0.8, 0.9), ("key",))


GROUPS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]


def group(name):
    """The dependencies of a group of pyproject.toml and of those that it includes, as they are written there."""
    members = GROUPS[name]
    included = [entry for member in members if isinstance(member, dict) for entry in group(member["include-group"])]
    return included + [member for member in members if isinstance(member, str)]


def locked(file):
    """What a requirements file holds: name==version -> the lines below it, its hashes and who wants it."""
    text = (REPOSITORY / file).read_text()
    return dict(re.findall(r"^([\w.-]+==[\w.]+)(.*\n(?: .*\n)*)", text, flags=re.MULTILINE))


FILES = {"torch": "requirements-torch.txt", "run": "requirements.txt", "dev": "requirements-dev.txt"}


@pytest.mark.parametrize("name", GROUPS)
def test_requirements_are_pinned_and_keep_other_peoples_adapters_out(name):
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in group(name))
    assert not {line.partition("==")[0] for line in [*group(name), *locked(FILES[name])]} & {"adapters", *PACKAGES}


@pytest.mark.parametrize("name", ["run", "dev"])
def test_the_locked_files_are_in_step_with_pyproject(name):
    """A test that fails here says: make lock."""
    files, torch = locked(FILES[name]), set(group("torch"))
    assert all("--hash=sha256:" in below for below in files.values())
    assert {line for line, below in files.items() if "(pyproject.toml" in below} == set(group(name)) - torch
    assert set(locked(FILES["torch"])) == torch <= set(group(name))


def test_what_torch_needs_is_locked_but_for_what_only_a_gpu_needs():
    names = {line.partition("==")[0] for line in locked("requirements.txt")}
    assert {"filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"} <= names
    assert not [name for name in names if re.match(r"torch$|triton|nvidia|cuda", name)]


def test_what_runs_is_locked_at_one_version_in_both_files():
    assert set(locked("requirements.txt")) <= set(locked("requirements-dev.txt"))
