"""Compare our methods with AdapterHub's library, with the same weights and batch: make parity-adapterhub

Each method is injected into a tiny random BERT, and all trained parameters are perturbed. AdapterHub's library, in its
own environment (adapterhub_side.py), gets the weights and the batch and must use every tensor. The hidden states of all
real tokens and the logits must then be equal. Where AdapterHub is known to differ, the table says so, and the
difference must exist.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.method import Adapters
from common.checkpoints import load_model
from common.encoders import encoder
from common.errors import InputError, one_line_errors
from common.methods import Method, apply, trainable
from common.saving import save_adapter
from common.study.exporting import export
from ia3.method import Ia3
from lora.method import Lora
from prefix.method import PrefixTuning
from prompt.method import PromptTuning

SIDE = Path(__file__).with_name("adapterhub_side.py")
TOLERANCE = 1e-5
HIDDEN, BOTTLENECK, N_OUTPUTS = 32, 8, 3
ADAPTER = "parity"
"""Name of the adapter in AdapterHub's model; part of the names of its tensors."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A method of ours and its counterpart in AdapterHub."""

    method: Method
    config: str
    """Name of AdapterHub's configuration class."""
    options: dict[str, Any]
    """Its fields that must differ from its defaults."""
    names: dict[str, str]
    """Substrings of our tensors' names -> AdapterHub's."""
    attention: str = "sdpa"
    """AdapterHub's implementation of attention."""
    behind_cls: bool = False
    """Whether AdapterHub puts its virtual tokens after [CLS], not before it."""
    padding_differs: str = ""
    """Why texts with padding are known to differ; empty = they must be equal."""


def _bottleneck(placement: Any, config: str, activation: str) -> Case:
    # Our activation is our default. AdapterHub's size is a ratio.
    return Case(
        Adapters(BOTTLENECK, placement, scaling=4.0, train_layernorm=False),
        config,
        {"reduction_factor": HIDDEN // BOTTLENECK, "non_linearity": activation},
        {"adapters.down.": f"adapters.{ADAPTER}.adapter_down.0.", "adapters.up.": f"adapters.{ADAPTER}.adapter_up."},
    )


def _prompt(combine: str, attention: str, padding_differs: str = "") -> Case:
    return Case(
        PromptTuning(prompt_length=5, init="random", level="embeddings"),
        "PromptTuningConfig",
        {"prompt_length": 5, "combine": combine},
        {"embeddings.prompt.vectors": f"prompt_tuning.prompt_tunings.{ADAPTER}.prompt_embedding.weight"},
        attention,
        behind_cls=combine == "prefix_after_bos",
        padding_differs=padding_differs,
    )


CASES = {
    "lora": Case(
        Lora(rank=8, alpha=16.0, targets=("query", "value")),
        "LoRAConfig",
        {"r": 8, "alpha": 16, "attn_matrices": ["q", "v"]},
        {"lora.A": f"loras.{ADAPTER}.lora_A", "lora.B": f"loras.{ADAPTER}.lora_B"},
    ),
    # AdapterHub multiplies before the activation, where the paper multiplies its result (ours by default).
    "ia3, before the activation": Case(
        Ia3(outputs=("key", "value", "intermediate"), inputs=()),
        "IA3Config",
        {},
        {"ia3.l": f"loras.{ADAPTER}.lora_B"},
    ),
    "houlsby": _bottleneck("houlsby", "DoubleSeqBnConfig", "gelu"),
    "pfeiffer": _bottleneck("pfeiffer", "SeqBnConfig", "relu"),
    "parallel": _bottleneck("parallel", "ParBnConfig", "relu"),
    "prefix": Case(
        PrefixTuning(prefix_length=5),
        "PrefixTuningConfig",
        {"prefix_length": 5, "flat": True},
        # One table for all layers, which AdapterHub names after the lowest one.
        {
            "embeddings.prefix.embedding": "encoder.layer.0.attention.self.prefix_tuning.pool."
            f"prefix_tunings.{ADAPTER}.self_prefix.control_trans"
        },
    ),
    "prompt": _prompt("prefix", "eager"),
    # Attention is as before, since the vectors are inserted after the position embeddings; but now it pools [CLS].
    "prompt behind [CLS]": _prompt("prefix_after_bos", "eager"),
    "prompt, sdpa": _prompt("prefix", "sdpa", padding_differs="its virtual tokens attend to the padding"),
}


EXPORTS = {
    f"exported {placement}, {kind}{', layer 1' if layers != 'all' else ''}": (
        kind, Adapters(size, placement, train_layernorm=False, layers=layers)
    )
    for placement, kind, size, layers in (
        ("houlsby", "bert", 8, "all"),
        ("pfeiffer", "roberta", 7, "all"),  # a size that does not divide the width
        ("parallel", "electra", 5, "all"),
        ("houlsby", "xlm-roberta", 8, "1"),
    )
}  # fmt: skip
"""Name -> kind of encoder and method, written by scripts.export and loaded by the library."""


class Row(NamedTuple):
    """A row of the table."""

    compared: str
    difference: float
    same: bool = True
    """Whether the two must be equal; else they must differ."""

    def holds(self) -> bool:
        """Whether the result is as required."""
        return (self.difference <= TOLERANCE) == self.same

    def verdict(self) -> str:
        """Text of the last column."""
        return ("ok" if self.same else "differs, as known") if self.holds() else "FAILED"


def save_checkpoint(folder: Path, kind: str = "bert") -> None:
    """Save a tiny random encoder without head, which both versions of transformers can load."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=100,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    AutoModel.from_config(config).save_pretrained(folder)


def random_batch(rows: int = 5, length: int = 11) -> Tensors:
    """Random texts, all but the first one padded; the ids of the padding are random too, since none may use them."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows):
        mask[row, length - row :] = 0
    return {
        "input_ids": torch.randint(100, (rows, length), generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(2, (rows, length), generator=generator),
    }


def perturb(model: nn.Module) -> None:
    """Add noise to all trained parameters, so that no zero hides a difference."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def run(model: Any, batch: Tensors) -> Tensors:
    """Hidden states (batch, length, hidden) and logits (batch, outputs) of a model in evaluation mode."""
    model.eval()
    return {"states": encoder(model)(**batch).last_hidden_state, "logits": model(**batch).logits}


def their_name(name: str, case: Case) -> str:
    """AdapterHub's name of a tensor of ours."""
    for ours, theirs in case.names.items():
        name = name.replace(ours, theirs)
    return name


def write(case: Case, model: nn.Module, batch: Tensors, file: Path) -> None:
    """Write the input of AdapterHub's side for a case: trained parameters, batch and configuration."""
    tensors = {f"weight:{their_name(name, case)}": p.detach() for name, p in trainable(model).items()}
    tensors |= {f"batch:{name}": tensor for name, tensor in batch.items()}
    settings = {"adapter": ADAPTER, "config": case.config, "options": case.options, "attention": case.attention}
    save_file(tensors, file, metadata={"case": json.dumps(settings)})


def taken_by(kind: str, batch: Tensors) -> Tensors:
    """A batch without the token types that an encoder has only one of."""
    return {name: tensor for name, tensor in batch.items() if "roberta" not in kind or name != "token_type_ids"}


def write_export(kind: str, method: Method, batch: Tensors, folder: Path, file: Path) -> tuple[Any, Tensors]:
    """Export a method of a random encoder, and write AdapterHub's input; returns our model and its results."""
    save_checkpoint(folder / kind, kind)
    model = apply(method, load_model(str(folder / kind), N_OUTPUTS))
    perturb(model)
    home = folder / "exports" / file.stem
    save_adapter(home / "ours", model, method)
    export(home / "ours", "adapterhub", home / "theirs")
    settings = {"export": str(home / "theirs"), "checkpoint": str(folder / kind), "n_outputs": N_OUTPUTS}
    tensors = {f"batch:{name}": tensor for name, tensor in taken_by(kind, batch).items()}
    save_file(tensors, file, metadata={"case": json.dumps(settings)})
    return model, run(model, taken_by(kind, batch))


def ask_adapterhub(python: Path, folder: Path) -> str:
    """Run AdapterHub's side on every file of a folder; returns its versions."""
    # -I and another working directory: from this one, `import adapters` would import our package.
    command = [str(python), "-I", str(SIDE), str(folder)]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"error: AdapterHub's side ended with exit code {done.returncode}, see above")
    return done.stdout.decode().strip()


def difference(ours: torch.Tensor, theirs: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Largest absolute difference; with `where`, only where it is true."""
    distance = (ours - theirs).abs()
    if not distance.isfinite().all():
        return float("inf")
    return float((distance if where is None else distance[where]).max())


def compare(case: Case, model: Any, mask: torch.Tensor, ours: Tensors, theirs: Tensors) -> Iterator[Row]:
    """Rows of the table for a case. mask: (batch, length), 1 at the tokens of the text."""
    real = mask.bool()
    padded = ~real.all(dim=1, keepdim=True)
    n_virtual = theirs["states"].shape[1] - mask.shape[1]
    texts = theirs["states"][:, n_virtual:]
    if case.behind_cls:
        texts = torch.cat((theirs["states"][:, :1], texts[:, 1:]), dim=1)
    if case.padding_differs:
        what = f"states, padded texts: {case.padding_differs}"
        yield Row("states, texts without padding", difference(ours["states"], texts, real & ~padded))
        yield Row(what, difference(ours["states"], texts, real & padded), same=False)
        return
    yield Row("states", difference(ours["states"], texts, real))
    if n_virtual == 0 or case.behind_cls:
        yield Row("logits", difference(ours["logits"], theirs["logits"]))
        return
    with torch.no_grad():
        first = model.classifier(encoder(model).pooler(theirs["states"]))  # pools position 0
    yield Row("its logits, and its virtual token 0 pooled", difference(first, theirs["logits"]))
    yield Row("logits: it pools virtual token 0, we [CLS]", difference(ours["logits"], theirs["logits"]), same=False)


def measure(python: Path, folder: Path) -> tuple[str, list[tuple[str, float, Row]]]:
    """Versions of the other side; and for each row of the table its case, the method's effect on the states, the row.

    A difference must be compared with the effect: a method without an effect would agree with everything.
    """
    checkpoint, exchange = folder / "checkpoint", folder / "cases"
    exchange.mkdir()
    save_checkpoint(checkpoint)
    batch = random_batch()
    mask = batch["attention_mask"]
    models, results = {}, {}
    for name, case in CASES.items():
        torch.manual_seed(3)
        models[name] = apply(case.method, load_model(str(checkpoint), N_OUTPUTS))
        perturb(models[name])
        results[name] = run(models[name], batch)
        write(case, models[name], batch, exchange / f"{name}.safetensors")
    for name, (kind, method) in EXPORTS.items():
        models[name], results[name] = write_export(kind, method, batch, folder, exchange / f"{name}.safetensors")
    versions = ask_adapterhub(python, exchange)
    plain = run(load_model(str(checkpoint), N_OUTPUTS), batch)["states"]
    lines = []
    for name, case in CASES.items():
        theirs = load_file(exchange / f"{name}.theirs.safetensors")
        effect = difference(results[name]["states"], plain, mask.bool())
        lines += [(name, effect, row) for row in compare(case, models[name], mask, results[name], theirs)]
    for name, (kind, _) in EXPORTS.items():
        usual = run(load_model(str(folder / kind), N_OUTPUTS), taken_by(kind, batch))["states"]
        effect = difference(results[name]["states"], usual, mask.bool())
        theirs = load_file(exchange / f"{name}.theirs.safetensors")
        lines.append((name, effect, Row("logits", difference(results[name]["logits"], theirs["logits"]))))
    return versions, lines


def table(lines: list[tuple[str, float, Row]]) -> str:
    """The table as text with aligned columns."""
    rows = [("case", "effect", "compared", "difference", "")]
    rows += [(n, f"{effect:.2f}", row.compared, f"{row.difference:.1e}", row.verdict()) for n, effect, row in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    """Read the command line, compare and print the table; exit code 1 if a row is not as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(".venv-adapterhub/bin/python"),
        help="Python of an environment with parity/requirements-adapterhub.txt (default: %(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    with one_line_errors(args.debug), tempfile.TemporaryDirectory() as folder:
        if not args.python.is_file():
            raise InputError(f"{args.python} not found: `make parity-adapterhub` makes it, or name one with --python")
        import transformers

        # absolute, not resolved: python in an environment is a link to that of another environment
        versions, lines = measure(args.python.absolute(), Path(folder))
        print(f"ours: transformers {transformers.__version__}, torch {torch.__version__}\ntheirs: {versions}\n")
        print(table(lines))
        print(f"\nlargest absolute differences; ok: at most {TOLERANCE:g}; effect: change of the states by the method")
    sys.exit(not all(row.holds() for _, _, row in lines))


if __name__ == "__main__":
    main()
