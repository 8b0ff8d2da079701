"""A place takes any number of branches and adds what they return; the host is not changed."""

import copy

import pytest
import torch
from conftest import HIDDEN, KINDS, assert_packed_equals_padded, packed_batch, random_batch
from torch import nn

from common import encoders
from common.encoders import Branch, layers
from common.fast import prepare
from common.methods import Method, apply, trainable


class Add(Branch):
    """Adds a trained vector."""

    def __init__(self, width=HIDDEN, value=0.3):
        super().__init__()
        self.vector = nn.Parameter(value * torch.linspace(-1, 2, width))

    def forward(self, x, out, host):
        return self.vector.expand_as(out)


class Nothing(Branch):
    """Adds nothing, and keeps its inputs."""

    def forward(self, x, out, host):
        self.given = x, out, host


PLACES = {
    "query": lambda model: encoders.linear(layers(model)[0], "query"),
    "attention": lambda model: encoders.sublayer(layers(model)[0], "attention"),
    "feedforward": lambda model: encoders.sublayer(layers(model)[0], "feedforward"),
    "layer": lambda model: encoders.hidden(layers(model)[0]),
    "head": lambda model: encoders.before_head(model),
}
every_place = pytest.mark.parametrize("place", PLACES)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@every_place
def test_two_branches_at_one_place_add_up(place, kind, make_model):
    batch, outputs = random_batch(make_model(kind)), []
    for values in ((0.5,), (0.2, 0.3), (0.3, 0.2)):
        model = make_model(kind)
        for value in values:
            PLACES[place](model).add(Add(value=value))
        outputs.append(model(**batch).logits)
    plain = make_model(kind)(**batch).logits
    assert not torch.allclose(outputs[0], plain, atol=1e-3)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-5)


@every_kind
@every_place
def test_a_branch_that_returns_none_changes_no_bit(place, kind, make_model):
    batch, model = random_batch(make_model(kind)), make_model(kind)
    before = model(**batch).logits
    PLACES[place](model).add(Nothing())
    assert torch.equal(model(**batch).logits, before)


@every_place
def test_a_branch_is_given_input_output_and_host(place, make_model):
    model, seen = make_model(), []
    at = PLACES[place](model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    branch = Nothing()
    at.add(branch)
    model(**random_batch(model))
    x, out, host = branch.given
    assert x.shape[-1] == out.shape[-1] == HIDDEN
    assert host is at.host
    assert kinds.items() <= {name: type(module) for name, module in model.named_modules()}.items()
    if place in ("attention", "feedforward"):
        host.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
        model(**random_batch(model))
        torch.testing.assert_close(seen[0], branch.given[0] + branch.given[1])


def test_parameter_names_give_host_and_method_and_number_further_branches(make_model):
    model = make_model()
    place = encoders.linear(layers(model)[0], "query")
    for _ in range(3):
        place.add(Add())
    names = [name for name, _ in model.named_parameters() if name.endswith("vector")]
    home = "bert.encoder.layer.0.attention.self.query.test_places"
    assert names == [f"{home}.vector", f"{home}_2.vector", f"{home}_3.vector"]


@every_place
def test_a_copy_of_a_model_has_its_own_hooks(place, make_model):
    model = make_model()
    PLACES[place](model).add(Add(value=0.0))
    other = copy.deepcopy(model)
    batch, before = random_batch(model), model(**random_batch(model)).logits
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if n.endswith("vector")).add_(torch.linspace(-1, 2, HIDDEN))
    assert torch.equal(model(**batch).logits, before)
    assert not torch.allclose(other(**batch).logits, before, atol=1e-3)


class Prefix(Branch):
    """n keys and values of a layer."""

    def __init__(self, n, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.keys, self.values = (nn.Parameter(torch.randn(4, n, HIDDEN // 4, generator=generator)) for _ in range(2))

    def forward(self, x, out, host):
        self.shapes = [x.shape[-1], *(each.shape[-1] for each in out)]
        return self.keys, self.values


class Vectors(Branch):
    """n vectors in front of the text."""

    def __init__(self, n, width, seed):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x, out, host):
        return self.vectors


class Both(Branch):
    """Two branches of one of these two kinds as one."""

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x, out, host):
        one, other = (branch(x, out, host) for branch in (self.one, self.other))
        if isinstance(one, tuple):
            return tuple(torch.cat(each, dim=1) for each in zip(one, other, strict=True))
        return torch.cat((other, one))  # the later branch comes first


@every_kind
def test_two_prefixes_of_one_layer_equal_one_longer_prefix(kind, make_model):
    one, other = make_model(kind), make_model(kind)
    place = encoders.keys_values(layers(one)[-1])
    place.add(Prefix(2, 0))
    encoders.keys_values(layers(one)[-1]).add(Prefix(3, 1))
    encoders.keys_values(layers(other)[-1]).add(Both(Prefix(2, 0), Prefix(3, 1)))
    batch = random_batch(one)
    torch.testing.assert_close(one(**batch).logits, other(**batch).logits)
    assert not torch.allclose(one(**batch).logits, make_model(kind)(**batch).logits, atol=1e-4)


@pytest.mark.parametrize("level", ["words", "embeddings"])
@every_kind
def test_two_prompts_equal_one_longer_prompt(kind, level, make_model):
    one, other = make_model(kind), make_model(kind)
    width = encoders.word_embeddings(one).embedding_dim if level == "words" else HIDDEN
    if kind in ("electra", "albert") and level == "embeddings":
        width = HIDDEN // 2  # their projection comes after the embeddings
    encoders.front(one, 2, level).add(Vectors(2, width, 0))
    encoders.front(one, 3, level).add(Vectors(3, width, 1))
    encoders.front(other, 5, level).add(Both(Vectors(2, width, 0), Vectors(3, width, 1)))
    batch = random_batch(one)
    torch.testing.assert_close(one(**batch).logits, other(**batch).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one(**batch).logits, make_model(kind)(**batch).logits, atol=1e-4)


class Everywhere(Method):
    """Two branches at every place."""

    default_lr = 1e-3

    def branches(self, model):
        for number in (0, 1):
            for layer in layers(model):
                yield encoders.linear(layer, "key"), Add()
                yield encoders.linear(layer, "value"), Add()
                yield encoders.sublayer(layer, "attention"), Add()
                yield encoders.hidden(layer), Add()
                yield encoders.keys_values(layer), Prefix(2, number)
            width = encoders.word_embeddings(model).embedding_dim
            yield encoders.front(model, 2), Vectors(2, width, number)
            yield encoders.embeddings(model), Add(width)
            yield encoders.before_head(model), Add()


@every_kind
def test_packed_logits_and_gradients_equal_the_padded_ones_at_every_place(kind, make_model):
    padded, packed = (apply(Everywhere(), make_model(kind)).eval() for _ in range(2))
    assert_packed_equals_padded(padded, packed)


def test_branches_before_the_head_are_not_part_of_it(make_model):
    model = apply(Everywhere(), make_model())
    assert not [name for name in encoders.head_parameters(model) if "vector" in name]


class Plain(Branch):
    """A low-rank update of plain nn.Linear and F.linear."""

    def __init__(self):
        super().__init__()
        self.down = nn.Linear(HIDDEN, 4)
        self.up = nn.Parameter(torch.randn(HIDDEN, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, out, host):
        return nn.functional.linear(self.down(x), self.up)


def test_plain_linear_layers_in_a_branch_take_the_fast_path(make_model, monkeypatch):
    from common.fast import linear

    if linear.onednn() is None:
        pytest.skip("needs a torch with oneDNN on x86")
    model = make_model()
    branch = Plain()
    encoders.linear(layers(model)[0], "query").add(branch)
    batch = random_batch(model)
    wanted = model(**batch).logits
    prepared = prepare(model, torch.device("cpu"))
    calls, usual = [], linear._product
    monkeypatch.setattr(linear, "_product", lambda x, weight, *bias: calls.append(weight) or usual(x, weight, *bias))
    torch.testing.assert_close(model(**packed_batch(model, batch)).logits, wanted, atol=1e-5, rtol=1e-5)
    for weight in (branch.down.weight, branch.up):
        assert any(each.data_ptr() == weight.data_ptr() for each in calls)
    assert prepared.layout is not None


def test_without_torchs_private_operators_logits_are_the_same(make_model, monkeypatch, capsys):
    from common.fast import linear

    class Changed:
        def __getattr__(self, name):
            raise AttributeError(f"no operator {name}")

    n_lines = 0 if linear.onednn() is None else 1  # nothing is missing where they are never used
    linear.onednn.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Changed())
    try:
        model = make_model()
        batch = random_batch(model)
        wanted = model(**batch).logits
        prepare(model, torch.device("cpu"))
        torch.testing.assert_close(model(**packed_batch(model, batch)).logits, wanted, atol=1e-5, rtol=1e-5)
        assert capsys.readouterr().err.count("linear layers use the slower F.linear") == n_lines
    finally:
        monkeypatch.undo()
        linear.onednn.cache_clear()


def test_trained_parameters_of_branches_get_gradients(make_model):
    model = apply(Everywhere(), make_model()).train()
    model(**random_batch(model)).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable(model).values())
