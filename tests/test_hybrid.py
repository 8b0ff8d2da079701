"""Hybrids: any methods together, with gates as in UniPELT, saved, reloaded and counted as one."""

import json
import sys

import pytest
import torch
from conftest import assert_packed_equals_padded, bert_base, perturb, perturbed, random_batch, save_checkpoint, still

from common.checkpoints import load_model
from common.encoders import layers
from common.errors import DoesNotFit, InputError
from common.fitting import fit_to_budget
from common.loading import load_adapter
from common.methods import apply, count, count_without_head, trainable
from common.options import parse
from common.runs import read_rows
from common.saving import save_adapter
from common.training import train
from hybrid.experiment import SPACE
from hybrid.method import Hybrid
from hybrid.parts import PRESETS, method_of, part_of
from lora.method import Lora
from scripts.search import main as search_main


def stored_without_head(method, n_outputs=2):
    model = apply(method, bert_base(n_outputs))
    return count(method.stored(model)[1]) - 769 * n_outputs


@pytest.mark.parametrize(
    ("preset", "stored", "trained"),
    [
        ("unipelt", 1_410_672, 11_083_376),
        ("unipelt_ap", 1_097_304, 10_770_008),
        ("mam", 10_005_504, 24_854_816),
    ],
)
def test_bert_base_gets_the_published_numbers_of_parameters(preset, stored, trained):
    assert stored_without_head(Hybrid(preset=preset)) == stored
    assert count_without_head(apply(Hybrid(preset=preset), bert_base())) == trained


def test_a_gate_is_the_mean_over_the_tokens_of_a_sequence_and_multiplies_what_is_added(make_model):
    """Computed by hand for LoRA on the value layer of the lowest layer, where padding must not count."""
    model = perturbed(Hybrid(("lora:rank=4:targets=value",), gates=True), make_model())
    batch = random_batch(model)
    layer = layers(model)[0].attention.self
    seen = {}
    layer.value.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    model(**batch)
    branch, mask = layer.value.hybrid, batch["attention_mask"]
    scores = torch.sigmoid(seen["x"] @ branch.gate.weight[0] + branch.gate.bias)  # (batch, length)
    gates = torch.stack([row[: int(n)].mean() for row, n in zip(scores, mask.sum(1), strict=True)])
    plain = seen["x"] @ layer.value.weight.T + layer.value.bias
    update = 2 * seen["x"] @ branch.branch.A.T @ branch.branch.B.T
    torch.testing.assert_close(seen["out"], plain + gates[:, None, None] * update, atol=1e-5, rtol=1e-5)
    assert gates.std() > 0


def test_query_and_value_have_gates_of_their_own_and_the_table_of_a_prefix_has_none(make_model):
    names = {name for name in trainable(apply(Hybrid(preset="unipelt"), make_model())) if ".gate.weight" in name}
    places = ("attention.self.query", "attention.self.value", "attention.self", "output")
    assert names == {f"bert.encoder.layer.{n}.{place}.hybrid.gate.weight" for n in (0, 1) for place in places}


def test_a_gate_of_a_prefix_multiplies_its_keys_and_values(make_model):
    """With a gate that is the same for all sequences, this is a prefix of that many times the values."""
    gated = apply(Hybrid(("prefix:prefix_length=5",), gates=True), make_model()).eval()
    plain = apply(Hybrid(("prefix:prefix_length=5",)), make_model()).eval()
    perturb([gated.bert.embeddings.prefix.embedding])
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if ".gate." in name:
                parameter.fill_(0.0)
                if name.endswith("bias"):
                    parameter.fill_(1.0)
        plain.bert.embeddings.prefix.embedding.copy_(
            gated.bert.embeddings.prefix.embedding * torch.sigmoid(torch.tensor(1.0))
        )
    batch = random_batch(gated)
    torch.testing.assert_close(gated(**batch).logits, plain(**batch).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "mpnet", "albert", "modernbert"])
@pytest.mark.parametrize(
    "method",
    [
        Hybrid(preset="unipelt"),
        Hybrid(("prompt:prompt_length=3", "prefix:prefix_length=3", "lora"), gates=True),
        Hybrid(("prefix:prefix_length=3", "prefix:prefix_length=2", "ia3"), gates=True),
        Hybrid(("lora", "ia3", "loha", "dora", "bitfit", "lntuning", "prompt:prompt_length=3")),
        Hybrid(("adapters:placement=pfeiffer", "adapters:placement=parallel", "adapters")),
    ],
    ids=["unipelt", "prompt", "prefixes", "one_map", "adapters"],
)
def test_packed_batches_give_the_logits_and_gradients_of_padded_ones(method, kind, tmp_path):
    """Also with several gated prefixes, and with a prompt, whose tokens a gate counts too."""
    folder = str(save_checkpoint(kind, tmp_path, **still(kind)))

    def model():
        torch.manual_seed(5)
        return perturbed(method, load_model(folder, 2))

    assert_packed_equals_padded(model(), model())


def test_the_order_and_the_length_of_other_sequences_do_not_change_a_gate(make_model):
    model = perturbed(Hybrid(preset="unipelt"), make_model())
    batch = random_batch(model)
    alone = [model(**{name: column[row : row + 1] for name, column in batch.items()}).logits for row in range(5)]
    torch.testing.assert_close(model(**batch).logits, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        ("lora", "ia3:outputs=query,value"),
        ("lora", "prompt"),
        ("adapters", "adapters:placement=parallel"),
        ("lora:rank=2", "lora:rank=4:targets=key"),
        ("prefix:hidden_dim=4", "prefix:prefix_length=3"),
    ],
)
@pytest.mark.parametrize("gates", [False, True])
def test_combinations_that_other_libraries_refuse_are_trained_saved_and_loaded(parts, gates, make_model, tmp_path):
    method = Hybrid(parts, gates=gates)
    model = perturbed(method, make_model())
    save_adapter(tmp_path, model, method)
    loaded, kind = load_adapter(tmp_path)
    batch = random_batch(model)
    assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert kind == method.stored(model)[0]


def test_a_hybrid_is_trained_like_a_single_method(options):
    folder, result = train(Hybrid(("lora:rank=4", "bitfit")), options(max_train_samples=16))
    assert (result["method"], result["parts"]) == ("hybrid", ["lora:rank=4", "bitfit"])
    assert load_adapter(folder)[1] == Hybrid(("lora:rank=4", "bitfit"))


def test_a_part_is_spelled_in_one_way_and_read_back():
    assert Hybrid(("lora:alpha=16.0:rank=8:dropout=0",)).parts == ("lora:alpha=16",)
    for part in ("adapters:drop_layers=2", "adapters:drop_layers=random", "bitfit:terms=query,key:layers=0-2,5",
                 "lora:rank=4:dropout=0.25:rslora=True", "baseline:top_k=1", "lora:layers=1"):  # fmt: skip
        assert part_of(method_of(part)) == part
    assert Hybrid(preset="unipelt") == Hybrid(PRESETS["unipelt"][0], gates=True)
    assert Hybrid.from_options(Hybrid(preset="mam").options()) == Hybrid(preset="mam")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parts": ()}, "parts are empty"),
        ({"parts": ("nonesuch",)}, "unknown method 'nonesuch'"),
        ({"parts": ("lora:rank=x",)}, "part lora:rank=x has 'rank=x': wanted a value"),
        ({"parts": ("lora:rank",)}, "wanted OPTION=VALUE"),
        ({"parts": ("lora:width=4",)}, "wanted OPTION=VALUE"),
        ({"parts": ("lora:rank=4:rank=8",)}, "each once"),
        ({"parts": ("lora:rank=0",)}, "rank is 0"),
        ({"parts": ("lora", "lora:rank=8")}, "name each once"),
        ({"parts": ("lora", "hybrid")}, "name its parts instead"),
        ({"preset": "mam", "gates": True}, "choose one"),
        ({"preset": "mam", "parts": ("lora",)}, "choose one"),
        ({"parts": ("lora", "prompt"), "layers": "0"}, "prompt does not work by layer"),
        ({"largest": 0}, "largest is 0"),
        ({"parts": ("bitfit",), "largest": 4}, "no part has a size"),
    ],
)
def test_invalid_options_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Hybrid(**wrong)


def test_layers_of_the_hybrid_are_those_of_every_part_that_names_none(make_model):
    method = Hybrid(("lora", "bitfit:layers=1"), layers="0")
    names = {name for name in trainable(apply(method, make_model())) if "layer." in name}
    assert {name for name in names if ".lora." in name} == {name for name in names if "layer.0." in name}
    assert {name for name in names if ".lora." not in name} == {name for name in names if "layer.1." in name}


def test_a_budget_keeps_the_ratios_of_the_sizes():
    budget = 300_000
    method = fit_to_budget(Hybrid(), budget, bert_base())
    lora, adapters, prefix = map(method_of, method.parts)
    assert 0.95 * budget < count_without_head(apply(method, bert_base())) <= budget
    assert adapters.bottleneck_size / lora.rank == pytest.approx(6, rel=0.3)
    assert lora.alpha == Lora().alpha
    assert prefix.prefix_length >= 1


def test_a_search_of_combinations_ends_with_files_that_tune_takes(options, bert, tmp_path, monkeypatch, capsys):
    """Every variable of the space decides parts, sizes or layers, and a file of the Pareto front repeats its run."""
    monkeypatch.setattr(sys, "argv", [
        "scripts.search", "hybrid", "--pareto", "--trials", "3", "--checkpoint", bert, "--data", "demo",
        "--task_name", "sst2", "--max_train_samples", "48", "--max_eval_samples", "20", "--n_epochs", "1",
        "--batch_size", "8", "--lr", "1e-2", "--report_to", "none", "--output_dir", str(tmp_path),
    ])  # fmt: skip
    search_main()
    home = tmp_path / "hybrid" / "sst2"
    rows = {json.dumps([row["parts"], row.get("layers", "all")]): row for row in read_rows(home / "search.jsonl")}
    found = sorted(home.glob("search-*/trial-*.json"))
    assert found
    for path in found:
        config = json.loads(path.read_text())
        assert json.dumps([config["parts"], config.get("layers", "all")]) in rows
        (method,) = parse("hybrid.tune", ["--config", str(path)], method=Hybrid())
        assert method == Hybrid.from_options(Hybrid().options() | {k: v for k, v in config.items() if k != "method"})


def test_the_space_of_a_search_gives_parts_of_powers_of_two_on_the_chosen_layers():
    space = SPACE(3)
    assert {name for name in space if name.startswith("layer_")} == {"layer_0", "layer_1", "layer_2"}
    values = {"lora": 4, "serial": 0, "parallel": 10, "prefix": 1, "layer_0": True, "layer_1": False, "layer_2": True}
    method = Hybrid(space["parts"].of(values), layers=space["layers"].of(values))
    assert method.parts == ("lora", "adapters:bottleneck_size=512:placement=parallel", "prefix:prefix_length=1")
    assert method.layers == "0,2"
    for nothing in (dict.fromkeys(("lora", "serial", "parallel", "prefix"), 0), dict.fromkeys(("layer_0",), False)):
        with pytest.raises(InputError, match="chosen"):
            (space["parts"] if "lora" in nothing else space["layers"]).of(nothing)


def test_a_part_that_does_not_fit_is_refused(make_model):
    with pytest.raises(DoesNotFit, match="rank 33"):
        apply(Hybrid(("lora:rank=33", "bitfit")), make_model())


def test_lora_alone_in_a_hybrid_is_lora(make_model):
    ours = perturbed(Hybrid(("lora",)), make_model())
    plain = perturbed(Lora(), make_model())
    batch = random_batch(ours)
    assert torch.equal(ours(**batch).logits, plain(**batch).logits)
