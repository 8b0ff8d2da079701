"""How the parts of a hybrid are written: NAME or NAME:OPTION=VALUE:..., as in adapters:bottleneck_size=48."""

import contextlib
import dataclasses
from typing import Any, get_type_hints

from common.errors import InputError, fits_type
from common.methods import Method, find

PFEIFFER = "adapters:bottleneck_size=48:placement=pfeiffer"
PRESETS: dict[str, tuple[tuple[str, ...], bool]] = {
    "unipelt": (("lora", PFEIFFER, "prefix:prefix_length=10:hidden_dim=512"), True),
    "unipelt_ap": ((PFEIFFER, "prefix:prefix_length=10:hidden_dim=512"), True),
    "mam": (("prefix:prefix_length=30:hidden_dim=800", "adapters:bottleneck_size=512:placement=parallel"), False),
}
"""Name -> parts, and whether they have gates."""

CONSTANTS = {"None": None, "True": True, "False": False}


def method_of(part: str) -> Method:
    """The method that a part names. Raises InputError for an unknown method or option, or a wrong value."""
    name, *settings = part.split(":")
    kind = find(name)
    hints = get_type_hints(kind)
    known = [field.name for field in sorted(dataclasses.fields(kind), key=lambda field: bool(field.kw_only))]
    values: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if option not in known or not equals or option in values:
            raise InputError(f"part {part} has {setting!r}: wanted OPTION=VALUE, each once, of {', '.join(known)}")
        fitting = [value for value in _readings(text) if fits_type(value, hints[option])]
        if not fitting:
            raise InputError(f"part {part} has {setting!r}: wanted a value as in --{option} of {name}.tune")
        values[option] = fitting[0]
    return kind(**values)


def _readings(text: str) -> list[Any]:
    found: list[Any] = [CONSTANTS[text]] if text in CONSTANTS else []
    for number in (int, float):
        with contextlib.suppress(ValueError):
            found.append(number(text))
    return [*found, tuple(text.split(",")), text]


def part_of(method: Method) -> str:
    """The part that names a method: the options that are not at their defaults, in the order of its help."""
    usual, words = type(method)(), [method.name]
    for field in sorted(dataclasses.fields(method), key=lambda field: bool(field.kw_only)):
        value = getattr(method, field.name)
        if value != getattr(usual, field.name):
            words.append(f"{field.name}={','.join(value) if isinstance(value, tuple) else _text(value)}")
    return ":".join(words)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
