"""Names of enum members, as text for operators and programs."""

from enum import Enum


def label(value: Enum) -> str:
    """The name in lower case, with dashes: `syn-sent`."""
    return value.name.lower().replace("_", "-")
