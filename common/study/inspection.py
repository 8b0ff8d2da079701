"""Look inside trained runs: what changed, where, and which tokens the answer depends on.

Everything is computed with the plain model of `load_adapter`, one text at a time, so without padding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import own_task, tasks
from common.checkpoints import base_of, load_model, load_tokenizer
from common.encoders import encoder, layers, longest_input, n_outputs, self_attention, word_embeddings
from common.errors import InputError
from common.fitting import positions_left
from common.loading import load_adapter
from common.merging import fold
from common.methods import Method
from common.own_task import GeneratedTask, TextTask
from common.places import Branch
from common.runs import CONFIG
from common.runtime.files import read_json

STEPS = 32
"""Steps of the integral in integrated gradients."""
ORDERS = 25
"""Random orders of the tokens in which Shapley values are sampled."""
EXPLAINERS = ("integrated gradients", "Shapley values")
Grid = dict[str, list[float]]
"""Name of a place or parameter within a layer -> a value for each layer, NaN where there is none."""


@dataclass(frozen=True)
class Change:
    """The change of one matrix of a layer."""

    layer: int
    name: str
    singular_values: torch.Tensor
    """Of the change, the largest first, as shares of the largest one of the pretrained matrix."""


@dataclass(frozen=True)
class Looked:
    """One text in one run."""

    tokens: list[str]
    columns: list[str]
    """What is attended to: the tokens, after what a method has put before them."""
    attention: torch.Tensor | None
    """(layers, tokens that attend, columns), mean over the heads; with a prompt, its tokens attend too. None for
    DeBERTa, which gives no weights."""
    answer: str
    explained: dict[str, torch.Tensor]
    """Explainer -> contribution of each token to the output of the answer, (tokens,)."""


@dataclass(frozen=True)
class Inspection:
    """What was found in one run."""

    run: Path
    method: Method
    title: str
    changed: Grid = field(default_factory=dict)
    """|W' - W| / |W| of the parameters that changed, in the Frobenius norm; NaN for those that did not."""
    share: Grid = field(default_factory=dict)
    """Share of the entries of each parameter that changed."""
    matrices: list[Change] = field(default_factory=list)
    added: Grid = field(default_factory=dict)
    """|b| / |h| of what branches add to a hidden state h, mean over the tokens of all texts."""
    gates: Grid = field(default_factory=dict)
    """Mean value of each gate over the texts."""
    texts: list[Looked] = field(default_factory=list)


def inspect(run: Path, texts: Sequence[Sequence[str]], checkpoint: str | None = None) -> Inspection:
    """Look at a run, and at what it does with some texts of one or two columns.

    Raises:
        InputError: a damaged run, one of multiple choice or of a language model, or texts that do not fit it.
    """
    config = read_json(run / CONFIG)
    task: Any = own_task.of(config)
    if isinstance(task, TextTask | GeneratedTask) or (task is not None and task.questions):
        raise InputError(f"{run} is a run of {task.name}: wanted one that classifies or scores texts")
    model, method = load_adapter(run, checkpoint)
    base = base_of(model).checkpoint
    pretrained = load_model(base, n_outputs(model), getattr(model, "pooling", None))
    found = Inspection(run, method, f"{method.written or method.name} on {task.name}, {Path(base).name}")
    tokenizer = load_tokenizer(base)
    limit = min(int(config["max_length"]), positions_left(method, longest_input(model, tokenizer), 1))
    for words in texts:
        if len(words) != task.n_texts:
            raise InputError(f"{len(words)} texts are given, and {task.name} has {task.n_texts} in an example")
    for words in texts:
        batch = tokenizer(*words, return_tensors="pt", truncation=True, max_length=limit)
        with _watched(model, found), torch.no_grad():
            logits = model(**batch).logits[0]
        found.texts.append(_look(model, tokenizer, batch, logits, task))
    for grid in (found.added, found.gates):
        for values in grid.values():
            values[:] = [value / len(texts) for value in values]
    _compare(model, pretrained, found)
    return found


def _grid(model: nn.Module) -> list[float]:
    return [float("nan")] * len(layers(model))


def _branches(model: nn.Module) -> Iterator[tuple[int, str, Branch]]:
    """Number of the layer, name within it, and branch, of all branches in the layers that are in no other branch."""
    for number, layer in enumerate(layers(model)):
        found = {name: module for name, module in layer.named_modules() if isinstance(module, Branch)}
        for name, module in found.items():
            if not any(name.startswith(f"{other}.") for other in found):
                yield number, name, module


@contextmanager
def _watched(model: nn.Module, found: Inspection) -> Iterator[None]:
    """Sum up, in the grids of `found`, what branches add and the values of gates, in the forward passes inside."""
    with ExitStack() as hooks:
        for layer, name, module in _branches(model):

            def watch(branch: Any, args: Any, added: Any, layer: int = layer, name: str = name) -> None:
                if isinstance(added, torch.Tensor) and isinstance(args[1], torch.Tensor) and branch.adds:
                    _sum_up(found.added, model, name, layer, (added.norm(dim=-1) / args[1].norm(dim=-1)).mean())

            hooks.callback(module.register_forward_hook(watch).remove)
            if (gate := getattr(module, "gate", None)) is not None:

                def watch_gate(_gate: nn.Module, _args: Any, out: Any, layer: int = layer, name: str = name) -> None:
                    _sum_up(found.gates, model, name, layer, out.sigmoid().mean())

                hooks.callback(gate.register_forward_hook(watch_gate).remove)
        yield


def _sum_up(grid: Grid, model: nn.Module, name: str, layer: int, value: torch.Tensor) -> None:
    values = grid.setdefault(name, _grid(model))
    values[layer] = float(value) + (0.0 if math.isnan(values[layer]) else values[layer])


@torch.no_grad()
def _compare(model: Any, pretrained: nn.Module, found: Inspection) -> None:
    """Fill in the changes of parameters; nothing for a method whose branches depend on the text."""
    before = dict(pretrained.state_dict())
    try:
        after = fold(model)
    except InputError:  # adapters, prefixes and so on: what was trained beside them still counts
        after = {name: tensor for name, tensor in model.state_dict().items() if name in before}
    paths = {id(module): name for name, module in pretrained.named_modules()}
    for number, layer in enumerate(layers(pretrained)):
        for inner, _ in layer.named_parameters():
            name = f"{paths[id(layer)]}.{inner}"
            change = after[name].float() - before[name].float()
            if not change.any():
                continue
            size = before[name].float().norm()
            found.changed.setdefault(inner, _grid(model))[number] = float(change.norm() / size) if size else 0.0
            found.share.setdefault(inner, _grid(model))[number] = float((change != 0).float().mean())
            if change.ndim == 2:
                largest = torch.linalg.matrix_norm(before[name].float(), 2)
                found.matrices.append(Change(number, inner, torch.linalg.svdvals(change) / largest))


def _look(model: Any, tokenizer: Any, batch: Any, logits: torch.Tensor, task: tasks.GlueTask) -> Looked:
    """What the model does with one text."""
    regression = len(logits) == 1
    chosen = 0 if regression else int(logits.argmax())
    answer = f"{float(logits[0]):.3f}" if regression else f"{_label(task, chosen)} ({logits.softmax(0)[chosen]:.2f})"
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    attention = _attention(model, batch)
    n_more = 0 if attention is None else attention.shape[-1] - len(tokens)
    columns = [f"[{number + 1}]" for number in range(n_more)]
    return Looked(tokens, columns + tokens, attention, answer, explain(model, tokenizer, batch, chosen))


def _label(task: tasks.GlueTask, number: int) -> str:
    return task.labels[number] if number < len(task.labels) else str(number)


@torch.no_grad()
def _attention(model: Any, batch: Any) -> torch.Tensor | None:
    """(layers, tokens that attend, columns), mean over the heads; None if the encoder does not give them."""
    usual = encoder(model).config._attn_implementation
    model.set_attn_implementation("eager")
    found: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Any) -> None:
        if len(out) > 1 and out[1] is not None:
            found.append(out[1][0].float().mean(dim=0))

    with ExitStack() as hooks:
        for layer in layers(model):
            hooks.callback(self_attention(layer).register_forward_hook(keep).remove)
        model(**batch, output_attentions=True)
    model.set_attn_implementation(usual)
    return torch.stack(found) if found else None


def explain(model: Any, tokenizer: Any, batch: Any, chosen: int) -> dict[str, torch.Tensor]:
    """What each token contributes to an output, (tokens,), by two explainers; nothing for special tokens.

    Layer integrated gradients (Sundararajan et al., 2017) on the word embeddings, from a text of mask tokens; and
    Shapley values (Castro et al., 2009), sampled over orders in which mask tokens become the tokens of the text.
    """
    from captum.attr import LayerIntegratedGradients, ShapleyValueSampling

    ids = batch["input_ids"]
    others = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
    special = torch.tensor(tokenizer.get_special_tokens_mask(ids[0].tolist(), already_has_special_tokens=True)).bool()
    hidden = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.unk_token_id
    baseline = torch.where(special[None], ids, hidden)

    def output(each: torch.Tensor) -> torch.Tensor:
        more = {name: tensor.expand(len(each), -1) for name, tensor in others.items()}
        return model(input_ids=each, **more).logits[:, chosen]

    gradients = LayerIntegratedGradients(output, word_embeddings(model))
    values = gradients.attribute(ids, baseline, n_steps=STEPS, internal_batch_size=8)
    places = torch.where(special, 0, special.logical_not().cumsum(0) - (0 if special.any() else 1))[None]
    torch.manual_seed(0)  # the orders
    with torch.no_grad():
        sampled = ShapleyValueSampling(output).attribute(
            ids, baseline, feature_mask=places, n_samples=ORDERS, perturbations_per_eval=8
        )
    own = torch.zeros(len(special)).masked_fill(~special, 1)
    of_text = values.sum(-1)[0, -len(special) :].detach()  # after the vectors of a prompt
    return dict(zip(EXPLAINERS, (of_text * own, sampled[0].float() * own), strict=True))
