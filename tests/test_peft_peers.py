"""peft's methods in our loop: all of them train, with peft's modules and parameters, and the rest is as for ours."""

import json
import subprocess
import sys
from typing import get_args

import pytest
import torch
from conftest import HIDDEN, INTERMEDIATE, LAYERS, REPOSITORY, perturb

from common import data, tasks
from common.checkpoints import load_model, load_tokenizer
from common.classification import TextClassification
from common.errors import InputError
from common.fast import prepare
from common.loading import load_adapter
from common.methods import apply, count_without_head, find, trainable
from common.options import TuneOptions
from common.tokens import tokenize
from common.training import train
from lora.method import Lora
from parity.peft.method import BEFORE_TEXT, Kind, Peft


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("lora", LAYERS * 2 * 2 * 4 * HIDDEN),
        ("dora", LAYERS * 2 * (2 * 4 * HIDDEN + HIDDEN)),
        ("loha", LAYERS * 2 * 4 * 4 * HIDDEN),
        ("ia3", LAYERS * (3 * HIDDEN + INTERMEDIATE)),  # it scales the attention output too, which the paper does not
        ("lntuning", (2 * LAYERS + 1) * 2 * HIDDEN),
        ("prefix", LAYERS * 2 * 5 * HIDDEN),
        ("prompt", 5 * HIDDEN),
    ],
)
def test_what_is_trained_is_what_peft_adds_and_the_head(kind, size, bert):
    model = apply(Peft(kind, rank=4, length=5), load_model(bert, 2))
    assert count_without_head(model) == size
    assert {name for name in trainable(model) if "classifier" in name} == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_trains_and_loads_again(kind, bert, tmp_path):
    options = {"task_name": "sst2", "data": "demo", "checkpoint": bert, "n_epochs": 2, "batch_size": 8, "lr": 1e-2}
    options |= {"max_train_samples": 40, "max_eval_samples": 16, "output_dir": str(tmp_path)}
    folder, result = train(Peft(kind, rank=2, length=3), TuneOptions(**options, report_to=("none",)))
    assert folder.parent.parent.name == result["method"] == "parity.peft"
    torch.manual_seed(42)
    before = trainable(apply(Peft(kind, rank=2, length=3), load_model(bert, 2)))
    model, method = load_adapter(folder)
    assert method == Peft(kind, rank=2, length=3)
    after = dict(model.named_parameters())
    moved = [name for name, parameter in before.items() if not torch.equal(parameter, after[name])]
    assert [name for name in moved if "classifier" not in name]


def test_batches_and_head_are_those_of_our_methods(bert, tmp_path, monkeypatch):
    """With B = 0 and a vanishing rate, the loss of every batch is the same number."""
    losses, loss = [], TextClassification.loss

    def noted(*args):
        losses.append(loss(*args))
        return losses[-1]

    monkeypatch.setattr(TextClassification, "loss", noted)
    options = {"task_name": "sst2", "data": "demo", "checkpoint": bert, "n_epochs": 1, "batch_size": 8, "lr": 1e-12}
    options |= {"max_train_samples": 40, "max_eval_samples": 16, "output_dir": str(tmp_path), "report_to": ("none",)}
    theirs, ours = (train(method, TuneOptions(**options))[1] for method in (Peft(), Lora()))
    assert theirs["trainable_params"] == ours["trainable_params"]
    assert len({float(each) for each in losses[:5]}) == 5
    torch.testing.assert_close(losses[:5], losses[5:])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_prepared_model_gives_the_logits_of_the_plain_one(kind, bert):
    """Packed, but for what peft puts before the text, which is padded whatever was chosen."""
    torch.manual_seed(0)
    model = apply(Peft(kind, rank=2, length=3), load_model(bert, 2)).eval()
    perturb([parameter for name, parameter in trainable(model).items() if "classifier" not in name])
    tokens = tokenize(data.read(tasks.find("mrpc"), "validation", "demo").sample(6), load_tokenizer(bert), 40)
    batch, _ = tokens.batch(torch.arange(6), torch.device("cpu"))
    with torch.no_grad():
        wanted = model(**batch).logits
        layout = prepare(model, torch.device("cpu")).layout
        assert (layout is None) == (kind in BEFORE_TEXT)
        batch, _ = tokens.with_layout(layout).batch(torch.arange(6), torch.device("cpu"))
        torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-5, rtol=1e-5)


def test_peft_freezes_nothing_that_was_trained(bert):
    model = load_model(bert, 2).requires_grad_(True)
    Peft("ia3").inject(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.long
def test_the_command_runs_and_a_wrong_kind_is_one_line(bert, tmp_path):
    words = [
        "--checkpoint",
        bert,
        "--data",
        "demo",
        "--task_name",
        "sst2",
        "--max_train_samples",
        "16",
        "--n_epochs",
        "1",
    ]
    command = [sys.executable, "-m", "parity.peft.tune", *words, "--output_dir", str(tmp_path), "--kind"]
    done = subprocess.run([*command, "ia3"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / done.stdout.strip().splitlines()[-1] / "adapter.json").read_text())
    assert (config["method"], config["options"]["kind"]) == ("parity.peft", "ia3")
    wrong = subprocess.run([*command, "ia4"], cwd=REPOSITORY, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: invalid choice 'ia4' for argument '--kind'")


def test_another_package_of_the_same_depth_is_unknown():
    for name in ("parity.lora", "..lora", "parity/peft", "parity.peft.method"):
        with pytest.raises(InputError, match="unknown method"):
            find(name)
