"""What nodes send one another, on a connection with mutual TLS.

The node that dials sends a greeting, and the other answers with one, or with a refusal. From then
on the node that dialled announces its flows, and the other one sends heartbeats and asks for
copies. A frame is its length (32 bits, without itself), its kind (8 bits) and its content; numbers
are little-endian, as records are, which are in the byte order of the machine: nodes of another byte
order or another layout refuse one another.
"""

import json
import struct
import sys
from dataclasses import asdict, dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Any

from featherlb.core.flows.memory import LAYOUT
from featherlb.core.flows.record import RECORD_SIZE

VERSION = 1
"""Of this protocol."""
HEADER = struct.Struct("<IB")
LONGEST = 1 << 20
"""Bytes of a frame's content: whoever announces more is no node."""


class Frame(IntEnum):
    """Kinds of frames."""

    GREETING = 1
    REFUSAL = 2
    """Why the connection is refused, as a sentence."""
    FLOWS = 3
    """Announcements: whole records."""
    COPIED = 4
    """A part of a copy: whole records."""
    COPY_ENDS = 5
    COPY_WANTED = 6
    STATE = 7
    """The sender's `NodeState`; also a heartbeat."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """Who is speaking. `node` is the name in its certificate, too."""

    node: str
    version: int = VERSION
    layout: int = LAYOUT
    record: int = RECORD_SIZE
    byteorder: str = sys.byteorder

    def refusal(self, own: "Greeting") -> str:
        """Why these two can't be synchronised; empty if they can."""
        if self.node == own.node:
            return f"both nodes are called {self.node}: give each a name of its own"
        if number_of(self.node) == number_of(own.node):
            return f"the names {self.node} and {own.node} have one number: change one of them"
        for what, theirs, ours in (
            ("protocol version", self.version, own.version),
            ("record layout", (self.layout, self.record), (own.layout, own.record)),
            ("byte order", self.byteorder, own.byteorder),
        ):
            if theirs != ours:
                return f"node {self.node} has {what} {theirs}, and {own.node} has {ours}"
        return ""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node says of itself. `digest` is that of its configuration's services, `ready` whether
    it should get traffic."""

    digest: str
    ready: bool


class WireError(Exception):
    """The other end breaks the protocol."""


def number_of(node: str) -> int:
    """The number of a node in announcements: 32 bits, not 0."""
    return int.from_bytes(blake2b(node.encode(), digest_size=4).digest(), "big") or 1


def frame(kind: Frame, content: bytes = b"") -> bytes:
    """A frame as it is sent."""
    return HEADER.pack(len(content) + 1, kind) + content


def dump(message: Greeting | NodeState) -> bytes:
    """The content of a frame."""
    return json.dumps(asdict(message)).encode()


def load_greeting(content: bytes) -> Greeting:
    """A frame's content; WireError if it isn't one."""
    fields = _load(content)
    layout = {"node": str, "version": int, "layout": int, "record": int, "byteorder": str}
    return Greeting(**_checked(fields, layout))


def load_state(content: bytes) -> NodeState:
    """A frame's content; WireError if it isn't one."""
    return NodeState(**_checked(_load(content), {"digest": str, "ready": bool}))


def _load(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise WireError("it sends no JSON where some is due") from None


def _checked(fields: object, layout: dict[str, type]) -> dict[str, Any]:
    if not isinstance(fields, dict) or fields.keys() != layout.keys():
        raise WireError("it sends other fields than are due")
    for name, kind in layout.items():
        if type(fields[name]) is not kind:
            raise WireError(f"its {name} is no {kind.__name__}")
    return fields


class Reader:
    """Cuts what is received into frames."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> list[tuple[Frame, bytes]]:
        """The frames that are complete with this; WireError if one can't be."""
        self._received += data
        frames = []
        at = 0
        while len(self._received) - at >= HEADER.size:
            length, kind = HEADER.unpack_from(self._received, at)
            if not 0 < length <= LONGEST + 1:
                raise WireError(f"it sends a frame of {length} bytes")
            if kind not in _KINDS:
                raise WireError(f"it sends a frame of the unknown kind {kind}")
            end = at + HEADER.size - 1 + length
            if len(self._received) < end:
                break
            frames.append((Frame(kind), bytes(self._received[at + HEADER.size : end])))
            at = end
        del self._received[:at]
        return frames


_KINDS = frozenset(Frame)
