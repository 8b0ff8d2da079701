"""What the README says to type is understood, and its Python runs."""

import re
import sys
from dataclasses import fields

from conftest import REPOSITORY

from common.methods import find
from common.options import PredictOptions, SweepOptions, TuneOptions, parse

TEXT = (REPOSITORY / "README.md").read_text()


def test_the_python_lines_run(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert (tmp_path / "my-adapter" / "adapter.safetensors").is_file()


def test_the_options_that_it_lists_exist():
    listed = set(re.findall(r"`--(\w+)`", TEXT.partition("### All of GLUE from the shell")[0]))
    assert listed - {field.name for field in fields(TuneOptions)} == {"help"}


def test_its_commands_are_understood(monkeypatch):
    """Every line that launches a module of a method, up to the point where it would begin to work."""
    lines = re.findall(r"-m (\w+)\.(tune|test|experiment)((?: [^#\n`|]*)?)", TEXT.replace("\\\n", " "))
    assert len(lines) > 5
    for name, verb, words in lines:
        kind = find(name)
        parts = {"tune": {"options": TuneOptions(), "method": kind()}, "test": {"options": PredictOptions()}}
        parts["experiment"] = {"options": TuneOptions(), "sweep": SweepOptions()}
        monkeypatch.setattr(sys, "argv", ["program", *(word for word in words.split() if word != "...")])
        parse("program", **parts[verb])


def test_its_links_into_the_repository_lead_somewhere():
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (REPOSITORY / path).exists(), path
