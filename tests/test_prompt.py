"""A prompt is put in front of the text, and [CLS] is still what is classified."""

import pytest
import torch
from conftest import KINDS, assert_packed_equals_padded, bert_base, perturbed, random_batch

from common.checkpoints import load_tokenizer
from common.encoders import encoder
from common.errors import InputError
from common.exchange import to_peft
from common.methods import apply, count_without_head
from common.training import train
from prompt.method import PromptTuning


@pytest.mark.parametrize(("length", "wanted"), [(10, 7_680), (20, 15_360), (100, 76_800)])
def test_bert_base_gets_the_expected_number_of_trained_parameters(length, wanted):
    assert count_without_head(apply(PromptTuning(length, init="random"), bert_base())) == wanted


def prompt_of(model):
    return encoder(model).embeddings.prompt.vectors


def hidden_states(model, batch):
    """The last hidden states of the encoder, with the positions of the prompt, and the logits."""
    seen = []
    hook = encoder(model).encoder.register_forward_hook(
        lambda _m, _a, out: seen.append(out.last_hidden_state), prepend=True
    )
    logits = model(**batch).logits
    hook.remove()
    return seen[0], logits


def test_equals_peft_except_for_the_token_that_is_classified(make_model):
    """Every hidden state equals peft's; peft's classifier takes the first virtual token, ours [CLS]."""
    peft = pytest.importorskip("peft")
    ours = perturbed(PromptTuning(5), make_model())
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    theirs = peft.get_peft_model(make_model(), config).eval()
    peft.set_peft_model_state_dict(theirs, to_peft(PromptTuning(5), ours).tensors)
    batch = random_batch(ours)
    mine, my_logits = hidden_states(ours, batch)
    seen = []
    theirs.base_model.bert.encoder.register_forward_hook(lambda _m, _a, out: seen.append(out.last_hidden_state))
    their_logits = theirs(**batch).logits
    is_token = torch.cat((torch.ones(5, 5), batch["attention_mask"]), dim=1).bool()
    torch.testing.assert_close(mine[is_token], seen[0][is_token], atol=1e-6, rtol=1e-5)

    def classified(at):
        return ours.classifier(ours.bert.pooler(mine[:, at:]))

    torch.testing.assert_close(my_logits, classified(5), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(their_logits, classified(0), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(my_logits, their_logits, atol=1e-3)


@pytest.mark.parametrize("level", ["words", "embeddings"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_logits_and_gradients_equal_the_padded_ones(kind, level, make_model):
    method = PromptTuning(3, level=level, init="random")
    padded, packed = (perturbed(method, make_model(kind)) for _ in range(2))
    packed.load_state_dict(padded.state_dict())
    assert_packed_equals_padded(padded, packed)


def test_the_embeddings_level_gives_the_prompt_no_layernorm_and_the_text_its_positions(make_model):
    model = perturbed(PromptTuning(5, level="embeddings"), make_model())
    seen = []
    layer = encoder(model).encoder.layer[0]
    layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    batch = random_batch(model)
    model(**batch)
    torch.testing.assert_close(seen[0][:, :5], prompt_of(model).expand(5, -1, -1))
    torch.testing.assert_close(seen[0][:, 5:], make_model().bert.embeddings(batch["input_ids"]))


def test_vectors_start_as_words_as_a_text_or_at_random(make_model, bert):
    table, model = make_model().get_input_embeddings().weight, make_model()
    torch.manual_seed(0)
    vectors = prompt_of(apply(PromptTuning(6), model))
    rows = [int((table == vector).all(1).nonzero()) for vector in vectors]
    tokenizer = load_tokenizer(bert)
    assert len(set(rows)) == 6
    every = prompt_of(apply(PromptTuning(len(table)), make_model()))  # so many that each word is one of them
    words = set(range(len(table))) - set(load_tokenizer(bert).all_special_ids)
    assert {int((table == vector).all(1).nonzero()) for vector in every} == words
    model = make_model()
    torch.manual_seed(1)
    assert not torch.equal(vectors, prompt_of(apply(PromptTuning(6), model)))
    assert not set(rows) & set(tokenizer.all_special_ids)
    ids = tokenizer("the was", add_special_tokens=False)["input_ids"]
    vectors = prompt_of(apply(PromptTuning(5, init="text", init_text="the was"), make_model()))
    assert torch.equal(vectors, table[[*ids, *ids, ids[0]]])
    vectors = prompt_of(apply(PromptTuning(500, init="random"), make_model()))
    assert vectors.abs().max() <= 0.5
    assert abs(vectors.mean()) < 0.01


def test_a_text_without_tokens_is_refused(make_model):
    with pytest.raises(InputError, match="init_text"):
        apply(PromptTuning(5, init="text", init_text=" "), make_model())


@pytest.mark.parametrize("padding", ["none", "batch"])
def test_texts_are_truncated_to_the_positions_that_the_prompt_leaves(padding, options, capsys):
    _, result = train(PromptTuning(60), options(max_train_samples=16, padding=padding))
    assert result["max_length"] == 4
    assert "at most 4 in an example (60 more positions are those of prompt)" in capsys.readouterr().out


def test_a_prompt_that_leaves_no_room_is_refused(options):
    with pytest.raises(InputError, match="prompt takes 62 of the encoder's 64 positions"):
        train(PromptTuning(62), options())


@pytest.mark.parametrize("wrong", [{"prompt_length": 0}, {"init": "text"}, {"init_text": "a"}])
def test_invalid_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        PromptTuning(**wrong)


def test_embeddings_as_inputs_are_refused(make_model):
    model = apply(PromptTuning(2), make_model())
    with pytest.raises(TypeError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32))


def test_only_vectors_that_enter_as_words_take_positions():
    assert [PromptTuning(7, level=level).positions() for level in ("words", "embeddings")] == [7, 0]
