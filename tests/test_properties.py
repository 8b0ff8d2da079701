"""Any content of a file or a command line is used or refused with a clear error, and nothing is written elsewhere.

`make torture` runs the same properties on 10^5 cases.
"""

import contextlib
import io
import json
import os
import shutil
import string
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import data, loading, runs, saving, tasks
from common.checkpointing import Progress, TrainingState
from common.checkpoints import load_model
from common.errors import InputError
from common.methods import apply, find, names, trainable
from common.options import TuneOptions, parse
from common.results import read_result
from common.runs import CHECKPOINT, RESULT, read_rows, run_folder
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

counted = {"cases": 0}
watched = {"home": "", "outside": []}


def _watch(event: str, arguments: tuple) -> None:
    """Audit hook that records writes outside the folder of the tests."""
    writes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree")
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0
    path = arguments[0] if arguments else None
    if writes and watched["home"] and isinstance(path, str | bytes):
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(watched["home"]) and "__pycache__" not in place and not place.startswith("/dev/"):
            watched["outside"].append((event, place))


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("properties")
    yield folder
    if "COUNT_CASES" in os.environ:
        Path(os.environ["COUNT_CASES"]).write_text(str(counted["cases"]))


@contextlib.contextmanager
def nothing_outside(folder: Path):
    """Count a case, and assert that it writes to this folder only."""
    counted["cases"] += 1
    watched.update(home=str(folder), outside=[])
    try:
        yield
    finally:
        watched["home"] = ""
    assert watched["outside"] == []


def share(of_all: float) -> settings:
    """Run this share of a profile's cases (`quick`: 400, `torture`: 10^5); a slow property gets a small one."""
    return settings(max_examples=round(of_all * settings.default.max_examples))


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0")
words = st.text(characters, max_size=12)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@st.composite
def edits(draw):
    """A function that changes some bytes."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("sic"), st.binary(max_size=6)), max_size=3))

    def edit(content: bytes) -> bytes:
        for share, kind, new in places:
            at = int(share * len(content))
            if kind == "s":  # set, insert, cut
                content = content[:at] + new + content[at + len(new) :]
            elif kind == "i":
                content = content[:at] + new + content[at:]
            else:
                content = content[:at]
        return content

    return edit


LABELS = {"rte": ["entailment", "not_entailment"], "cola": ["0", "1"], "stsb": ["0", "4.9"], "qqp": ["0", "1"]}


@st.composite
def tables(draw):
    """A task and the bytes of a training file like its own, with a few faults."""
    task = tasks.find(draw(st.sampled_from(sorted(LABELS))))
    header = list(task.splits["train"].header)
    names = header or ["id", *(task.file_texts or task.texts), task.file_label]
    cell = words | st.text(max_size=6)
    rows = draw(st.lists(st.lists(cell, min_size=len(names) - 1, max_size=len(names) - 1), max_size=4))
    at = names.index(task.file_label)
    lines = [[*row[:at], draw(st.sampled_from(LABELS[task.name])), *row[at:]] for row in rows]
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join("\t".join(line) for line in ([] if header else [names]) + lines) + draw(st.sampled_from(["", end]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return task, draw(edits())(text.encode(encoding, errors="replace"))


@share(0.5)
@given(tables())
def test_any_bytes_are_examples_or_one_clear_error(home, case):
    task, content = case
    path = home / task.splits["train"].file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with nothing_outside(home), contextlib.suppress(InputError), contextlib.redirect_stderr(io.StringIO()):
        examples = data.read(task, "train", str(home))
        assert len(examples) == len(examples.labels) > 0
        assert all(len(column) == len(examples) for column in examples.texts)


@share(0.1)
@given(st.lists(st.tuples(words, words), min_size=2, max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_examples_are_read_as_they_were_written(home, pairs, end, final):
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [f"{n}\t{a}\t{b}\t{LABELS['rte'][n % 2]}" for n, (a, b) in enumerate(pairs)]
    path = home / "RTE" / "train.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((end.join(lines) + end * final).encode())
    with nothing_outside(home):
        examples = data.read(tasks.find("rte"), "train", str(home))
    assert examples.texts == ([a for a, _ in pairs], [b for _, b in pairs])
    assert examples.labels == [n % 2 for n in range(len(pairs))]


@pytest.fixture(scope="module")
def adapters(home):
    """Saved adapters of several methods."""
    base = save_checkpoint("bert", home / "bert")
    methods = [Lora(), Adapters(), PrefixTuning(hidden_dim=4), PromptTuning(3), BitFit(), Baseline(top_k=1)]
    folders = []
    for number, method in enumerate(methods):
        folders.append(home / f"adapter{number}")
        saving.save_adapter(folders[-1], apply(method, load_model(str(base), 2)), method, task_name="sst2")
    return folders


@st.composite
def changed_configs(draw):
    """A function that changes some values of an adapter.json, its options included, or some of its bytes."""
    changes = draw(
        st.lists(st.tuples(st.integers(0, 40), st.sampled_from("srd"), anything | words), min_size=1, max_size=2)
    )

    def change(text: str) -> bytes:
        config = json.loads(text)
        for place, kind, value in changes:
            inside = config["options"] if place % 2 and isinstance(config.get("options"), dict) else config
            key = sorted(inside)[place // 2 % len(inside)] if inside else "new"
            if kind == "d":
                inside.pop(key, None)
            else:
                inside[key] = value
        return json.dumps(config).encode()

    return change


@share(0.05)
@given(st.integers(0, 5), changed_configs(), edits(), edits(), st.sampled_from(["values", "bytes", "tensors"]))
def test_any_changed_adapter_is_loaded_or_is_one_clear_error(home, adapters, number, change, some, others, where):
    folder = home / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(adapters[number], folder)
    config, stored = folder / runs.CONFIG, folder / runs.ADAPTER
    if where == "values":
        config.write_bytes(change(config.read_text()))
    elif where == "bytes":
        config.write_bytes(some(config.read_bytes()))
    else:
        stored.write_bytes(others(stored.read_bytes()))
    with nothing_outside(home), contextlib.suppress(InputError):
        model, method = loading.load_adapter(folder)
        assert method.name in names()
        assert trainable(model)
        assert stored.read_bytes() == (adapters[number] / runs.ADAPTER).read_bytes()  # else it is refused


@st.composite
def command_lines(draw):
    """A method, and words like those of a command line for it."""
    kind = find(draw(st.sampled_from(names())))
    known = [field.name for field in [*fields(TuneOptions), *fields(kind)] if field.name != "debug"]
    arguments = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from(known) | st.text(string.ascii_lowercase, min_size=1, max_size=6))
        arguments.append("--" + name)
        value = st.sampled_from(["0", "1", "-1", "1e9", "nan", "inf", "None", "True", "demo", "../..", "/etc", "none"])
        arguments += draw(st.lists(value | st.integers().map(str) | st.floats().map(str) | words, max_size=2))
    return kind, arguments


@share(0.05)
@given(command_lines())
def test_any_words_are_options_or_one_clear_error(home, case):
    kind, arguments = case
    before, sys.argv = sys.argv, ["program", *arguments]
    stderr, code = io.StringIO(), None
    try:
        with nothing_outside(home), contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            options, method = parse("program", options=TuneOptions(), method=kind())
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    if code is not None:
        assert code in (0, 2)
        assert code == 0 or (stderr.getvalue()[:7], stderr.getvalue().count("\n")) == ("error: ", 1)
        return
    folder = run_folder(method, options)
    assert folder.parent.parent.parent == Path(options.output_dir)
    assert ".." not in folder.relative_to(options.output_dir).parts


class Content(bytes):
    """Bytes that are not shown in full when a case fails."""

    def __repr__(self):
        return f"{len(self)} bytes"


@pytest.fixture(scope="module")
def unfinished(home, adapters):
    """A training state to load a checkpoint into, and the bytes of its checkpoint."""
    from accelerate import Accelerator

    model = apply(Lora(rank=1), load_model(str(home / "bert"), 2))
    optimizer = torch.optim.AdamW(trainable(model).values(), fused=True)
    for parameter in trainable(model).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = TrainingState(model, optimizer, torch.zeros(3), Accelerator(), {"n_steps": 8}, 8, 8, ("accuracy",))
    state.save(home, Progress(step=3, scalars=[(1, 2.0, {"train/loss": 0.5})]))
    return state, Content((home / CHECKPOINT).read_bytes())


@share(0.1)
@given(edits())
def test_any_changed_checkpoint_is_one_clear_error(home, unfinished, edit):
    state, content = unfinished
    changed = edit(content)
    (home / CHECKPOINT).write_bytes(changed)
    with nothing_outside(home):
        if changed == content:
            assert state.load(home).step == 3
        else:
            with pytest.raises(InputError, match="--no_resume restarts the run"):
                state.load(home)


@pytest.fixture(scope="module")
def result(home, adapters):
    """The text of a real result.json."""
    small = {"data": "demo", "task_name": "sst2", "max_train_samples": 8, "max_eval_samples": 8, "n_epochs": 1}
    folder, _ = train(Lora(rank=1), TuneOptions(checkpoint=str(home / "bert"), output_dir=str(home / "out"), **small))
    return (folder / RESULT).read_text()


@share(0.2)
@given(st.integers(0, 80), anything, edits())
def test_any_changed_result_is_a_result_or_one_clear_error(home, result, place, value, edit):
    values = json.loads(result)
    values[sorted(values)[place % len(values)]] = value
    text = edit(json.dumps(values).encode())
    (home / RESULT).write_bytes(text)
    (home / "rows.jsonl").write_bytes(text + b"\n")
    with nothing_outside(home):
        with contextlib.suppress(InputError):
            found = read_result(home)
            assert isinstance(found["best_score"], float | int)
        with contextlib.suppress(InputError):
            assert all(isinstance(row["run"], str) for row in read_rows(home / "rows.jsonl"))
