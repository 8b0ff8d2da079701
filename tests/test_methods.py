"""The contract of a method, for every method folder on every kind of encoder."""

import re

import pytest
import torch
from conftest import HIDDEN, INTERMEDIATE, KINDS, LAYERS, REPOSITORY, perturb, random_batch

from common import methods
from common.encoders import encoder, head_parameters, layers, pooler
from common.errors import DoesNotFit, InputError
from common.loading import load_adapter
from common.methods import ByLayer, apply, count, count_without_head, find, trainable
from common.saving import save_adapter
from hybrid.method import Hybrid
from hybrid.parts import part_of

METHODS = methods.names()
every_method = pytest.mark.parametrize("name", METHODS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def default(name):
    return find(name)()


def test_every_folder_with_a_launcher_is_a_method_and_has_all_its_files():
    assert {path.parent.name for path in REPOSITORY.glob("*/tune.py")} == set(METHODS)
    for name in METHODS:
        files = {path.name for path in (REPOSITORY / name).iterdir()}
        assert {"__init__.py", "method.py", "tune.py", "test.py", "experiment.py", "README.md"} <= files


@every_method
def test_the_name_of_a_method_is_its_folder(name):
    assert default(name).name == name


@every_kind
@every_method
def test_a_model_starts_at_the_pretrained_output_if_and_only_if_its_method_says_so(name, kind, make_model):
    method, model = default(name), make_model(kind)
    batch = random_batch(model)
    before = model(**batch).logits
    after = apply(method, model).eval()(**batch).logits
    assert torch.allclose(before, after, atol=1e-6) == method.starts_at_pretrained


@every_kind
@every_method
def test_exactly_the_trained_parameters_get_gradients(name, kind, make_model):
    method = default(name)
    model = apply(method, make_model(kind)).train()
    perturb(trainable(model).values())
    (model(**random_batch(model)).logits.square().sum() + method.penalty(model)).backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == set(trainable(model))


@pytest.mark.parametrize("training", [False, True])
@every_method
def test_a_method_leaves_the_whole_model_in_its_mode(name, training, make_model):
    model = apply(default(name), make_model().train(training))
    assert {module.training for module in model.modules()} == {training}


@every_method
def test_the_head_is_always_trained(name, make_model):
    for kind in KINDS:
        model = apply(default(name), make_model(kind))
        assert set(head_parameters(model)) <= set(trainable(model))


@every_kind
@every_method
def test_pretrained_parameters_keep_their_names_and_values(name, kind, make_model):
    before = make_model(kind).state_dict()
    after = apply(default(name), make_model(kind)).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@every_kind
@every_method
def test_saving_and_loading_keeps_every_bit(name, kind, make_model, tmp_path):
    method = default(name)
    model = apply(method, make_model(kind))
    perturb(trainable(model).values())
    save_adapter(tmp_path, model, method)
    torch.manual_seed(99)  # random values drawn by the loader must not matter
    loaded, loaded_method = load_adapter(tmp_path)
    batch = random_batch(model)
    assert loaded_method == method
    assert torch.equal(model.eval()(**batch).logits, loaded.eval()(**batch).logits)


@every_kind
@every_method
def test_a_few_steps_lower_the_loss_and_change_no_frozen_parameter(name, kind, make_model):
    model = apply(default(name), make_model(kind)).eval()
    batch, labels = random_batch(model), torch.tensor([0, 1, 0, 1, 1])
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@every_method
def test_the_number_of_trained_parameters_is_the_formula_of_its_readme(name, make_model):
    text = (REPOSITORY / name / "README.md").read_text()
    (formula,) = re.findall(r"^trained = (.+)$", text, flags=re.MULTILINE)
    method, model = default(name), make_model()
    sizes = {
        "hidden": HIDDEN,
        "intermediate": INTERMEDIATE,
        "layers": LAYERS,
        "layer": count(dict(layers(model)[0].named_parameters())),
        "pooler": count(dict(pooler(model).named_parameters())),
        "encoder": count(dict(encoder(model).named_parameters())),
    }
    wanted = eval(formula, {"__builtins__": {}, "len": len}, vars(method) | sizes)
    assert count_without_head(apply(method, model)) == wanted


by_layer = pytest.mark.parametrize("name", [name for name in METHODS if issubclass(find(name), ByLayer)])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("bert", "distilbert", "modernbert") else pytest.mark.long)
        for kind in KINDS
        if kind != "albert"  # which has one layer
    ],
)
@by_layer
def test_with_some_layers_nothing_else_is_trained(name, kind, make_model, tmp_path):
    """All layers, named, leave out only what is outside of the layers; they are the sum of each of them."""
    everything, both, *each = (
        count_without_head(apply(find(name)(layers=n), make_model(kind))) for n in ("all", "0-1", "0", "1")
    )
    assert 0 < sum(each) == both <= everything
    assert each[0] == each[1] or kind == "modernbert"  # whose lowest layer has one LayerNorm only
    model = apply(find(name)(layers="1"), make_model(kind))
    perturb(trainable(model).values())
    save_adapter(tmp_path, model, find(name)(layers="1"))
    batch = random_batch(model)
    states = []
    for each in (model.eval(), make_model(kind).eval(), load_adapter(tmp_path)[0]):
        each.config.output_hidden_states = True
        states.append(each(**batch))
    changed, plain, loaded = states
    assert torch.equal(changed.hidden_states[1], plain.hidden_states[1])  # the output of layer 0
    assert not torch.equal(changed.hidden_states[2], plain.hidden_states[2])
    assert torch.equal(changed.logits, loaded.logits)


@by_layer
def test_layers_have_one_spelling_and_are_not_stored_if_all_are_changed(name, make_model):
    kind = find(name)
    assert kind(layers="3,1,2,0-1,5").layers == "0-3,5"
    assert kind.from_options(kind(layers="0,1").options()) == kind(layers="0-1")
    assert "layers" not in kind().options()
    assert kind.from_options(kind().options()) == kind()
    for wrong in ("", "1-", "2-1", "-1", "a", "0 1", "0,,1", "\u0661"):
        with pytest.raises(InputError, match="layers are"):
            kind(layers=wrong)
    with pytest.raises(DoesNotFit, match="layers are 1-2, but the encoder has those from 0 to 1"):
        apply(kind(layers="1-2"), make_model())


PARTS = [name for name in METHODS if name != "hybrid"]
PAIRS = [(a, b) for a in PARTS for b in PARTS if a != b]
ONE_ORDER = [(a, b) for a, b in PAIRS if (a < b) == (PARTS.index(a) + PARTS.index(b)) % 2]
"""Each pair of methods in one of its orders."""


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(*pair, marks=pytest.mark.long if n % 2 else ()) for n, pair in enumerate(ONE_ORDER)],
)
def test_two_methods_are_trained_saved_and_loaded_together(first, second, make_model, tmp_path):
    method = Hybrid((part_of(default(first)), part_of(default(second))))
    model = apply(method, make_model()).train()
    batch, labels = random_batch(model), torch.tensor([0, 1, 0, 1, 1])
    separately = {n for name in (first, second) for n in trainable(apply(default(name), make_model()))}
    assert set(trainable(model)) == separately
    start = {name: parameter.clone() for name, parameter in trainable(model).items()}
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-3)
    for _ in range(3):  # a parameter multiplied by a zero matrix gets a gradient only in the second step
        torch.nn.functional.cross_entropy(model(**batch).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not any(torch.equal(parameter, start[name]) for name, parameter in trainable(model).items())
    save_adapter(tmp_path, model, method)
    loaded, loaded_method = load_adapter(tmp_path)
    assert loaded_method == method
    assert torch.equal(model.eval()(**batch).logits, loaded.eval()(**batch).logits)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_injection_freezes_nothing_that_another_method_trains(first, second, make_model):
    model = make_model()
    model.requires_grad_(False)
    default(first).inject(model)
    trained = set(trainable(model))
    default(second).inject(model)
    assert trained <= set(trainable(model))


@every_method
def test_the_initial_head_does_not_depend_on_the_method(name, make_model):
    plain = make_model()
    injected = apply(default(name), make_model())
    assert all(torch.equal(injected.get_parameter(n), p) for n, p in head_parameters(plain).items())


@every_method
def test_the_default_learning_rate_is_the_one_of_its_readme(name):
    lines = (REPOSITORY / name / "README.md").read_text().splitlines()
    about = " ".join(line for line in lines if "`--lr`" in line or "learning rate" in line)
    numbers = {float(number) for number in re.findall(r"\b\d+(?:\.\d+)?(?:e-\d+)?\b", about)}
    assert find(name).default_lr in numbers
