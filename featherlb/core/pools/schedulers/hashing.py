"""Keyed hashes of flows and endpoints, for placement. BLAKE2 (RFC 7693) with a key: clients can't
predict which backend a source port leads to, and the result is the same in every process, on every
machine and in every release, none of which Python's `hash()` guarantees.
"""

from hashlib import blake2b, blake2s
from struct import Struct

from featherlb import model
from featherlb.core.pools.schedulers.base import NewFlow

_FIVE_TUPLE_V4 = Struct("!IIHHB").pack
_PORTS_AND_PROTOCOL = Struct("!HHB").pack


class KeyedHash:
    """Bytes to integers of 64 bits.

    `purpose` separates the uses of one key (backends, flows): their hashes are unrelated.
    """

    __slots__ = ("_new",)

    def __init__(self, key: bytes, purpose: bytes) -> None:
        subkey = blake2b(purpose, key=key, digest_size=blake2s.MAX_KEY_SIZE).digest()
        # A copy of a keyed state costs half of setting up the key again.
        self._new = blake2s(key=subkey, digest_size=8).copy

    def __call__(self, data: bytes) -> int:
        state = self._new()
        state.update(data)
        return int.from_bytes(state.digest(), "big")


def client_bytes(flow: NewFlow) -> bytes:
    """The client's address; its length distinguishes the IP versions."""
    return flow.client.to_bytes(4 if flow.version == 4 else 16, "big")


def five_tuple_bytes(flow: NewFlow) -> bytes:
    """Both addresses, both ports, the protocol."""
    if flow.version == 4:
        return _FIVE_TUPLE_V4(flow.client, flow.vip, flow.client_port, flow.vip_port, flow.protocol)
    return b"".join(
        (
            flow.client.to_bytes(16, "big"),
            flow.vip.to_bytes(16, "big"),
            _PORTS_AND_PROTOCOL(flow.client_port, flow.vip_port, flow.protocol),
        )
    )


def endpoint_bytes(endpoint: model.Endpoint) -> bytes:
    """Address and port, in network byte order."""
    return endpoint.address.packed + endpoint.port.to_bytes(2, "big")
