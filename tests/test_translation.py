"""Encoder-decoders: Marian and T5 in the loop, with every method, and parallel files."""

import itertools
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import REPOSITORY, outcome, perturbed, save_checkpoint, still
from safetensors.torch import load_file, save_file
from test_generation import assert_one_and_two_processes_agree
from test_resume import PowerCut, at_step, lose_power

from adapters.method import Adapters
from baseline.method import Baseline
from bitfit.method import BitFit
from common import likelihood, own_task, pairs, synthetic
from common.checkpoints import decoder_start, load_generator, load_tokenizer
from common.data import Examples
from common.decoding import generate
from common.encoders import head_parameters, layers, linears, sublayers
from common.errors import DoesNotFit, InputError
from common.fast import prepare
from common.generation import Generation
from common.loading import load_adapter
from common.methods import apply, count, count_without_head, find, trainable
from common.options import GenerateOptions, PredictOptions
from common.pair_tokens import Form, encode
from common.prediction import answer
from common.results import read_result
from common.task_data import TaskData
from common.training import train
from hybrid.method import Hybrid
from ia3.method import Ia3
from lntuning.method import LnTuning
from loha.method import Loha
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

CPU = torch.device("cpu")
KINDS = ("marian", "t5")
METHODS = sorted(path.parent.name for path in REPOSITORY.glob("*/generate.py"))
USUAL = (("prefix", "marian"), ("lora", "t5"))
SOURCES = ["the poet found it .", "the surgeon painted the red violin in the old garden .", "a ruby ."]
TARGETS = ["the poet .", "the violin in the garden .", "the red ruby was in the old museum by the garden ."]


def plain(checkpoint: str):
    """The same model as transformers has it."""
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()


def tokens_of(checkpoint: str, max_length: int = 60):
    form = Form(load_tokenizer(checkpoint), max_length)
    return encode(Examples((SOURCES, TARGETS), None), form, decoder_start(checkpoint))


def prompts_of(checkpoint: str) -> list[torch.Tensor]:
    return [torch.tensor(ids) for ids in load_tokenizer(checkpoint)(SOURCES)["input_ids"]]


def texts_of(model, checkpoint: str, end: int = 3, prompts=None, **search) -> list[list[int]]:
    settings = own_task.Search(**{"num_beams": 1, "max_new_tokens": 8, "no_repeat_ngram_size": 1} | search)
    return generate(model, prompts or prompts_of(checkpoint), settings, end, 60, 6, Accelerator(cpu=True))


@pytest.fixture
def options(tmp_path, checkpoints):
    """options(n_epochs=2): the options of a run of a second on a few pairs."""
    data = tmp_path / "data"
    data.mkdir()
    for split, n in (("train", 40), ("validation", 14), ("test", 9)):
        for field, texts in zip(("en", "ne"), synthetic.pairs("translation", split), strict=True):
            (data / f"{split}.{field}").write_text("".join(f"{text}\n" for text in texts[:n]))

    def make(**changes) -> GenerateOptions:
        small = {"checkpoint": checkpoints["marian"], "data": str(data), "task_name": "en-ne", "source_field": "en"}
        small |= {"target_field": "ne", "n_epochs": 1, "batch_size": 8, "lr": 1e-2, "num_beams": 2}
        small |= {"max_new_tokens": 6, "output_dir": str(tmp_path / "out"), "report_to": ("none",)}
        return GenerateOptions(**small | changes)

    return make


# Loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(kind, checkpoints):
    tokens, task = tokens_of(checkpoints[kind]), Generation.__new__(Generation)
    batch, labels = tokens.batch(torch.tensor([2, 0, 1]), CPU)
    ours = task.loss(load_generator(checkpoints[kind]).eval(), batch, labels)
    tokenizer, theirs, n = load_tokenizer(checkpoints[kind]), 0.0, 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        wanted = torch.tensor([[*tokenizer(target, add_special_tokens=False)["input_ids"], 3]])
        loss = plain(checkpoints[kind])(torch.tensor(tokenizer([source])["input_ids"]), labels=wanted).loss
        theirs, n = theirs + loss * wanted.numel(), n + wanted.numel()
    assert tokens.n_targets(torch.arange(3)) == n == len(labels)
    assert tokens.targets.tolist()[-len(tokens.batch(torch.tensor([2]), CPU)[1]) :] == wanted[0].tolist()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method",
    [PrefixTuning(5), PromptTuning(3), Adapters(4), Adapters(4, "pfeiffer"), Adapters(4, "parallel"), Lora(), Ia3()],
    ids=str,
)
def test_an_example_has_the_same_loss_alone_as_in_a_padded_batch(method, kind, checkpoints):
    tokens, model = tokens_of(checkpoints[kind], 50), perturbed(method, load_generator(checkpoints[kind]))
    scores = [likelihood.score(model, tokens, size, Accelerator(cpu=True))[1] for size in (1, 3)]
    before = likelihood.score(load_generator(checkpoints[kind]), tokens, 3, Accelerator(cpu=True))[1]
    np.testing.assert_allclose(*scores, atol=1e-4, rtol=1e-5)
    assert not np.allclose(scores[0], before, atol=1e-3)
    prepare(model, CPU)
    fast = likelihood.score(model, tokens, 3, Accelerator(cpu=True))[1]
    np.testing.assert_allclose(scores[1], fast, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_may_be_held_in_bfloat16(kind, checkpoints):
    tokens, losses = tokens_of(checkpoints[kind]), []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = perturbed(Lora(), load_generator(checkpoints[kind]))
        prepare(model, CPU, dtype)
        batch, labels = tokens.batch(torch.arange(3), CPU)
        losses.append(likelihood.loss(model, batch, labels))
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trainable(model).values())
    exact, rounded = (loss.item() for loss in losses)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.01)


def test_a_text_that_is_too_long_loses_its_end(checkpoints, capsys):
    long, short = " ".join(["the"] * 20), "a ruby"
    form = Form(load_tokenizer(checkpoints["marian"]), 12)
    tokens = encode(Examples(([long, short, short], [short, long, short]), None), form, 0)
    n = len(load_tokenizer(checkpoints["marian"])(short)["input_ids"])
    assert tokens.lengths.tolist() == [12, n, n]
    assert tokens.columns["input_ids"][11] == 3
    assert tokens.labels.tolist() == [n - 1, 12, n - 1]
    assert [int(part[-1]) == 3 for part in tokens.targets.split(tokens.labels.tolist())] == [True, False, True]
    assert "2 of 3 pairs have more than 12 tokens and are cut" in capsys.readouterr().out


def test_a_prefix_of_a_source_is_read_in_training_and_in_generation(checkpoints):
    tokenizer = load_tokenizer(checkpoints["t5"])
    form = Form(tokenizer, 60, "the museum")
    tokens = encode(Examples((SOURCES, TARGETS), None), form, 0)
    assert (
        tokens.columns["input_ids"][: tokens.lengths[0]].tolist() == tokenizer("the museum " + SOURCES[0])["input_ids"]
    )
    torch.manual_seed(0)
    model = perturbed(Lora(), load_generator(checkpoints["t5"]))
    search = own_task.Search(num_beams=1, max_new_tokens=8)
    with_prefix = encode(Examples((["the museum " + text for text in SOURCES], TARGETS), None), Form(tokenizer, 60), 0)
    both = [each.generated(model, search, 6, Accelerator(cpu=True)) for each in (tokens, with_prefix)]
    assert both[0] == both[1]
    assert both[0] != tokens_of(checkpoints["t5"]).generated(model, search, 6, Accelerator(cpu=True))


# Methods


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_that_of_peft(kind, checkpoints):
    import peft

    ours, theirs = perturbed(Lora(4, 8.0), load_generator(checkpoints[kind])), plain(checkpoints[kind])
    targets = {"marian": ["q_proj", "v_proj"], "t5": ["q", "v"]}[kind]
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    names = {n.replace(".lora.", ".lora_") for n in trainable(ours)}
    assert {n.removeprefix("base_model.model.").removesuffix(".default.weight") for n in trainable(theirs)} == names
    with torch.no_grad():
        for name, parameter in trainable(ours).items():
            theirs.get_parameter(f"base_model.model.{name.replace('.lora.', '.lora_')}.default.weight").copy_(parameter)
    ids, mask = torch.tensor([[5, 9, 30, 3], [8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.tensor([[0, 7, 9], [0, 8, 4]])}
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_prefix_gets_a_gradient_and_reaches_three_attentions(kind, checkpoints):
    tokens = tokens_of(checkpoints[kind])
    model = apply(PrefixTuning(5), load_generator(checkpoints[kind])).eval()
    batch, labels = tokens.batch(torch.arange(3), CPU)
    likelihood.loss(model, batch, labels).backward()
    (table,) = trainable(model).values()
    gradients = table.grad.unflatten(1, (6, 2, -1)).abs().sum(-1)  # (l, attentions, key or value)
    assert torch.all(gradients > 0)


@pytest.mark.filterwarnings("ignore")
def test_half_of_the_parameters_of_peft_s_prefix_get_no_gradient(checkpoints):
    import peft

    settings = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(plain(checkpoints["marian"]), settings)
    ids = torch.tensor([[5, 9, 30, 3]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([[7, 9, 3]])).loss.backward()
    (table,) = trainable(model).values()
    assert (table.grad == 0).float().mean() == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_keys_and_values_by_hand_in_encoder_decoder_and_between(kind, checkpoints):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    ours, theirs = perturbed(PrefixTuning(5), load_generator(checkpoints[kind])), plain(checkpoints[kind])
    (table,) = trainable(ours).values()
    table = table.detach().unflatten(1, (6, 2, 4, -1))  # (l, attentions, key or value, heads, size)
    modules = [
        m
        for name, m in theirs.named_modules()
        if name.endswith(("self_attn", "SelfAttention", "_attn", "EncDecAttention"))
    ]
    assert len(modules) == 6

    def by_hand(module, query, key, value, mask, scaling=None, position_bias=None, **_):
        added = [table[:, modules.index(module), part].transpose(0, 1).expand(len(key), -1, -1, -1) for part in (0, 1)]
        scores = query @ torch.cat((added[0], key), 2).mT * scaling
        scores[..., 5:] += 0 if position_bias is None else position_bias
        scores[..., 5:] += mask
        return (scores.softmax(-1) @ torch.cat((added[1], value), 2)).transpose(1, 2), None

    AttentionInterface.register("by_hand", by_hand)
    AttentionMaskInterface.register("by_hand", eager_mask)
    theirs.set_attn_implementation("by_hand")
    ids, mask = torch.tensor([[5, 9, 30, 3], [8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.tensor([[0, 7, 9], [0, 8, 4]])}
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_input_vectors_before_the_source_that_the_decoder_sees_too(kind, checkpoints):
    ours, theirs = perturbed(PromptTuning(3), load_generator(checkpoints[kind])), plain(checkpoints[kind])
    (vectors,) = trainable(ours).values()
    ids, mask = torch.tensor([[5, 9, 30, 3], [8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    target = torch.tensor([[0, 7, 9], [0, 8, 4]])
    words = torch.cat((vectors.expand(2, -1, -1), theirs.get_input_embeddings()(ids)), 1)
    longer = {"inputs_embeds": words * getattr(theirs.base_model.encoder, "embed_scale", 1.0)}
    longer["attention_mask"] = torch.cat((torch.ones(2, 3), mask), 1)
    wanted = theirs(**longer, decoder_input_ids=target).logits
    ours = ours(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_trained_parameters_of_the_shapes_of_opus_mt_and_t5_small_are_those_of_the_formulas():
    from transformers import MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

    def trained(kind, method) -> int:
        with torch.device("meta"):
            if kind == "marian":
                sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048}
                sizes |= {"decoder_ffn_dim": 2048, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
                model = MarianMTModel(
                    MarianConfig(vocab_size=58_101, decoder_vocab_size=58_101, pad_token_id=58_100, **sizes)
                )
            else:
                model = T5ForConditionalGeneration(T5Config())
            apply(method, model)
        assert not head_parameters(model)
        assert count(trainable(model)) == count_without_head(model)
        return count_without_head(model)

    d, n, attentions = 512, 12, 18
    for kind in KINDS:
        assert trained(kind, PrefixTuning(10)) == 10 * attentions * 2 * d
        assert trained(kind, PrefixTuning(10, hidden_dim=64)) == 10 * d + d * 64 + 64 + (64 + 1) * attentions * 2 * d
        assert trained(kind, Lora(rank=8)) == attentions * 2 * 8 * (d + d)
        assert trained(kind, Loha(rank=8)) == attentions * 2 * 8 * 2 * (d + d)
        assert trained(kind, Lora(rank=4, targets=("intermediate",))) == n * 4 * 5 * d
        assert trained(kind, Ia3()) == attentions * 2 * d + n * 4 * d
        assert trained(kind, PromptTuning(7)) == 7 * d
        assert trained(kind, Adapters(64, "pfeiffer")) == n * (2 * 64 * d + 64 + d)
    assert trained("marian", Adapters(64)) == 30 * (2 * 64 * d + 64 + d + 2 * d)
    assert trained("marian", BitFit()) == attentions * 4 * d + n * 5 * d + 30 * d
    assert trained("marian", LnTuning()) == 30 * 2 * d
    assert trained("t5", LnTuning()) == 32 * d  # gains alone, with one above the encoder and one above the decoder
    assert trained("t5", Baseline()) == 60_506_624
    assert trained("t5", Baseline(top_k=1)) == 8 * d * d + 2 * 4 * d * d + 4 * d


def test_a_gated_feed_forward_part_has_two_linear_layers_of_one_name(tmp_path):
    folder = save_checkpoint("t5", tmp_path, feed_forward_proj="gated-gelu")
    model = load_generator(str(folder))
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    top = layers(model)[-1]
    assert [names[id(place.host)] for place in linears(top, "intermediate")] == ["wi_0", "wi_1"]
    assert [len(linears(layer, "query")) for layer in layers(model)] == [1, 1, 2, 2]
    assert [sublayers(layer) for layer in (layers(model)[0], top)] == [
        ("attention", "feedforward"),
        ("attention", "cross_attention", "feedforward"),
    ]


def test_an_output_layer_of_its_own_is_kept_and_trained_with_all_others(tmp_path):
    folder = save_checkpoint("t5", tmp_path, feed_forward_proj="gated-gelu")
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    tensors["lm_head.weight"] = torch.randn(tensors["shared.weight"].shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))  # as Flan-T5 has it
    model = load_generator(str(folder))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    assert not model.config.scale_decoder_outputs
    assert torch.equal(model.encoder.embed_tokens.weight, tensors["shared.weight"])
    assert count(trainable(apply(Baseline(), model))) == sum(tensor.numel() for tensor in tensors.values())
    assert not head_parameters(model)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (BitFit(), "no such biases"),
        (PromptTuning(level="embeddings"), "level is embeddings, which t5 does not have"),
        (Adapters(invertible=True), "no invertible adapters and no random drop_layers"),
        (Adapters(drop_layers="random"), "no invertible adapters and no random drop_layers"),
        (Hybrid(gates=True), "leave gates out"),
    ],
    ids=str,
)
def test_what_such_a_model_does_not_have_is_refused(method, why, checkpoints):
    with pytest.raises(DoesNotFit, match=why):
        apply(method, load_generator(checkpoints["t5"]))


# Search


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("method", [PrefixTuning(5), PromptTuning(3), Lora(), Hybrid()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_gives_the_tokens_of_each_source_alone_without_a_cache(kind, method, num_beams, checkpoints):
    torch.manual_seed(0)  # else what was run before decides LoRA's A, and so whether the texts differ
    model = perturbed(method, load_generator(checkpoints[kind]))
    end = texts_of(model, checkpoints[kind], num_beams=num_beams)[0][3]  # so that texts do end
    wanted = []
    for prompt in prompts_of(checkpoints[kind]):
        new = model.generate(
            prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, num_beams=num_beams,
            use_cache=False, eos_token_id=end, pad_token_id=0, decoder_start_token_id=0, do_sample=False,
            suppress_tokens=[0], no_repeat_ngram_size=1,
        )[0, 1:].tolist()  # fmt: skip
        wanted.append(new[: new.index(end)] if end in new else [i for i in new if i])
    assert len({*map(tuple, wanted)}) > 1
    assert texts_of(model, checkpoints[kind], end, num_beams=num_beams) == wanted
    prepare(model, CPU)
    assert texts_of(model, checkpoints[kind], end, num_beams=num_beams) == wanted


def test_a_decoder_never_says_the_padding_token_that_it_begins_with(checkpoints):
    model = load_generator(checkpoints["marian"])
    model.final_logits_bias[0, 0] = 1e4
    for num_beams in (1, 2):
        texts = texts_of(model, checkpoints["marian"], num_beams=num_beams, no_repeat_ngram_size=0)
        assert all(len(text) > 1 and 0 not in text for text in texts)


# Data


def test_parallel_files_and_their_faults(tmp_path):
    fields = ("en", "de")

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    write(train_en="a b\nc\n", train_de="A\nB\n", dev_en="d\n", dev_de="D\n")
    found, what = pairs.read(str(tmp_path), fields)
    assert (found["train"].texts, found["validation"].texts, what) == (
        (["a b", "c"], ["A", "B"]),
        (["d"], ["D"]),
        "dev.en",
    )
    write(test_en="e\nf\n")
    assert pairs.read_test(str(tmp_path), fields) == ({"e": [], "f": []}, "test")
    write(test_de="E\nF\n", new_en="g\n")
    assert pairs.read_test(str(tmp_path), fields)[0] == {"e": ["E"], "f": ["F"]}
    assert pairs.read_test(str(tmp_path / "new.en"), fields) == ({"g": []}, "new")
    for texts, why in (
        ({"train_de": "A\n"}, r"train.en has 2 lines and train.de 1: wanted as many"),
        ({"train_de": "A\n\n"}, r"train.de, line 2: it is empty"),
        ({"train_de": ""}, r"train.de is empty"),
    ):
        write(**texts)
        with pytest.raises(InputError, match=why):
            pairs.read(str(tmp_path), fields)
    (tmp_path / "train.de").write_bytes(b"A\n\xff\n")
    with pytest.raises(InputError, match=r"train.de.*UTF-8"):
        pairs.read(str(tmp_path), fields)
    (tmp_path / "train.de").unlink()
    with pytest.raises(InputError, match=r"train\.de not found: wanted two parallel files"):
        pairs.read(str(tmp_path), fields)
    with pytest.raises(InputError, match=r"train\.en is there and train.fr is not"):
        pairs.read(str(tmp_path), ("fr", "en"))
    write(train_txt="a||A\n")
    with pytest.raises(InputError, match="for the split train: keep one, or two parallel files"):
        pairs.read(str(tmp_path), fields)


def test_the_synthetic_translation_has_the_same_words_in_another_order_and_no_source_in_two_splits():
    splits = [synthetic.pairs("translation", split) for split in ("train", "validation", "test")]
    sources = [{*texts} for texts, _ in splits]
    assert not sources[0] & sources[1] | sources[0] & sources[2] | sources[1] & sources[2]
    orders = set()
    for source, target in zip(*splits[0], strict=True):
        words, back = source.split(), [word[::-1] for word in target.split()]
        assert sorted(words) == sorted(back)
        orders.add(words == back)
    assert orders == {False}


def test_a_tokenizer_of_marian_has_two_sentencepiece_models(tmp_path):
    import sentencepiece
    from transformers import MarianTokenizer

    pieces = ["</s>", "<unk>"]
    for name, texts in zip(("source", "target"), synthetic.pairs("translation", "train"), strict=True):
        (tmp_path / name).write_text("\n".join(texts))
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / name), model_prefix=str(tmp_path / name), vocab_size=70, minloglevel=2
        )
        lines = (tmp_path / f"{name}.vocab").read_text().splitlines()
        pieces += [piece for piece in (line.split("\t")[0] for line in lines) if piece not in pieces]
    pad, sizes = len(pieces), dict.fromkeys(("vocab_size", "decoder_vocab_size"), len(pieces) + 1)
    folder = save_checkpoint(
        "marian", tmp_path / "marian", pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, **sizes
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate([*pieces, "<pad>"])}))
    paths = (str(tmp_path / name) for name in ("source.model", "target.model", "vocab.json"))
    MarianTokenizer(*paths, source_lang="en", target_lang="ne").save_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    assert type(tokenizer).__name__ == "MarianTokenizer"
    sources, targets = (texts[:3] for texts in synthetic.pairs("translation", "train"))
    form = Form(tokenizer, 60)
    tokens = encode(Examples((sources, targets), None), form, decoder_start(str(folder)))
    wanted = tokenizer(sources, text_target=targets)
    assert tokens.columns["input_ids"].tolist() == [*itertools.chain(*wanted["input_ids"])]
    assert tokens.targets.tolist() == [*itertools.chain(*wanted["labels"])]
    texts = tokens.generated(load_generator(str(folder)), own_task.Search(num_beams=2), 6, Accelerator(cpu=True))
    assert len(texts) == 3
    assert tokenizer.decode(form.ids_of_targets(targets)[0]) == targets[0]


# Runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=pytest.mark.long if (name, kind) not in USUAL else ())
        for name in METHODS
        for kind in KINDS
        if (name, kind) != ("bitfit", "t5")  # which has no biases
    ],
)  # fmt: skip
def test_every_method_trains_is_reloaded_generates_and_predicts_the_test_set(name, kind, options, checkpoints, capsys):
    settings = options(checkpoint=checkpoints[kind])
    folder, result = train(find(name)(), settings)
    assert read_result(folder) == result
    assert result["dev_chrf"] >= 0
    task = Generation(settings)
    tokens = TaskData(task, settings).tokens(result["max_length"], None)["validation"]
    scores, _ = task.score(load_adapter(folder)[0], tokens, 64, Accelerator(cpu=True))
    assert scores["log_likelihood"] == pytest.approx(result["best_log_likelihood"], abs=1e-4)
    paths = answer(name, PredictOptions(run=str(folder), num_beams=1))
    assert [path.name for path in paths] == ["generated-test.txt", "references-test.tsv"]
    assert "en-ne: bleu " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["marian", pytest.param("t5", marks=pytest.mark.long)])
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(kind, options, checkpoints, monkeypatch, tmp_path):
    settings = {"n_epochs": 3, "checkpoint_every": 2, "report_to": ("tensorboard",), "checkpoint": checkpoints[kind]}
    at_step(monkeypatch, 7, lose_power)
    with pytest.raises(PowerCut):
        train(PrefixTuning(3), options(**settings))
    folder, result = train(PrefixTuning(3), options(**settings))
    assert result["n_resumed"] == 1
    whole, _ = train(PrefixTuning(3), options(**settings, output_dir=str(tmp_path / "uninterrupted")))
    assert outcome(folder) == outcome(whole)
    texts = [(each / "generated-validation.txt").read_bytes() for each in (folder, whole)]
    assert texts[0] == texts[1]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_and_generate_like_one(options, tmp_path):
    checkpoint = str(save_checkpoint("marian", tmp_path / "still", **still("marian")))
    words = f"--checkpoint {checkpoint} --data {options().data} --source_field en --target_field ne"
    assert_one_and_two_processes_agree("prefix", words, tmp_path)


def test_an_encoder_decoder_with_another_shape_than_supported_is_refused_in_one_line(tmp_path):
    for changes, why in (
        ({"share_encoder_decoder_embeddings": False}, "wanted one vocabulary for source and target"),
        ({"decoder_attention_heads": 2}, "wanted as many"),
        ({"decoder_layerdrop": 0.1}, "wanted 0"),
        ({"normalize_before": True}, "normalize_before is true, which transformers ignores"),
    ):
        folder = save_checkpoint("marian", tmp_path / next(iter(changes)), **changes)
        with pytest.raises(InputError, match=why):
            load_generator(str(folder))
