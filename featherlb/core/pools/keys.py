"""Keys in datagrams, by which hash schedulers place new flows: built-in ones by a word, users' by
the reference to a file."""

from collections.abc import Callable
from typing import Any

from featherlb.core.pools.guard import Guard
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import QUIC_KEY
from featherlb.net import payload_keys

BUILT_IN: dict[str, Callable[[bytes], bytes | None]] = {
    "dns-name": payload_keys.dns_name,
    "sip-call-id": payload_keys.sip_call_id,
    "radius-user": payload_keys.radius_user,
    QUIC_KEY: payload_keys.quic_destination,
}
_user_keys: dict[str, "UserKey"] = {}


class KeyedFlow(NewFlow):
    """A flow of datagrams with the `payload` of the first one, and the `key` in it; None if it has
    none."""

    __slots__ = ("key", "payload")

    def __init__(self, *fields: int, payload: bytes) -> None:
        super().__init__(*fields)
        self.payload = payload
        self.key: bytes | None = None


class UserKey:
    """A user's function `key(flow, payload)`, which returns bytes, text, a number, or None."""

    def __init__(
        self, name: str, function: Callable[[NewFlow, bytes], Any], clock: Callable[[], float]
    ) -> None:
        self.guard = Guard(f"the key {name}", function, clock)

    def __call__(self, flow: KeyedFlow) -> bytes | None:
        found = self.guard(flow, flow.payload)
        match found:
            case None | bytes():
                return found
            case str():
                return found.encode("utf-8", "surrogatepass")
            case bool():
                pass
            case int() if -(1 << 127) <= found < 1 << 127:
                return found.to_bytes(16, "big", signed=True)
        self.guard.reject(found, "not bytes, text, a number or None")
        return None


def register(
    name: str, function: Callable[[NewFlow, bytes], Any], clock: Callable[[], float]
) -> None:
    """Have a user's function as the key of this name, in place of an earlier one."""
    _user_keys[name] = UserKey(name, function, clock)


def key_of(name: str) -> Callable[[KeyedFlow], bytes | None]:
    """The function that finds a key; another object once it is registered again. ValueError if it
    has not been loaded."""
    built_in = BUILT_IN.get(name)
    if built_in is not None:
        return lambda flow: built_in(flow.payload)
    if name not in _user_keys:
        raise ValueError(f"the key '{name}' has not been loaded")
    return _user_keys[name]


def identity_of(name: str) -> object:
    """What changes when the key of this name is registered again."""
    return BUILT_IN.get(name) or _user_keys.get(name)
