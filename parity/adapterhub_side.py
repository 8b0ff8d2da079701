"""AdapterHub's side of adapterhub.py, a script for the Python of its environment: adapterhub_side.py FOLDER

Reads FOLDER/NAME.safetensors and writes FOLDER/NAME.theirs.safetensors. The checkpoint is FOLDER/../checkpoint.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

import adapters  # AdapterHub's library, not our folder

Tensors = dict[str, torch.Tensor]


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensors]]:
    """The settings of a case, and its tensors by kind: weight, batch."""
    kinds: dict[str, Tensors] = {}
    with safe_open(file, "pt") as content:
        settings = json.loads(content.metadata()["case"])
        for key in content.keys():  # noqa: SIM118 (not a dict)
            kind, _, name = key.partition(":")
            kinds.setdefault(kind, {})[name] = content.get_tensor(key)
    return settings, kinds


def load(checkpoint: Path, settings: dict[str, Any], n_outputs: int) -> Any:
    """Load the checkpoint and add an active adapter; adapter and head are trainable, the rest is frozen."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        checkpoint,
        num_labels=n_outputs,
        torch_dtype=torch.float32,
        attn_implementation=settings["attention"],
        output_loading_info=True,
    )
    wrong = {*info["missing_keys"], *info["unexpected_keys"]} - {"classifier.weight", "classifier.bias"}
    if wrong or info["mismatched_keys"]:
        raise SystemExit(f"error: the checkpoint does not fit transformers {transformers.__version__}: {wrong}")
    adapters.init(model)
    model.add_adapter(settings["adapter"], config=getattr(adapters, settings["config"])(**settings["options"]))
    model.train_adapter(settings["adapter"])  # freezes the rest and activates the adapter
    return model.eval()


def load_export(settings: dict[str, Any]) -> Any:
    """Load the checkpoint, and an export of ours as a user of the library would."""
    n = settings["n_outputs"]
    model = AutoModelForSequenceClassification.from_pretrained(settings["checkpoint"], num_labels=n)
    adapters.init(model)
    model.load_adapter(settings["export"], use_safetensors=True, set_active=True)
    return model.eval()


@torch.no_grad()
def copy_strictly(model: torch.nn.Module, weights: Tensors) -> None:
    """Copy the weights of the trained parameters; both sides must have the same tensors."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained.keys() != weights.keys():
        only = {"AdapterHub": sorted(trained.keys() - weights.keys()), "ours": sorted(weights.keys() - trained.keys())}
        raise SystemExit("error: trained by one side only: " + json.dumps(only))
    for name, parameter in trained.items():
        weight = weights[name]
        # AdapterHub stores a prefix as a vector and factors as a matrix of one column; other shapes are an error.
        is_vector = 1 in (weight.ndim, parameter.ndim)
        if weight.shape != parameter.shape and (not is_vector or weight.numel() != parameter.numel()):
            raise SystemExit(f"error: {name} is {tuple(parameter.shape)} in AdapterHub, ours {tuple(weight.shape)}")
        parameter.copy_(weight.view_as(parameter))


@torch.no_grad()
def answer(file: Path) -> None:
    """Run a case; write hidden states (batch, virtual tokens + length, hidden) and logits (batch, outputs)."""
    settings, kinds = read(file)
    if "export" in settings:
        model = load_export(settings)
    else:
        model = load(file.parent.parent / "checkpoint", settings, n_outputs=len(kinds["weight"]["classifier.bias"]))
        copy_strictly(model, kinds["weight"])
    results = {
        "states": model.base_model(**kinds["batch"]).last_hidden_state,
        "logits": model(**kinds["batch"]).logits,
    }
    save_file({n: x.contiguous() for n, x in results.items()}, file.with_name(f"{file.stem}.theirs.safetensors"))


def main() -> None:
    """Run every case of the folder and print the versions of the libraries."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("adapters").setLevel(logging.ERROR)  # activating an adapter warns that none is active yet
    for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        answer(file)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"adapters {adapters.__version__}, {versions}")


if __name__ == "__main__":
    main()
