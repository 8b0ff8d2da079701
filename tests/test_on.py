"""A run begins with the values of an earlier run, or on top of its frozen model, and is loaded without that run."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import KINDS, on_processes, outcome, random_batch, save_checkpoint, still
from safetensors.torch import load_file
from test_resume import PowerCut, at_step, lose_power

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import prediction, runs, training
from common.classification import find as find_task
from common.earlier import find_start
from common.encoders import before_head, encoder, head_parameters
from common.errors import DoesNotFit, InputError
from common.loading import digest_of, load_adapter, read_stack
from common.methods import find, names, trainable
from common.options import PredictOptions, TuneOptions
from common.results import summary
from common.runs import ADAPTER, BELOW, CONFIG, RESULT, decisive, find_runs, run_folder
from common.study import aggregation, recipes, tables
from common.study.curves import read_curves
from common.study.search import search
from common.study.space import SearchOptions
from common.training import train
from diffpruning.method import DiffPruning
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

pytestmark = pytest.mark.slow

STILL = 1e-30
"""A learning rate that changes no weight."""
PREFIX = PrefixTuning(prefix_length=3, hidden_dim=8)
METHODS = [find(name)() for name in names() if name not in ("prefix", "prompt")]
METHODS += [PREFIX, PromptTuning(4), Adapters(drop_layers="random"), Baseline(top_k=1), Baseline(random_params=50)]
UNDER = [Lora(rank=2), Adapters(4), Baseline(), BitFit(), DiffPruning(), PREFIX, PromptTuning(4)]
UNDER.append(Hybrid(("lora", "ia3"), gates=True))
ON_TOP = [method for method in METHODS if method.starts_at_pretrained]


@pytest.fixture(scope="module")
def make(tmp_path_factory, checkpoints):
    """make(kind="bert", task_name="rte"): the options of a run on a few demo examples, without curves."""
    home = str(tmp_path_factory.mktemp("runs"))

    def options(kind: str = "bert", **changes) -> TuneOptions:
        small = {"checkpoint": checkpoints[kind], "data": "demo", "task_name": "rte", "max_train_samples": 24}
        small |= {"max_eval_samples": 20, "n_epochs": 1, "batch_size": 8, "lr": 1e-2, "output_dir": home}
        return TuneOptions(**small | {"report_to": ("none",)} | changes)

    return options


@pytest.fixture
def earlier(make):
    """earlier(Lora()): the folder of a finished run on mnli, which has three outputs; trained once for all tests."""
    return lambda method, *kind, **changes: str(train(method, make(*kind, task_name="mnli", **changes))[0])


def inside(folder, head: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of an adapter that are in the encoder, or those of its head."""
    tensors = load_file(Path(folder) / ADAPTER)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("classifier") == head}


def read_by_head(model) -> torch.Tensor:
    """What the head gets for a batch."""
    seen: list[torch.Tensor] = []
    with before_head(model).host.register_forward_pre_hook(lambda _module, args: seen.append(args[0])):
        model(**random_batch(model))
    return seen[0]


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_begins_with_the_values_of_the_earlier_run(method, make, earlier):
    run = earlier(method)
    later, _ = train(method, make(on=run, lr=STILL))
    before, after = inside(run), inside(later)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-20)
    torch.testing.assert_close(read_by_head(load_adapter(later)[0]), read_by_head(load_adapter(run)[0]))


def test_the_head_is_new_and_that_of_a_run_alone_for_a_task_with_as_many_outputs_too(make, earlier):
    run = earlier(Lora(rank=2))
    again, _ = train(Lora(rank=2), make(task_name="mnli", on=run, lr=STILL))
    alone, _ = train(Lora(rank=2), make(task_name="mnli", lr=STILL))
    before, new, usual = (inside(folder, head=True) for folder in (run, again, alone))
    assert all(torch.allclose(new[name], tensor, atol=1e-20) for name, tensor in usual.items())
    assert not torch.equal(new["classifier.weight"], before["classifier.weight"])


def test_a_pooler_that_was_trained_with_the_head_is_kept(make, earlier):
    run = earlier(Lora(rank=2), pooling="trained_pooler")
    later, _ = train(Lora(rank=2), make(on=run, lr=STILL, pooling="trained_pooler"))
    before, after = inside(run), inside(later)
    assert any("pooler" in name for name in before)
    assert all(torch.allclose(after[name], tensor, atol=1e-20) for name, tensor in before.items())


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", [False, True])
def test_every_encoder_can_begin_from_an_earlier_run(kind, stack, make, earlier):
    run = earlier(Lora(rank=2), kind)
    later, _ = train(Lora(rank=2), make(kind, on=run, lr=STILL, stack=stack))
    head = head_parameters(load_adapter(run)[0])
    models = [load_adapter(folder)[0] for folder in (run, later)]
    assert head.keys() == head_parameters(models[1]).keys()
    hidden = [encoder(model)(**random_batch(model)).last_hidden_state for model in models]
    torch.testing.assert_close(*hidden)


def assert_stands_on(later: Path, run: str) -> None:
    """Assert that a run that did not learn computes what the earlier run computes, and trained nothing of it."""
    torch.testing.assert_close(read_by_head(load_adapter(later)[0]), read_by_head(load_adapter(run)[0]))
    assert digest_of(later / BELOW) == digest_of(Path(run)) == json.loads((later / CONFIG).read_text())["below"]


@pytest.mark.long
@pytest.mark.parametrize("method", UNDER, ids=str)
def test_a_method_stands_on_the_frozen_model_of_every_other(method, make, earlier):
    run = earlier(method)
    later, result = train(Lora(rank=3), make(on=run, lr=STILL, stack=True))
    assert_stands_on(later, run)
    assert result["stack"]
    assert set(inside(later)) == {name for name in load_file(later / ADAPTER) if ".lora" in name}
    assert result["trainable_params_without_head"] == 2 * 2 * 2 * 3 * 32


@pytest.mark.long
@pytest.mark.parametrize("method", ON_TOP, ids=str)
def test_every_method_stands_on_a_frozen_one(method, make, earlier):
    run = earlier(Adapters(8))
    later, result = train(method, make(on=run, lr=STILL, stack=True))
    assert_stands_on(later, run)
    alone = train(method, make(lr=STILL))[1]
    assert result["total_params"] == alone["total_params"]
    if method not in (Baseline(), Baseline(top_k=1)):  # which train the adapters in the layers that they train
        assert result["trainable_params"] == alone["trainable_params"]


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=2),
        PREFIX,
        *(pytest.param(m, marks=pytest.mark.long) for m in (PromptTuning(4), DiffPruning(), Adapters(4, "pfeiffer"))),
    ],
    ids=str,
)
def test_a_method_stands_on_itself(method, make, earlier):
    """Two of a kind at the same places have names and values of their own."""
    run = earlier(method)
    later, _ = train(method, make(on=run, stack=True))
    model, used = load_adapter(later)
    below = load_adapter(later / BELOW)[0]
    assert len(trainable(model)) == len(trainable(below))
    assert used == read_stack(later)[-1].method
    assert set(inside(run)).isdisjoint(inside(later))
    assert all(torch.equal(model.get_parameter(n), p) for n, p in below.named_parameters() if "classifier" not in n)


def test_another_method_is_put_on_top_and_the_same_one_begins_with_the_values(make, earlier):
    run = earlier(Lora(rank=2))
    assert [find_start(method, make(on=run))[1].stack for method in (Lora(rank=2), Lora(), Adapters())] == [0, 0, 1]
    assert train(Adapters(4), make(on=run))[0] == train(Adapters(4), make(on=run, stack=True))[0]


def test_a_third_run_stands_on_two_and_one_that_begins_with_its_values_does_too(make, earlier, tmp_path):
    first = earlier(Baseline())
    second, _ = train(Adapters(4), make(task_name="sst2", on=first))
    third, result = train(Lora(rank=2), make(on=str(second)))
    assert result["after"] == "mnli (24 examples), sst2 (24 examples)"
    fourth, result = train(Lora(rank=2), make(task_name="mrpc", on=str(third), lr=STILL))
    assert result["after"] == "mnli (24 examples), sst2 (24 examples), rte (24 examples)"
    assert [adapter.method.name for adapter in read_stack(fourth)] == ["baseline", "adapters", "lora"]
    wanted = read_by_head(load_adapter(third)[0])
    torch.testing.assert_close(read_by_head(load_adapter(fourth)[0]), wanted)
    moved = shutil.copytree(fourth, tmp_path / "moved")
    torch.testing.assert_close(read_by_head(load_adapter(moved)[0]), wanted)
    finished, unfinished = find_runs(Path(fourth).parent)
    assert fourth in finished
    assert unfinished == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frozen_dtype": "bfloat16"},
        {"select": "holdout", "max_train_samples": 99},
        {"padding": "batch"},
        {"reference": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [Lora(rank=2), pytest.param(Adapters(4), marks=pytest.mark.long)], ids=str)
def test_a_run_predicts_what_it_did_in_training_though_the_earlier_one_is_gone(
    method, changes, make, earlier, tmp_path, monkeypatch
):
    gone = shutil.copytree(earlier(Lora(rank=2)), tmp_path / "gone")
    folder, _ = train(method, make(on=str(gone), task_name="mrpc", output_dir=str(tmp_path), **changes))
    shutil.rmtree(gone)
    rows, found = find_task("mrpc").read("validation", "demo").sample(20), []
    monkeypatch.setattr(prediction.data, "read", lambda *_: dataclasses.replace(rows, labels=None))
    monkeypatch.setattr(prediction, "submission_lines", lambda _task, outputs, _ids: found.append(outputs) or [])
    monkeypatch.setattr(prediction, "write_submission", lambda *_: folder)
    prediction.answer(method.name, PredictOptions(run=str(folder)))
    stored = runs.read_predictions(folder)["validation"][0]
    atol = 1e-5 if "padding" in changes or "reference" in changes else 0  # prediction packs
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(stored), rtol=0, atol=atol)


def test_the_file_of_a_frozen_adapter_keeps_every_bit_when_it_runs_in_bfloat16(make, earlier):
    run = earlier(Adapters(8))
    later, _ = train(Lora(rank=2), make(on=run, frozen_dtype="bfloat16"))
    assert (later / BELOW / ADAPTER).read_bytes() == (Path(run) / ADAPTER).read_bytes()


@pytest.mark.parametrize(
    "method",
    [
        Lora(rank=2, dropout=0.1),
        PREFIX,
        *(pytest.param(m, marks=pytest.mark.long) for m in (Adapters(4), DiffPruning())),
    ],
    ids=str,
)
def test_a_run_resumes_with_the_same_bits(method, make, earlier, monkeypatch, tmp_path):
    settings = {
        "n_epochs": 2,
        "checkpoint_every": 2,
        "report_to": ("tensorboard",),
        "on": earlier(Lora(rank=2, dropout=0.1)),
    }
    whole, _ = train(method, make(**settings, output_dir=str(tmp_path / "whole")))
    at_step(monkeypatch, 5, lose_power)
    with pytest.raises(PowerCut):
        train(method, make(**settings, output_dir=str(tmp_path / "cut")))
    resumed, result = train(method, make(**settings, output_dir=str(tmp_path / "cut")))
    assert result["n_resumed"] == 1
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("method", [PREFIX, DiffPruning()], ids=str)
def test_what_was_trained_and_not_what_was_stored_is_resumed_from(method, make, earlier, monkeypatch, tmp_path):
    """A prefix network goes on, not its output; a mask stays fixed."""
    settings = {"n_epochs": 2, "checkpoint_every": 2, "report_to": ("tensorboard",), "on": earlier(method)}
    whole, _ = train(method, make(**settings, output_dir=str(tmp_path / "whole")))
    at_step(monkeypatch, 5, lose_power)
    with pytest.raises(PowerCut):
        train(method, make(**settings, output_dir=str(tmp_path / "cut")))
    assert outcome(train(method, make(**settings, output_dir=str(tmp_path / "cut")))[0]) == outcome(whole)


@pytest.mark.long
@pytest.mark.parametrize("method", [Lora(rank=2), Adapters(8)], ids=str)
def test_two_processes_begin_from_an_earlier_run(method, make, earlier, tmp_path):
    run = earlier(Lora(rank=2))
    settings = make(on=run, lr=STILL, output_dir=str(tmp_path))
    (folder, result), _ = on_processes(2, train, method, settings)
    assert result["n_processes"] == 2
    torch.testing.assert_close(read_by_head(load_adapter(folder)[0]), read_by_head(load_adapter(run)[0]))
    assert (folder / BELOW).is_dir() == (method.name == "adapters")


def test_packed_padded_and_reference_runs_have_one_curve(checkpoints, make, earlier, tmp_path):
    plain = str(save_checkpoint("bert", tmp_path / "plain", **still("bert")))
    out = {"checkpoint": plain, "output_dir": str(tmp_path), "lr": 1e-3}
    run, _ = train(PromptTuning(4), make(task_name="mnli", **out))
    curves = []
    for changes in ({}, {"padding": "batch"}, {"reference": True}):
        out |= {"report_to": ("tensorboard",), "on": str(run), "n_epochs": 2}
        folder, _ = train(PREFIX, make(**out, **changes))
        curves.append(read_curves(folder)["train/loss"][1])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_a_budget_counts_the_new_parameters_alone(make, earlier):
    run = earlier(Adapters(8))
    _, result = train(Lora(), make(on=run, param_budget=300))
    assert (result["rank"], result["trainable_params_without_head"]) == (1, 256)
    begun = train(Lora(rank=2, alpha=2.0), make(on=earlier(Lora(rank=2, alpha=2.0)), param_budget=520))[1]
    assert begun["rank"] == 2


def test_the_positions_of_a_frozen_prompt_are_left_to_it(make, earlier):
    run = earlier(PromptTuning(4))
    for method, length in ((Lora(rank=2), 60), (PromptTuning(10), 50)):
        folder, result = train(method, make(on=run, stack=True))
        assert result["max_length"] == length
        prediction.answer(method.name, PredictOptions(run=str(folder)))
    with pytest.raises(DoesNotFit, match="takes 58 of the encoder's 60 positions"):
        train(PromptTuning(58), make(on=run, stack=True))


def test_the_earlier_run_is_recorded_and_decides_which_run_it_is(make, earlier, tmp_path):
    run = earlier(Lora(rank=2))
    settings = make(on=run)  # in which the path has its one spelling
    folder, result = train(Lora(rank=2), settings)
    config = json.loads((folder / CONFIG).read_text())
    for values in (result, config):
        assert (values["on"], values["after"]) == (settings.on, "mnli (24 examples)")
        assert values["on_sha256"] == digest_of(Path(run))
    assert "after mnli (24 examples): accuracy" in summary(result)
    assert "after" not in summary(json.loads((Path(run) / RESULT).read_text()))
    folders = [run_folder(Lora(rank=2), make(**changes)) for changes in ({}, {"on": run}, {"on": run, "stack": True})]
    assert len(set(folders)) == 3
    assert {"on", "stack"}.isdisjoint(decisive(make()))
    relative = Path(run).parent / "." / Path(run).name
    assert run_folder(Lora(rank=2), make(on=f"{relative}/")) == folders[1]


def test_the_opening_lines_say_what_a_run_begins_with(make, earlier, capsys):
    run = make(on=earlier(Lora(rank=2))).on
    capsys.readouterr()
    train(Lora(rank=2), make(on=run, seed=7))
    assert f"begins   with the values of {run}, after mnli (24 examples)\n" in capsys.readouterr().out
    train(Adapters(4), make(on=run, seed=7))
    wanted = f"begins   on top of {run} (frozen below: lora), after mnli (24 examples)\n"
    assert wanted in capsys.readouterr().out


@pytest.fixture
def own(make, tmp_path):
    """Options in a folder of the test's own, and an earlier run there that it may change."""

    def options(**changes):
        return make(output_dir=str(tmp_path), **changes)

    run, _ = train(Lora(rank=2), options(task_name="mnli"))
    return options, run


def test_a_run_is_not_shown_or_resumed_if_the_earlier_one_has_changed(own, monkeypatch):
    options, run = own
    settings = options(on=str(run), n_epochs=2)
    train(Lora(rank=2), settings)
    at_step(monkeypatch, 4, lose_power)
    with pytest.raises(PowerCut):
        train(Lora(rank=2), dataclasses.replace(settings, seed=7))
    tensors = {name: tensor + 1 for name, tensor in load_file(run / ADAPTER).items()}
    training.files.write_tensors(run / ADAPTER, tensors)
    with pytest.raises(InputError, match=rf"and run {settings.on} changed since: repeat it with --overwrite"):
        train(Lora(rank=2), settings)
    with pytest.raises(InputError, match="belongs to another run: on_sha256 was"):
        train(Lora(rank=2), dataclasses.replace(settings, seed=7))


def change_config(run, **changes):
    path = run / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "changes", "said"),
    [
        (shutil.rmtree, {}, "on is .*, which is not there: wanted the folder of a finished run"),
        (lambda run: (run / RESULT).unlink(), {}, "which is not finished: wanted the folder of a finished run"),
        (lambda run: (run / ADAPTER).unlink(), {}, "which is not finished"),
        (lambda run: (run / ADAPTER).write_bytes(b"0" * 99), {}, "adapter.safetensors is missing or damaged"),
        (lambda run: (run / CONFIG).write_text("{"), {}, "adapter.json is damaged"),
        (lambda run: (run / RESULT).write_text("{}"), {}, "result.json is damaged"),
        (lambda run: change_config(run, below="0"), {}, "cannot read .*below/adapter.json"),
        (lambda run: None, {"pooling": "mean"}, "pooling is mean, and was None in .*: leave --pooling out"),
        (lambda run: change_config(run, base_sha256="0" * 64), {}, "was trained on another base model .*SHA-256 0000"),
    ],
)
@pytest.mark.parametrize("stack", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_earlier_run_that_cannot_be_used_is_refused_and_nothing_is_written(change, changes, said, stack, own):
    options, run = own
    change(run)
    settings = options(on=str(run), stack=stack, **changes)
    with pytest.raises(InputError, match=said):
        train(Lora(rank=2), settings)
    assert not list(Path(settings.output_dir).glob("lora/rte/*/*.json"))


def test_other_options_are_refused_with_those_that_would_do(make, earlier):
    run = earlier(Lora(rank=2, targets=("key",)))
    wanted = r" \(rank was 2 and is 8, .*give those of that run \(--rank 2 --targets key\), or --stack"
    with pytest.raises(DoesNotFit, match=wanted):
        train(Lora(), make(on=run))
    with pytest.raises(InputError, match="stack is given without on"):
        make(stack=True)


def test_a_run_on_an_encoder_of_another_shape_is_refused(make, earlier, tmp_path):
    wide = str(save_checkpoint("bert", tmp_path / "wide", hidden_size=64))
    for stack, said in ((False, "was trained on another base model"), (True, "cannot be used with .*wide")):
        with pytest.raises(InputError, match=said):
            train(Lora(rank=2), make(on=earlier(Lora(rank=2)), checkpoint=wide, stack=stack))


def test_an_adapter_below_that_is_not_the_one_trained_on_is_refused(own):
    options, run = own
    later, _ = train(Adapters(4), options(on=str(run)))
    tensors = {name: tensor + 1 for name, tensor in load_file(later / BELOW / ADAPTER).items()}
    training.files.write_tensors(later / BELOW / ADAPTER, tensors)
    with pytest.raises(InputError, match=r"below has SHA-256 .*, wanted .*restore it"):
        load_adapter(later)


def rows_after(make, earlier):
    """Results of two methods, each alone and after its own run on mnli."""
    found = []
    for method in (Lora(rank=2), Adapters(4)):
        run = earlier(method)
        found += [train(method, make(on=on, seed=seed))[1] for on in (None, run) for seed in (1, 2)]
    return found


def test_runs_after_another_task_have_a_table_of_their_own_in_which_methods_are_compared(make, earlier):
    rows = rows_after(make, earlier)
    alone, after = aggregation.group(rows).items()
    assert [len(configurations) for _, configurations in (alone, after)] == [2, 2]
    assert "after" not in alone[0].variant
    assert after[0].variant.endswith("), after mnli (24 examples)")
    assert all(f"on {each.rows[0]['on']}" in each.training for each in after[1])
    words = recipes.command(after[1][0].rows[0]).split()
    assert words[words.index("--on") + 1] == after[1][0].rows[0]["on"]
    lines = [line for line in tables.runs_table(rows).splitlines() if "after mnli (24 examples) |" in line]
    assert len(lines) == 4
    changed = [row | {"on_sha256": "0"} if row["seed"] == 2 else row for row in rows]
    with pytest.raises(InputError, match=r"read different runs under the name .*mnli"):
        aggregation.group(changed)


def test_figures_of_runs_after_another_task_have_names_of_their_own():
    from scripts.plot import name

    usual = aggregation.Setting("rte", 24, 20, "minilm", "ab", "demo", "dev")
    after = dataclasses.replace(usual, after="mnli (24 examples)")
    assert name(usual) == "rte-minilm-full-dev-" + name(usual)[-8:]
    assert name(after)[:-8] == name(usual)[:-8]
    assert name(after) != name(usual)


def test_an_experiment_skips_the_sizes_that_the_earlier_run_does_not_have(make, earlier, monkeypatch, capsys):
    from lora.experiment import sweep

    options = make(on=earlier(Lora(rank=2, alpha=2)))
    words = f"--checkpoint {options.checkpoint} --data demo --task_name rte --n_epochs 1 --max_train_samples 24"
    words += f" --output_dir {options.output_dir} --on {options.on} --n_seeds 1 --report_to none --sizes 1 2"
    monkeypatch.setattr(sys, "argv", ["lora.experiment", *words.split()])
    sweep([Lora(rank=1, alpha=1), Lora(rank=2, alpha=2)])
    said = capsys.readouterr().out
    assert "configuration 1 of 2 skipped: " in said
    assert re.search(r"\(rank was 2 and is 1, alpha was 2(\.0)? and is 1\)", said)
    assert said.splitlines()[-2].startswith("lora: 512 parameters")


@pytest.mark.parametrize(("method", "searched"), [(Lora(rank=2), {"lr"}), (Adapters(4), {"lr", "bottleneck_size"})])
def test_a_search_has_the_options_of_the_run_whose_values_it_begins_with(
    method, searched, make, earlier, tmp_path, capsys
):
    settings = make(on=earlier(Lora(rank=2)), output_dir=str(tmp_path))
    search(method, settings, SearchOptions(trials=2, lr_range=(1e-3, 1e-2)), {"batch_size", "n_epochs"})
    said = capsys.readouterr().out
    found = {line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("searching")}
    assert (found == searched) if method.name == "lora" else (found > searched)
    (path,) = tmp_path.rglob("search.jsonl")
    assert all(row["on"] == settings.on for row in runs.read_rows(path))
    assert f"--on {settings.on}" in said
