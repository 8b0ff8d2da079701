"""Bottleneck adapters (Houlsby et al., 2019), their later placements, and AdapterDrop (Rücklé et al., 2021)."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Python asks for a name that this package has not: most likely one of AdapterHub's package of the same name."""
    raise AttributeError(
        f"{__file__} has no {name!r}: it is a method of this repository, which hides AdapterHub's package `adapters`; "
        "use that one from another folder and environment"
    )
