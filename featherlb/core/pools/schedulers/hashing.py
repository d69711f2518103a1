"""Keyed hashes of flows and endpoints, for placement. BLAKE2 (RFC 7693) with a key: clients can't
predict which backend a source port leads to, and the result is the same in every process, on every
machine and in every release, none of which Python's `hash()` guarantees.
"""

from collections.abc import Callable
from hashlib import blake2b, blake2s
from struct import Struct, pack, unpack

from featherlb import model
from featherlb.core.pools.schedulers.base import NewFlow
from featherlb.model import TUPLE_FIELDS, HashField, HashPart

CLIENT = (HashPart(HashField.SRC),)
VIP = (HashPart(HashField.DST),)
FIVE_TUPLE = tuple(map(HashPart, TUPLE_FIELDS))
"""The parts of a flow that schedulers hash if the configuration names none."""

_WORD = 0xFFFFFFFF
INITIAL = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
MIXED = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
"""Constants of BLAKE2s (RFC 7693 sections 2.6, 2.7 and 3.2): the initial state, the order of a
block's words in each round, and the words of the state that are mixed."""

_FIVE_TUPLE_V4 = Struct("!IIHHB").pack
_PORTS_AND_PROTOCOL = Struct("!HHB").pack


class KeyedHash:
    """Bytes to integers of 64 bits.

    `purpose` separates the uses of one key (backends, flows): their hashes are unrelated.
    """

    __slots__ = ("_key", "_new")

    def __init__(self, key: bytes, purpose: bytes) -> None:
        subkey = blake2b(purpose, key=key, digest_size=blake2s.MAX_KEY_SIZE).digest()
        self._key = subkey
        # A copy of a keyed state costs half of setting up the key again.
        self._new = blake2s(key=subkey, digest_size=8).copy

    def __call__(self, data: bytes) -> int:
        state = self._new()
        state.update(data)
        return int.from_bytes(state.digest(), "big")

    def after_key(self) -> bytes:
        """BLAKE2s's chained state once it has taken the key: eight words of 32 bits, in the
        machine's order. A program in the kernel goes on from there (RFC 7693 section 3.2)."""
        block = unpack("<16I", self._key.ljust(64, b"\0"))
        parameters = 1 << 24 | 1 << 16 | len(self._key) << 8 | 8  # of 8 bytes
        chained = [INITIAL[0] ^ parameters, *INITIAL[1:]]
        v = [*chained, *INITIAL]
        v[12] ^= len(block) * 4
        for order in SIGMA:
            words = [block[at] for at in order]
            for place, (a, b, c, d) in enumerate(MIXED):
                for word, turn_d, turn_b in (
                    (words[2 * place], 16, 12),
                    (words[2 * place + 1], 8, 7),
                ):
                    v[a] = v[a] + v[b] + word & _WORD
                    v[d] = _rotated(v[d] ^ v[a], turn_d)
                    v[c] = v[c] + v[d] & _WORD
                    v[b] = _rotated(v[b] ^ v[c], turn_b)
        return pack("=8I", *(chained[at] ^ v[at] ^ v[at + 8] for at in range(8)))


def _rotated(word: int, bits: int) -> int:
    """Rotated to the right."""
    return word >> bits | word << 32 - bits & _WORD


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
