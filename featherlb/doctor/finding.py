"""What the doctor says."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """It stops traffic, or keeps featherlb from starting."""
    WARNING = "warning"
    """It slows traffic, loses some of it, or may stop it."""
    NOTE = "note"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and the command that mends it; empty where no command can.

    `place` is the host to run it on; empty for this one.
    """

    severity: Severity
    message: str
    command: str = ""
    place: str = ""


def error(message: str, command: str = "", place: str = "") -> Finding:
    return Finding(Severity.ERROR, message, command, place)


def warning(message: str, command: str = "", place: str = "") -> Finding:
    return Finding(Severity.WARNING, message, command, place)


def note(message: str, command: str = "", place: str = "") -> Finding:
    return Finding(Severity.NOTE, message, command, place)


def refusal(problem: Exception) -> Finding:
    """What `featherlb up` would say; its sentence holds the command between backticks."""
    quoted = re.search(r"`([^`]+)`", str(problem))
    return error(str(problem), quoted[1] if quoted else "")
