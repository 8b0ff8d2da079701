"""One frozen encoder for many trained runs: the examples of one batch may belong to different runs.

The encoder's modules compute the tokens of all runs at once. What a run has added at a place gets the tokens of its own
examples, which are a range of the packed row. A module whose parameters a run has trained is its own for this range; of
a trained bias only the difference is added. Prefixes, and tokens before the text, are those of each run's own part of
the batch, since attention works part by part.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.checkpoints import load_model
from common.encoders import embedding_module, encoder, layers, n_outputs, relative_positions, rows_of
from common.errors import DoesNotFit
from common.fast import prepare
from common.places import Branch, Place, Rows, Weights, fold_weights
from common.prepending import Front, KeysValues, prepended, with_front


class SharedEncoder:
    """A frozen encoder and the trained parts of any number of runs."""

    def __init__(self, checkpoint: str, pools_all: bool, frozen_dtype: str, device: torch.device):
        """pools_all: whether the heads read the mean of all tokens, which the top layer then has to compute.

        Raises:
            InputError: it cannot be loaded.
        """
        model: Any = load_model(checkpoint, 1, "mean" if pools_all else None).eval().requires_grad_(False)
        prepared = prepare(model, device, frozen_dtype)
        assert prepared.layout is not None  # as always without padding
        self.model, self.layout = model.to(device), prepared.layout
        self.frozen_dtype, self.device, self.batch = frozen_dtype, device, _Batch()
        self.runs: dict[str, Any] = {}
        """The model of each run. Its frozen parameters are those of the encoder."""
        self._added: dict[Any, list[_Added]] = {}
        self._own: dict[str, _Own] = {}
        self._prefixes: dict[str, _Prefixes] = {}

    def add(self, name: str, model: Any) -> None:
        """Add a run under a new name. model: from `load_adapter`; it must not be used any more.

        Raises:
            DoesNotFit: it cannot share a forward pass; nothing has been added.
        """
        if any(isinstance(module, Branch) and module.needs_all_tokens for module in model.modules()):
            raise DoesNotFit("it has branches that need all tokens of the top layer")
        fold_weights(model)
        model = model.to(self.device)
        paths = {module: path for path, module in model.named_modules()}
        different = _different(model, self.model)
        if any(self.model.get_submodule(path) in relative_positions(self.model) for path in different):
            raise DoesNotFit("it has trained relative positions, which are of no text alone")
        placed = [(branch, branch.place[0]) for branch in paths if isinstance(branch, Branch) and branch.place]
        levels: Counter[Any] = Counter()
        for path, module in different.items():
            self._add_own(name, path, module, levels)
        for branch, place in placed:
            if isinstance(place, KeysValues):
                self._add_prefix(name, paths[place.owner], place.owner)
            elif isinstance(place, Front):
                self._own_module(paths[place.words]).of_run[name] = place.words  # with its hooks for the new ids
                if place.level == "embeddings":
                    self._add_branch(name, Place(place.owner), paths, _Written(place), levels)
            elif not isinstance(place, Weights):
                self._add_branch(name, place, paths, branch, levels)
        of_path = {path: module for module, path in paths.items()}
        for path, ours in self.model.named_modules():
            _share(ours, of_path.get(path))
        self.runs[name] = model

    def remove(self, name: str) -> None:
        """Forget a run."""
        del self.runs[name]
        added = (each for found in self._added.values() for each in found)
        holders: list[Any] = [*added, *self._own.values(), *self._prefixes.values()]
        for each in holders:
            each.of_run.pop(name, None)

    @torch.no_grad()
    def logits(self, batches: Mapping[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One forward pass. batches: of each run, from `Tokens.batch` with `layout` -> logits, (batch, outputs)"""
        prefixed = {name for prefixes in self._prefixes.values() for name in prefixes.of_run}
        inputs = {name: with_front(encoder(self.runs[name]), batch) for name, batch in batches.items()}
        # Attention is computed at once for neighbours without a prefix and with equally many tokens before the text.
        names = sorted(inputs, key=lambda name: (name in prefixed, inputs[name]["packing"].n_front))
        joined = self.layout.join([inputs[name] for name in names])
        self.batch.begin(names, joined["packing"])
        logits = self.model(**joined).logits.float()
        parts = zip(names, joined["packing"].examples, strict=True)
        return {name: logits[at, : n_outputs(self.runs[name])] for name, at in parts}

    def _add_own(self, name: str, path: str, module: Any, levels: Counter[Any]) -> None:
        """A module with parameters of its own, or the difference of a linear layer that differs in its bias alone."""
        ours = self.model.get_submodule(path)
        is_whole = not (
            isinstance(module, nn.Linear)
            and _is_same(module.weight, ours.weight)
            and not any(isinstance(child, Rows) for child in module.children())  # whose branches come before the bias
        )
        if is_whole:
            prepare(module, self.device, self.frozen_dtype, padding="batch")
            self._own_module(path).of_run[name] = module.forward  # its hooks are added as branches
        else:
            shift = _Shift(module.bias.detach() - ours.bias)
            self._add_branch(name, Place(module), {module: path}, shift, levels)

    def _own_module(self, path: str) -> "_Own":
        if path not in self._own:
            module: Any = self.model.get_submodule(path)
            module.forward = self._own[path] = _Own(module.forward, self.batch, isinstance(module, nn.LayerNorm))
        return self._own[path]

    def _add_branch(self, name: str, place: Place, paths: dict[Any, str], branch: Branch, levels: Counter[Any]) -> None:
        """Add a branch at the same place of the encoder. Those of a run at one place act one after the other."""
        modules = {key: value for key, value in vars(place).items() if isinstance(value, nn.Module)}
        key = type(place), *(paths[module] for module in modules.values())
        found = self._added.setdefault(key, [])
        if levels[key] == len(found):
            ours = copy.copy(place)
            vars(ours).update({key: self._module(paths[module], module) for key, module in modules.items()})
            found.append(_Added(self.batch))
            ours.add(found[-1])
        found[levels[key]].of_run[name] = branch, place.host
        levels[key] += 1

    def _module(self, path: str, theirs: nn.Module) -> nn.Module:
        """The module of the encoder with a path; rows of a fused linear layer are made where there are none yet."""
        if not isinstance(theirs, Rows):
            return self.model.get_submodule(path)
        home, _, name = path.rpartition(".")
        names = [key for key, each in theirs.whole[0].named_children() if isinstance(each, Rows)]
        return rows_of(self.model.get_submodule(home), tuple(names), name)  # type: ignore[arg-type]

    def _add_prefix(self, name: str, path: str, attention: Any) -> None:
        if path not in self._prefixes:
            self._prefixes[path] = _Prefixes(self.batch)
            prepended(self.model.get_submodule(path)).keys_values = self._prefixes[path]  # type: ignore[assignment,method-assign]
        self._prefixes[path].of_run[name] = attention


class _Batch:
    """Whose examples are where in the batch of the current forward pass."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.packing: Any = None
        self.known: dict[tuple[int, int], list[tuple[str, slice]]] = {}

    def begin(self, names: list[str], packing: Any) -> None:
        self.names, self.packing, self.known = names, packing, {}

    def parts(self, x: torch.Tensor) -> tuple[int, list[tuple[str, slice]]]:
        """The dimension of x along which the runs have their ranges, and these.

        x: (1, tokens, ...) or (1, batch, ...) in the layers, (batch, ...) above them, and for relative positions, which
        a run's attention asks for, anything.
        """
        if self.packing.attended is not None:
            return 0, [(self.names[self.packing.attended], slice(None))]
        if len(self.names) == 1:
            return 0, [(self.names[0], slice(None))]
        dim = 1 if len(x) == 1 else 0
        key = dim, x.shape[dim]
        if key not in self.known:
            ranges = self.packing.ranges(x.shape[1]) if dim else self.packing.examples
            self.known[key] = list(zip(self.names, ranges, strict=True))
        return dim, self.known[key]


class _Added(Branch):
    """The branches of several runs at one place, each for the tokens of its run."""

    def __init__(self, batch: _Batch):
        super().__init__()
        self.batch = batch
        self.of_run: dict[str, tuple[Branch, nn.Module]] = {}
        """Branch and host in the run's own model."""

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor | None:
        dim, parts = self.batch.parts(out)
        total, is_free = None, _is_free(out, x)
        for name, at in parts:
            if name not in self.of_run:
                continue
            branch, own_host = self.of_run[name]
            if len(parts) == 1:
                return branch(x, out, own_host)
            index = (slice(None),) * dim + (at,)
            own = out[index]
            added = branch(x[index], own, own_host)
            if added is None:
                continue
            if is_free and torch.result_type(own, added) == own.dtype:
                own += added  # a sum with zeros for all other tokens takes longer
                continue
            total = added.new_zeros(out.shape) if total is None else total
            total[index] = added
        return total


def _is_free(out: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the output of a module may be written: it is not its input, nor one value for several entries."""
    return out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() and 0 not in out.stride()


class _Shift(Branch):
    """The difference of two biases, (features,), the same for every token."""

    def __init__(self, difference: torch.Tensor):
        super().__init__()
        self.register_buffer("difference", difference, persistent=False)

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> Any:
        return self.get_buffer("difference").to(out.dtype).expand_as(out)


class _Written(Branch):
    """The vectors of tokens before the text in the place of what the embedding layer gave for them."""

    def __init__(self, place: Front):
        super().__init__()
        self.front = place

    def forward(self, x: torch.Tensor, out: torch.Tensor, host: nn.Module) -> torch.Tensor:
        return self.front.vectors.write(host, None, out) - out


class _Own:
    """The forward pass of a module of the encoder, in which some runs have their own one for their tokens."""

    def __init__(self, usual: Callable[..., torch.Tensor], batch: _Batch, is_cheap: bool):
        """is_cheap: whether it takes longer to join several outputs than to compute some in vain."""
        self.usual, self.batch, self.is_cheap = usual, batch, is_cheap
        self.of_run: dict[str, Callable[..., torch.Tensor]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The arguments that are tensors have the tokens, or examples, along the same dimension, as the result has."""
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        dim, parts = self.batch.parts(x)
        if len(parts) == 1:
            return self.of_run.get(parts[0][0], self.usual)(*args, **kwargs)
        if self.is_cheap:
            out = self.usual(*args, **kwargs)
            for name, at in parts:
                if name in self.of_run:
                    index = (slice(None),) * dim + (at,)
                    out[index] = self.of_run[name](x[index])
            return out
        found = []
        for forward, at in self._ranges(parts, x.shape[dim]):
            index = (slice(None),) * dim + (at,)
            own = [value[index] if isinstance(value, torch.Tensor) else value for value in args]
            named = {key: v[index] if isinstance(v, torch.Tensor) else v for key, v in kwargs.items()}
            found.append(forward(*own, **named))
        widest = max(part.shape[-1] for part in found)  # heads have different numbers of outputs
        return torch.cat([F.pad(part, (0, widest - part.shape[-1])) for part in found], dim)

    def _ranges(self, parts: list[tuple[str, slice]], n: int) -> Iterator[tuple[Callable[..., torch.Tensor], slice]]:
        """Which forward pass computes which range of n; neighbours with the usual one are one range."""
        begin = end = 0
        for name, at in parts:
            if name in self.of_run:
                if begin < at.start:
                    yield self.usual, slice(begin, at.start)
                yield self.of_run[name], at
                begin = at.stop
            end = at.stop
        if begin < max(end, n):  # with the padding at the end of the row
            yield self.usual, slice(begin, n)


class _Prefixes:
    """Keys and values before those of the text in one layer, of each part of the batch; None = none."""

    def __init__(self, batch: _Batch):
        self.batch = batch
        self.of_run: dict[str, Any] = {}
        """The attention of the run's own model."""

    def __call__(self, attention: nn.Module, key: torch.Tensor, value: torch.Tensor) -> list[Any]:
        """key, value: (1, heads, tokens, size)"""
        ranges = self.batch.packing.ranges(key.shape[2])
        own = [self.of_run.get(name) for name in self.batch.names]
        return [
            theirs and theirs.prepended.keys_values(theirs, key[:, :, at], value[:, :, at])
            for theirs, at in zip(own, ranges, strict=True)
        ]


def _different(theirs: nn.Module, ours: nn.Module) -> dict[str, nn.Module]:
    """The modules of a run's model, by path, that have other parameters than the encoder's or are of another kind.

    In layers and embeddings they are the lowest ones. What is above them is taken as a whole, the pooler for example.
    """
    inside = {*layers(theirs), embedding_module(theirs)}
    found = {}

    def visit(module: nn.Module, usual: nn.Module, path: str, below: bool) -> None:
        below = below or module in inside
        goes_on = below or not inside.isdisjoint(module.modules())
        mine = dict(usual.named_parameters(recurse=not goes_on))
        same = isinstance(usual, type(module)) and all(
            key in mine and _is_same(parameter, mine[key])
            for key, parameter in module.named_parameters(recurse=not goes_on)
        )
        if not same:
            found[path] = module
        for name, child in module.named_children() if goes_on else ():
            if not isinstance(child, Branch | Rows):
                visit(child, usual.get_submodule(name), f"{path}.{name}".lstrip("."), below)

    visit(theirs, ours, "", False)
    return found


def _is_same(theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    """Whether a parameter of a run is the encoder's; a frozen one may be so in the encoder's dtype."""
    if theirs.shape != ours.shape or (theirs.requires_grad and theirs.dtype != ours.dtype):
        return False
    return torch.equal(theirs.to(ours.dtype), ours)


def _share(ours: nn.Module, theirs: nn.Module | None) -> None:
    """Put the encoder's parameters in the place of a run's equal ones, whose memory is then free."""
    for key, parameter in ours.named_parameters(recurse=False):
        own = None if theirs is None else theirs._parameters.get(key)
        if own is not None and _is_same(own, parameter):
            theirs._parameters[key] = parameter  # type: ignore[union-attr]
