"""Examples of several runs in one forward pass get the logits that each run's own model gives them alone."""

import random
from typing import get_args

import pytest
import torch
from conftest import KINDS, perturbed

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import serving
from common.checkpoints import load_model, load_tokenizer
from common.data import Examples
from common.encoders import Linear
from common.errors import DoesNotFit
from common.fast.attention import PackedAttention
from common.places import Branch
from common.serving import SharedEncoder
from common.tokens import tokenize
from diffpruning.method import DiffPruning
from dora.method import Dora
from hybrid.method import Hybrid
from ia3.method import Ia3
from lntuning.method import LnTuning
from loha.method import Loha
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

CPU = torch.device("cpu")
TEXTS = ["the ruby was found in the garden", "a boy", "the girl by the sea was here", "it", "by the boy in the house"]
EVERY = {
    "lora": Lora(rank=2),
    "lora everywhere": Lora(rank=3, targets=get_args(Linear)),
    "dora": Dora(rank=2),
    "loha": Loha(rank=2),
    "ia3": Ia3(),
    "adapters": Adapters(bottleneck_size=4),
    "pfeiffer": Adapters(bottleneck_size=4, placement="pfeiffer"),
    "parallel, invertible": Adapters(bottleneck_size=4, placement="parallel", invertible=True),
    "prefix": PrefixTuning(prefix_length=3),
    "prefix of the top layer": PrefixTuning(prefix_length=2, layers="1"),
    "prompt": PromptTuning(prompt_length=4, init="random"),
    "prompt behind the embeddings": PromptTuning(prompt_length=2, init="random", level="embeddings"),
    "bitfit": BitFit(),
    "lntuning": LnTuning(),
    "head alone": Baseline(top_k=0),
    "top layer": Baseline(top_k=1),
    "all": Baseline(),
    "random entries": Baseline(random_params=50),
    "diff pruning": DiffPruning(fixed_mask=True),
    "all and lora": Hybrid(("baseline", "lora:rank=2")),
    "hybrid": Hybrid(
        ("prompt:prompt_length=2:init=random", "prefix", "lora:rank=2", "dora:rank=1", "bitfit", "adapters")
    ),
}
REFUSED = {
    "mpnet": {"all", "all and lora"},
    "deberta-v2": {"adapters", "bitfit", "lntuning", "all", "all and lora", "diff pruning", "hybrid"},
}
"""What trains relative positions, which are of no text alone."""


def alone(model, checkpoint, texts):
    """Logits of the model as it was loaded, for one text at a time, unpacked."""
    encode = load_tokenizer(checkpoint)
    with torch.no_grad():
        return torch.cat([model(**encode(text, return_tensors="pt")).logits for text in texts])


def packed(shared, checkpoint, texts):
    tokens = tokenize(Examples((list(texts),), None), load_tokenizer(checkpoint), 40).with_layout(shared.layout)
    return tokens.batch(torch.arange(len(texts)), CPU)[0]


class Mixed:
    """An encoder with runs of some methods, and the logits that each should give."""

    def __init__(self, checkpoint, methods, pooling=None, dtype="float32"):
        self.checkpoint = checkpoint
        self.shared = SharedEncoder(checkpoint, pooling == "mean", dtype, CPU)
        self.wanted, self.refused = {}, set()
        for number, (name, method) in enumerate(methods.items()):
            self.add(name, method, 1 + number % 3, pooling)

    def add(self, name, method, n_outputs=2, pooling=None):
        torch.manual_seed(len(self.wanted))
        model = perturbed(method, load_model(self.checkpoint, n_outputs, pooling))
        wanted = alone(model, self.checkpoint, TEXTS)
        try:
            self.shared.add(name, model)
            self.wanted[name] = wanted
        except DoesNotFit:
            self.refused.add(name)

    def check(self, names, tolerance=1e-5):
        """Each run has another number of texts, in another order."""
        order = {name: torch.randperm(5)[: 1 + number % 5] for number, name in enumerate(names)}
        batches = {name: packed(self.shared, self.checkpoint, [TEXTS[i] for i in order[name]]) for name in names}
        found = self.shared.logits(batches)
        for name in names:
            torch.testing.assert_close(found[name], self.wanted[name][order[name]], atol=tolerance, rtol=tolerance)


def test_a_mixed_batch_of_every_method_equals_each_alone(bert):
    mixed = Mixed(bert, EVERY)
    mixed.check(list(EVERY))
    mixed.check(list(reversed(EVERY)))
    mixed.check(["prompt"])
    differ = [mixed.wanted[name][:, 0] for name in EVERY]
    assert min((a - b).abs().max() for n, a in enumerate(differ) for b in differ[:n]) > 1e-3


def test_with_frozen_weights_in_bfloat16_nobody_sees_who_shares_the_batch(bert):
    mixed = Mixed(bert, {name: EVERY[name] for name in ("lora", "adapters", "bitfit", "lntuning")}, dtype="bfloat16")
    batches = {name: packed(mixed.shared, bert, TEXTS[:2]) for name in mixed.wanted}
    together = mixed.shared.logits(batches)
    for name, batch in batches.items():
        torch.testing.assert_close(mixed.shared.logits({name: batch})[name], together[name], atol=2e-3, rtol=0)


def test_any_runs_share_a_batch_in_any_order(bert):
    mixed, names = Mixed(bert, EVERY), list(EVERY)
    generator = random.Random(0)
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        mixed.check([name, *generator.sample([other for other in names if other != name], 4)])


def test_the_attention_of_runs_without_a_prefix_is_computed_at_once(bert, monkeypatch):
    mixed = Mixed(bert, {name: EVERY[name] for name in ("lora", "prefix", "bitfit", "prompt", "adapters", "ia3")})
    batches = {name: packed(mixed.shared, bert, TEXTS[:2]) for name in mixed.wanted}
    seen = []
    apply = PackedAttention.apply
    monkeypatch.setattr(PackedAttention, "apply", lambda *args: seen.append(len(args[5].lengths)) or apply(*args))
    mixed.shared.logits(batches)
    assert seen == [8, 2, 2] * 2  # examples of four runs, of the prompt, whose texts are longer, and of the prefix


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_on_every_kind_of_encoder(kind, checkpoints):
    methods = dict(EVERY)
    if kind == "modernbert":  # it has one bias for three linear layers, if any
        methods["hybrid"] = Hybrid(("prompt:prompt_length=2:init=random", "lora:rank=2", "dora:rank=1", "ia3"))
    if kind == "albert":  # its layers are one
        methods["prefix of the top layer"] = PrefixTuning(prefix_length=2, layers="0")
    mixed = Mixed(checkpoints[kind], methods)
    assert mixed.refused == REFUSED.get(kind, set())
    mixed.check(list(mixed.wanted))
    for name in mixed.wanted:
        mixed.check([name])


@pytest.mark.parametrize("kind", ["bert", pytest.param("albert", marks=pytest.mark.long)])
def test_runs_may_differ_in_what_their_heads_read(kind, checkpoints):
    mixed = Mixed(checkpoints[kind], {"usual": Lora(rank=2)})
    for pooling in ("cls", "pooler", "trained_pooler"):
        mixed.add(pooling, Lora(rank=1), 3, pooling)
    mixed.check(list(mixed.wanted))
    mean = Mixed(checkpoints[kind], {name: EVERY[name] for name in ("lora", "prompt", "prefix", "adapters")}, "mean")
    mean.check(list(mean.wanted))


def test_runs_come_and_go_between_forward_passes(bert):
    mixed = Mixed(bert, {name: EVERY[name] for name in ("lora", "prefix", "lntuning", "prompt")})
    mixed.check(list(mixed.wanted))
    for name in ("lora", "prefix"):
        mixed.shared.remove(name)
        del mixed.wanted[name]
    mixed.check(["lntuning", "prompt"])
    for name, method in (("prefix", "lora everywhere"), ("lora", "prompt"), ("dora", "dora")):
        mixed.add(name, EVERY[method])
    mixed.check(list(mixed.wanted))


def test_the_frozen_weights_are_in_memory_once(bert):
    mixed = Mixed(bert, {name: EVERY[name] for name in ("lora", "bitfit", "prefix", "top layer")})
    ours = {id(parameter) for parameter in mixed.shared.model.parameters()}
    for name, model in mixed.shared.runs.items():
        own = {key for key, parameter in model.named_parameters() if id(parameter) not in ours}
        trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert own == trained, name


def test_what_reads_all_tokens_of_the_top_layer_cannot_share_a_pass_and_changes_nothing(bert):
    mixed = Mixed(bert, {"lora": Lora(rank=2), "unipelt": Hybrid(preset="unipelt")})
    assert mixed.refused == {"unipelt"}
    mixed.check(["lora"])


def test_what_is_added_for_one_run_is_written_into_no_tensor_that_others_read():
    """The input of a module, which its residual sum reads too, or one vector that stands for all tokens."""

    class Ones(Branch):
        def forward(self, x, out, host):
            return torch.ones_like(out)

    added, part = serving._Added(serving._Batch()), slice(1, 3)
    added.of_run["run"] = Ones(), torch.nn.Identity()
    added.batch.parts = lambda x: (1, [("other", slice(0, 1)), ("run", part)])  # type: ignore[method-assign]
    wanted = torch.tensor([0.0, 1, 1, 0])[None, :, None].expand(1, 4, 2)
    x, one = torch.zeros(1, 4, 2), torch.zeros(1, 1, 2)
    for out in (x, x[..., :2], one.expand(1, 4, 2)):
        assert torch.equal(added(x, out, None), wanted)
    assert not x.any()
    assert not one.any()
    out = torch.zeros(1, 4, 2)
    assert added(x, out, None) is None
    assert torch.equal(out, wanted)
    low = torch.zeros(1, 4, 2, dtype=torch.bfloat16)  # a run alone would get a sum in float32
    added.of_run["run"] = type("Floats", (Ones,), {"forward": lambda self, x, out, host: torch.ones(out.shape)})(), None
    assert added(x, low, None).dtype == torch.float32
    assert not low.any()
