"""Socket filters (classic BPF, Documentation/networking/filter.rst): what a packet socket lets in.

A filter keeps the interface's other traffic out, and distributes ours to the workers: both
directions of a flow meet the worker that the client's address and port, or the flow's SNAT port,
select.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from featherlb.model import SOURCE_PORTS, Address, Service
from featherlb.model.shard import ROUNDS, Shard, folded
from featherlb.net.protocols import ETHERNET_HEADER, FRAGMENT_HEADER, ICMP, ICMP_ERRORS, ICMPV6

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS."""
ROOM = 2000
"""Addresses, and ports, that a filter can look for."""
MAX_RANGE = 256
"""Ports of a VIP's range that are told from those that `full` NAT gives."""
WHOLE = 0x40000
"""Bytes of the packet that are let in: all."""

_LOAD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_HALF_X, _LOAD_BYTE_X = 0x48, 0x50
_LOAD_CELL, _CELL_TO_X, _STORE, _STORE_X = 0x60, 0x61, 0x02, 0x03
_HEADER_TO_X = 0xB1  # X = 4 * (byte & 15)
_VALUE_TO_X, _A_TO_X, _VALUE = 0x01, 0x07, 0x00
_JUMP, _IF_EQUAL, _IF_AT_LEAST, _IF_SET = 0x05, 0x15, 0x35, 0x45
_ADD, _ADD_X, _SUBTRACT_X, _MULTIPLY = 0x04, 0x0C, 0x1C, 0x24
_AND, _OR_X, _XOR_X = 0x54, 0x4C, 0xAC
_SHIFT_LEFT, _SHIFT_RIGHT = 0x64, 0x74
_RETURN = 0x06
_CELLS = {"a": 0, "b": 1, "c": 2, "rotated": 3, "half": 4, "extension": 5}
"""Of the scratch memory."""
_LEAF = 8
"""Addresses that are searched for one after the other, when halving has come down to them."""

_ANCILLARY = 0xFFFFF000  # SKF_AD_OFF
_PACKET_TYPE = _ANCILLARY + 4  # SKF_AD_PKTTYPE
_PACKET_HOST = 0


@dataclass(frozen=True, slots=True)
class Interest:
    """What a worker wants to see: packets to `vips`, from `backends`, and all ICMP errors.

    `sources` are the addresses that `full` NAT gives to packets, `vip_ports` the ports of VIPs that
    it could give as well.
    """

    shard: Shard
    vips: frozenset[Address] = frozenset()
    backends: frozenset[Address] = frozenset()
    sources: frozenset[Address] = frozenset()
    vip_ports: frozenset[int] = frozenset()

    def extended(self, services: Iterable[Service], addresses: frozenset[Address]) -> "Interest":
        """This, and the packets of these services; `addresses` are what a wildcard VIP stands for.

        What was of interest once stays so, as long as there is room: flows of services and backends
        that leave go on.
        """
        new = self.of(services, addresses)
        both = replace(
            self,
            vips=self.vips | new.vips,
            backends=self.backends | new.backends,
            sources=self.sources | new.sources,
            vip_ports=self.vip_ports | new.vip_ports,
        )
        return next((one for one in (both, new) if one.fits), self)

    @property
    def fits(self) -> bool:
        """Whether a filter has room for all but the backends."""
        given = len(self.sources) + len(self.vip_ports) if self.tells_given else 0
        return len(self.vips) + given <= ROOM

    @property
    def tells_given(self) -> bool:
        """Whether a port that was given says whose a packet is."""
        return self.shard.workers > 1 and bool(self.sources)

    @property
    def fits_whole(self) -> bool:
        """Whether it has room for the backends, too."""
        return replace(self, vips=self.vips | self.backends).fits

    def of(self, services: Iterable[Service], addresses: frozenset[Address]) -> "Interest":
        """What the worker wants to see of these services, and nothing else."""
        raw = [service for service in services if service.datapath.takes_frames]
        vips = [vip for service in raw for vip in service.vips]
        backends = [backend for service in raw for backend in service.backends]
        return Interest(
            self.shard,
            vips=frozenset(vip.address for vip in vips if not vip.wildcard)
            | {
                address
                for vip in vips
                if vip.wildcard
                for address in addresses
                if address.version == vip.address.version
            },
            backends=frozenset(backend.endpoint.address for backend in backends),
            sources=frozenset(source for one in backends for source in one.sources),
            vip_ports=frozenset(
                port
                for vip in vips
                if vip.last_port - vip.first_port < MAX_RANGE
                for port in range(vip.first_port, vip.last_port + 1)
                if port in SOURCE_PORTS
            ),
        )


class Program:
    """Instructions with labels for the places where jumps lead to, further down."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str]] = []
        self._labels: dict[str, int] = {}
        self._names = 0

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

    def go_if_among(self, values: Sequence[int], label: str) -> None:
        """Go there if A is one of these few values."""
        for ahead in range(len(values), 0, -1):
            # To the last instruction here, over the last but one.
            self._code.append((_IF_EQUAL, ahead, 0, values[-ahead]))
        self._code.append((_JUMP, 0, 0, 1))
        self.go(label)

    def new_label(self) -> str:
        """A name that no other place has."""
        self._names += 1
        return f"label {self._names}"

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
    """The filter of a socket for frames of this address family, 4 or 6.

    Where it has no room for the backends it lets in all that isn't to a VIP. ValueError if it has
    none for the VIPs.
    """
    program = Program()
    program.do(_LOAD_BYTE, _PACKET_TYPE)
    program.go_unless(_IF_EQUAL, _PACKET_HOST, "none")
    _fragments_and_errors(program, family)
    vips, backends, sources = (
        sorted({_folded(address) for address in addresses if address.version == family})
        for addresses in (interest.vips, interest.backends, interest.sources)
    )
    shard = interest.shard
    if interest.tells_given:
        _load_address(program, family, _destination(family))
        _search(program, sources, "given?")
        program.go("not given")
        program.label("given?")
        _load_port(program, family, 2)
        program.go_unless(_IF_AT_LEAST, SOURCE_PORTS.start, "not given")
        program.go_if(_IF_AT_LEAST, SOURCE_PORTS.stop, "not given")
        _search(program, sorted(interest.vip_ports), "not given")
        program.go_unless(_IF_AT_LEAST, shard.ports.start, "none")
        program.go_if(_IF_AT_LEAST, shard.ports.stop, "none")
        program.go("all")
        program.label("not given")
    _load_address(program, family, _destination(family))
    _search(program, vips, "forward")
    if interest.fits_whole:
        _load_address(program, family, _source(family))
        _search(program, backends, "reply")
        program.go("none")
    for label, address, port in (
        ("reply", _destination(family), 2),
        ("forward", _source(family), 0),
    ):
        program.label(label)
        if shard.workers > 1:
            _load_address(program, family, address)
            program.do(_STORE, _CELLS["b"])
            _load_port(program, family, port)
            program.go("client")
    if shard.workers > 1:
        program.label("client")
        program.do(_SHIFT_LEFT, 16)
        program.do(_STORE, _CELLS["c"])
        _hash(program, shard)
        program.go_unless(_IF_EQUAL, shard.worker, "none")
    program.label("all")
    program.do(_RETURN, WHOLE)
    program.label("none")
    program.do(_RETURN, 0)
    return program.assemble()


def _hash(program: Program, shard: Shard) -> None:
    """The number of the worker for a client, `Shard.has` as a program: of what is in the cells b
    (the address) and c (the port, shifted)."""
    cells = _CELLS
    program.do(_VALUE, shard.start)
    program.do(_STORE, cells["a"])
    for word in "bc":
        program.do(_LOAD_CELL, cells[word])
        program.do(_ADD, shard.start)
        program.do(_STORE, cells[word])
    for changed, other, bits in ROUNDS:
        program.do(_LOAD_CELL, cells[other])
        program.do(_SHIFT_LEFT, bits)
        program.do(_A_TO_X)
        program.do(_LOAD_CELL, cells[other])
        program.do(_SHIFT_RIGHT, 32 - bits)
        program.do(_OR_X)
        program.do(_STORE, cells["rotated"])
        program.do(_LOAD_CELL, cells[changed])
        program.do(_CELL_TO_X, cells[other])
        program.do(_XOR_X)
        program.do(_CELL_TO_X, cells["rotated"])
        program.do(_SUBTRACT_X)
        program.do(_STORE, cells[changed])
    # The upper half of a product of 64 bits, out of two of the halves.
    program.do(_AND, 0xFFFF)
    program.do(_MULTIPLY, shard.workers)
    program.do(_SHIFT_RIGHT, 16)
    program.do(_STORE, cells["half"])
    program.do(_LOAD_CELL, cells["c"])
    program.do(_SHIFT_RIGHT, 16)
    program.do(_MULTIPLY, shard.workers)
    program.do(_CELL_TO_X, cells["half"])
    program.do(_ADD_X)
    program.do(_SHIFT_RIGHT, 16)


def _source(family: int) -> int:
    return ETHERNET_HEADER + (12 if family == 4 else 8)


def _destination(family: int) -> int:
    return ETHERNET_HEADER + (16 if family == 4 else 24)


def _fragments_and_errors(program: Program, family: int) -> None:
    """Every worker gets them, but for first fragments: they don't say whose they are, or say it in
    depth."""
    if family == 4:
        program.do(_LOAD_HALF, ETHERNET_HEADER + 6)
        program.go_if(_IF_SET, 0x1FFF, "all")
        program.do(_LOAD_BYTE, ETHERNET_HEADER + 9)
        program.go_unless(_IF_EQUAL, ICMP, "no error")
        program.do(_HEADER_TO_X, ETHERNET_HEADER)
        program.do(_LOAD_BYTE_X, ETHERNET_HEADER)
    else:
        # X is how much stands between the header and the ports.
        program.do(_VALUE_TO_X, 0)
        program.do(_LOAD_BYTE, ETHERNET_HEADER + 6)
        program.go_unless(_IF_EQUAL, FRAGMENT_HEADER, "no fragment")
        program.do(_LOAD_HALF, ETHERNET_HEADER + 42)
        program.go_if(_IF_SET, 0xFFF8, "all")
        program.do(_VALUE_TO_X, 8)
        program.go("no error")
        program.label("no fragment")
        program.go_unless(_IF_EQUAL, ICMPV6, "no error")
        program.do(_LOAD_BYTE, ETHERNET_HEADER + 40)
    for kind in ICMP_ERRORS[family]:
        program.go_if(_IF_EQUAL, kind, "all")
    program.label("no error")
    program.do(_STORE_X, _CELLS["extension"])


def _load_port(program: Program, family: int, offset: int) -> None:
    """The source port (offset 0) or the destination port (2). An IPv6 packet's transport header is
    taken to follow at once."""
    if family == 4:
        program.do(_HEADER_TO_X, ETHERNET_HEADER)
        program.do(_LOAD_HALF_X, ETHERNET_HEADER + offset)
    else:
        program.do(_CELL_TO_X, _CELLS["extension"])
        program.do(_LOAD_HALF_X, ETHERNET_HEADER + 40 + offset)


def _folded(address: Address) -> int:
    """As `_load_address` loads it: addresses that are taken for each other are let in for nothing,
    no more."""
    return folded(int(address) >> 64, int(address) & 0xFFFF_FFFF_FFFF_FFFF)


def _load_address(program: Program, family: int, at: int) -> None:
    """The address at this offset, folded."""
    program.do(_LOAD, at)
    if family == 6:
        for word in range(1, 4):
            program.do(_A_TO_X)
            program.do(_LOAD, at + 4 * word)
            program.do(_XOR_X)


def _search(program: Program, numbers: Sequence[int], label: str) -> None:
    """Go to `label` if A is one of the sorted numbers."""
    done = program.new_label()
    _halve(program, numbers, label, done)
    program.label(done)


def _halve(program: Program, numbers: Sequence[int], label: str, done: str) -> None:
    if len(numbers) <= _LEAF:
        program.go_if_among(numbers, label)
        program.go(done)
        return
    middle = len(numbers) // 2
    upper = program.new_label()
    program.go_if(_IF_AT_LEAST, numbers[middle], upper)
    _halve(program, numbers[:middle], label, done)
    program.label(upper)
    _halve(program, numbers[middle:], label, done)
