"""Faults in the operator's input, with their places. They are collected, so that one run reports
all faults of a file.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from featherlb.model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a line of a file, or an option of the command line.

    `source` is the file's name as given and `line` counts from 1. On the command line they are
    empty and 0, and `path` is the option with its value.
    """

    source: str
    line: int
    path: str

    def __str__(self) -> str:
        if not self.source:
            return self.path
        place = f"{self.source}:{self.line}"
        return f"{place}: {self.path}" if self.path else place

    @property
    def place(self) -> str:
        """The short form, for a sentence about another origin."""
        return f"line {self.line}" if self.source else self.path


NOWHERE = Origin("", 0, "")
"""The origin of a default."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, as one line for the operator."""

    origin: Origin
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


def refuse(faults: Iterable[Fault]) -> None:
    """Raise a ConfigError with the faults, if any, sorted by line.

    A fault in a value that is used several times is reported once.
    """
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: fault.origin.line)
    if ordered:
        raise ConfigError([str(fault) for fault in ordered])
