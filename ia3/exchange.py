"""(IA)3 in peft's format: vectors on outputs are columns there, and those on inputs rows."""

from torch import nn

from common.errors import InputError
from common.exchange import Found, Peft, on_modules, shortest_ends
from common.methods import Tensors
from ia3.method import Ia3


def to_peft(method: Ia3, model: nn.Module, tensors: Tensors) -> Peft:
    """Raises InputError if the output and the input of one linear layer are scaled."""
    if both := sorted({*method.outputs} & {*method.inputs}):
        raise InputError(f"peft scales the input or the output of a linear layer, and {both[0]} has both scaled here")
    modules = {name: model.get_submodule(name.removesuffix(".l")) for name in tensors}
    inputs = {name.removesuffix(".ia3.l") for name, scale in modules.items() if scale.at_input}
    shaped = {name: vector[None] if modules[name].at_input else vector[:, None] for name, vector in tensors.items()}
    settings = {"peft_type": "IA3", "feedforward_modules": shortest_ends(inputs, model)}
    return on_modules(settings, {"ia3.l": "ia3_l"}, model, shaped)


def from_peft(found: Found) -> Ia3 | None:
    if found.get("peft_type") != "IA3":
        return None
    of_outputs, outputs = found.places("ia3_l", lambda vector: vector.shape[-1] == 1)
    of_inputs, inputs = found.places("ia3_l", lambda vector: vector.shape[-1] > 1)
    return Ia3(tuple(outputs), tuple(inputs), layers=of_outputs if outputs else of_inputs)
