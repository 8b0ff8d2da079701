"""Diff pruning: gates as in the paper, exactly k differences at the end, stored as k values and their places."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from conftest import (
    GivenScores,
    assert_packed_equals_padded,
    at_step,
    bert_base,
    on_processes,
    outcome,
    perturb,
    random_batch,
    save_checkpoint,
    send_sigterm,
    still,
)
from safetensors.torch import load_file
from torch import nn

from common import training
from common.encoders import encoder, layers, weights
from common.errors import DoesNotFit, InputError, Interrupted
from common.fast import prepare
from common.fitting import fit_to_budget
from common.loading import load_adapter
from common.methods import apply, count, count_without_head, trainable
from common.places import Branch, fold_weights
from common.saving import save_adapter
from common.task_data import TaskData
from common.training import train
from diffpruning.method import DiffPruning, Gates, Sparse
from hybrid.method import Hybrid
from hybrid.parts import part_of
from lora.method import Lora

SIZES = [60, 40, 30, 1, 30, 20, 9, 10]
STRETCH = (-1.5, 1.5)
BRIEF = DiffPruning(n_nonzero=200, alpha_rate=100.0)


def gates_of(model) -> Gates:
    (gates,) = (module for module in model.modules() if isinstance(module, Gates))
    return gates


def small_gates(k=3, alpha=0.5, c=10.0, stretch=STRETCH) -> Gates:
    torch.manual_seed(0)
    gates = Gates(SIZES, k, alpha, c, stretch)
    perturb(gates.parameters(), 0.05)
    return gates


def noise_of(gates: Gates) -> torch.Tensor:
    """log u - log(1 - u) for all elements, followed by one for each tensor."""
    generator = torch.Generator().manual_seed(int(gates.state[1] + gates.state[2]))
    u = torch.empty(sum(gates.sizes) + len(gates.sizes)).uniform_(generator=generator)
    return torch.log(u) - torch.log1p(-u)


# The gates


@pytest.mark.parametrize("stretch", [STRETCH, (-0.1, 1.1)])
@pytest.mark.parametrize("random", [True, False])
def test_the_difference_and_its_gradients_are_those_of_the_formula_by_hand(random, stretch):
    ours, by_hand = (small_gates(stretch=stretch) for _ in range(2))
    noise = noise_of(by_hand) if random else torch.zeros(208)
    low, high = stretch
    z, z_group = (
        ((high - low) * torch.sigmoid(10 * a + n) + low).clamp(0, 1)
        for a, n in ((by_hand.a, noise[:200]), (by_hand.groups, noise[200:]))
    )
    wanted = z * z_group.repeat_interleave(torch.tensor(SIZES)) * by_hand.delta
    found = ours.train(random)(None, None, ours)
    torch.testing.assert_close(found, wanted)
    for difference in (found, wanted):
        (difference * torch.linspace(-1, 2, 200)).sum().backward()
    for one, other in zip(ours.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert ours.a.grad.count_nonzero() > 20
    assert ours.groups.grad.count_nonzero() > 1


@pytest.mark.parametrize("stretch", [STRETCH, (-0.1, 1.1), (-0.5, 2.0)])
def test_the_gates_have_the_hard_concrete_distribution(stretch):
    """Louizos et al. (2018), equations 10 to 12: P(z <= x) = sigmoid(logit((x - l) / (r - l)) - alpha)."""
    (low, high), n, alpha = stretch, 200_000, 0.7
    torch.manual_seed(0)
    gates = Gates([n], 1, alpha, 5.0, stretch)
    with torch.no_grad():
        gates.delta.fill_(1.0)
        gates.groups.fill_(100.0)  # a group gate of 1
        z = gates(None, None, gates)
    for x in (0.0, 0.2, 0.5, 0.9):
        wanted = torch.sigmoid(torch.logit(torch.tensor((x - low) / (high - low))) - alpha)
        assert (z <= x).float().mean() == pytest.approx(float(wanted), abs=0.005)
    assert gates.expected().item() / n == pytest.approx((z > 0).float().mean().item(), abs=0.005)


def test_noise_differs_between_elements_and_steps():
    torch.manual_seed(0)
    gates = Gates([50_000], 1, 0.0, 1.0, STRETCH)
    drawn = []
    for _ in range(4):
        drawn.append(noise_of(gates)[:50_000])
        gates.state[1] += 1
    drawn.append(drawn[0].roll(1))
    assert (torch.corrcoef(torch.stack(drawn)) - torch.eye(5)).abs().max() < 0.02


def test_the_penalty_is_the_expected_number_of_non_zeros_by_hand(make_model):
    gates = small_gates(stretch=(-0.1, 1.1))
    alpha, groups = (10 * vector.detach() for vector in (gates.a, gates.groups))
    shift = math.log(0.1 / 1.1)
    wanted = sum(
        1 / (1 + math.exp(shift - own)) / (1 + math.exp(shift - float(group)))
        for group, part in zip(groups, alpha.split(SIZES), strict=True)
        for own in part.tolist()
    )
    assert gates.expected().item() == pytest.approx(wanted, rel=1e-5)
    method = DiffPruning(sparsity_penalty=0.5, alpha_init=2.0)
    model = apply(method, make_model())
    n = len(gates_of(model).delta)
    assert method.penalty(model).item() == pytest.approx(0.5 * n / (1 + math.exp(-2.0)) ** 2, rel=1e-5)
    method.on_epoch(model, 1.0)
    assert method.penalty(model) == 0.0


def test_all_micro_batches_of_a_step_see_one_model_and_the_next_step_another(make_model):
    model = apply(BRIEF, make_model()).train()
    gates = gates_of(model)
    perturb([gates.delta])
    first, again = (gates(None, None, model) for _ in range(2))
    BRIEF.on_step(model, 0.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, gates(None, None, model))


# The counts


def test_the_counts_for_bert_base_are_those_of_the_paper():
    """0.5 % of 109,482,240; while training two values for each and one group for each of 199 tensors."""
    model = apply(DiffPruning(), bert_base())
    assert count_without_head(model) == 218_964_679 == 2 * 109_482_240 + 199
    stored, tensors = DiffPruning().kept().stored(apply(DiffPruning().kept(), bert_base()))
    assert stored == DiffPruning().kept()
    assert count(tensors) == 547_411 + 1_538
    assert {tensor.dtype for name, tensor in tensors.items() if "places" in name} == {torch.int32}


def test_a_budget_is_a_number_of_stored_parameters(options):
    assert fit_to_budget(DiffPruning(), 30_000, bert_base()) == DiffPruning(n_nonzero=30_000)
    folder, result = train(DiffPruning(), options(param_budget=100))
    assert result["n_nonzero"] == 100
    assert result["stored_params"] == 100 + 66
    assert result["trainable_params_without_head"] > 2 * result["total_params"]
    assert (
        sum(tensor.numel() for name, tensor in load_file(folder / "adapter.safetensors").items() if "values" in name)
        == 100
    )


def test_only_one_vector_of_all_parameters_is_kept_for_the_backward_pass_besides_the_weights(make_model):
    model = apply(BRIEF, make_model()).train()
    gates = gates_of(model)
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = set()

    def pack(tensor):
        if tensor.untyped_storage().nbytes() >= 4 * len(gates.delta) and tensor.data_ptr() not in known:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        difference = gates(None, None, model)
    assert len(kept) == 1
    assert difference.requires_grad


# The mask


def test_the_largest_differences_are_kept_and_zeros_only_if_there_are_too_few():
    gates = Gates([10, 10], 4, 5.0, 1.0, STRETCH)
    for delta, wanted in (
        ([0.0, 3, -9, 1, 0, 0, 0, 0, 0, 0, 2, 0, 5, 0, 0, 0, 0, 0, 0, 4], [1, 2, 12, 19]),
        ([0.0] * 17 + [1.0, 0, -1.0], [17, 19]),
        ([7.0] * 20, []),
        ([0.0] * 20, []),
    ):
        gates.state[0] = 0
        with torch.no_grad():
            gates.delta.copy_(torch.tensor(delta))
        gates.fix()
        assert gates.mask.sum() == 4
        assert gates.mask[wanted].all()


def test_differences_are_ranked_with_their_gates():
    gates = Gates([3, 3], 2, 5.0, 1.0, STRETCH)
    with torch.no_grad():
        gates.delta.copy_(torch.tensor([9.0, 1, 2, 8, 8, 8]))
        gates.a[0], gates.groups[1] = -1.0, -1.0  # gates of 0
    gates.fix()
    assert gates.mask.tolist() == [False, True, True, False, False, False]
    assert gates.delta.tolist() == [0, 1, 2, 0, 0, 0]


def test_closed_gates_are_opened_by_the_size_of_their_differences_if_there_are_too_few_open_ones():
    gates = Gates([6], 3, -5.0, 1.0, STRETCH)
    with torch.no_grad():
        gates.delta.copy_(torch.tensor([0, 3e-4, -5e-4, 1e-4, 1e-6, 0]))
        gates.a[4], gates.groups[0] = 5.0, 5.0
    gates.fix()
    assert gates.mask.tolist() == [False, True, True, False, True, False]
    assert gates.delta.tolist() == pytest.approx([0, 0, 0, 0, 1e-6, 0])


def test_outside_the_mask_the_weights_stay_pretrained_although_adam_has_momentum(make_model):
    model = apply(BRIEF, make_model()).train()
    gates, batch, labels = gates_of(model), random_batch(model), torch.tensor([0, 1, 0, 1, 1])
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-3)
    for step in range(6):
        (nn.functional.cross_entropy(model(**batch).logits, labels) + BRIEF.penalty(model)).backward()
        BRIEF.on_step(model, step / 6)
        optimizer.step()
        optimizer.zero_grad()
    assert gates.delta[~gates.mask].count_nonzero() > 0  # moved by momentum
    assert gates(None, None, model)[~gates.mask].count_nonzero() == 0
    assert gates(None, None, model)[gates.mask].count_nonzero() == 200
    assert gates.a.grad is None


def test_the_pretrained_weights_are_in_place_after_a_forward_pass_and_after_an_error(make_model):
    before = make_model().state_dict()
    model = apply(BRIEF, make_model()).train()
    perturb([gates_of(model).delta], 1.0)
    plain = {id(parameter) for parameter in model.parameters()}
    model(**random_batch(model)).logits.sum().backward()
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 3), 10**6))
    assert {id(parameter) for parameter in model.parameters()} == plain
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_two_branches_on_all_weights_are_added_and_undone_in_order(make_model):
    class Constant(Branch):
        def __init__(self, n, value):
            super().__init__()
            self.n, self.value = n, value

        def forward(self, x, out, host):
            return torch.full((self.n,), self.value)

    model, other = make_model(), make_model()
    place = weights(model)
    for value in (0.25, 0.5):
        place.add(Constant(sum(place.sizes), value))
    with torch.no_grad():
        for parameter in encoder(other).parameters():
            parameter.add_(0.25).add_(0.5)
    for _ in range(2):
        assert torch.equal(model(**random_batch(model)).logits, other(**random_batch(model)).logits)
    assert torch.equal(model.classifier.weight, other.classifier.weight)


def test_a_linear_layer_takes_a_low_rank_update_too(make_model):
    """W + z delta + s B A, whichever method is first."""
    one, other = (
        apply(Hybrid(tuple(map(part_of, methods))), make_model()).eval()
        for methods in ((Lora(), BRIEF), (BRIEF, Lora()))
    )
    perturb([*(p for name, p in trainable(one).items() if "lora" in name), gates_of(one).delta])
    for name, parameter in trainable(one).items():
        other.get_parameter(name).data.copy_(parameter)
    difference = gates_of(one)(None, None, one).detach()
    batch = random_batch(one)
    torch.testing.assert_close(one(**batch).logits, other(**batch).logits)
    plain = apply(Lora(), make_model()).eval()
    for name, parameter in trainable(plain).items():
        parameter.data.copy_(one.get_parameter(name))
    place = weights(plain)
    for (module, name), part in zip(place.named, difference.split(place.sizes), strict=True):
        module.get_parameter(name).data.add_(part.view_as(module.get_parameter(name)))
    torch.testing.assert_close(one(**batch).logits, plain(**batch).logits)


# A run


def effective(folder: Path) -> torch.Tensor:
    """All differences of a stored run, (n,)."""
    model, method = load_adapter(folder)
    assert method.fixed_mask
    (sparse,) = (module for module in model.modules() if isinstance(module, Sparse))
    assert (sparse.places.diff() > 0).all()
    return sparse(None, None, model).detach()


@pytest.mark.slow
@pytest.mark.parametrize("relaxed", [0.1, 0.4, 0.99])
def test_a_run_ends_with_exactly_k_differences(relaxed, options):
    folder, result = train(dataclasses.replace(BRIEF, relaxed=relaxed), options(n_epochs=2, lr=1e-3))
    assert effective(folder).count_nonzero() == 200
    assert (result["stored_params"], result["stored_bytes"] < 4_000) == (200 + 66, True)


@pytest.mark.slow
def test_a_run_of_one_step_ends_sparse(options):
    folder, result = train(BRIEF, options(max_train_samples=8, lr=1e-3, warmup_ratio=0.0))
    assert result["best_epoch"] == 1
    assert effective(folder).count_nonzero() <= 200
    assert result["stored_params"] == 200 + 66


@pytest.mark.slow
@pytest.mark.parametrize("select", ["dev", "holdout"])
def test_an_epoch_with_a_dense_difference_is_scored_and_not_kept(select, options):
    settings = options(n_epochs=4, select=select, max_train_samples=60)
    task = GivenScores("sst2", 0.9, 0.1, 0.3, 0.2)
    folder, result = train(dataclasses.replace(BRIEF, relaxed=0.4), settings, TaskData(task, settings))
    assert [scores["accuracy"] for scores in result["history"]] == [0.9, 0.1, 0.3, 0.2]
    assert (result["best_epoch"], result["best_score"]) == (3, 0.3)
    assert effective(folder).count_nonzero() == 200


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5, 9, *(pytest.param(step, marks=pytest.mark.long) for step in (4, 6))])
def test_a_run_stopped_in_either_phase_or_between_them_ends_with_the_same_bits(step, options, tmp_path, monkeypatch):
    """The sixth of 12 steps fixes the mask."""
    settings, method = {"n_epochs": 2, "lr": 1e-3, "seed": 5}, dataclasses.replace(BRIEF, relaxed=0.4)
    whole, _ = train(method, options(**settings, output_dir=str(tmp_path / "whole")))
    at_step(monkeypatch, step, send_sigterm)
    with pytest.raises(Interrupted):
        train(method, options(**settings))
    folder, result = train(method, options(**settings))
    assert result["n_resumed"] == 1
    assert outcome(folder) == outcome(whole)


@pytest.mark.slow
def test_the_stored_model_has_the_bits_of_the_trained_one_on_packed_batches(options, monkeypatch):
    runs, usual = [], training.finish
    monkeypatch.setattr(training, "finish", lambda run: runs.append(run) or usual(run))
    folder, _ = train(BRIEF, options(n_epochs=1, lr=1e-3))
    (run,) = runs
    loaded, method = load_adapter(folder)
    prepare(loaded, torch.device("cpu"))
    (tokens,) = run.splits.values()
    batch, _ = tokens.batch(torch.arange(len(tokens)), torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(run.model.eval()(**batch).logits, loaded(**batch).logits)
    assert method == BRIEF.kept()
    names = {name.partition("diffpruning.")[2] or name for name in load_file(folder / "adapter.safetensors")}
    assert names == {"values", "places", "classifier.weight", "classifier.bias"}


def trained(make_model, method=BRIEF):
    """A model with a fixed mask and values."""
    model = apply(method, make_model())
    perturb(trainable(model).values(), 1e-3)
    method.on_epoch(model, 1.0)
    perturb(trainable(model).values())
    return model.eval()


def test_a_stored_model_has_the_logits_of_the_trained_one_bit_for_bit(make_model, tmp_path):
    model = trained(make_model)
    save_adapter(tmp_path, model, BRIEF)
    for folder in (tmp_path, tmp_path / "resumable"):
        loaded, method = load_adapter(folder)
        assert torch.equal(loaded(**random_batch(model)).logits, model(**random_batch(model)).logits)
        assert method == (BRIEF if folder.name == "resumable" else BRIEF.kept())


def test_a_stored_model_is_the_same_on_packed_batches_and_can_be_trained_further(make_model, tmp_path):
    save_adapter(tmp_path, trained(make_model), BRIEF)
    assert_packed_equals_padded(*(load_adapter(tmp_path)[0] for _ in range(2)))


def test_with_a_combination_the_other_method_is_stored_too(make_model, tmp_path):
    method = Hybrid((part_of(BRIEF), "lora:rank=2"))
    model = trained(make_model, method)
    save_adapter(tmp_path, model, method)
    loaded, used = load_adapter(tmp_path)
    assert used == Hybrid((part_of(BRIEF.kept()), "lora:rank=2"))
    assert torch.equal(loaded(**random_batch(model)).logits, model(**random_batch(model)).logits)


def test_a_copy_of_a_model_has_its_own_differences(make_model):
    model = trained(make_model)
    twin, batch = copy.deepcopy(model), random_batch(model)
    before = model(**batch).logits
    perturb([gates_of(model).delta], 1.0)
    assert torch.equal(twin(**batch).logits, before)
    assert not torch.allclose(model(**batch).logits, before)


def test_the_gradients_of_alpha_are_scaled_and_the_first_step_of_adam_is_not(make_model):
    """A group has the mean gradient of its tensor. c decides how far alpha moves in a step, whatever the scale."""
    moved = []
    for c in (100.0, 2000.0):
        method = dataclasses.replace(BRIEF, alpha_rate=c)
        model = apply(method, make_model()).train()
        gates = gates_of(model)
        optimizer = torch.optim.AdamW([gates.a, gates.groups], lr=1e-3, eps=1e-12, weight_decay=0.0)
        method.penalty(model).backward()
        before, sizes = gates.groups.grad.clone(), torch.tensor(gates.sizes)
        method.on_step(model, 0.0)
        torch.testing.assert_close(gates.groups.grad, before * 1e4 / c / sizes)
        optimizer.step()
        moved.append((c * torch.cat((gates.a, gates.groups)).detach() - 5) / c)
    assert all(torch.allclose(each, torch.full_like(each, -1e-3), rtol=1e-2) for each in moved)


@pytest.mark.slow
def test_with_frozen_weights_in_bfloat16_the_differences_are_float32_and_exactly_k(options):
    folder, result = train(BRIEF, options(n_epochs=2, lr=1e-3, frozen_dtype="bfloat16"))
    tensors = load_file(folder / "adapter.safetensors")
    assert {tensor.dtype for name, tensor in tensors.items() if "places" not in name} == {torch.float32}
    assert (effective(folder).count_nonzero(), result["frozen_dtype"]) == (200, "bfloat16")


def test_no_weight_is_prepacked_that_is_never_used(make_model):
    model = apply(BRIEF, make_model())
    prepare(model, torch.device("cpu"))
    assert all(getattr(module, "reordered", None) is None for module in layers(model).modules())


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_compute_the_model_of_one(options, tmp_path):
    """Without dropout. Both draw the same gates; with this epsilon a step depends on the scale of the gradient."""
    checkpoint = str(save_checkpoint("bert", tmp_path / "bert", **still("bert")))
    method, found = DiffPruning(alpha_rate=1.0, n_nonzero=200), []
    for n in (1, 2):
        settings = options(checkpoint=checkpoint, task_name="mrpc", n_epochs=2, eps=0.1, lr=3e-2, batch_size=16 // n)
        settings = dataclasses.replace(settings, output_dir=str(tmp_path / str(n)))
        (folder, result), *_ = on_processes(n, train, method, settings)
        assert result["n_processes"] == n
        found.append(effective(folder))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)
    assert found[0].count_nonzero() == 200


# Options


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0.0}, {"density": 1.5}, {"n_nonzero": 0}, {"relaxed": 1.0}, {"relaxed": 0.0}, {"alpha_rate": 0.0},
        {"sparsity_penalty": -1.0}, {"stretch": (0.0, 1.5)}, {"stretch": (-0.1, 1.0)}, {"alpha_init": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DiffPruning(**wrong)


@pytest.mark.parametrize("wrong", [{"n_nonzero": 10**6}, {"density": 1e-9}])
def test_numbers_of_differences_that_the_encoder_does_not_have_are_refused(wrong, make_model):
    with pytest.raises(DoesNotFit, match="parameters: choose from 1 to"):
        apply(DiffPruning(**wrong), make_model())


def test_folded_weights_are_parameters_again(make_model):
    model = apply(DiffPruning(n_nonzero=50).kept(), make_model()).eval()
    perturb(trainable(model).values())
    before = encoder(model).encoder.layer[0].output.dense.weight.detach().clone()
    fold_weights(model)
    tensors = [tensor for module in model.modules() for tensor in module._parameters.values() if tensor is not None]
    assert all(isinstance(tensor, nn.Parameter) for tensor in tensors)
    assert not torch.equal(encoder(model).encoder.layer[0].output.dense.weight, before)
