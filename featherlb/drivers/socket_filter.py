"""Socket filters (classic BPF, Documentation/networking/filter.rst): what a packet socket lets in.

Imports the standard library and `model`. A filter keeps the traffic of the interface that is none
of ours in the kernel, and shares ours out to the workers: both directions of a flow meet the one
that the client's address and port, or the port that a worker gave to the flow, select.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from featherlb.model import SOURCE_PORTS, Address, Datapath, Service, source_ports

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS."""
MAX_ADDRESSES = 400
"""Backends above which all packets are let in: the search would cost more than it saves."""
MAX_RANGE = 256
"""Ports of a VIP's range that are told from those that `full` NAT gives."""
WHOLE = 0x40000
"""Bytes of the packet that are let in: all."""

_LOAD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_HALF_X, _LOAD_BYTE_X = 0x48, 0x50
_HEADER_TO_X = 0xB1  # X = 4 * (byte & 15)
_VALUE_TO_X, _A_TO_X = 0x01, 0x07
_JUMP, _IF_EQUAL, _IF_AT_LEAST, _IF_SET = 0x05, 0x15, 0x35, 0x45
_ADD_X, _MULTIPLY, _MODULO, _SHIFT_RIGHT = 0x0C, 0x24, 0x94, 0x74
_RETURN = 0x06

_ANCILLARY = 0xFFFFF000  # SKF_AD_OFF
_PACKET_TYPE = _ANCILLARY + 4  # SKF_AD_PKTTYPE
_PACKET_HOST = 0

_ETHERNET = 14
_ICMP = {4: 1, 6: 58}
_FRAGMENT_HEADER = 44
_ICMP_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
_GOLDEN = 0x9E3779B1
"""2**32 divided by the golden ratio: consecutive addresses and ports are spread evenly (Knuth,
TAOCP 3, 6.4)."""


@dataclass(frozen=True, slots=True)
class Interest:
    """What a worker wants to see: packets to `vips`, from `backends`, and all ICMP errors.

    `sources` are the addresses that `full` NAT gives to packets, `vip_ports` the ports of VIPs that
    it could give as well.
    """

    worker: int
    workers: int
    vips: frozenset[Address] = frozenset()
    backends: frozenset[Address] = frozenset()
    sources: frozenset[Address] = frozenset()
    vip_ports: frozenset[int] = frozenset()

    def extended(self, services: Iterable[Service], addresses: frozenset[Address]) -> "Interest":
        """This, and the packets of these services; `addresses` are what a wildcard VIP stands for.

        What was of interest once stays so: flows of services and backends that leave go on.
        """
        raw = [service for service in services if service.datapath is Datapath.RAW]
        vips = [vip for service in raw for vip in service.vips]
        backends = [backend for service in raw for backend in service.backends]
        return replace(
            self,
            vips=self.vips
            | {vip.address for vip in vips if not vip.wildcard}
            | {
                address
                for vip in vips
                if vip.wildcard
                for address in addresses
                if address.version == vip.address.version
            },
            backends=self.backends | {backend.endpoint.address for backend in backends},
            sources=self.sources | {source for one in backends for source in one.sources},
            vip_ports=self.vip_ports
            | {
                port
                for vip in vips
                if vip.last_port - vip.first_port < MAX_RANGE
                for port in range(vip.first_port, vip.last_port + 1)
                if port in SOURCE_PORTS
            },
        )


class Program:
    """Instructions with labels for the places where jumps lead to, further down."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str]] = []
        self._labels: dict[str, int] = {}

    def do(self, code: int, value: int = 0) -> None:
        self._code.append((code, 0, 0, value))

    def go(self, label: str) -> None:
        self._code.append((_JUMP, 0, 0, label))

    def go_if(self, test: int, value: int, label: str) -> None:
        # Conditional jumps reach 255 instructions, others all.
        self._code.append((test, 0, 1, value))
        self.go(label)

    def go_unless(self, test: int, value: int, label: str) -> None:
        self._code.append((test, 1, 0, value))
        self.go(label)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        """As an array of struct sock_filter; ValueError if there are too many."""
        if len(self._code) > MAX_INSTRUCTIONS:
            raise ValueError(f"{len(self._code)} instructions")
        return b"".join(
            struct.pack(
                "=HBBI",
                code,
                true,
                false,
                self._labels[value] - at - 1 if isinstance(value, str) else value,
            )
            for at, (code, true, false, value) in enumerate(self._code)
        )


def build(family: int, interest: Interest) -> bytes:
    """The filter of a socket for frames of this address family, 4 or 6."""
    program = Program()
    program.do(_LOAD_BYTE, _PACKET_TYPE)
    program.go_unless(_IF_EQUAL, _PACKET_HOST, "none")
    _fragments_and_errors(program, family)
    vips, backends, sources = (
        sorted(int(address) for address in addresses if address.version == family)
        for addresses in (interest.vips, interest.backends, interest.sources)
    )
    if interest.workers > 1 and sources:
        _find(program, family, _destination(family), sources, "given?")
        program.go("not given")
        program.label("given?")
        _load_port(program, family, 2)
        program.go_unless(_IF_AT_LEAST, SOURCE_PORTS.start, "not given")
        program.go_if(_IF_AT_LEAST, SOURCE_PORTS.stop, "not given")
        for port in sorted(interest.vip_ports):
            program.go_if(_IF_EQUAL, port, "not given")
        own = source_ports(interest.worker, interest.workers)
        program.go_unless(_IF_AT_LEAST, own.start, "none")
        program.go_if(_IF_AT_LEAST, own.stop, "none")
        program.go("all")
        program.label("not given")
    _find(program, family, _destination(family), vips, "forward")
    if len(backends) <= MAX_ADDRESSES:
        _find(program, family, _source(family), backends, "reply")
        program.go("none")
    for label, port, address in (
        ("reply", 2, _destination(family)),
        ("forward", 0, _source(family)),
    ):
        program.label(label)
        if interest.workers == 1:
            program.go("all")
            continue
        _load_port(program, family, port)
        program.do(_A_TO_X)
        program.do(_LOAD, address + (12 if family == 6 else 0))
        program.do(_ADD_X)
        program.do(_MULTIPLY, _GOLDEN)
        program.do(_SHIFT_RIGHT, 16)
        program.do(_MODULO, interest.workers)
        program.go_if(_IF_EQUAL, interest.worker, "all")
        program.go("none")
    program.label("all")
    program.do(_RETURN, WHOLE)
    program.label("none")
    program.do(_RETURN, 0)
    return program.assemble()


def _source(family: int) -> int:
    return _ETHERNET + (12 if family == 4 else 8)


def _destination(family: int) -> int:
    return _ETHERNET + (16 if family == 4 else 24)


def _fragments_and_errors(program: Program, family: int) -> None:
    """Every worker gets them, but for first fragments: they don't say whose they are, or say it in
    depth."""
    if family == 4:
        program.do(_LOAD_HALF, _ETHERNET + 6)
        program.go_if(_IF_SET, 0x1FFF, "all")
        program.do(_LOAD_BYTE, _ETHERNET + 9)
        program.go_unless(_IF_EQUAL, _ICMP[4], "no error")
        program.do(_HEADER_TO_X, _ETHERNET)
        program.do(_LOAD_BYTE_X, _ETHERNET)
    else:
        # X is how much stands in front of the ports.
        program.do(_VALUE_TO_X, 0)
        program.do(_LOAD_BYTE, _ETHERNET + 6)
        program.go_unless(_IF_EQUAL, _FRAGMENT_HEADER, "no fragment")
        program.do(_LOAD_HALF, _ETHERNET + 42)
        program.go_if(_IF_SET, 0xFFF8, "all")
        program.do(_VALUE_TO_X, 8)
        program.go("no error")
        program.label("no fragment")
        program.go_unless(_IF_EQUAL, _ICMP[6], "no error")
        program.do(_LOAD_BYTE, _ETHERNET + 40)
    for kind in _ICMP_ERRORS[family]:
        program.go_if(_IF_EQUAL, kind, "all")
    program.label("no error")


def _load_port(program: Program, family: int, offset: int) -> None:
    """The source port (offset 0) or the destination port (2). An IPv6 packet's transport header is
    taken to follow at once."""
    if family == 4:
        program.do(_HEADER_TO_X, _ETHERNET)
        program.do(_LOAD_HALF_X, _ETHERNET + offset)
    else:
        program.do(_LOAD_HALF_X, _ETHERNET + 40 + offset)


def _find(program: Program, family: int, at: int, numbers: Sequence[int], label: str) -> None:
    """Go to `label` if the address at this offset is one of the numbers."""
    if family == 4:
        program.do(_LOAD, at)
        for number in numbers:
            program.go_if(_IF_EQUAL, number, label)
        return
    # The last word says most: addresses of one network have the others in common.
    tails: dict[int, set[int]] = {}
    for number in numbers:
        tails.setdefault(number & 0xFFFFFFFF, set()).add(number)
    if not tails:
        return
    program.do(_LOAD, at + 12)
    done = f"{label} {at} done"
    for tail in tails:
        program.go_if(_IF_EQUAL, tail, f"{label} {at} {tail}")
    program.go(done)
    for tail, whole in tails.items():
        program.label(f"{label} {at} {tail}")
        for number in sorted(whole):
            following = f"{label} {at} {number} not"
            for word in range(3):
                program.do(_LOAD, at + 4 * word)
                program.go_unless(_IF_EQUAL, number >> (96 - 32 * word) & 0xFFFFFFFF, following)
            program.go(label)
            program.label(following)
        program.go(done)
    program.label(done)
