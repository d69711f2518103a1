"""Other nodes of a cluster."""

from enum import StrEnum


class PeerState(StrEnum):
    """How far the connection to a peer is."""

    CONNECTING = "connecting"
    """Not tried yet."""
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    SYNCHRONISED = "synchronised"
