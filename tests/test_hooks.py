"""The hooks of a method are called as documented, and what they change is stored, counted and resumed."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import GivenScores, at_step, outcome, random_batch, send_sigterm
from safetensors.torch import load_file
from torch import nn

from adapters.method import Adapters
from baseline.method import Baseline
from common import classification, methods, training
from common.checkpoints import load_tokenizer
from common.encoders import Branch, hidden, layers
from common.errors import Interrupted
from common.loading import load_adapter
from common.methods import Method, apply, own_buffers, trainable
from common.runs import CHECKPOINT, read_predictions
from common.runtime.files import read_tensors, write_tensors
from common.saving import save_adapter
from common.study.curves import read_curves
from common.task_data import TaskData
from common.training import train
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

pytestmark = pytest.mark.slow


class Masked(Branch):
    """Adds a masked vector. The mask is all ones until it is fixed; an integer buffer holds when that was."""

    def __init__(self, width):
        super().__init__()
        self.vector = nn.Parameter(0.1 * torch.randn(width))
        self.register_buffer("mask", torch.ones(width))
        self.register_buffer("fixed_at", torch.tensor(-1))

    def forward(self, x, out, host):
        return (self.vector * self.mask).expand_as(out)


@dataclass(frozen=True)
class Sparse(Method):
    """Masks out the smaller half of a vector's entries from the middle of the run on."""

    pull: float = 0.0
    """Weight of the penalty (vector - 1)^2 / 2."""

    default_lr: ClassVar[float] = 1e-2

    def branches(self, model):
        yield hidden(layers(model)[0]), Masked(model.config.hidden_size)

    def penalty(self, model):
        return self.pull * 0.5 * (branch_of(model).vector - 1).square().sum()

    def on_step(self, model, done):
        branch = branch_of(model)
        if done >= 0.5 and branch.fixed_at < 0:
            half = branch.vector.abs().sort().values[len(branch.vector) // 2]
            branch.mask.copy_((branch.vector.abs() >= half).float())
            branch.fixed_at.fill_(round(1000 * done))

    def stored(self, model):
        return self, trainable(model) | own_buffers(model)


def branch_of(model):
    return next(module for module in model.modules() if isinstance(module, Masked))


@pytest.fixture
def sparse(monkeypatch):
    """Sparse as if it had a folder of its own, so that a saved run can be loaded."""
    usual = methods.find
    name = Sparse().name
    find = lambda wanted: Sparse if wanted == name else usual(wanted)  # noqa: E731
    monkeypatch.setattr(methods, "find", find)
    monkeypatch.setattr("common.loading.find", find)
    return Sparse


def vector_of(folder):
    (vector,) = (tensor for name, tensor in load_file(folder / "adapter.safetensors").items() if "vector" in name)
    return vector


def test_the_hooks_do_nothing_by_default(make_model):
    @dataclass(frozen=True)
    class Nothing(Method):
        default_lr: ClassVar[float] = 1e-3

    method, model = Nothing(), make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply(method, model)
    method.on_step(model, 0.5)
    assert method.penalty(model) == 0.0
    assert method.stored(model) == (method, trainable(model))
    assert list(method.variants(model)) == []
    assert method.positions() == 0
    assert method.on_epoch(model, 0.5)
    assert method.kept() is method
    assert method.uses_all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_penalty_moves_the_optimum_to_the_one_computed_by_hand(options):
    """With a penalty of weight 10^6 the loss is negligible: the minimum is the vector of ones."""
    long = {"max_train_samples": 400, "batch_size": 2, "lr": 5e-2, "weight_decay": 0.0, "max_grad_norm": 0.0}
    pulled, _ = train(Sparse(pull=1e6), options(**long))
    free, _ = train(Sparse(), options(**long))
    assert (vector_of(pulled) - 1).abs().max() < 0.05
    assert (vector_of(free) - 1).abs().max() > 0.5


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_penalty_is_added_once_to_a_step_of_any_number_of_micro_batches(accumulation, options):
    """The run is one step, and its logged gradient norm is that of the penalty, w (v - 1)."""
    settings = options(batch_size=32 // accumulation, gradient_accumulation_steps=accumulation, max_train_samples=32)
    folder, _ = train(Sparse(pull=1e6), dataclasses.replace(settings, lr=1e-12))
    norm = read_curves(folder)["train/grad_norm"][1][-1]
    assert norm == pytest.approx(1e6 * (vector_of(folder) - 1).norm().item(), rel=1e-4)


def test_a_mask_fixed_by_on_step_holds_to_the_end(options):
    """The fourth of 6 steps fixes the mask; from then on half of it is zero."""
    folder, _ = train(Sparse(), options())
    tensors = {name.rpartition(".")[2]: tensor for name, tensor in load_file(folder / "adapter.safetensors").items()}
    assert tensors["fixed_at"].item() == 500
    assert tensors["mask"].tolist().count(0.0) == len(tensors["mask"]) // 2


def test_on_step_gets_the_share_of_steps_done_from_0_to_below_1(options):
    seen = []

    class Noted(Lora):
        def on_step(self, model, done):
            seen.append(done)

    train(Noted(rank=2), options())
    assert seen == [step / 6 for step in range(6)]


@pytest.mark.parametrize("step", [2, 8])
def test_a_mask_that_is_fixed_half_way_survives_an_interruption(step, options, tmp_path, monkeypatch):
    """The run receives SIGTERM before or after the step that fixes the mask."""
    settings = {"n_epochs": 2, "checkpoint_every": 1, "seed": 11}
    uninterrupted, _ = train(Sparse(), options(**settings, output_dir=str(tmp_path / "uninterrupted")))
    at_step(monkeypatch, step, send_sigterm)
    with pytest.raises(Interrupted):
        train(Sparse(), options(**settings))
    (kept,) = (path for path in tmp_path.rglob(CHECKPOINT))
    fixed = next(tensor for name, tensor in load_file(kept).items() if name.endswith("fixed_at"))
    assert (fixed >= 0) == (step == 8)
    folder, result = train(Sparse(), options(**settings))
    assert result["n_resumed"] == 1
    assert outcome(folder) == outcome(uninterrupted)


def test_buffers_of_floats_and_integers_are_saved_counted_and_loaded(options, sparse):
    folder, result = train(Sparse(), options(n_epochs=2))
    tensors = load_file(folder / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == result["trainable_params"] + 32 + 1  # mask and count
    assert result["stored_params"] == result["trainable_params"] + 32  # integers are no parameters
    model, method = load_adapter(folder)
    assert method == Sparse()
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert model.eval()(**random_batch(model)).logits.isfinite().all()


def test_the_development_set_is_scored_with_the_buffers_of_the_best_epoch(options, sparse):
    """The mask is fixed in the second of three epochs, and the first is the best one."""
    settings = options(n_epochs=3, select="holdout", max_train_samples=60, lr=0.1)
    given = GivenScores("sst2", 0.3, 0.2, 0.1)
    folder, result = train(Sparse(), settings, TaskData(given, settings))
    model, _ = load_adapter(folder)
    assert (result["best_epoch"], branch_of(model).mask.all()) == (1, True)
    task = classification.find("sst2")
    examples = task.read("validation", "demo").sample(20)
    tokens = task.encode(examples, load_tokenizer(settings.checkpoint), result["max_length"])
    values, logits = task.score(model, tokens, 64, Accelerator())
    assert values["accuracy"] == result["dev_accuracy"]
    np.testing.assert_allclose(read_predictions(folder)["validation"][0], logits, atol=1e-5)


def test_adapters_of_earlier_versions_load(make_model, tmp_path):
    """Their parameters had other names."""
    old = {
        Lora(): lambda name: name.replace(".lora.A", ".lora_A").replace(".lora.B", ".lora_B"),
        Adapters(): lambda name: name.replace(".adapters.", ".adapter."),
        Baseline(random_params=9): lambda name: name.replace(".baseline.delta", ".delta"),
        PrefixTuning(): lambda name: name.replace(".embeddings.prefix.", ".encoder.prefix."),
        PromptTuning(): lambda name: name.replace(".embeddings.prompt.vectors", ".embeddings.word_embeddings.prompt"),
    }
    for method, renamed in old.items():
        model = apply(method, make_model()).eval()
        folder = tmp_path / method.name
        save_adapter(folder, model, method)
        tensors, notes = read_tensors(folder / "adapter.safetensors")
        before = {renamed(name): tensor for name, tensor in tensors.items()}
        assert set(before) != set(tensors)
        write_tensors(folder / "adapter.safetensors", before, **notes)
        loaded, _ = load_adapter(folder)
        batch = random_batch(model)
        assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits), method


class Scaled(Branch):
    """Adds a vector times a factor, which is 0 in one variant and else 1."""

    def __init__(self, width):
        super().__init__()
        self.vector, self.factor = nn.Parameter(torch.ones(width)), 1.0

    def forward(self, x, out, host):
        return None if self.factor == 0 else (self.factor * self.vector).expand_as(out)


@dataclass(frozen=True)
class WithVariants(Method):
    """Has two variants: with the branch and without it."""

    default_lr: ClassVar[float] = 1e-2

    def branches(self, model):
        yield hidden(layers(model)[0]), Scaled(model.config.hidden_size)

    def variants(self, model):
        branch = next(module for module in model.modules() if isinstance(module, Scaled))
        for branch.factor in (1.0, 0.0):
            yield f"factor_{branch.factor:g}"
        branch.factor = 1.0

    def uses_all(self):
        return False


def test_every_variant_of_the_best_epoch_has_a_score(options):
    """Evaluated are the first epoch, its variants, and the second epoch, which is worse and has none."""
    settings = options(n_epochs=2)
    given = GivenScores("sst2", 0.5, 0.6, 0.7, 0.4)
    _, result = train(WithVariants(), settings, TaskData(given, settings))
    assert (result["best_epoch"], result["best_score"], result["last_score"]) == (1, 0.5, 0.4)
    assert (result["factor_1_accuracy"], result["factor_0_accuracy"], result["factor_0_score"]) == (0.6, 0.7, 0.7)
    epoch, with_branch, without = given.outputs[:3]
    assert np.array_equal(epoch, with_branch)
    assert not np.allclose(epoch, without)


def test_processes_look_for_unused_parameters_only_if_a_method_may_have_some(options, tmp_path):
    for method, wanted in ((WithVariants(), True), (Sparse(), False)):
        accelerator = training.make_accelerator(method, options(), tmp_path / "run")
        assert accelerator.ddp_handler.find_unused_parameters is wanted
