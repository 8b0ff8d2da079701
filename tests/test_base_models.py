"""The head of a model is new, its encoder is the one in the checkpoint, and its inputs are those of its tokenizer."""

import importlib.util
import json
import shutil

import pytest
import torch
from conftest import save_checkpoint
from safetensors.torch import load_file, save_file

from common.checkpoints import load_model, load_tokenizer
from common.data import Examples
from common.encoders import KINDS, head_parameters, layers
from common.errors import InputError
from common.tokens import tokenize
from common.training import train
from lora.method import Lora

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Kind of encoder -> checkpoint folder."""
    home = tmp_path_factory.mktemp("kinds")
    return {kind: str(save_checkpoint(kind, home / kind)) for kind in KINDS}


def copy(checkpoints, kind, to, change=lambda tensors: tensors, **entries):
    """A copy of a checkpoint with other weights, or other entries in its config.json."""
    shutil.copytree(checkpoints[kind], to)
    save_file(change(load_file(to / "model.safetensors")), to / "model.safetensors", {"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | entries))
    return str(to)


@pytest.mark.parametrize("n_labels", [2, 3])
@every_kind
def test_a_head_in_the_checkpoint_is_replaced_by_the_one_of_a_bare_encoder(kind, n_labels, checkpoints, tmp_path):
    torch.manual_seed(5)
    other = load_model(checkpoints[kind], n_labels)
    folder = tmp_path / "with_head"
    other.save_pretrained(folder)
    heads, encoders = [], []
    for checkpoint in (checkpoints[kind], str(folder)):
        torch.manual_seed(1)
        model = load_model(checkpoint, 2)
        heads.append(head_parameters(model))
        encoders.append(model.base.sha256)
    assert encoders[0] == encoders[1]
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    torch.manual_seed(2)
    again = head_parameters(load_model(str(folder), 2))
    assert any(not torch.equal(again[name], heads[1][name]) for name in again)


@every_kind
def test_layers_that_the_config_does_not_name_are_refused(kind, checkpoints, tmp_path):
    kinds_of_layers = {"layer_types": ["full_attention"]} if kind == "modernbert" else {}
    entry = {"distilbert": "n_layers", "albert": "inner_group_num"}.get(kind, "num_hidden_layers")
    if kind == "albert":
        checkpoints = {kind: save_checkpoint(kind, tmp_path / "two", inner_group_num=2)}
    folder = copy(checkpoints, kind, tmp_path / "fewer", **{entry: 1}, **kinds_of_layers)
    with pytest.raises(InputError, match=r"weights that are not in the encoder of its config.json: .*layers?\.1\."):
        load_model(folder, 2)


@every_kind
def test_a_tensor_without_a_place_in_the_encoder_is_refused(kind, checkpoints, tmp_path):
    folder = copy(checkpoints, kind, tmp_path / "more", lambda t: t | {"embeddings.more.weight": torch.zeros(3)})
    with pytest.raises(InputError, match=r"not in the encoder of its config.json: embeddings\.more\.weight"):
        load_model(folder, 2)


@every_kind
def test_weights_of_another_shape_are_refused(kind, checkpoints, tmp_path):
    entry = "hidden_dim" if kind == "distilbert" else "intermediate_size"
    folder = copy(checkpoints, kind, tmp_path / "wider", **{entry: 96})
    with pytest.raises(InputError, match="weights of another shape than its config"):
        load_model(folder, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@every_kind
def test_weights_that_are_not_finite_are_refused(kind, value, checkpoints, tmp_path):
    def spoil(tensors):
        name = next(name for name in tensors if ("word_embeddings" in name or "tok_embeddings" in name))
        tensors[name][7, 3] = value
        return tensors

    with pytest.raises(InputError, match=r"has NaN or infinite weights: .*(word|tok)_embeddings"):
        load_model(copy(checkpoints, kind, tmp_path / "spoiled", spoil), 2)


def test_the_head_of_a_pretraining_is_left_out(checkpoints, tmp_path):
    more = {"cls.predictions.bias": torch.zeros(3), "lm_head.weight": torch.zeros(2, 2)}
    folder = copy(checkpoints, "bert", tmp_path / "pretrained", lambda tensors: tensors | more)
    assert load_model(folder, 2).base.sha256 == load_model(checkpoints["bert"], 2).base.sha256


def tokens_of(tokenizer, cache):
    return tokenize(Examples((["the ruby .", "in the garden"], ["a", "b"]), [0, 1]), tokenizer, 16, cache)


def test_cached_tokens_of_one_tokenizer_are_not_those_of_another(bert, tmp_path):
    """Whatever decides ids and columns: special tokens, sides, the names of the columns, and the code."""
    changes = {
        "model_input_names": ["input_ids", "attention_mask"],
        "truncation_side": "left",
        "split_special_tokens": True,
        "__class__": type("Other", (type(load_tokenizer(bert)),), {}),
    }
    usual = tokens_of(load_tokenizer(bert), tmp_path)
    for number, (name, value) in enumerate(changes.items(), start=2):
        tokenizer = load_tokenizer(bert)
        setattr(tokenizer, name, value)
        kept = tokens_of(tokenizer, tmp_path)
        assert kept.columns.keys() == tokens_of(tokenizer, None).columns.keys()
        assert len(list(tmp_path.glob("*.safetensors"))) == number, name
    assert set(usual.columns) == {"input_ids", "token_type_ids"}


def test_cached_tokens_of_another_vocabulary_or_version_are_not_used(bert, tmp_path, monkeypatch):
    """Two versions of a library need not split a text in the same way."""
    tokenizer = load_tokenizer(bert)
    tokens_of(tokenizer, tmp_path)
    tokenizer.add_tokens(["ruby ."])
    kept, wanted = (tokens_of(tokenizer, cache).columns["input_ids"] for cache in (tmp_path, None))
    assert torch.equal(kept, wanted)
    monkeypatch.setattr("common.tokens.version", lambda package: "0.0")
    tokens_of(tokenizer, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.slow
def test_distilbert_and_then_bert_of_the_same_vocabulary_share_an_output_folder(options, tmp_path):
    names = {"distilbert": ["input_ids", "attention_mask"], "bert": ["input_ids", "token_type_ids", "attention_mask"]}
    for kind, columns in names.items():
        folder = save_checkpoint(kind, tmp_path / kind)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_input_names": columns}))
        train(Lora(rank=1), options(checkpoint=str(folder), task_name="mrpc", max_train_samples=16))
    assert layers(load_model(str(tmp_path / "bert"), 2))


def test_batches_are_padded_without_a_padding_token(bert):
    tokenizer = load_tokenizer(bert)
    tokenizer.pad_token = None
    tokens = tokens_of(tokenizer, None)
    batch, _ = tokens.batch(torch.tensor([0, 1]), torch.device("cpu"))
    usual, _ = tokens_of(load_tokenizer(bert), None).batch(torch.tensor([0, 1]), torch.device("cpu"))
    assert torch.equal(batch["input_ids"], usual["input_ids"])  # BERT's padding token has id 0


def test_a_tokenizer_in_python_only_is_used_and_its_tokens_are_not_kept(bert, tmp_path):
    from transformers import BertTokenizerLegacy

    tokenizer = BertTokenizerLegacy(f"{bert}/vocab.txt")
    tokens = tokens_of(tokenizer, tmp_path)
    assert torch.equal(tokens.columns["input_ids"], tokens_of(load_tokenizer(bert), None).columns["input_ids"])
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_peft_beside_the_base_is_not_loaded_in_silence(checkpoints, make_model, tmp_path):
    peft = pytest.importorskip("peft")
    shutil.copytree(checkpoints["bert"], tmp_path / "base")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    peft.get_peft_model(make_model(), config).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="adapter of peft beside its weights"):
        load_model(str(tmp_path / "base"), 2)


FAIRSEQ = "sentencepiece.bpe.model", {}
PIECES: dict[str, tuple[str, dict]] = {
    "camembert": FAIRSEQ,
    "xlm-roberta": FAIRSEQ,
    "albert": (
        "spiece.model",
        {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP]"},
    ),
    "deberta-v2": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
        | {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    ),
}
"""Kind of encoder -> name of a sentencepiece model, and its special tokens."""


@pytest.fixture(params=PIECES)
def with_pieces(request, tmp_path):
    """Folder of an encoder whose tokenizer is a sentencepiece model alone."""
    import sentencepiece

    kind, (name, special) = request.param, PIECES[request.param]
    lines = [f"the {look} ruby {n} was in the garden of the fox ." for n in range(50) for look in ("old", "new", "red")]
    (tmp_path / "text").write_text("\n".join(lines))
    folder = save_checkpoint(kind, tmp_path / "base")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.txt").unlink()
    prefix = str(folder / name.removesuffix(".model"))
    wanted = {"input": str(tmp_path / "text"), "model_prefix": prefix, "vocab_size": 40}
    sentencepiece.SentencePieceTrainer.train(**wanted, **special, minloglevel=2)
    return str(folder)


def test_a_tokenizer_that_is_a_sentencepiece_model_alone_is_read(with_pieces):
    tokenizer = load_tokenizer(with_pieces)
    tokens = tokens_of(tokenizer, None)
    assert tokens.lengths.tolist()[0] > 5
    first = tokens.columns["input_ids"][: tokens.lengths[0]]
    assert (first[0], first[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(first, skip_special_tokens=True).split()[:2] == ["the", "ruby"]


def test_without_sentencepiece_a_tokenizer_that_needs_it_is_refused_with_the_install_command(with_pieces, monkeypatch):
    def missing(*_):
        raise ImportError("no sentencepiece")

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "sentencepiece" else found(name, *rest)
    )
    monkeypatch.setattr("transformers.convert_slow_tokenizer.requires_backends", missing)
    with pytest.raises(InputError, match=r"its tokenizer is \S+[.]model alone, .*: pip install sentencepiece"):
        load_tokenizer(with_pieces)
