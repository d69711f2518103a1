"""Keyed hashes of flows and endpoints, for placement. BLAKE2 (RFC 7693) with a key: clients can't
predict which backend a source port leads to, and the result is the same in every process, on every
machine and in every release, none of which Python's `hash()` guarantees.
"""

from collections.abc import Callable
from hashlib import blake2b, blake2s
from struct import Struct

from featherlb import model
from featherlb.core.pools.schedulers.base import NewFlow
from featherlb.model import TUPLE_FIELDS, HashField, HashPart

CLIENT = (HashPart(HashField.SRC),)
VIP = (HashPart(HashField.DST),)
FIVE_TUPLE = tuple(map(HashPart, TUPLE_FIELDS))
"""The parts of a flow that schedulers hash if the configuration names none."""

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


def bytes_with_key(
    parts: tuple[HashPart, ...], default: tuple[HashPart, ...]
) -> tuple[bytes, Callable[[NewFlow], bytes]]:
    """Like `bytes_of`, for parts that may have a key in datagrams. A flow without it is hashed by
    the other parts, or by the default ones if there is none."""
    key = next((part for part in parts if part.key), None)
    others = tuple(part for part in parts if part is not key)
    if key is None:
        return bytes_of(others)
    purpose, without_key = bytes_of(others or default)
    prefix = bytes_of(others)[1] if others else lambda _: b""

    def keyed_bytes(flow: NewFlow) -> bytes:
        found = getattr(flow, "key", None)
        if found is None:
            return b"\0" + without_key(flow)
        return b"".join((b"\1", prefix(flow), found))

    return b" ".join((purpose, b"and", key.key.rpartition("/")[2].encode())), keyed_bytes


def bytes_of(parts: tuple[HashPart, ...]) -> tuple[bytes, Callable[[NewFlow], bytes]]:
    """What distinguishes hashes of these parts from others (the purpose of a `KeyedHash`), and a
    function that returns the parts of a flow, in a form in which no two flows with different ones
    look alike. The order of the parts doesn't matter."""
    if parts == CLIENT:
        return b"client", client_bytes
    wanted = {part.field: part.prefix for part in parts}
    if wanted == dict.fromkeys(TUPLE_FIELDS):
        return b"flow", five_tuple_bytes
    prefix = wanted.get(HashField.SRC)

    def chosen_bytes(flow: NewFlow) -> bytes:
        size = 4 if flow.version == 4 else 16
        found = []
        if HashField.SRC in wanted:
            beyond = 0 if prefix is None else 8 * size - prefix
            found.append((flow.client >> beyond).to_bytes(size, "big"))
        if HashField.DST in wanted:
            found.append(flow.vip.to_bytes(size, "big"))
        if HashField.SPORT in wanted:
            found.append(flow.client_port.to_bytes(2, "big"))
        if HashField.DPORT in wanted:
            found.append(flow.vip_port.to_bytes(2, "big"))
        if HashField.PROTOCOL in wanted:
            found.append(flow.protocol.to_bytes(1, "big"))
        return b"".join(found)

    fields = [HashPart(field, wanted[field]) for field in HashField if field in wanted]
    return f"flow by {' '.join(map(str, fields))}".encode(), chosen_bytes


_SHOWN = {
    HashField.SRC: "the client's address",
    HashField.DST: "the VIP's address",
    HashField.SPORT: "the client's port",
    HashField.DPORT: "the VIP's port",
    HashField.PROTOCOL: "the protocol",
}


def shown_parts(parts: tuple[HashPart, ...]) -> str:
    """Subject and verb of a sentence about the hash of these parts."""
    if {part.field for part in parts} == set(TUPLE_FIELDS) and not any(one.prefix for one in parts):
        return "addresses, ports and protocol hash"
    words = [
        f"the client's network /{part.prefix}"
        if part.prefix is not None
        else part.key or _SHOWN[part.field]
        for part in parts
    ]
    return f"{' and '.join(words)} {'hashes' if len(words) == 1 else 'hash'}"


def endpoint_bytes(endpoint: model.Endpoint) -> bytes:
    """Address and port, in network byte order."""
    return endpoint.address.packed + endpoint.port.to_bytes(2, "big")
