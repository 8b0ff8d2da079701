"""Every token attends to a prefix, which shifts no position and is stored without the network that makes it."""

import pytest
import torch
from conftest import KINDS, assert_packed_equals_padded, bert_base, perturbed, random_batch

from common.errors import InputError
from common.exchange import to_peft
from common.loading import load_adapter
from common.methods import apply, count, count_without_head, trainable
from common.saving import save_adapter
from prefix.method import Prefix, PrefixTuning


@pytest.mark.parametrize(
    ("length", "hidden_dim", "wanted"),
    [(20, 0, 368_640), (10, 0, 184_320), (30, 0, 552_960), (20, 512, 9_864_704), (30, 512, 9_872_384)],
)
def test_bert_base_gets_the_expected_number_of_trained_parameters(length, hidden_dim, wanted):
    assert count_without_head(apply(PrefixTuning(length, hidden_dim), bert_base())) == wanted


def peft_twin(ours, plain, length):
    """peft's model with the weights of ours."""
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=length)
    theirs = peft.get_peft_model(plain, config).eval()
    peft.set_peft_model_state_dict(theirs, to_peft(PrefixTuning(length), ours).tensors)
    return theirs


def test_equals_peft_except_for_the_positions_that_peft_shifts(make_model):
    ours = perturbed(PrefixTuning(prefix_length=5), make_model())
    theirs, batch = peft_twin(ours, make_model(), 5), random_batch(ours)
    shifted = torch.arange(5, 5 + batch["input_ids"].shape[1])[None]
    wanted = theirs(**batch).logits
    torch.testing.assert_close(ours(**batch, position_ids=shifted).logits, wanted, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours(**batch).logits, wanted, atol=1e-3)


def test_a_full_input_fits_where_peft_runs_out_of_positions(make_model):
    ours = perturbed(PrefixTuning(prefix_length=5), make_model())
    batch = {"input_ids": torch.full((1, 64), 7), "attention_mask": torch.ones(1, 64, dtype=torch.long)}
    assert ours(**batch).logits.isfinite().all()
    with pytest.raises((RuntimeError, IndexError)):
        peft_twin(ours, make_model(), 5)(**batch)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_type_give_the_same_logits(kind, make_model):
    """No mask, bool (sdpa) and float (eager): padding is always masked, the prefix never."""
    batch = random_batch(make_model(kind))
    lengths = batch["attention_mask"].sum(1).tolist()
    model = perturbed(PrefixTuning(prefix_length=3), make_model(kind))
    sdpa = model(**batch).logits
    alone = torch.cat([model(batch["input_ids"][i : i + 1, :n]).logits for i, n in enumerate(lengths)])  # no mask
    torch.testing.assert_close(alone, sdpa, atol=1e-5, rtol=1e-5)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).logits, sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bfloat16_logits_are_close_to_those_of_float32(implementation, make_model):
    model = perturbed(PrefixTuning(prefix_length=3), make_model())
    model.set_attn_implementation(implementation)
    batch = random_batch(model)
    exact = model(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(**batch).logits.float(), exact, atol=0.1, rtol=0.1)
    half = model.to(torch.bfloat16)
    torch.testing.assert_close(half(**batch).logits.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("hidden_dim", [0, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_and_gradients_equal_the_padded_ones(kind, hidden_dim, make_model):
    method = PrefixTuning(prefix_length=3, hidden_dim=hidden_dim)
    assert_packed_equals_padded(*(perturbed(method, make_model(kind)) for _ in range(2)))


def test_the_output_of_the_network_is_stored_and_gives_the_same_logits(make_model, tmp_path):
    method = PrefixTuning(prefix_length=4, hidden_dim=6)
    model = perturbed(method, make_model())
    save_adapter(tmp_path, model, method)
    loaded, used = load_adapter(tmp_path)
    assert used == PrefixTuning(prefix_length=4, hidden_dim=0)
    assert count_without_head(loaded) == 4 * 2 * 2 * 32
    batch = random_batch(model)
    torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits, atol=1e-6, rtol=1e-6)


def test_the_network_is_also_stored_for_further_training(make_model, tmp_path):
    method = PrefixTuning(prefix_length=4, hidden_dim=6)
    model = perturbed(method, make_model())
    save_adapter(tmp_path, model, method)
    again, trained = load_adapter(tmp_path / "resumable")
    assert trained == method
    assert count(trainable(again)) == count(trainable(model))
    batch = random_batch(model)
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def test_the_network_runs_once_in_a_forward_pass(make_model):
    model = perturbed(PrefixTuning(prefix_length=4, hidden_dim=6), make_model())
    runs = []
    (prefix,) = (module for module in model.modules() if isinstance(module, Prefix))
    prefix.mlp.register_forward_hook(lambda *_: runs.append(1))
    model(**random_batch(model))
    assert runs == [1]


@pytest.mark.parametrize("wrong", [{"prefix_length": 0}, {"hidden_dim": -1}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        PrefixTuning(**wrong)


def test_the_network_computes_what_the_paper_says_and_the_table_starts_like_embeddings():
    torch.manual_seed(0)
    prefix = Prefix(length=50, n_layers=2, width=32, heads=4, hidden_dim=16)
    assert prefix.embedding.std().item() == pytest.approx(0.02, rel=0.1)
    lower, upper = prefix.mlp[0], prefix.mlp[-1]
    wanted = torch.tanh(prefix.embedding @ lower.weight.T + lower.bias) @ upper.weight.T + upper.bias
    torch.testing.assert_close(prefix.table(), wanted)
