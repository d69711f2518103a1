"""Single values: from YAML scalars or command-line words to typed values.

Nothing is converted silently: text is not a number, a number is not text, a boolean is neither.
Each reader raises ValueError with a text for the operator: the offending value, then what was
expected.
"""

import difflib
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import TypeVar
from urllib.parse import urlsplit

from featherlb.config.expression import Condition
from featherlb.config.types import AUTO, Automatic, BackendKey, Host, NetworkFile
from featherlb.core.pools.keys import BUILT_IN
from featherlb.core.pools.schedulers import canonical_name, is_file_reference
from featherlb.model import (
    LAST_PORT,
    MAPPED,
    TUPLE_FIELDS,
    Address,
    CheckType,
    Datapath,
    Driver,
    Endpoint,
    HashField,
    HashPart,
    Health,
    NatMode,
    Network,
    OnBackendDown,
    Protocol,
    Rate,
    Refusal,
    Role,
    StatusRange,
    Sync,
    SynCookies,
    Vip,
    ranges_of,
    split_host_port,
    split_host_ports,
)
from featherlb.model.fault import FaultKind

T = TypeVar("T")

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_SECONDS = 720 * 3600.0
_DURATION = "a duration such as 500ms, 30s, 5m or 1h, at most 720h"
_PREFIXES = {str(length): length for length in range(33)}
"""Of IPv4."""
_LABEL = "letters, digits, `.`, `_`, `/` and `-`, up to 63"
_LONGEST_SHOWN = 60
_MOST_LISTED = 10


def wrong_type(value: object, expected: str) -> ValueError:
    """The error for a value whose type is not what `expected` describes."""
    match value:
        case None:
            found = "the value is missing"
        case bool():
            found = f"{str(value).lower()} is a boolean"
        case int() | float():
            found = f"{_number(value)} is a number"
        case str():
            found = f"{quote(value)} is text"
        case list():
            found = "this is a list"
        case _:
            found = "this is a mapping"
    return ValueError(f"{found} (expected {expected})")


def quote(text: str) -> str:
    """Text in quotes, on one line and shortened."""
    return ascii(text) if len(text) <= _LONGEST_SHOWN else ascii(text[:_LONGEST_SHOWN]) + "…"


def few(words: Iterable[str]) -> str:
    """Words in a list; of many, the first ones."""
    every = list(words)
    more = len(every) - _MOST_LISTED
    return ", ".join(every[:_MOST_LISTED]) + (f" and {more:,} more" if more > 0 else "") or "none"


def _number(value: float) -> str:
    """A number, shortened."""
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant; empty if there is none."""
    return next(iter(difflib.get_close_matches(word.lower(), known, n=1)), "")


def integer(low: int, high: int) -> Callable[[object], int]:
    """A reader of integers from `low` to `high`."""
    expected = f"an integer from {low} to {high}"

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type(value, expected)
        if not low <= value <= high:
            size = "small" if value < low else "large"
            raise ValueError(f"{_number(value)} is too {size} (expected {expected})")
        return value

    return read


def boolean(value: object) -> bool:
    """`true` or `false`, and no other spelling."""
    if not isinstance(value, bool):
        raise wrong_type(value, "true or false")
    return value


def text(value: object, expected: str = "text, in quotes if it looks like a number") -> str:
    """One line of printable text."""
    if not isinstance(value, str):
        raise wrong_type(value, expected)
    if not value:
        raise ValueError(f"the text is empty (expected {expected})")
    if not value.isprintable():
        raise ValueError(f"{quote(value)} contains unprintable characters")
    return value


def hash_key(value: object) -> str:
    """Text that fits the schedulers' hashes: up to 64 bytes of UTF-8."""
    key = text(value)
    if len(key.encode()) > 64:
        raise ValueError(f"{quote(key)} is too long (expected up to 64 bytes)")
    return key


def name(value: object) -> str:
    """A name for commands, logs and metrics."""
    word = text(value)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", word):
        raise ValueError(
            f"{quote(word)} is not a valid name (expected up to 63 letters, digits, '.', '_' and"
            " '-', a letter or digit first)"
        )
    return word


def one_of(choices: Mapping[str, T]) -> Callable[[object], T]:
    """A reader of words that stand for the values of `choices`."""
    expected = " or ".join(choices)

    def read(value: object) -> T:
        word = text(value, expected)
        if word not in choices:
            close = closest(word, choices)
            hint = f", did you mean '{close}'?" if close else ""
            raise ValueError(f"{quote(word)} is unknown{hint} (expected {expected})")
        return choices[word]

    return read


def scheduler(value: object) -> str:
    """The canonical name of a scheduler, from its name or an alias."""
    return canonical_name(text(value, "the name of a scheduler"))


def hash_part(value: object) -> HashPart:
    """A part of a flow that is hashed: a field, `src/24`, or a key in datagrams, by its word or as
    `./keys.py:name`."""
    expected = f"{', '.join(TUPLE_FIELDS)}, src/PREFIX, {', '.join(BUILT_IN)}, or FILE.py:NAME"
    word = text(value, expected)
    match = re.fullmatch(r"src/([0-9]{1,3})", word)
    if match and 1 <= int(match[1]) <= 128:
        return HashPart(HashField.SRC, int(match[1]))
    if word in BUILT_IN or is_file_reference(word):
        return HashPart(HashField.PAYLOAD, key=word)
    try:
        return {str(field): HashPart(field) for field in TUPLE_FIELDS}[word]
    except KeyError:
        raise ValueError(f"{quote(word)} is no part of a flow (expected {expected})") from None


def code(value: object) -> str:
    """A function in a user's file, as `./hooks.py:name`."""
    expected = "FILE.py:NAME, such as ./hooks.py:opened"
    word = text(value, expected)
    if not is_file_reference(word):
        raise ValueError(f"{quote(word)} names no function of a file (expected {expected})")
    return word


def labels(value: object) -> dict[str, str]:
    """A backend's labels, such as `{zone: a}`."""
    expected = "a mapping such as {zone: a, rack: r7}"
    if not isinstance(value, dict):
        raise wrong_type(value, expected)
    for part in (*value, *value.values()):
        word = text(part, f"{expected}, of {_LABEL}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", word):
            raise ValueError(f"{quote(word)} is no part of a label (expected {_LABEL})")
    return value


def some_labels(value: object) -> dict[str, str]:
    """Labels, at least one."""
    found = labels(value)
    if not found:
        raise ValueError("there is no label (expected a mapping such as {zone: a})")
    return found


def condition(value: object) -> Condition | None:
    """A condition on metrics."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type(value, "a condition such as rate(packets(result='dropped')) > 100")
    return Condition.parse(value)


def duration(value: object) -> float:
    """Seconds, from a plain number or from text with a unit."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong_type(value, _DURATION)
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)", value)
        if match is None:
            raise ValueError(f"{quote(value)} is not a duration (expected {_DURATION})")
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        seconds = value
    if not 0 < seconds <= _LONGEST_SECONDS:
        shown = quote(value) if isinstance(value, str) else _number(value)
        size = "long" if seconds > _LONGEST_SECONDS else "short"
        raise ValueError(f"{shown} is too {size} (expected {_DURATION})")
    return float(seconds)


def address(value: object) -> Address:
    """An IP address, without a zone."""
    word = text(value, "an IP address")
    try:
        if "%" not in word:
            return ip_address(word)
    except ValueError:
        pass
    raise ValueError(f"{quote(word)} is not an IP address")


def network(value: object) -> Network:
    """A network such as `10.0.0.0/8`, or an address, which is a network of its own."""
    word = text(value, "a network such as 10.0.0.0/8")
    right = None
    if re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?", word):
        with suppress(ValueError):
            return ip_network(word)
        with suppress(ValueError):
            right = ip_network(word, strict=False)
    if right is None:
        raise ValueError(f"{quote(word)} is not a network (expected one such as 10.0.0.0/8)")
    raise ValueError(f"{quote(word)} has host bits set (expected {right})")


def network_ranges(word: str) -> list[tuple[int, int]]:
    """The addresses of a network, as `NetworkSet` has them; ValueError as `network`. Lists have
    hundreds of thousands of networks of IPv4, most of them well written: those take no time."""
    host, slash, length = word.partition("/")
    with suppress(OSError, KeyError, ValueError):
        first = int.from_bytes(socket.inet_pton(socket.AF_INET, host))
        bits = 32 - _PREFIXES[length] if slash else 0
        if not first & (1 << bits) - 1:
            return [(MAPPED | first, MAPPED | first + (1 << bits) - 1)]
    return list(ranges_of(network(word)))


def clients(value: object) -> Network | NetworkFile:
    """A network, or `{file: PATH}` with one on each line."""
    expected = "a network such as 10.0.0.0/8, or {file: PATH}"
    if isinstance(value, dict):
        if list(value) != ["file"]:
            raise ValueError(f"this mapping is no list of clients (expected {expected})")
        return NetworkFile(text(value["file"], "the path of a file"))
    if not isinstance(value, str):
        raise wrong_type(value, expected)
    return network(value)


def rate(value: object) -> Rate:
    """A rate such as `50/s`, `600/m` or `1000/h`."""
    expected = "a rate such as 50/s, 600/m or 1000/h"
    word = text(value, expected)
    match = re.fullmatch(r"([0-9]{1,7})/(s|m|h)", word)
    if match is None or not 1 <= int(match[1]) <= 1_000_000:
        raise ValueError(f"{quote(word)} is not a rate (expected {expected}, at most 1000000)")
    return Rate(int(match[1]), match[2])


def max_flows(value: object) -> object:
    """The short form of `max_flows`, a number, as a mapping."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"limit": value}
    if not isinstance(value, dict):
        raise wrong_type(value, "a number of flows, or a mapping with limit and prefix")
    return value


def max_new(value: object) -> object:
    """The short form of `max_new`, a rate, as a mapping."""
    if isinstance(value, str):
        return {"rate": value}
    if not isinstance(value, dict):
        raise wrong_type(value, "a rate such as 50/s, or a mapping with rate, burst and prefix")
    return value


def host(value: object) -> Host:
    """An IP address or a host name (RFC 1123 section 2.1, underscores allowed)."""
    word = text(value, "an IP address or a host name")
    labels = word.removesuffix(".").split(".")
    # No top-level domain is a number, so such a name is a mistyped address.
    if ":" in word or labels[-1].isdecimal():
        return address(word)
    label = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
    if len(word) > 253 or not all(re.fullmatch(label, each) for each in labels):
        raise ValueError(f"{quote(word)} is neither an IP address nor a host name")
    return word


def user(value: object) -> str:
    """The name of a user of this host, as useradd(8) allows it."""
    word = text(value, "the name of a user")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", word):
        raise ValueError(f"{quote(word)} is not the name of a user")
    return word


def directory(value: object) -> str:
    """The absolute path of a directory."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise wrong_type(value, "an absolute path, as /etc/featherlb/cluster")
    return value


def host_name(value: object) -> str:
    """A host name (RFC 1123 section 2.1, underscores allowed), in lower case and without a dot at
    its end."""
    found = host(value)
    if not isinstance(found, str):
        raise ValueError(f"{found} is an address (expected a host name)")
    return found.removesuffix(".").lower()


def backend(value: object) -> BackendKey:
    """`HOST:PORT`, `HOST:LOW-HIGH` or `HOST`, where the host may be a name or an IPv6 address in
    brackets."""
    hostname, port, last_port = split_host_ports(text(value, "HOST:PORT"))
    return host(hostname), port, last_port


def endpoint(value: object) -> Endpoint:
    """`IP:PORT` or `[IPV6]:PORT`."""
    return Endpoint.parse(text(value, "IP:PORT"))


def token(value: object) -> str:
    """A secret that fits in an HTTP header and is hard to guess."""
    word = text(value)
    if not re.fullmatch(r"[!-~]{16,256}", word):
        raise ValueError(
            "invalid token (expected 16 to 256 letters, digits and symbols, no spaces)"
        )
    return word


def vip(value: object) -> Vip:
    """`IP:PORT`, `[IPV6]:PORT`, or either with a range of ports such as `8000-8010`, or with `*`
    for all ports."""
    word = text(value, "IP:PORT")
    if word.endswith(":*"):
        word = f"{word.removesuffix('*')}1-{LAST_PORT}"
    match = re.fullmatch(r"(.*:[0-9]+)-([^:]*)", word)
    hostname, first = split_host_port(match[1] if match else word)
    last = split_host_port(f"[{hostname}]:{match[2]}")[1] if match else first
    if last < first:
        raise ValueError(f"{quote(word)} is a descending range (expected IP:LOW-HIGH)")
    return Vip(address(hostname), first, last)


def http_method(value: object) -> str:
    """A method of HTTP, such as `GET`."""
    word = text(value, "a method such as GET")
    if not re.fullmatch(r"[A-Z]{1,20}", word):
        raise ValueError(f"{quote(word)} is not a method (expected one such as GET or HEAD)")
    return word


def http_path(value: object) -> str:
    """A path of HTTP, with its query if it has one (RFC 9112 section 3.2.1)."""
    word = text(value, "a path such as /health")
    if not re.fullmatch(r"/[!-~]*", word):
        raise ValueError(f"{quote(word)} is not a path (expected one such as /health)")
    return word


def http_host(value: object) -> str:
    """The value of a Host header: a name or an address, optionally with a port."""
    word = text(value, "a name such as www.example.org")
    try:
        parts = urlsplit(f"//{word}")
        if parts.netloc == word and "@" not in word and parts.port != 0:
            host(parts.hostname or "")
            return word
    except ValueError:
        pass
    raise ValueError(f"{quote(word)} is not a host (expected a name such as www.example.org)")


def http_status(value: object) -> StatusRange:
    """A status code of HTTP, or a range of them such as `200-399`."""
    expected = "a status such as 200, or a range such as 200-399"
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    word = text(value, expected)
    match = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", word)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"{quote(word)} is not a status (expected {expected})")
    return StatusRange(int(match[1]), int(match[2] or match[1]))


def payload(value: object) -> str:
    """Bytes as text: a character of U+0000 to U+00FF for each."""
    if not isinstance(value, str):
        raise wrong_type(value, "text, in quotes if it looks like a number")
    if not value.isascii() and max(value) > "\xff":
        raise ValueError(
            f"{quote(value)} contains characters that are not bytes"
            ' (expected text such as "\\x01ping")'
        )
    if len(value) > 1400:
        raise ValueError(f"{quote(value)} is too long (expected at most 1400 bytes)")
    return value


port = integer(1, 65535)
burst = integer(1, 1_000_000)
prefix = integer(0, 128)
weight = integer(0, 65535)
percentage = integer(0, 100)
max_connections = integer(1, 100_000_000)
protocol = one_of({str(choice): choice for choice in Protocol})
nat = one_of({str(choice): choice for choice in NatMode})
on_backend_down = one_of({str(choice): choice for choice in OnBackendDown})
sync = one_of({str(choice): choice for choice in Sync})
syn_cookies = one_of({str(choice): choice for choice in SynCookies})
check_type = one_of({str(choice): choice for choice in CheckType})
refusal = one_of({str(choice): choice for choice in Refusal})
role = one_of({str(choice): choice for choice in Role})
fault_kind = one_of({str(choice): choice for choice in FaultKind})
initial_health = one_of({str(choice): choice for choice in (Health.UP, Health.DOWN)})
datapath: Callable[[object], Datapath | Automatic] = one_of(
    {**{str(choice): choice for choice in Datapath}, AUTO: AUTO}
)
driver = one_of({str(choice): choice for choice in Driver})
strategy = one_of({choice: canonical_name(choice) for choice in ("roundrobin", "random", "iphash")})
"""The strategies of the Go featherlb, as names of schedulers."""
