"""Reads captures (pcap and pcapng), and writes pcapng with a comment on each packet.

draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng; link types: tcpdump.org/linktypes.html.
"""

import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from featherlb.model.errors import ConfigError, HostError
from featherlb.net.protocols import ETHER_TYPES, ETHERNET_HEADER
from featherlb.system.state_file import open_to_write

MAGICS = {0xA1B2C3D4: 1e-6, 0xA1B23C4D: 1e-9}
"""Of pcap, with the unit of its fractions of seconds."""
SECTION, INTERFACE, SIMPLE_PACKET, PACKET = 0x0A0D0D0A, 1, 3, 6
"""Blocks of pcapng."""
BYTE_ORDER = 0x1A2B3C4D
END, COMMENT, NAME, FLAGS, TSRESOL, TSOFFSET = 0, 1, 2, 2, 9, 14
"""Options of pcapng."""

ETHERNET, NULL, RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 1, 0, 101, 108, 113, 228, 229, 276
"""Link types."""
TYPE_AT = {ETHERNET: (12, ETHERNET_HEADER), SLL: (14, 16), SLL2: (0, 20)}
"""By link type, where the type of the frame is, and where its content begins."""
BEGINNING = {NULL: 4, LOOP: 4, RAW: 0, IPV4: 0, IPV6: 0}
"""By link type without such a field, where the IP packet begins."""
TAGS = (0x8100, 0x88A8)
"""Types of frames with another type 4 bytes further on (IEEE 802.1Q)."""


@dataclass(frozen=True, slots=True)
class Captured:
    """An IP packet of a capture: seconds since the epoch, its bytes, and its length on the wire,
    which may be greater."""

    time: float
    data: bytes
    length: int


def read(path: Path) -> Iterator[Captured]:
    """The IP packets of a capture, in its order. A last one that is cut off, as a killed program
    leaves it, is left out. ConfigError if the file can't be read or is no capture."""
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([f"{path}: cannot read the capture: {reason}"]) from None
    if len(content) >= 24:
        for order in "<>":
            (magic,) = struct.unpack_from(f"{order}I", content)
            if magic in MAGICS:
                return _packets(_read_pcap(content, order, MAGICS[magic]))
        if struct.unpack_from(">I", content)[0] == SECTION:
            return _packets(_read_pcapng(content))
    raise ConfigError([f"{path}: this is no capture (expected pcap or pcapng)"])


_Frame = tuple[float, int, bytes, int]
"""Time, link type, bytes, and length on the wire."""


def _read_pcap(content: bytes, order: str, unit: float) -> Iterator[_Frame]:
    (link,) = struct.unpack_from(f"{order}I", content, 20)
    header = struct.Struct(f"{order}4I")
    at = 24
    while at + header.size <= len(content):
        seconds, fraction, captured, length = header.unpack_from(content, at)
        at += header.size
        if at + captured > len(content):
            return
        yield seconds + fraction * unit, link & 0xFFFF, content[at : at + captured], length
        at += captured


def _read_pcapng(content: bytes) -> Iterator[_Frame]:
    order = "<"
    interfaces: list[tuple[int, float, int]] = []
    at = 0
    now = 0.0
    while at + 12 <= len(content):
        if content[at : at + 4] == SECTION.to_bytes(4, "big"):
            little = content[at + 8 : at + 12] == BYTE_ORDER.to_bytes(4, "little")
            order = "<" if little else ">"
            interfaces = []
        kind, size = struct.unpack_from(f"{order}2I", content, at)
        if size < 12 or at + size > len(content):
            return
        body = content[at + 8 : at + size - 4]
        at += size
        if kind == INTERFACE and len(body) >= 8:
            interfaces.append(_interface(body, order))
        elif kind == PACKET and len(body) >= 20:
            number, high, low, captured, length = struct.unpack_from(f"{order}5I", body)
            if number < len(interfaces):
                link, unit, offset = interfaces[number]
                now = (high << 32 | low) * unit + offset
                yield now, link, body[20 : 20 + captured], length
        elif kind == SIMPLE_PACKET and interfaces and len(body) >= 4:
            (length,) = struct.unpack_from(f"{order}I", body)
            yield now, interfaces[0][0], body[4 : 4 + length], length


def _interface(body: bytes, order: str) -> tuple[int, float, int]:
    """Link type, unit of times in seconds, and what to add to them."""
    (link,) = struct.unpack_from(f"{order}H", body)
    unit, offset = 1e-6, 0
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(f"{order}2H", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == TSRESOL and value:
            exponent = value[0] & 0x7F
            unit = 2.0**-exponent if value[0] & 0x80 else 10.0**-exponent
        elif code == TSOFFSET and len(value) == 8:
            (offset,) = struct.unpack(f"{order}q", value)
        at += 4 + size + -size % 4
    return link, unit, offset


def _packets(frames: Iterable[_Frame]) -> Iterator[Captured]:
    """The IP packets in frames."""
    for time, link, data, length in frames:
        start = _start(link, data)
        if start is not None and len(data) - start >= 20:
            yield Captured(time, data[start:], length - start)


def _start(link: int, data: bytes) -> int | None:
    """Where the IP packet begins in a frame; None if it has none."""
    if link not in TYPE_AT:
        return BEGINNING.get(link)
    place, start = TYPE_AT[link]
    kind = int.from_bytes(data[place : place + 2], "big")
    while link == ETHERNET and kind in TAGS:
        place, start = place + 4, start + 4
        kind = int.from_bytes(data[place : place + 2], "big")
    return start if kind in ETHER_TYPES.values() else None


class Direction(IntEnum):
    """Of a packet at its interface (epb_flags)."""

    UNKNOWN = 0
    INBOUND = 1
    OUTBOUND = 2


class Writer:
    """Writes a capture of IP packets (pcapng), each with a comment."""

    def __init__(self, path: Path, interfaces: Sequence[str] = ("",)) -> None:
        """A new file that only this user may read, in place of another: packets have secrets.
        `interfaces` are names. HostError if the file can't be written, or isn't one."""
        self._path = path
        try:
            # Neither a device nor what a link of somebody else leads to.
            if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                raise HostError(f"cannot write {path}: it is not a regular file")
            self._file = open_to_write(path, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot write {path}: {(error.strerror or str(error)).lower()}"
            ) from None
        self.size = 0
        """Bytes written so far."""
        self._block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1))
        for name in interfaces:
            options = _option(NAME, name.encode()) + _option(END, b"") if name else b""
            self._block(INTERFACE, struct.pack("<HHI", RAW, 0, 0) + options)

    def write(
        self,
        packet: Captured,
        comment: str,
        interface: int = 0,
        direction: Direction = Direction.UNKNOWN,
    ) -> None:
        """Add a packet of this interface, by its number. HostError if the disk is full."""
        ticks = round(packet.time * 1e6)
        header = struct.pack(
            "<5I", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(packet.data), packet.length
        )
        options = _option(COMMENT, comment.encode())
        if direction:
            options += _option(FLAGS, struct.pack("<I", direction))
        options += _option(END, b"")
        self._block(PACKET, header + _padded(packet.data) + options)

    def flush(self) -> None:
        """Have everybody who reads the file see what has been written."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from None

    def _block(self, kind: int, body: bytes) -> None:
        size = len(body) + 12
        try:
            self._file.write(struct.pack("<2I", kind, size) + body + struct.pack("<I", size))
        except OSError as error:
            raise self._failure(error) from None
        self.size += size

    def _failure(self, error: OSError) -> HostError:
        return HostError(f"cannot write {self._path}: {(error.strerror or str(error)).lower()}")


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    """To a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)
