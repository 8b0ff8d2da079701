"""The commands and the Python of the README and docs/ are valid, and their links exist."""

import re
import shlex
import sys
from dataclasses import fields
from statistics import fmean
from typing import Any

from conftest import REPOSITORY

from common import training
from common.methods import find
from common.options import (
    GenerateOptions,
    MaskedLMOptions,
    PredictOptions,
    SweepOptions,
    TextOptions,
    TuneOptions,
    options_of,
    parse,
)
from common.study import aggregation
from common.study.significance import confidence_interval

README = (REPOSITORY / "README.md").read_text()
PAGES = {path: path.read_text() for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"))}
TEXT = "\n".join(PAGES.values())


def test_the_python_lines_run(tmp_path, monkeypatch):
    """Those of docs/python.md; lines on other pages need a model from the hub, or peft."""
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        compile(block, "docs", "exec")
    first, second = re.findall(r"```python\n(.*?)```", PAGES[REPOSITORY / "docs" / "python.md"], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(second, {})
    assert (tmp_path / "my-adapter" / "adapter.safetensors").is_file()
    monkeypatch.setattr(training, "train", lambda method, options: (method, options))
    found: dict[str, Any] = {}
    exec(first.replace("results(", "("), found)
    assert (found["folder"].rank, found["result"].max_train_samples) == (8, 100)


def test_the_listed_options_exist():
    page = PAGES[REPOSITORY / "docs" / "options.md"]
    listed = {name.removeprefix("no_") for name in re.findall(r"`--(\w+)`", page)}
    assert len(listed) > 15
    assert listed - {field.name for field in fields(TuneOptions)} == {"help", "config"}


def test_the_commands_are_parsed(monkeypatch):
    """Every command that launches a module of a method is parsed, but not run."""
    verbs = "tune|test|predict|experiment|mlm|generate"
    lines = re.findall(rf"-m (\w+)\.({verbs})((?: [^#\n`|]*)?)", TEXT.replace("\\\n", " "))
    assert len(lines) > 5
    for name, verb, words in lines:
        kind = find(name)
        parts = {"tune": {"options": TuneOptions(), "method": kind()}, "test": {"options": PredictOptions()}}
        parts["predict"] = {"options": TextOptions()}
        parts["mlm"] = {"options": MaskedLMOptions(), "method": kind()}
        parts["generate"] = {"options": GenerateOptions(), "method": kind()}
        own = [word for word in shlex.split(words) if word != "..."]
        if verb == "experiment":
            options_kind, own = options_of(own, name)
            parts["experiment"] = {"options": options_kind(), "sweep": SweepOptions()}
        monkeypatch.setattr(sys, "argv", ["program", *own])
        parse("program", **parts[verb])


def test_links_into_the_repository_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
            assert (page.parent / path).exists(), (page.name, path)


def test_the_readme_has_at_most_a_thousand_words():
    assert len(README.split()) <= 1000


def test_the_first_table_of_the_readme_is_that_of_the_committed_rows():
    """Score, interval and parameters of every method in the first table."""
    tables = aggregation.group(aggregation.read([REPOSITORY / "results" / "sizes.jsonl"]))
    ((_, configurations),) = tables.items()
    best = aggregation.best(configurations, "score")
    lines = re.findall(r"^\| [\w ,-]+ \| (0\.\d+) \| (0\.\d+) to (0\.\d+) \| ([\d,]+) \|", README, re.MULTILINE)
    found = {int(trained.replace(",", "")): (score, low, high) for score, low, high, trained in lines}
    assert len(found) == len(best)
    for each in best.values():
        scores = list(each.scores("score").values())
        wanted = (fmean(scores), *confidence_interval(scores))
        assert found[each.rows[0]["trainable_params_without_head"]] == tuple(f"{value:.3f}" for value in wanted)
