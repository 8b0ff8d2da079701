"""Export a trained run to the formats of other libraries, with a model card and to the hub, and import adapters."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from common import own_task, tasks
from common.checkpoints import base_of, load_tokenizer
from common.encoders import hidden_size, longest_input, n_outputs, shortest_input
from common.errors import InputError
from common.exchange import SETTINGS, TENSORS, from_peft, to_adapterhub, to_peft
from common.fitting import positions_left
from common.loading import load_adapter
from common.merging import fold
from common.methods import Method
from common.pooling import is_read_as_usual
from common.results import read_result
from common.runs import CHECKPOINT, CONFIG, RESULT
from common.runtime.files import read_json, refuse_existing, require, write_folder_atomically
from common.saving import save_adapter
from common.study.cards import Trained, card


def read(run: Path, checkpoint: str | None = None) -> Trained:
    """The trained model of a run. Raises InputError for an unfinished or damaged run."""
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} is not a run folder: wanted one with {CONFIG} in it")
    if (run / CHECKPOINT).is_file() and not (run / RESULT).is_file():
        raise InputError(f"{run} is not finished: train it to the end first, with its command")
    config = read_json(run / CONFIG)
    result = read_result(run) if (run / RESULT).is_file() else None
    task = None
    if "task_name" in config:
        if "mask_share" in config:
            raise InputError(f"{run} is a run of masked language modelling: wanted one of classification")
        if "max_new_tokens" in config:
            raise InputError(f"{run} is a run that generates text, which has no export: load it with load_adapter")
        require(run / CONFIG, config, task_name=str, max_length=int)
        task = own_task.of(config)
    model, method = load_adapter(run, checkpoint)
    if task and n_outputs(model) != task.n_outputs:
        raise InputError(f"{run} is damaged: it has {n_outputs(model)} outputs, and {task.name} {task.n_outputs}")
    return Trained(model, method, config, result, task)


def export(run: Path, to: str, out: Path, checkpoint: str | None = None, name: str | None = None) -> str:
    """Write an export into a new folder; returns what to know about it, in one line, empty if nothing.

    Args:
        to: a key of FORMATS.
        checkpoint: the base model, if it has moved since training.
        name: by which the card loads it; None = that of the folder.

    Raises:
        InputError: the run cannot be read or expressed in the format, or the folder is there already.
    """
    refuse_existing(out)
    trained = read(run, checkpoint)
    write, load, library, note = FORMATS[to](trained)
    text = card(trained, load.replace("EXPORT", name or out.name), library, note)

    def fill(folder: Path) -> None:
        write(folder)
        (folder / "README.md").write_text(text, encoding="utf-8")

    write_folder_atomically(out, fill)
    return note


Format = tuple[Callable[[Path], None], str, str, str]
"""What writes the files; Python that loads them, in which EXPORT is their folder; the library; and a note."""


def _peft(trained: Trained) -> Format:
    found, base = to_peft(trained.method, trained.model), base_of(trained.model)
    settings = {"base_model_name_or_path": trained.base, "revision": base.revision} | found.settings
    names = f", id2label={trained.labels}" if trained.labels else ""
    load = (
        f"{'import torch' + chr(10) if found.remedy else ''}from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification\n\n"
        f'base = AutoModelForSequenceClassification.from_pretrained("{trained.base}", '
        f"num_labels={n_outputs(trained.model)}{names})\n"
        f'model = PeftModel.from_pretrained(base, "EXPORT").eval()\n{found.remedy}'
    ).rstrip()
    note = f"{found.difference}; the lines in README.md after PeftModel make them equal" if found.difference else ""

    def write(folder: Path) -> None:
        text = json.dumps(settings, indent=2, sort_keys=True, allow_nan=False)
        (folder / SETTINGS).write_text(f"{text}\n", encoding="utf-8")
        _write(folder / TENSORS, found.tensors)

    return write, load, "peft", note


def _adapterhub(trained: Trained) -> Format:
    """For AdapterHub's library: an adapter and the head, each with its configuration."""
    name = re.sub(r"\W", "_", trained.task.name if trained.task else trained.method.name)
    settings, tensors, head = to_adapterhub(trained.method, trained.model, name)
    config, n = trained.model.config, n_outputs(trained.model)
    about = {"model_type": config.model_type, "model_name": trained.base, "model_class": type(trained.model).__name__}
    about |= {"hidden_size": hidden_size(trained.model), "version": "adapters.1.2.0"}
    labels = {label: number for number, label in trained.labels.items()}
    labels = labels or {f"LABEL_{number}": number for number in range(n)}
    load = (
        "import adapters\nfrom transformers import AutoModelForSequenceClassification\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{trained.base}", num_labels={n})\n'
        'adapters.init(model)\nmodel.load_adapter("EXPORT", use_safetensors=True, set_active=True)\nmodel.eval()'
    )

    def write(folder: Path) -> None:
        of_head = {"name": None, "config": None, "num_labels": n, "label2id": labels}
        configs: dict[str, dict[str, Any]] = {"adapter": {"name": name, "config": settings}, "head": of_head}
        for part, values in configs.items():
            text = json.dumps(about | values, indent=2, sort_keys=True, allow_nan=False)
            (folder / f"{part}_config.json").write_text(f"{text}\n", encoding="utf-8")
        _write(folder / "adapter.safetensors", tensors)
        _write(folder / "model_head.safetensors", head)

    return write, load, "adapter-transformers", ""


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    import safetensors.torch

    whole = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path, {"format": "pt"})


def _merged(trained: Trained) -> Format:
    """A plain model of transformers, whose config names the classes."""
    from transformers import AutoModelForSequenceClassification

    if not is_read_as_usual(trained.model):
        raise InputError(
            f"the head was trained on what --pooling {trained.model.pooling} gives, which no plain model of "
            "transformers computes: train without --pooling, or with trained_pooler"
        )
    tokenizer = load_tokenizer(base_of(trained.model).checkpoint)
    tokenizer.model_max_length = trained.config.get("max_length", tokenizer.model_max_length)
    config = type(trained.model.config).from_dict(trained.model.config.to_dict())
    if trained.labels:
        config.id2label = trained.labels
        config.label2id = {label: number for number, label in trained.labels.items()}
    if n_outputs(trained.model) == 1:
        config.problem_type = "regression"  # so that a pipeline gives the output as it is
    plain = AutoModelForSequenceClassification.from_config(config)
    plain.load_state_dict(fold(trained.model))
    config.architectures = [type(plain).__name__]

    def write(folder: Path) -> None:
        config.save_pretrained(folder)
        _write(folder / "model.safetensors", plain.state_dict())
        tokenizer.save_pretrained(folder)

    n_texts = trained.task.n_texts if trained.task else 1
    texts = '{"text": "...", "text_pair": "..."}' if n_texts == 2 else '"..."'
    load = (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", "EXPORT", truncation=True)\nclassify({texts})'
    )
    is_choice = trained.task is not None and trained.task.questions
    return write, load, "transformers", "the output is a choice's score: compare those of the choices" * bool(is_choice)


FORMATS: dict[str, Callable[[Trained], Format]] = {"peft": _peft, "adapterhub": _adapterhub, "merged": _merged}


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload an export to the hub, into a repository that is made if it is not there; returns its address.

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload a trained model")
    except Exception as error:  # of the hub, of the network or of its client, which has many types
        raise InputError(f"cannot push to {repo}: {error}; the export is in {folder}") from error
    return str(made)


def import_adapter(
    folder: Path, out: Path, checkpoint: str | None, task_name: str | None, data: str, max_length: int | None
) -> Method:
    """Read an adapter of peft and write what a run leaves, but for a result, into a new folder; returns its method.

    Args:
        checkpoint: the base model; None = the one that the adapter names.
        task_name: with it, METHOD.test can predict the task's test set.
        max_length: of an input in training; None = the encoder's maximum.

    Raises:
        InputError: it cannot be read, or does not fit the task.
    """
    refuse_existing(out)
    model, method, checkpoint = from_peft(folder, checkpoint)
    facts: dict[str, Any] = {"imported_from": f"peft {read_json(folder / SETTINGS).get('peft_version', '')}".strip()}
    if task_name:
        task, tokenizer = tasks.find(task_name), load_tokenizer(checkpoint)
        if n_outputs(model) != task.n_outputs:
            raise InputError(f"{folder} has {n_outputs(model)} outputs, and {task.name} wants {task.n_outputs}")
        limit = positions_left(method, longest_input(model, tokenizer), shortest_input(tokenizer, task.n_texts))
        if not shortest_input(tokenizer, task.n_texts) <= (max_length or limit) <= limit:
            raise InputError(f"max_length is {max_length}: choose at most {limit}, and room for a token of each text")
        facts |= {"task_name": task.name, "data": data, "max_length": max_length or limit, "frozen_dtype": "float32"}
    write_folder_atomically(out, lambda part: save_adapter(part, model, method, **facts))
    return method


def check_repo(repo: str) -> None:
    """Raise InputError for a name that no repository on the hub can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"push_to_hub is {repo!r}: wanted USER/NAME ({error})") from error
