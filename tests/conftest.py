"""Shared fixtures: tiny random encoders of every supported kind, as checkpoint folders. No network is used."""

import json
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

os.environ["HF_HUB_OFFLINE"] = "1"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started behind `&`: what the tests of Ctrl-C start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # One core for each worker and its subprocesses: threads that wait for another worker's take twice as long.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

from pathlib import Path

import hypothesis
import pytest
import torch
from forks import FORKS

from common import tasks, training
from common.checkpoints import load_model
from common.classification import TextClassification
from common.encoders import ENCODER_DECODERS, GENERATORS, first_position, n_token_types
from common.exchange import to_peft
from common.fast import prepare
from common.fast.packing import Layout
from common.methods import apply, trainable
from common.runtime.processes import destroy_group_at_end
from common.study.curves import read_curves
from common.synthetic import AGENTS, LOOKS, PLACES, THINGS

hypothesis.settings.register_profile("quick", max_examples=400, deadline=None, derandomize=True)
hypothesis.settings.register_profile("torture", max_examples=100_000, deadline=20_000)  # ms, so that a hang fails
hypothesis.settings.load_profile("quick")

REPOSITORY = Path(__file__).resolve().parent.parent
KINDS = ("bert", "roberta", "distilbert", "electra", "mpnet", "albert", "deberta-v2", "modernbert")
MASKED_LM_KINDS = tuple(kind for kind in KINDS if kind != "deberta-v2")
HIDDEN, LAYERS, INTERMEDIATE = 32, 2, 64

ALIKE = ("dora", "ia3", "lntuning", "loha")
"""Methods that loop and checkpoints treat as others: LoRA's branches on linear layers, and BitFit's vectors."""


FEWEST = ("baseline", "hybrid", "lora", "prefix")
"""Methods of which each adds or trains something else: all weights, several parts, matrices, and keys and values."""


def few(methods: list, kept: tuple[str, ...] = ()) -> list:
    """Cases for parametrize: `make test` runs those of one method of each way to train, `make test-long` the others.

    kept: the methods that `make test` runs instead, the first case of each.
    """
    cases, seen = [], set()
    for method in methods:
        name = getattr(method, "name", method)
        is_long = name not in kept or name in seen if kept else name in ALIKE
        seen.add(name)
        cases.append(pytest.param(method, marks=pytest.mark.long if is_long else ()))
    return cases


def _vocabulary() -> list[str]:
    words = {*AGENTS, *THINGS, *PLACES, *LOOKS, "the", "in", "was", "by", "."}
    letters = [chr(ord("a") + i) for i in range(26)]
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *sorted(words - set(pieces))]


def save_checkpoint(kind: str, folder: Path, seed: int = 0, vectors: bool = True, **changes) -> Path:
    """Save a random model without a head, and a tokenizer with a small vocabulary, in the format of transformers.

    vectors: whether biases and LayerNorms are random too; new models have zeros and ones, which would hide errors.
    """
    import transformers

    vocabulary = _vocabulary()
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    if kind in ("electra", "albert"):
        shape["embedding_size"] = HIDDEN // 2  # smaller than the hidden size, so that there is a projection
    if kind == "mpnet":
        shape["pad_token_id"] = 1  # which its position ids count from, whatever the config says
    if kind == "deberta-v2":
        shape |= {"relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True, "position_buckets": 16}
        shape |= {"norm_rel_ebd": "layer_norm", "position_biased_input": False}  # as in DeBERTa-v3, with fewer buckets
    if kind == "modernbert":  # the second layer sees 4 tokens on each side; only LayerNorms have biases
        shape |= {"local_attention": 8, "norm_bias": True, "bos_token_id": 2, "eos_token_id": 3}
        shape |= {"cls_token_id": 2, "sep_token_id": 3}
    if kind == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        names |= {"intermediate_size": "hidden_dim"}
        shape = {names.get(name, name): value for name, value in shape.items()}
    if kind == "gpt2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
        shape = {names.get(name, name): value for name, value in shape.items()}
        shape |= {"bos_token_id": 2, "eos_token_id": 3}
    if kind in ENCODER_DECODERS:
        size, ends = shape["vocab_size"], {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
        shape = {"vocab_size": size, "d_model": HIDDEN, **ends}
        if kind == "marian":
            both = {"layers": LAYERS, "attention_heads": 4, "ffn_dim": INTERMEDIATE}
            shape |= {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in both.items()}
            shape |= {
                "decoder_vocab_size": size,
                "max_position_embeddings": 64,
                "init_std": 0.2,
                "forced_eos_token_id": None,
            }
        else:  # the width of all heads is not that of the model
            shape |= {"num_layers": LAYERS, "num_heads": 4, "d_kv": 6, "d_ff": INTERMEDIATE, "initializer_factor": 1.0}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **shape | changes)
    of_kind = transformers.AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else transformers.AutoModel
    model = of_kind.from_config(config)
    if kind == "marian":
        model.final_logits_bias.normal_()
        for layer in model.model.decoder.layers:  # else texts hardly depend on the source
            layer.encoder_attn.out_proj.weight.data *= 5
    if kind == "t5":
        model.shared.weight.data *= 0.2  # else each token is followed by itself
    if vectors:
        perturb([parameter for parameter in model.parameters() if parameter.ndim == 1])
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    special = {"bos_token": "[CLS]", "eos_token": "[SEP]"} if kind in GENERATORS else {}
    tokenizer = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64, **special)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Kind of model -> checkpoint folder."""
    home = tmp_path_factory.mktemp("checkpoints")
    return {kind: str(save_checkpoint(kind, home / kind)) for kind in (*KINDS, *GENERATORS)}


@pytest.fixture
def bert(checkpoints) -> str:
    """Folder of a tiny BERT."""
    return checkpoints["bert"]


@pytest.fixture
def gpt2(checkpoints) -> str:
    """Folder of a tiny GPT-2."""
    return checkpoints["gpt2"]


@pytest.fixture
def make_model(checkpoints):
    """make_model("bert", 2): a tiny model with a head, with the same weights each time."""

    def make(kind: str = "bert", n_outputs: int = 2):
        torch.manual_seed(1)
        return load_model(checkpoints[kind], n_outputs).eval()

    return make


def random_batch(model, rows: int = 5, length: int = 11) -> dict[str, torch.Tensor]:
    """A padded batch of random token ids, the longest example first and the others in no order of their lengths."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, model.config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - 2 * row % rows :] = 0
    return {"input_ids": ids * mask + (1 - mask) * model.config.pad_token_id, "attention_mask": mask}


def perturb(parameters, scale: float = 0.1) -> None:
    """Add noise to parameters, so that initial values of zero hide no error."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def perturbed(method, model):
    """Apply a method to a model in evaluation mode, and perturb the trained parameters."""
    apply(method, model).eval()
    perturb(trainable(model).values())
    return model


def bert_base(n_outputs=2):
    """A model of the bert-base-uncased shape on the meta device."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(num_labels=n_outputs))


def still(kind: str) -> dict[str, float]:
    """The config entries that turn dropout off in an encoder."""
    if kind == "distilbert":
        return {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    if kind == "modernbert":
        return {}  # it has none unless its config says so
    if kind in ENCODER_DECODERS:
        return {"dropout": 0.0} if kind == "marian" else {"dropout_rate": 0.0}
    if kind == "gpt2":
        return {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    head = {"classifier_dropout_prob": 0.0} if kind == "albert" else {}
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | head


def packed_batch(model, batch: dict[str, torch.Tensor], rounded: bool = True) -> dict[str, object]:
    """Pack a padded batch, for a model that takes packed batches."""
    is_token = batch["attention_mask"].bool()
    columns = {"input_ids": batch["input_ids"][is_token]}
    if n_token_types(model) is not None:
        columns["token_type_ids"] = torch.zeros_like(columns["input_ids"])
    lengths = is_token.sum(1)
    return Layout(first_position(model), rounded).pack(columns, lengths.cumsum(0) - lengths, lengths)


def assert_packed_equals_padded(padded, packed, rounded: bool = True) -> None:
    """Assert that two equal models give the same logits and gradients for one batch, padded and packed."""
    batch = random_batch(padded)
    inputs = packed_batch(packed, batch, rounded)
    assert (inputs["input_ids"].numel() > batch["attention_mask"].sum()) == rounded
    prepare(packed, torch.device("cpu"))
    of_padded, of_packed = padded(**batch).logits, packed(**inputs).logits
    torch.testing.assert_close(of_padded, of_packed, atol=5e-6, rtol=1e-5)
    of_padded.square().mean().backward()
    of_packed.square().mean().backward()
    for name, parameter in trainable(padded).items():
        torch.testing.assert_close(parameter.grad, packed.get_parameter(name).grad, atol=1e-5, rtol=1e-4)


TIMES = {"train_seconds", "examples_per_second", "real_tokens_per_second", "peak_memory_mib", "n_resumed", "output_dir"}
TIMES |= {"finished_at", "host", "git_commit", "git_dirty"}
"""Keys of a result that may differ between an interrupted run and an uninterrupted one."""


def outcome(folder: Path) -> dict[str, object]:
    """Result, curves and weights of a finished run: interruptions must not change them."""
    result = json.loads((folder / "result.json").read_text())
    curves = {tag: points for tag, points in read_curves(folder).items() if tag != "train/tokens_per_second"}
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}
    return {"result": {k: v for k, v in result.items() if k not in TIMES}, "curves": curves, "weights": weights}


def at_step(monkeypatch, step: int, event: Callable[[], None]) -> None:
    """Call `event` once, at the beginning of an optimizer step."""
    usual = training.schedule

    def schedule(now, *settings):
        if now == step:
            monkeypatch.setattr(training, "schedule", usual)
            event()
        return usual(now, *settings)

    monkeypatch.setattr(training, "schedule", schedule)


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class GivenScores(TextClassification):
    """A task whose evaluations have a given accuracy, one after the other, and then the true one."""

    def __init__(self, name: str, *accuracies: float):
        super().__init__(tasks.find(name))
        self.accuracies, self.outputs = iter(accuracies), []

    def score(self, *arguments):
        values, logits = super().score(*arguments)
        self.outputs.append(logits)
        return values | {"accuracy": next(self.accuracies, values["accuracy"])}, logits


def on_processes(n: int, work: Callable, *arguments) -> list:
    """The results of `work(*arguments)` on n processes of one group, which have the variables that a launcher sets.

    work: a function of a module, since the processes import it.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        world = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": True}
        world["MASTER_PORT"] = free.getsockname()[1]
    pool = ProcessPoolExecutor(n, FORKS)
    try:
        waiting = [pool.submit(_as_rank, world | {"RANK": r, "LOCAL_RANK": r}, work, arguments) for r in range(n)]
        return [each.result(timeout=300) for each in waiting]
    finally:
        for process in [*(pool._processes or {}).values()]:
            process.kill()
        pool.shutdown()


def _as_rank(variables: dict, work: Callable, arguments: tuple):
    os.environ |= {name: str(value) for name, value in variables.items()}
    with destroy_group_at_end():
        return work(*arguments)


def assert_equals_peft(method, ours, theirs) -> None:
    """Assert that our model and peft's have the same logits, loss and gradients, to 1e-6 in float32.

    All parameters trained on either side are compared, after their values have been perturbed and copied to peft's as
    an export would write them.
    """
    import peft

    perturb(trainable(ours).values())
    mine = to_peft(method, ours).tensors
    assert mine.keys() == peft.get_peft_model_state_dict(theirs).keys()
    peft.set_peft_model_state_dict(theirs, mine)
    batch, labels = random_batch(ours), torch.tensor([0, 1, 1, 0, 1])
    logits, losses = [], []
    for model in (ours.eval(), theirs.eval()):
        logits.append(model(**batch).logits)
        losses.append(torch.nn.functional.cross_entropy(logits[-1], labels))
        losses[-1].backward()
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-6)
    of_mine = to_peft(method, ours, {name: parameter.grad for name, parameter in trainable(ours).items()}).tensors
    trained = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    of_theirs = peft.get_peft_model_state_dict(theirs, state_dict=trained)
    assert of_mine.keys() == of_theirs.keys()
    for name, gradient in of_mine.items():
        torch.testing.assert_close(gradient, of_theirs[name], atol=1e-6, rtol=1e-6)


@pytest.fixture
def options(bert, tmp_path):
    """options(n_epochs=2): the options of a run of a second on a few demo examples."""
    from common.options import TuneOptions

    def make(**changes) -> TuneOptions:
        small = {"checkpoint": bert, "data": "demo", "task_name": "sst2", "max_train_samples": 48}
        small |= {"max_eval_samples": 20, "n_epochs": 1, "batch_size": 8, "lr": 1e-2, "output_dir": str(tmp_path)}
        return TuneOptions(**small | changes)

    return make


def exits_with_one_line(capfd, *arguments: str, program) -> str:
    """Run a launcher in this process, assert that it exits with code 2 and one line of error, and return that line."""
    import sys

    capfd.readouterr()
    before, sys.argv = sys.argv, ["program", *arguments]
    try:
        with pytest.raises(SystemExit) as stop:
            program()
    finally:
        sys.argv = before
    lines = capfd.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
