"""Values of known types as bytes, and back. What comes back has the types that were declared,
whoever wrote it: unlike a pickle, it names no code.

A value is JSON, in which a dataclass is the list of its fields; the bytes objects in it follow,
one after the other, and the JSON has their lengths.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_LENGTH = struct.Struct("=I")
"""Of the JSON, in front of it."""
_ADDRESSES = {IPv4Address, IPv6Address}


class _Blobs:
    """The bytes objects of a value, in order."""

    def __init__(self, data: bytes = b"") -> None:
        self.parts: list[bytes] = []
        self._rest = memoryview(data)

    def put(self, part: bytes) -> int:
        self.parts.append(part)
        return len(part)

    def take(self, length: object) -> bytes:
        if type(length) is not int or not 0 <= length <= len(self._rest):
            raise ValueError("a length is wrong")
        part, self._rest = bytes(self._rest[:length]), self._rest[length:]
        return part

    @property
    def is_empty(self) -> bool:
        return not self._rest


_Encoder = Callable[[Any, _Blobs], object]
_Decoder = Callable[[Any, _Blobs], Any]
_Pair = tuple[_Encoder, _Decoder]


def dump(value: object, kinds: Any) -> bytes:
    """The bytes of a value of this type, or of one of these dataclasses."""
    blobs = _Blobs()
    text = json.dumps(_pair(kinds)[0](value, blobs)).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs.parts))


def load(data: bytes, kinds: Any) -> Any:
    """The inverse; ValueError if these are not the bytes of such a value."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        blobs = _Blobs(data[end:])
        value = _pair(kinds)[1](json.loads(data[_LENGTH.size : end]), blobs)
    except (struct.error, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not blobs.is_empty:
        raise ValueError("it is too long")
    return value


@cache
def _pair(kind: Any) -> _Pair:
    """How to encode and decode a type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union(parts)
    if origin in (tuple, frozenset):
        return _sequence(origin, parts)
    if origin in (dict, Mapping):
        return _mapping(parts)
    if is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda value, _: value.value, lambda data, _: kind(data)
    if kind is bytes:
        return lambda value, blobs: blobs.put(value), lambda data, blobs: blobs.take(data)
    if kind in (int, bool, str, NoneType):
        return lambda value, _: value, lambda data, _: _exactly(kind, data)
    if kind is float:
        return lambda value, _: value, lambda data, _: _number(data)
    raise TypeError(f"{kind} can't be sent")


def _exactly(kind: type, data: object) -> object:
    if type(data) is not kind:
        raise ValueError(f"{data!r:.40} is no {kind.__name__}")
    return data


def _number(data: object) -> float:
    if type(data) not in (int, float):
        raise ValueError(f"{data!r:.40} is no number")
    return float(data)  # type: ignore[arg-type]


def _list(data: object, length: int | None = None) -> list[Any]:
    if type(data) is not list or length not in (None, len(data)):
        raise ValueError("a list of another length, or none")
    return data


def _union(kinds: tuple[Any, ...]) -> _Pair:
    if set(kinds) == _ADDRESSES:
        return lambda value, _: str(value), lambda data, _: ip_address(_exactly(str, data))  # type: ignore[arg-type]
    if NoneType in kinds:
        rest = tuple(kind for kind in kinds if kind is not NoneType)
        encode, decode = _union(rest) if len(rest) > 1 else _pair(rest[0])
        return (
            lambda value, blobs: None if value is None else encode(value, blobs),
            lambda data, blobs: None if data is None else decode(data, blobs),
        )
    known = {kind.__name__: kind for kind in kinds}

    def encode_one(value: Any, blobs: _Blobs) -> object:
        kind: Any = type(value)
        return [kind.__name__, _pair(kind)[0](value, blobs)]

    def decode_one(data: Any, blobs: _Blobs) -> Any:
        name, content = _list(data, 2)
        return _pair(known[name])[1](content, blobs)

    return encode_one, decode_one


def _sequence(kind: type[Any], parts: tuple[Any, ...]) -> _Pair:
    if kind is tuple and (len(parts) != 2 or parts[1] is not Ellipsis):
        pairs = [_pair(part) for part in parts]
        return (
            lambda value, blobs: [
                pair[0](one, blobs) for pair, one in zip(pairs, value, strict=True)
            ],
            lambda data, blobs: tuple(
                pair[1](one, blobs)
                for pair, one in zip(pairs, _list(data, len(pairs)), strict=True)
            ),
        )
    encode, decode = _pair(parts[0])
    return (
        lambda value, blobs: [encode(one, blobs) for one in value],
        lambda data, blobs: kind(decode(one, blobs) for one in _list(data)),
    )


def _mapping(parts: tuple[Any, ...]) -> _Pair:
    encode, decode = _sequence(tuple, parts)
    return (
        lambda value, blobs: [encode(one, blobs) for one in value.items()],
        lambda data, blobs: dict(decode(one, blobs) for one in _list(data)),
    )


def _dataclass(kind: Any) -> _Pair:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    pairs = [_pair(hints[name]) for name in names]
    encoders = [(name, pair[0]) for name, pair in zip(names, pairs, strict=True)]
    decoders = [pair[1] for pair in pairs]

    def decode(data: Any, blobs: _Blobs) -> Any:
        values = zip(decoders, _list(data, len(decoders)), strict=True)
        return kind(*(one(value, blobs) for one, value in values))

    return lambda value, blobs: [one(getattr(value, name), blobs) for name, one in encoders], decode
