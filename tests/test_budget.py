"""A parameter budget decides a method's size; trained parameters are counted by kind."""

import contextlib
import dataclasses

import pytest
from conftest import bert_base

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import methods
from common.checkpoints import meta_model
from common.errors import DoesNotFit, InputError
from common.fitting import apply_on_meta, fit_to_budget
from common.methods import apply, count, count_by_kind, count_without_head, find, trainable
from common.runs import run_folder
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

SIZED = [name for name in methods.names() if find(name).size and name != "hybrid"]  # its size is put into its parts


@pytest.mark.parametrize(
    ("method", "budget", "wanted"),
    [
        (Lora(), 294_912, {"rank": 8}),
        (Lora(), 294_911, {"rank": 7}),
        (Lora(), 2_400_000, {"rank": 65}),
        (Lora(rank=4, alpha=8.0), 294_912, {"rank": 8}),
        (PromptTuning(init="random"), 600_000, {"prompt_length": 256}),
        (PromptTuning(init="random", level="embeddings"), 600_000, {"prompt_length": 781}),
        (Adapters(placement="pfeiffer"), 900_000, {"bottleneck_size": 48}),
        (Adapters(), 2_417_664, {"bottleneck_size": 64}),
        (PrefixTuning(), 368_640, {"prefix_length": 20}),
        (PrefixTuning(hidden_dim=512), 9_864_704, {"prefix_length": 20}),
        (PromptTuning(init="random"), 15_999, {"prompt_length": 20}),
        (Baseline(), 28_942_080, {"top_k": 4}),
        (Baseline(), 10**9, {"top_k": 12}),
    ],
)
def test_the_largest_size_within_the_budget_is_chosen_for_bert_base(method, budget, wanted):
    assert fit_to_budget(method, budget, bert_base()) == dataclasses.replace(method, **wanted)


def test_a_size_limited_by_the_encoder_is_reported_once_with_the_reason(capsys, monkeypatch):
    fit_to_budget(PromptTuning(init="random"), 15_999, bert_base())
    assert capsys.readouterr().out == ""
    for _ in range(2):
        fit_to_budget(PromptTuning(init="random"), 600_001, bert_base())
    half = "prompt_length 257 would take more than half of the encoder's 512 positions"
    assert capsys.readouterr().out == (
        f"param_budget 600,001 is not used up: prompt_length 256 trains 196,608; {half}\n"
    )
    fit_to_budget(Lora(), 10**9, bert_base())
    assert "rank 768 trains 28,311,552; rank 769 is larger than a layer of 768" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")  # another process says it
    fit_to_budget(PromptTuning(init="random"), 600_002, bert_base())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", SIZED)
def test_the_chosen_size_fits_and_the_next_one_does_not(name, bert, make_model):
    method, meta = find(name)(), meta_model(bert, 2)
    smallest = dataclasses.replace(method, **{method.size: 1})
    budget = count_without_head(apply(smallest, make_model())) + 100_000
    found = fit_to_budget(method, budget, meta)
    assert count_without_head(apply(found, make_model())) <= budget
    larger = found.of_size(getattr(found, found.size) + 1)
    with contextlib.suppress(DoesNotFit):
        assert larger.positions() > 32 or count_without_head(apply_on_meta(larger, meta)) > budget


def test_a_budget_below_the_smallest_size_is_refused():
    with pytest.raises(InputError, match="param_budget is 10, but rank 1 already trains 36,864 parameters"):
        fit_to_budget(Lora(), 10, bert_base())


def test_a_method_without_a_size_is_refused():
    with pytest.raises(InputError, match="bitfit has no option for its size"):
        fit_to_budget(BitFit(), 10**6, bert_base())


def test_a_run_uses_and_records_the_size_that_fits_the_budget(options):
    _, result = train(Lora(), options(param_budget=1_000))
    assert result["rank"] == 3  # 256 parameters for each rank: 2 layers, 2 linear layers, 2 sides of 32
    assert result["trainable_params_without_head"] == 768
    assert "rank3" in result["run"]
    assert run_folder(Lora(rank=3), options(param_budget=1_000)).name == result["run"]


def test_the_counts_by_kind_add_up_to_all_trained_parameters(make_model):
    for name in methods.names():
        model = apply(find(name)(), make_model())
        assert sum(count_by_kind(model).values()) == count(trainable(model))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (Lora(), {"own": 294_912}),
        (Adapters(), {"own": 2_379_264, "layer_norms": 38_400}),
        (BitFit(), {"biases": 12 * (5 * 768 + 3072), "layer_norms": 25 * 768, "pooler": 768}),
        (PrefixTuning(), {"own": 368_640}),
        (Baseline(top_k=0), {}),
    ],
)
def test_the_counts_by_kind_are_right_for_bert_base(method, wanted):
    kinds = dict.fromkeys(("own", "weights", "biases", "layer_norms", "pooler", "head"), 0)
    assert count_by_kind(apply(method, bert_base())) == kinds | wanted | {"head": 1_538}


def test_the_counts_by_kind_are_printed_and_stored(options, capsys):
    _, result = train(BitFit(), options(max_train_samples=16))
    assert result["trained_biases"] == 2 * (5 * 32 + 64)
    assert result["trained_head"] == 66
    assert f"biases {result['trained_biases']:,}, " in capsys.readouterr().out
