"""Faults of the operator's input and where they are. Faults are collected, so that one look at the
output is enough to repair a whole file.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from featherlb.model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a line of a file, or an option of the command line.

    `source` is the file's name as the operator gave it and `line` counts from 1; both are
    empty (zero) for the command line, whose `path` is the option with its value.
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
        """The same for the middle of a sentence about another origin."""
        return f"line {self.line}" if self.source else self.path


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, as one line for the operator."""

    origin: Origin
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


def refuse(faults: Iterable[Fault]) -> None:
    """Raise a ConfigError with the faults in the order of their lines, if there are any.

    A value that is used in several places has its fault reported once.
    """
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: fault.origin.line)
    if ordered:
        raise ConfigError([str(fault) for fault in ordered])
