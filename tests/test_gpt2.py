"""GPT-2: its linear layers, trained parameters, LoRA beside peft's, and what a token sees."""

import pytest
import torch
import torch.nn.functional as F
from conftest import perturbed

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common.checkpoints import load_generator
from common.encoders import head_parameters, layers, linear, take_attention_functions
from common.errors import DoesNotFit
from common.methods import apply, count, count_without_head, trainable
from hybrid.method import Hybrid
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning


def plain(checkpoint: str):
    """The same model as transformers has it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


def test_the_linear_layers_are_those_of_transformers(gpt2):
    ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load_generator(gpt2).eval()(ids).logits, plain(gpt2)(ids).logits, atol=1e-5, rtol=1e-5)


def test_trained_parameters_of_the_shape_of_gpt2_are_those_of_the_formulas():
    from transformers import GPT2Config, GPT2LMHeadModel

    def trained(method) -> int:
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config())
            take_attention_functions(model)
            apply(method, model)
        assert not head_parameters(model)
        assert count(trainable(model)) == count_without_head(model)
        return count_without_head(model)

    d, n = 768, 12
    assert trained(Baseline()) == 124_439_808
    assert trained(PrefixTuning(10)) == 10 * n * 2 * d
    assert trained(Lora(rank=8)) == n * 2 * 8 * (d + d)
    assert trained(Lora(rank=4, targets=("attention_output", "intermediate", "output"))) == n * 4 * (2 * d + 2 * 5 * d)
    assert trained(BitFit()) == n * (3 * d + d + 4 * d + d + 2 * d) + d
    assert trained(PromptTuning(7)) == 7 * d
    assert trained(Baseline(top_k=1)) == 12 * d * d + 13 * d + 2 * d
    assert trained(Adapters(64, "pfeiffer")) == n * (2 * 64 * d + 64 + d)


@pytest.mark.parametrize("target", ["attention_output", "intermediate", "output"])
def test_lora_on_a_layer_of_its_own_is_that_of_peft(target, gpt2):
    import peft

    module = {"attention_output": "attn.c_proj", "intermediate": "mlp.c_fc", "output": "mlp.c_proj"}[target]
    ours = perturbed(Lora(4, 8.0, targets=(target,)), load_generator(gpt2))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=rf".*\.{module}", fan_in_fan_out=True)
    theirs = peft.get_peft_model(plain(gpt2), config)
    of_theirs = [
        dict(layer.get_submodule(module).named_parameters()) for layer in theirs.base_model.model.transformer.h
    ]
    of_ours = [linear(layer, target).owner.lora for layer in layers(ours)]
    with torch.no_grad():
        for mine, other in zip(of_ours, of_theirs, strict=True):
            other["lora_A.default.weight"].copy_(mine.A)
            other["lora_B.default.weight"].copy_(mine.B)
    assert_equal_to_peft(ours, theirs, [(each.A, each.B) for each in of_ours],
        [(each["lora_A.default.weight"], each["lora_B.default.weight"]) for each in of_theirs])  # fmt: skip


def test_lora_on_query_key_and_value_is_that_of_peft_on_the_fused_layer_if_their_a_is_one(gpt2):
    """peft has one A for all three, and no way to leave one out; ours are three layers."""
    import peft

    parts = ("query", "key", "value")
    ours = perturbed(Lora(4, 8.0, targets=parts), load_generator(gpt2))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(plain(gpt2), config)
    pairs_of = []
    for mine, other in zip(layers(ours), theirs.base_model.model.transformer.h, strict=True):
        own = [linear(mine, part).owner.lora for part in parts]
        a, b = other.attn.c_attn.lora_A.default.weight, other.attn.c_attn.lora_B.default.weight
        with torch.no_grad():
            a.copy_(own[0].A)
            for each in own[1:]:
                each.A.copy_(a)
            b.copy_(torch.cat([each.B for each in own]))
        pairs_of.append((own, a, b))
    assert_equal_to_peft(ours, theirs, [], [])
    for own, a, b in pairs_of:
        torch.testing.assert_close(torch.cat([each.B.grad for each in own]), b.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sum(each.A.grad for each in own), a.grad, atol=1e-5, rtol=1e-5)


def assert_equal_to_peft(ours, theirs, mine, others) -> None:
    ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = [model.eval()(ids).logits for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    for each in logits:
        F.cross_entropy(each.flatten(0, 1), ids.flatten()).backward()
    for pair, other in zip(mine, others, strict=True):
        for a, b in zip(pair, other, strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


def test_gates_are_refused_since_they_would_see_the_target(gpt2):
    with pytest.raises(DoesNotFit, match="would show a model those that it has to predict"):
        apply(Hybrid(gates=True), load_generator(gpt2))


@pytest.mark.parametrize("method", [PrefixTuning(5), PromptTuning(3, level="embeddings"), Lora()], ids=str)
def test_a_token_does_not_see_those_after_it(method, gpt2):
    model = perturbed(method, load_generator(gpt2))
    ids = torch.randint(5, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 5] += 1
    with torch.no_grad():
        before, after = (model(each).logits[0] for each in (ids, changed))
    torch.testing.assert_close(before[:5], after[:5])
    assert (before[5:] - after[5:]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("level", ["words", "embeddings"])
def test_a_text_sees_the_vectors_before_it_with_and_without_a_mask(level, gpt2):
    """transformers takes positions that begin again for those of another text, which would not be seen."""
    model = perturbed(PromptTuning(3, level=level), load_generator(gpt2))
    ids = torch.randint(5, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=torch.ones_like(ids)).logits)
        assert not torch.allclose(model(ids).logits, plain(gpt2)(ids).logits, atol=1e-2)
