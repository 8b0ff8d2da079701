"""What is seen inside a run is what formulas and definitions say."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from conftest import KINDS
from safetensors.torch import load_file

from adapters.method import Adapters
from bitfit.method import BitFit
from common.checkpoints import load_tokenizer
from common.encoders import layers, linear
from common.errors import InputError
from common.loading import load_adapter
from common.runs import ADAPTER
from common.study import heatmaps
from common.study.inspection import EXPLAINERS, inspect
from common.training import train
from diffpruning.method import DiffPruning
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning
from scripts import inspect as script

pytestmark = pytest.mark.slow
TEXTS = [["the plot is anything but dull ."], ["the cast is witty ."]]


@pytest.fixture
def run(options):
    """run(Lora()): the folder of a run of a second."""
    return lambda method, **changes: train(method, options(**{"max_train_samples": 24, "lr": 3e-2} | changes))[0]


def test_the_update_of_lora_is_that_of_its_matrices(run):
    folder = run(Lora(rank=2, alpha=6, targets=("query",)), task_name="sst2")
    found = inspect(folder, TEXTS)
    model, _ = load_adapter(folder)
    tensors = load_file(folder / ADAPTER)
    (name,) = found.changed
    for number, layer in enumerate(layers(model)):
        a, b = (next(t for n, t in tensors.items() if f"layer.{number}." in n and n.endswith(x)) for x in "AB")
        weight = linear(layer, "query").host.weight.detach()
        assert found.changed[name][number] == pytest.approx(float((3 * b @ a).norm() / weight.norm()), rel=1e-4)
        change = found.matrices[number]
        expected = torch.linalg.svdvals(3 * b @ a) / torch.linalg.svdvals(weight)[0]
        torch.testing.assert_close(change.singular_values, expected, atol=1e-6, rtol=1e-3)
        assert int((change.singular_values > 1e-5).sum()) == 2
    batch = load_tokenizer(model.base.checkpoint)(*TEXTS[1], return_tensors="pt")
    kept = []
    with linear(layers(model)[0], "query").host.register_forward_hook(lambda m, args, out: kept.append((args[0], out))):
        model(**batch)
    x, out = kept[0]
    place = linear(layers(model)[0], "query").host
    plain = torch.nn.functional.linear(x, place.weight, place.bias)
    ratio = ((out - plain).norm(dim=-1) / plain.norm(dim=-1)).mean()
    assert inspect(folder, TEXTS[1:]).added["attention.self.query.lora"][0] == pytest.approx(ratio.item(), rel=1e-4)


@pytest.mark.parametrize("method", [BitFit(), PromptTuning(4)], ids=str)
def test_contributions_sum_to_the_difference_that_the_text_makes(method, run):
    folder = run(method, task_name="sst2")
    found = inspect(folder, TEXTS)
    model, _ = load_adapter(folder)
    tokenizer = load_tokenizer(model.base.checkpoint)
    for words, text in zip(TEXTS, found.texts, strict=True):
        batch = tokenizer(*words, return_tensors="pt")
        ids = batch["input_ids"]
        masked = torch.where(torch.isin(ids, torch.tensor(tokenizer.all_special_ids)), ids, tokenizer.mask_token_id)
        with torch.no_grad():
            outputs = torch.cat([model(**batch | {"input_ids": each}).logits for each in (ids, masked)])
        chosen = int(outputs[0].argmax())
        assert text.answer == f"{['negative', 'positive'][chosen]} ({outputs[0].softmax(0)[chosen]:.2f})"
        difference = float(outputs[0, chosen] - outputs[1, chosen])
        gradients, sampled = (float(text.explained[name].sum()) for name in EXPLAINERS)
        assert sampled == pytest.approx(difference, abs=1e-4)  # exact for any orders
        assert gradients == pytest.approx(difference, abs=0.05 * abs(difference) + 0.02)
        assert text.explained["Shapley values"][[0, -1]].tolist() == [0, 0]


def test_diff_pruning_changed_as_many_entries_as_it_has_values(run):
    folder = run(DiffPruning(n_nonzero=40), task_name="sst2", n_epochs=2, lr=1e-3)
    found = inspect(folder, TEXTS[:1])
    model, _ = load_adapter(folder)
    sizes = {name: parameter.numel() for name, parameter in layers(model)[0].named_parameters()}
    inside = sum(sizes[name] * value for name, row in found.share.items() for value in row if not math.isnan(value))
    assert 20 < inside <= 40  # the others are in the embeddings
    assert inside == pytest.approx(round(inside))


@pytest.mark.parametrize(
    ("method", "n_before", "n_rows"), [(PrefixTuning(prefix_length=3), 3, 0), (PromptTuning(4), 4, 4), (Lora(), 0, 0)]
)
def test_attention_is_a_distribution_over_what_is_put_before_the_text_and_its_tokens(method, n_before, n_rows, run):
    (text,) = inspect(run(method, task_name="sst2"), TEXTS[1:]).texts
    n = len(text.tokens)
    assert text.attention.shape == (2, n + n_rows, n + n_before)
    torch.testing.assert_close(text.attention.sum(-1), torch.ones(2, n + n_rows), atol=1e-5, rtol=0)
    assert text.columns == [f"[{i + 1}]" for i in range(n_before)] + text.tokens
    assert text.tokens[:2] == ["[CLS]", "the"]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [PrefixTuning(prefix_length=3), PromptTuning(4), Lora()], ids=str)
def test_every_encoder_is_inspected(method, kind, run, checkpoints):
    found = inspect(run(method, task_name="sst2", checkpoint=checkpoints[kind]), TEXTS[1:])
    (text,) = found.texts
    assert all(each.abs().sum() > 0 for each in text.explained.values())
    if kind == "deberta-v2":
        assert text.attention is None
        assert not [name for name, *_ in heatmaps.draw([found]) if "attention" in name]
        return
    rows, columns = text.attention.shape[1:]
    assert (columns - len(text.tokens), rows - len(text.tokens)) == {"prefix": (3, 0), "prompt": (4, 4)}.get(
        method.name, (0, 0)
    )
    torch.testing.assert_close(text.attention.sum(-1), torch.ones(text.attention.shape[:2]), atol=1e-5, rtol=0)


def test_gates_are_those_of_the_formula(run):
    folder = run(Hybrid(("lora:rank=2", "adapters:placement=pfeiffer:bottleneck_size=4"), gates=True), task_name="sst2")
    found = inspect(folder, TEXTS)
    assert len(found.gates) == 3  # query, value and the adapter
    assert all(0 < value < 1 for row in found.gates.values() for value in row)
    model, _ = load_adapter(folder)
    tokenizer, (name, row) = load_tokenizer(model.base.checkpoint), next(iter(found.gates.items()))
    gate, kept = layers(model)[0].get_submodule(name).gate, []
    with gate.register_forward_hook(lambda module, args, out: kept.append(args[0])), torch.no_grad():
        for words in TEXTS:
            model(**tokenizer(*words, return_tensors="pt"))
    with torch.no_grad():
        assert row[0] == pytest.approx(np.mean([float(gate(x).sigmoid().mean()) for x in kept]), rel=1e-5)


def test_pairs_and_scores_are_inspected_and_the_page_holds_every_figure(run, monkeypatch, capsys, tmp_path):
    folders = [run(method, task_name="stsb") for method in (Adapters(4), Lora(rank=2))]
    words = ["inspect", *map(str, folders), "--text", "a ruby", "the <b> old sofa", "--out", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    page = (tmp_path / "x" / "inspect.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "x" / "inspect.html")
    pictures = sorted(path.stem for path in (tmp_path / "x").glob("*.png"))
    assert pictures == [
        "explained1", "run1-added", "run1-attention1", "run1-changed", "run1-share",
        "run2-added", "run2-attention1", "run2-changed", "run2-share", "run2-spectra",
    ]  # fmt: skip
    assert page.count("<img ") == len(pictures)
    found = inspect(folders[1], [["a ruby", "the sofa"]])
    text = dataclasses.replace(found.texts[0], tokens=['"<b>', *found.texts[0].tokens[1:]])
    page = heatmaps.write([dataclasses.replace(found, title="<i>", texts=[text])], tmp_path).read_text()
    assert "<b>" not in page
    assert "<i>" not in page


def test_what_cannot_be_inspected_is_refused(run):
    with pytest.raises(InputError, match=r"2 texts are given, and sst2 has 1 in an example"):
        inspect(run(Lora(rank=2), task_name="sst2"), [["a", "b"]])
    with pytest.raises(InputError, match="is a run of copa: wanted one that classifies or scores texts"):
        inspect(run(Lora(rank=2), task_name="copa"), TEXTS)


def test_a_grid_without_a_value_in_a_layer_is_drawn():
    figure = heatmaps.grid_figure({"a": [0.5, float("nan")]}, "label")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.5"]
