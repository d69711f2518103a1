"""Code of users that featherlb runs."""

from dataclasses import dataclass
from enum import StrEnum


class CodeKind(StrEnum):
    """What it is for."""

    SCHEDULER = "scheduler"
    KEY = "key"
    HOOK = "hook"


@dataclass(frozen=True, slots=True)
class UserCode:
    """The text of a file, of which a name is used for this."""

    kind: CodeKind
    text: bytes
