"""What the README says to type works."""

import re

from conftest import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text()


def test_the_python_lines_run(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert (tmp_path / "my-adapter" / "adapter.safetensors").is_file()


def test_the_options_that_it_lists_exist():
    from dataclasses import fields

    from common.options import TuneOptions

    listed = set(re.findall(r"`--(\w+)`", TEXT.partition("### What a run leaves")[0]))
    assert listed - {field.name for field in fields(TuneOptions)} == {"help"}


def test_its_links_into_the_repository_lead_somewhere():
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (REPOSITORY / path).exists(), path
