"""What is exported computes the same elsewhere: in peft, and as a plain model of transformers without our code."""

import base64
import dataclasses
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product

import pytest
import torch
from conftest import KINDS, REPOSITORY, bert_base, exits_with_one_line, perturb, perturbed, random_batch
from safetensors.torch import load_file

import scripts.export
from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import tasks
from common.checkpoints import HUB_NAMES, Base, load_model, load_tokenizer
from common.encoders import head_parameters
from common.errors import InputError
from common.exchange import shortest_ends, to_peft
from common.loading import load_adapter
from common.methods import apply, trainable
from common.options import PredictOptions
from common.prediction import answer
from common.runtime.files import read_json
from common.saving import save_adapter
from common.study.cards import card, contamination
from common.study.exporting import export, import_adapter, read
from common.training import train
from diffpruning.method import DiffPruning
from dora.method import Dora
from hybrid.method import Hybrid
from ia3.method import Ia3
from lntuning.method import LnTuning
from loha.method import Loha
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning
from scripts import import_peft

ALL = ("query", "key", "value", "attention_output", "intermediate", "output")
SAME_IN_PEFT = {
    "lora": Lora(rank=4, alpha=6, dropout=0.1),
    "rslora": Lora(rank=4, alpha=6, rslora=True, targets=ALL),
    "lora_of_one_layer": Lora(rank=4, targets=("query", "output"), layers="0"),
    "dora": Dora(rank=4, alpha=6, targets=ALL),
    "loha": Loha(rank=2, alpha=6, targets=ALL),
    "ia3": Ia3(),
    "ia3_elsewhere": Ia3(outputs=("query", "attention_output"), inputs=("intermediate",)),
    "ia3_of_one_layer": Ia3(inputs=("output", "attention_output"), layers="0"),
    "lntuning": LnTuning(),
    "lntuning_of_one_layer": LnTuning(layers="0"),
}
IN_FRONT = {"prefix": PrefixTuning(prefix_length=5, hidden_dim=6), "prompt": PromptTuning(prompt_length=5)}


def saved(method, checkpoint, folder, n_outputs=2, pooling=None, **facts):
    """A run folder with a perturbed method, and the model that it holds."""
    torch.manual_seed(1)
    model = apply(method, load_model(checkpoint, n_outputs, pooling)).eval()
    perturb(trainable(model).values())
    save_adapter(folder, model, method, **facts)
    return model


def load_in_peft(folder, remedy=""):
    """As a stranger does it, with transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    torch.manual_seed(5)  # another head than ours
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(plain, folder).eval()
    exec(remedy, {"model": model, "torch": torch})
    return model


FUSED = [name for name in SAME_IN_PEFT if "lntuning" not in name]
"""Those with a part in the rows of ModernBERT's fused layer."""


@pytest.mark.parametrize("name", FUSED)
def test_a_part_in_rows_of_a_fused_layer_is_refused(name, checkpoints, tmp_path):
    saved(SAME_IN_PEFT[name], checkpoints["modernbert"], tmp_path / "run")
    with pytest.raises(InputError, match="one layer of modernbert, and peft has one for the whole layer"):
        export(tmp_path / "run", "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "kind"), [each for each in product(SAME_IN_PEFT, KINDS) if each[1] != "modernbert" or each[0] not in FUSED]
)
def test_peft_loads_it_with_our_logits(name, kind, checkpoints, tmp_path):
    pytest.importorskip("peft")
    model = saved(SAME_IN_PEFT[name], checkpoints[kind], tmp_path / "run")
    assert export(tmp_path / "run", "peft", tmp_path / "out") == ""
    batch = random_batch(model)
    theirs = load_in_peft(tmp_path / "out")
    torch.testing.assert_close(theirs(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"), [("prefix", "bert"), ("prefix", "roberta"), *(("prompt", kind) for kind in KINDS)]
)
def test_where_peft_computes_otherwise_the_note_says_so_and_the_lines_of_the_card_make_it_equal(
    name, kind, checkpoints, tmp_path
):
    pytest.importorskip("peft")
    model = saved(IN_FRONT[name], checkpoints[kind], tmp_path / "run")
    assert "which" in export(tmp_path / "run", "peft", tmp_path / "out")
    batch = random_batch(model)
    wanted = model(**batch).logits
    assert not torch.allclose(load_in_peft(tmp_path / "out")(**batch).logits, wanted, atol=1e-3)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    remedy = code[code.index("\ndef ") :]
    torch.testing.assert_close(load_in_peft(tmp_path / "out", remedy)(**batch).logits, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_an_export_to_peft_needs_no_peft(bert, tmp_path):
    """peft is not among the requirements of a run."""
    saved(Lora(), bert, tmp_path / "run")
    code = "import sys; sys.modules['peft'] = None; from scripts.export import main; main()"
    words = [str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path / 'out'}\n", done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md"
    }  # fmt: skip


def test_linear_layers_are_named_by_the_shortest_ends_that_peft_takes_for_no_other(make_model):
    def modules(method):
        return to_peft(method, perturbed(method, make_model())).settings["target_modules"]

    assert modules(Lora()) == ["query", "value"]
    assert modules(Lora(targets=("attention_output",))) == ["attention.output.dense"]
    assert modules(Lora(targets=("output",))) == ["0.output.dense", "1.output.dense"]
    assert modules(Lora(targets=("query",), layers="1")) == ["1.attention.self.query"]
    assert modules(LnTuning()) == ["LayerNorm"]
    lowest_but_one = {"bert.encoder.layer.1.attention.self.query"}
    assert shortest_ends(lowest_but_one, bert_base()) == ["1.attention.self.query"]  # which is no end of layer 11's


MERGED = {
    "lora": Lora(rank=4, alpha=6, targets=ALL),
    "dora": Dora(rank=4, alpha=6, targets=ALL),
    "loha": Loha(rank=2, alpha=6, targets=ALL),
    "ia3": Ia3(),
    "bitfit": BitFit(),
    "lntuning": LnTuning(),
    "diffpruning": DiffPruning(n_nonzero=200, fixed_mask=True),
    "full": Baseline(),
    "top": Baseline(top_k=1),
    "head": Baseline(top_k=0),
    "random": Baseline(random_params=200),
    "hybrid": Hybrid(("dora", "bitfit", "diffpruning:n_nonzero=200:fixed_mask=True")),
}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
@pytest.mark.parametrize("name", MERGED)
def test_a_merged_folder_is_a_plain_model_with_our_logits(name, kind, checkpoints, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = saved(MERGED[name], checkpoints[kind], tmp_path / "run")
    export(tmp_path / "run", "merged", tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    batch = random_batch(model)
    torch.testing.assert_close(plain(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    before = load_model(checkpoints[kind], 2)
    before.load_state_dict(head_parameters(model), strict=False)
    changes = not torch.allclose(before(**batch).logits, model(**batch).logits, atol=1e-3)
    assert changes == (name != "head")


@pytest.mark.slow
def test_a_pipeline_runs_merged_folders_with_our_code_absent(bert, tmp_path):
    """From an empty folder, isolated from the working directory: transformers has all that it needs."""
    texts, wanted = ["the cat was in the house .", "a"], {}
    for name in MERGED:
        model = saved(MERGED[name], bert, tmp_path / name, task_name="sst2", max_length=5)
        export(tmp_path / name, "merged", tmp_path / "out" / name)
        inputs = load_tokenizer(bert)(texts, padding=True, truncation=True, max_length=5, return_tensors="pt")
        wanted[name] = model(**inputs).logits.tolist()
    code = (
        "import importlib.util, json, pathlib, sys\n"
        "from transformers import pipeline\n"
        "assert not any(map(importlib.util.find_spec, ('common', 'diffpruning', 'bitfit')))\n"
        "found = {}\n"
        "for folder in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    classify = pipeline('text-classification', str(folder), top_k=None, function_to_apply='none')\n"
        "    rows = classify(json.loads(sys.argv[2]), truncation=True)\n"
        "    found[folder.name] = [{each['label']: each['score'] for each in row} for row in rows]\n"
        "print(json.dumps(found))\n"
    )
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "out"), json.dumps(texts)]
    done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == MERGED.keys()
    for name, rows in found.items():
        logits = torch.tensor([[row["negative"], row["positive"]] for row in rows])
        torch.testing.assert_close(logits, torch.tensor(wanted[name]), atol=1e-5, rtol=1e-5)


def test_a_merged_regression_gives_its_score_in_a_pipeline(bert, tmp_path):
    from transformers import AutoConfig

    saved(Lora(), bert, tmp_path / "run", n_outputs=1, task_name="stsb", max_length=20)
    export(tmp_path / "run", "merged", tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.problem_type, config.id2label) == ("regression", {0: "score"})


@pytest.mark.parametrize(
    ("method", "to", "pooling", "message"),
    [
        (Adapters(), "merged", None, "no plain model computes the same"),
        (PromptTuning(5), "merged", None, "no plain model computes the same"),
        (Hybrid(("lora", "adapters")), "merged", None, "no plain model computes the same"),
        (Adapters(), "peft", None, "peft's format has nothing for adapters"),
        (Hybrid(("lora", "bitfit")), "peft", None, "peft's format has nothing for hybrid"),
        (Lora(), "peft", "mean", "--pooling mean"),
        (Lora(), "peft", "cls", "--pooling cls"),
        (BitFit(), "merged", "mean", "--pooling mean"),
        (Adapters(), "adapterhub", None, "LayerNorm.* was trained too, which .* train with --train_layernorm False"),
        (Adapters(placement="pfeiffer"), "adapterhub", "trained_pooler", "pooler.* was trained too"),
        (Adapters(placement="pfeiffer"), "adapterhub", "mean", "--pooling mean"),
        (Adapters(placement="pfeiffer", invertible=True), "adapterhub", None, "train without --invertible"),
        (Lora(), "adapterhub", None, "of lora nothing is written in AdapterHub's format: try --to peft or merged"),
        (PrefixTuning(5, layers="0"), "peft", None, "the prefix is in the layers 0, and peft's is in all"),
        (PromptTuning(5, level="embeddings"), "peft", None, "peft's enters as words"),
        (Ia3(outputs=("key", "output")), "peft", None, "output has both scaled"),
    ],
)
def test_what_the_format_cannot_express_is_refused_and_nothing_is_written(method, to, pooling, message, bert, tmp_path):
    saved(method, bert, tmp_path / "run", pooling=pooling)
    with pytest.raises(InputError, match=message):
        export(tmp_path / "run", to, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_adapterhubs_library_finds_its_files_names_and_settings(placement, bert, tmp_path):
    """`make parity-adapterhub` loads such exports in that library, which gives our logits."""
    method = Adapters(7, placement, train_layernorm=False, layers="1", activation="relu")
    model = saved(method, bert, tmp_path / "run", task_name="mrpc", max_length=20)
    export(tmp_path / "run", "adapterhub", tmp_path / "out")
    names = ["README.md", "adapter.safetensors", "adapter_config.json", "head_config.json", "model_head.safetensors"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    tensors, head = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("adapter", "model_head"))
    module = "bert.encoder.layer.1.output.adapters.mrpc"
    down = dict(model.named_parameters())["bert.encoder.layer.1.output.adapters.down.weight"]
    assert torch.equal(tensors[f"{module}.adapter_down.0.weight"], down)
    assert tensors[f"{module}.adapter_up.weight"].shape == (32, 7)
    assert len(tensors) == {"houlsby": 8}.get(placement, 4)
    assert torch.equal(head["classifier.weight"], model.classifier.weight)
    adapter, of_head = (read_json(tmp_path / "out" / f"{name}_config.json") for name in ("adapter", "head"))
    found = adapter["config"]
    assert (adapter["name"], adapter["hidden_size"], found["leave_out"]) == ("mrpc", 32, [0])
    assert 32 // found["reduction_factor"] == 7
    assert (found["mh_adapter"], found["original_ln_before"]) == (placement == "houlsby", placement == "pfeiffer")
    assert (found.get("is_parallel", False), found["scaling"]) == (
        (True, 4.0) if placement == "parallel" else (False, 1)
    )
    assert (found["non_linearity"], of_head["label2id"]) == ("relu", {"not_equivalent": 0, "equivalent": 1})
    assert 'load_adapter("out", use_safetensors=True, set_active=True)' in (tmp_path / "out" / "README.md").read_text()


def test_of_an_encoder_with_other_names_in_adapterhub_nothing_is_written(checkpoints, tmp_path):
    saved(Adapters(placement="pfeiffer"), checkpoints["distilbert"], tmp_path / "run")
    with pytest.raises(InputError, match="distilbert has other names of layers in AdapterHub's format, and is not wr"):
        export(tmp_path / "run", "adapterhub", tmp_path / "out")


def test_a_prefix_for_an_encoder_to_which_peft_gives_none_is_refused(checkpoints, tmp_path):
    saved(PrefixTuning(5), checkpoints["distilbert"], tmp_path / "run")
    with pytest.raises(InputError, match="peft cannot give a prefix to distilbert"):
        export(tmp_path / "run", "peft", tmp_path / "out")


@pytest.mark.parametrize("pooling", ["pooler", "trained_pooler"])
def test_a_trained_pooler_is_part_of_the_export(pooling, bert, tmp_path):
    pytest.importorskip("peft")
    model = saved(Lora(), bert, tmp_path / "run", pooling=pooling)
    export(tmp_path / "run", "peft", tmp_path / "out")
    batch = random_batch(model)
    torch.testing.assert_close(
        load_in_peft(tmp_path / "out")(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6
    )


# Adapters that others trained with peft


PEFT_CONFIGS = {
    "LoraConfig": {"r": 4, "lora_alpha": 6, "target_modules": ["query", "output.dense"]},
    "LoraConfig rslora": {"r": 4, "use_rslora": True, "lora_dropout": 0.1, "target_modules": ["query"]},
    "LoraConfig dora": {"r": 4, "use_dora": True, "use_rslora": True, "target_modules": ["key", "value"]},
    "LoraConfig layers": {"r": 4, "target_modules": ["query"], "layers_to_transform": [1]},
    "LoraConfig pooler": {"r": 4, "target_modules": ["query"], "modules_to_save": ["pooler"]},
    "LoHaConfig": {"r": 2, "alpha": 3, "target_modules": ["query", "value"]},
    "IA3Config": {},
    "IA3Config outputs": {"target_modules": ["key"], "feedforward_modules": []},
    "LNTuningConfig": {"target_modules": ["LayerNorm"]},
}


def trained_with_peft(name, checkpoint, folder, n_outputs=2, **more):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    settings = PEFT_CONFIGS.get(name, {}) | more
    config = getattr(peft, name.split()[0])(task_type="SEQ_CLS", **settings)
    torch.manual_seed(2)
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=n_outputs)
    model = peft.get_peft_model(plain, config).eval()
    perturb([p for p in model.parameters() if p.requires_grad])
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_an_adapter_trained_with_peft_gives_the_same_logits_here(name, bert, tmp_path):
    theirs = trained_with_peft(name, bert, tmp_path / "theirs", n_outputs=3)
    import_adapter(tmp_path / "theirs", tmp_path / "run", None, None, "hub", None)
    ours, _ = load_adapter(tmp_path / "run")
    batch = random_batch(ours)
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_it_does_so_for_other_encoders_too(kind, checkpoints, tmp_path):
    modules = {"roberta": ["query"], "distilbert": ["q_lin"]}[kind]
    more = {"modules_to_save": ["pre_classifier"]} if kind == "distilbert" else {}
    theirs = trained_with_peft("LoraConfig", checkpoints[kind], tmp_path / "theirs", target_modules=modules, **more)
    import_adapter(tmp_path / "theirs", tmp_path / "run", None, None, "hub", None)
    ours, method = load_adapter(tmp_path / "run")
    assert method.targets == ("query",)
    batch = random_batch(ours)
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("LoraConfig", {"target_modules": ["query", "value"], "rank_pattern": {"value": 2}}, "rank_pattern"),
        ("LoraConfig", {"alpha_pattern": {"query": 2}}, "alpha_pattern"),
        ("LoraConfig", {"bias": "lora_only"}, "bias 'lora_only'"),
        ("LoraConfig", {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ("LoraConfig", {"lora_bias": True}, "lora_bias True"),
        ("LoraConfig", {"target_modules": ["0.attention.self.query", "1.attention.self.key"]}, "in one layer than in"),
        ("LoraConfig", {"target_modules": ["query", "pooler.dense"]}, "changes bert.pooler.dense"),
        ("LNTuningConfig", {"target_modules": ["output.LayerNorm"]}, "read as lntuning, but"),
        ("LoKrConfig", {"target_modules": ["query"]}, "peft_type 'LOKR': those of dora, ia3, lntuning, loha, lora can"),
        ("PrefixTuningConfig", {"num_virtual_tokens": 3}, "peft_type 'PREFIX_TUNING'"),
    ],
)
def test_what_no_method_here_computes_is_refused(name, settings, message, bert, tmp_path):
    trained_with_peft(name, bert, tmp_path / "theirs", **settings)
    with pytest.raises(InputError, match=re.escape(message)):
        import_adapter(tmp_path / "theirs", tmp_path / "run", None, None, "hub", None)
    assert not (tmp_path / "run").exists()


def test_an_imported_adapter_predicts_a_task_and_is_exported_again(bert, tmp_path, monkeypatch, capsys):
    trained_with_peft("LoraConfig", bert, tmp_path / "theirs")
    words = [str(tmp_path / "theirs"), "--task_name", "rte", "--data", "demo", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["scripts.import_peft", *words])
    import_peft.main()
    assert "rank=4, alpha=6, dropout=0.0, targets=('query', 'attention_output', 'output')" in capsys.readouterr().out
    (file,) = answer("lora", PredictOptions(run=str(tmp_path / "run")))
    assert file.read_text().startswith("index\tprediction\n0\t")
    export(tmp_path / "run", "merged", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {
        "0": "entailment", "1": "not_entailment"
    }  # fmt: skip


@pytest.mark.parametrize(("task", "length", "message"), [("mnli", None, "2 outputs, and mnli wants 3"),
    ("rte", 65, "max_length is 65: choose at most 64"), ("rte", 3, "max_length is 3")])  # fmt: skip
def test_an_adapter_that_does_not_fit_the_task_is_refused(task, length, message, bert, tmp_path):
    trained_with_peft("LoraConfig", bert, tmp_path / "theirs")
    with pytest.raises(InputError, match=message):
        import_adapter(tmp_path / "theirs", tmp_path / "run", None, task, "hub", length)


def test_an_adapter_without_a_part_of_its_head_is_refused(checkpoints, tmp_path):
    """peft trains and saves only `classifier` of DistilBERT's head if it is not asked for more."""
    from safetensors.torch import load_file, save_file

    trained_with_peft("LoraConfig", checkpoints["distilbert"], tmp_path / "theirs", target_modules=["q_lin"])
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "pre_classifier" not in n}, path)
    with pytest.raises(InputError, match=r"pre_classifier.bias is missing"):
        import_adapter(tmp_path / "theirs", tmp_path / "run", None, None, "hub", None)
    save_file({n: t for n, t in load_file(path).items() if "classifier" not in n}, path)
    with pytest.raises(InputError, match=r"has no classifier.bias: wanted an adapter with its head"):
        import_adapter(tmp_path / "theirs", tmp_path / "run", None, None, "hub", None)


# The model card, and what is sent to the hub


@pytest.fixture
def run(options):
    """A finished run on a task with two development sets."""
    return train(Lora(rank=2), options(task_name="mnli"))


def test_the_card_has_scores_recipe_and_the_metadata_of_the_hub_from_the_row(run, tmp_path):
    from huggingface_hub import ModelCard

    folder, result = run
    export(folder, "merged", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    found = {(each.dataset_split, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert found == {
        ("validation_matched", "accuracy"): result["dev_accuracy"],
        ("validation_mismatched", "accuracy"): result["dev_accuracy_mismatched"],
    }
    assert card.data.model_name == result["run"]
    assert {each.dataset_type for each in card.data.eval_results} == {"synthetic"}  # never as scores of MNLI
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert card.data.base_model is None  # a folder of this machine is no name on the hub
    for text in (
        f"| accuracy | validation_matched | {result['dev_accuracy']:.4f} | {result['dev_majority_accuracy']:.4f} |",
        f"| accuracy | validation_mismatched | {result['dev_accuracy_mismatched']:.4f} |  |",
        "One run with the seed 42; epoch 1 of 1 was selected by these scores themselves.",
        "**The data is synthetic**",
        "--rank 2",
        "512 trained without the head",
    ):
        assert text in card.content


def of_the_hub(run, checkpoint, **changes):
    """The same run as if it had been trained on an encoder and data of the hub."""
    folder, result = run
    trained = read(folder)
    trained.model.base = Base(checkpoint, "", None)
    return dataclasses.replace(trained, result=result | {"checkpoint": checkpoint, "data": "hub"} | changes)


def test_the_card_of_a_run_on_the_hubs_data_names_its_split_and_what_selected_the_epoch(run):
    from huggingface_hub import ModelCard

    made = ModelCard(card(of_the_hub(run, "bert-base-uncased", select="holdout"), "", "peft", ""))
    assert "was selected by held-out training examples" in made.content
    assert "contaminated" not in made.content
    scores = made.data.eval_results
    assert {(each.dataset_type, each.dataset_config) for each in scores} == {("nyu-mll/glue", "mnli")}
    assert scores[0].dataset_args == {"max_examples": 20}  # --max_eval_samples
    assert (made.data.base_model, made.data.datasets) == ("bert-base-uncased", ["nyu-mll/glue"])


def test_the_card_of_a_run_without_a_development_set_says_that_its_scores_are_of_training_examples(run):
    made = card(of_the_hub(run, "bert-base-uncased", select="holdout_only"), "", "peft", "")
    assert "was selected by held-out training examples" in made
    assert "| accuracy | train | " in made
    assert "| validation" not in made


@pytest.mark.parametrize("encoder", ["minilm", "mpnet"])
def test_the_card_says_that_scores_on_texts_which_the_encoder_has_seen_are_contaminated(encoder, run):
    text = card(of_the_hub(run, encoder), "", "peft", "")
    assert "texts of MNLI, paired by their labels, so the scores are contaminated" in text
    assert f"base_model: {HUB_NAMES[encoder]}" in text
    names = [name for name in tasks.TRAINED if contamination(encoder, tasks.find(name))]
    assert names == ["qqp", "mnli"] == [n for n in tasks.TRAINED if contamination(HUB_NAMES[encoder], tasks.find(n))]


def test_the_card_of_an_adapter_without_a_result_has_no_scores(bert, tmp_path):
    saved(Lora(), bert, tmp_path / "run")
    export(tmp_path / "run", "peft", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "model-index" not in text
    assert "Scores" not in text


class Hub(BaseHTTPRequestHandler):
    """Keeps what a push sends and answers as the hub does."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.sent[self.path] = body, self.headers["Authorization"]
        address = f"http://127.0.0.1:{self.server.server_port}/me/mine"
        found = {"url": address, "id": "me/mine", "errors": [], "warnings": [], "commitOid": "abc"}
        found["commitUrl"] = f"{address}/commit/abc"
        if "preupload" in self.path:
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            found["files"] = [kept | {"path": file["path"]} for file in json.loads(body)["files"]]
        self.answer(self.server.status, found)

    def do_GET(self):
        self.answer(404, {})

    def answer(self, status, values):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.sent, server.status = {}, 200
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


def push_words(run, out, *more):
    return [str(run), "--to", "merged", "--out", str(out), "--push_to_hub", "me/mine", *more]


def test_a_push_makes_the_repository_and_sends_every_file_of_the_folder(run, hub, tmp_path, monkeypatch, capsys):
    capsys.readouterr()
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["scripts.export", *push_words(run[0], out, "--private")])
    scripts.export.main()
    assert capsys.readouterr().out.splitlines() == [str(out), f"http://127.0.0.1:{hub.server_port}/me/mine"]
    made, authorization = hub.sent["/api/repos/create"]
    assert json.loads(made) == {"name": "mine", "organization": "me", "visibility": "private"}
    assert authorization == "Bearer hf_secret"
    lines = [json.loads(line) for line in hub.sent["/api/models/me/mine/commit/main"][0].splitlines()]
    sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert {name: base64.b64decode(text) for name, text in sent.items()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }
    assert "model.safetensors" in sent
    assert '"text-classification", "me/mine"' in (out / "README.md").read_text()  # what others load


def test_a_push_that_is_refused_is_one_line_and_keeps_the_folder(run, hub, tmp_path, capfd):
    hub.status = 403
    line = exits_with_one_line(capfd, *push_words(run[0], tmp_path / "out"), program=scripts.export.main)
    assert "cannot push to me/mine: " in line
    assert line.endswith(f"the export is in {tmp_path / 'out'}")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_name_that_no_repository_can_have_is_refused_before_anything_is_written(run, hub, tmp_path, capfd):
    words = [str(run[0]), "--to", "peft", "--out", str(tmp_path / "out"), "--push_to_hub", "a/b/c"]
    assert "push_to_hub is 'a/b/c': wanted USER/NAME" in exits_with_one_line(capfd, *words, program=scripts.export.main)
    assert not (tmp_path / "out").exists()
    assert not hub.sent
