"""Findings of the doctor."""

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
    """Worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and the command that fixes it; empty if no command can.

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
    """What `featherlb up` would say; the command is in backticks in its sentence."""
    quoted = re.findall(r"`([^`]+)`", str(problem))
    # Sentences also quote configuration, such as `nat: full`, and options of other programs.
    command = next((text for text in quoted if re.match(r"[a-z][\w-]*( |$)", text)), "")
    return error(str(problem), command)
