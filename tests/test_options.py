"""Options are accepted up to the limits of their ranges and refused beyond them, and survive a command line."""

import pytest

from common.errors import InputError
from common.options import (
    PredictOptions,
    SweepOptions,
    TuneOptions,
    command_line,
    given,
    non_default,
    parse,
    read_config,
)
from lora.method import Lora


@pytest.mark.parametrize(
    ("kind", "name", "good", "bad"),
    [
        (TuneOptions, "lr", [1e-30, 5.0], [0.0, -1e-3, float("inf"), float("nan")]),
        (TuneOptions, "betas", [(0.0, 0.0), (0.99, 0.9)], [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9)]),
        (TuneOptions, "eps", [1e-30, 0.5], [0.0, 1.0, -1.0]),
        (TuneOptions, "weight_decay", [0.0, 2.0], [-0.1, float("inf")]),
        (TuneOptions, "warmup_ratio", [0.0, 1.0], [-0.1, 1.1]),
        (TuneOptions, "max_grad_norm", [0.0, 2.0], [-0.1, float("nan")]),
        (TuneOptions, "time_limit", [None, 0.5], [0.0, -1.0, float("nan")]),
        (TuneOptions, "seed", [0, 2**32 - 1], [-1, 2**32]),
        (TuneOptions, "batch_size", [1, 64], [0, -1]),
        (TuneOptions, "eval_batch_size", [1], [0]),
        (TuneOptions, "gradient_accumulation_steps", [1], [0]),
        (TuneOptions, "n_epochs", [1], [0]),
        (TuneOptions, "max_bad_steps", [1], [0]),
        (TuneOptions, "max_train_samples", [None, 1], [0]),
        (TuneOptions, "max_eval_samples", [None, 1], [0]),
        (TuneOptions, "param_budget", [None, 1], [0]),
        (TuneOptions, "checkpoint_every", [None, 1], [0]),
        (PredictOptions, "batch_size", [1], [0]),
        (SweepOptions, "n_seeds", [1], [0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_is_accepted_up_to_its_limits_only(kind, name, good, bad):
    for value in good:
        assert getattr(kind(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(InputError, match=f"{name} (is|are) "):
            kind(**{name: value})


def test_all_wrong_options_are_named_in_one_error():
    with pytest.raises(InputError, match=r"lr is -1.*; eps is 2.*; batch_size is 0"):
        TuneOptions(lr=-1.0, eps=2.0, batch_size=0)


def test_options_are_read_from_the_command_line_made_of_them():
    changed = TuneOptions(data="-folder", resume=False, overwrite=True, betas=(0.5, 0.25), max_length=9, report_to=())
    values = non_default(changed, TuneOptions())
    assert set(values) == {"data", "resume", "overwrite", "betas", "max_length", "report_to"}
    words = command_line(values, TuneOptions)
    assert parse("program", words, options=TuneOptions()) == [changed]
    assert {"data", "resume", "overwrite", "max_length"} <= given(words)
    assert "lr" not in given(words)
    assert given(["--batch-size", "3", "--lr=1e-3", "rte"]) == {"batch_size", "lr"}


def test_hyphens_and_underscores_are_the_same():
    for spelling in ("--batch_size", "--batch-size"):
        assert parse("program", [spelling, "5"], options=TuneOptions()) == [TuneOptions(batch_size=5)]


def test_a_config_file_gives_options_and_the_command_line_wins(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"method": "lora", "rank": 4, "targets": ["key"], "lr": 0.01, "n_epochs": 7}')
    kinds = {"options": TuneOptions(), "method": Lora()}
    for words in (["--config", str(path), "--n_epochs", "2"], ["--n-epochs=2", f"--config={path}"]):
        options, method = parse("lora.tune", words, **kinds)
        assert (options.lr, options.n_epochs, method) == (0.01, 2, Lora(rank=4, targets=("key",)))
    assert read_config(["--seed", "1"]) == read_config([]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{", "is damaged"),
        ("[]", "wanted a JSON object"),
        ('{"method": "bitfit"}', "the config is of bitfit, wanted one for lora.tune"),
        ('{"rnak": 4}', "the config has 'rnak', which is no option of lora.tune"),
        ('{"rank": "4"}', "rank is '4': wanted int"),
        ('{"rank": 0}', "rank is 0"),
        ('{"config": "x"}', "the config has 'config', which is no option"),
    ],
)
def test_a_wrong_config_file_is_refused_in_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse("lora.tune", ["--config", str(path)], options=TuneOptions(), method=Lora())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
