"""Socket filters: what a packet socket lets in.

A filter keeps the interface's other traffic out, and distributes ours to the workers: both
directions of a flow meet the worker that the client's address and port, or the flow's SNAT port,
select.
"""

from collections.abc import Sequence

from featherlb.datapaths.raw.interest import Interest
from featherlb.model import ALL_SOURCE_PORTS, Address
from featherlb.model.shard import ROUNDS, WORD, Shard, folded
from featherlb.net.protocols import ETHERNET_HEADER, FRAGMENT_HEADER, ICMP, ICMP_ERRORS, ICMPV6
from featherlb.system import bpf

WHOLE = 0x40000
"""Bytes of the packet that are let in: all."""

_CELLS = {"a": 0, "b": 1, "c": 2, "rotated": 3, "half": 4, "extension": 5}
"""Of the scratch memory."""
_LEAF = 8
"""Addresses that are searched for one after the other, when halving has come down to them."""


def build(family: int, interest: Interest) -> bytes:
    """The filter of a socket for frames of this address family, 4 or 6.

    Where it has no room for the backends it lets in all that isn't to a VIP. ValueError if it has
    none for the VIPs.
    """
    program = bpf.Program()
    program.do(bpf.LOAD_BYTE, bpf.PACKET_TYPE)
    program.go_unless(bpf.IF_EQUAL, bpf.PACKET_HOST, "none")
    _fragments_and_errors(program, family)
    vips, backends, sources = (
        sorted({_folded(address) for address in addresses if address.version == family})
        for addresses in (interest.vips, interest.backends, interest.sources)
    )
    shard = interest.shard
    prefix = shard.prefix4 if family == 4 else shard.prefix6
    if interest.tells_given:
        _load_address(program, family, _destination(family))
        _search(program, sources, "given?")
        program.go("not given")
        program.label("given?")
        _load_port(program, family, 2)
        for given, own in zip(ALL_SOURCE_PORTS, shard.all_ports, strict=True):
            other = program.new_label()
            program.go_unless(bpf.IF_AT_LEAST, given.start, other)
            program.go_if(bpf.IF_AT_LEAST, given.stop, other)
            _search(program, sorted(interest.vip_ports.intersection(given)), "not given")
            program.go_unless(bpf.IF_AT_LEAST, own.start, "none")
            program.go_if(bpf.IF_AT_LEAST, own.stop, "none")
            program.go("all")
            program.label(other)
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
            _load_address(program, family, address, prefix)
            program.do(bpf.STORE, _CELLS["b"])
            if not prefix:
                _load_port(program, family, port)
            program.go("client")
    if shard.workers > 1:
        program.label("client")
        if prefix:
            program.do(bpf.VALUE, 0)
        program.do(bpf.SHIFT_LEFT, 16)
        program.do(bpf.STORE, _CELLS["c"])
        _hash(program, shard)
        program.go_unless(bpf.IF_EQUAL, shard.worker, "none")
    program.label("all")
    program.do(bpf.RETURN, WHOLE)
    program.label("none")
    program.do(bpf.RETURN, 0)
    return program.assemble()


def _hash(program: bpf.Program, shard: Shard) -> None:
    """The number of the worker for a client, `Shard.has` as a program: of what is in the cells b
    (the address) and c (the port, shifted)."""
    cells = _CELLS
    program.do(bpf.VALUE, shard.start)
    program.do(bpf.STORE, cells["a"])
    for word in "bc":
        program.do(bpf.LOAD_CELL, cells[word])
        program.do(bpf.ADD, shard.start)
        program.do(bpf.STORE, cells[word])
    for changed, other, bits in ROUNDS:
        program.do(bpf.LOAD_CELL, cells[other])
        program.do(bpf.SHIFT_LEFT, bits)
        program.do(bpf.A_TO_X)
        program.do(bpf.LOAD_CELL, cells[other])
        program.do(bpf.SHIFT_RIGHT, 32 - bits)
        program.do(bpf.OR_X)
        program.do(bpf.STORE, cells["rotated"])
        program.do(bpf.LOAD_CELL, cells[changed])
        program.do(bpf.CELL_TO_X, cells[other])
        program.do(bpf.XOR_X)
        program.do(bpf.CELL_TO_X, cells["rotated"])
        program.do(bpf.SUBTRACT_X)
        program.do(bpf.STORE, cells[changed])
    # The upper half of a product of 64 bits, out of two of the halves.
    program.do(bpf.AND, 0xFFFF)
    program.do(bpf.MULTIPLY, shard.workers)
    program.do(bpf.SHIFT_RIGHT, 16)
    program.do(bpf.STORE, cells["half"])
    program.do(bpf.LOAD_CELL, cells["c"])
    program.do(bpf.SHIFT_RIGHT, 16)
    program.do(bpf.MULTIPLY, shard.workers)
    program.do(bpf.CELL_TO_X, cells["half"])
    program.do(bpf.ADD_X)
    program.do(bpf.SHIFT_RIGHT, 16)


def _source(family: int) -> int:
    return ETHERNET_HEADER + (12 if family == 4 else 8)


def _destination(family: int) -> int:
    return ETHERNET_HEADER + (16 if family == 4 else 24)


def _fragments_and_errors(program: bpf.Program, family: int) -> None:
    """Every worker gets them, but for first fragments: they don't say whose they are, or say it in
    depth."""
    if family == 4:
        program.do(bpf.LOAD_HALF, ETHERNET_HEADER + 6)
        program.go_if(bpf.IF_SET, 0x1FFF, "all")
        program.do(bpf.LOAD_BYTE, ETHERNET_HEADER + 9)
        program.go_unless(bpf.IF_EQUAL, ICMP, "no error")
        program.do(bpf.HEADER_TO_X, ETHERNET_HEADER)
        program.do(bpf.LOAD_BYTE_X, ETHERNET_HEADER)
    else:
        # X is how much stands between the header and the ports.
        program.do(bpf.VALUE_TO_X, 0)
        program.do(bpf.LOAD_BYTE, ETHERNET_HEADER + 6)
        program.go_unless(bpf.IF_EQUAL, FRAGMENT_HEADER, "no fragment")
        program.do(bpf.LOAD_HALF, ETHERNET_HEADER + 42)
        program.go_if(bpf.IF_SET, 0xFFF8, "all")
        program.do(bpf.VALUE_TO_X, 8)
        program.go("no error")
        program.label("no fragment")
        program.go_unless(bpf.IF_EQUAL, ICMPV6, "no error")
        program.do(bpf.LOAD_BYTE, ETHERNET_HEADER + 40)
    for kind in ICMP_ERRORS[family]:
        program.go_if(bpf.IF_EQUAL, kind, "all")
    program.label("no error")
    program.do(bpf.STORE_X, _CELLS["extension"])


def _load_port(program: bpf.Program, family: int, offset: int) -> None:
    """The source port (offset 0) or the destination port (2). An IPv6 packet's transport header is
    taken to follow at once."""
    if family == 4:
        program.do(bpf.HEADER_TO_X, ETHERNET_HEADER)
        program.do(bpf.LOAD_HALF_X, ETHERNET_HEADER + offset)
    else:
        program.do(bpf.CELL_TO_X, _CELLS["extension"])
        program.do(bpf.LOAD_HALF_X, ETHERNET_HEADER + 40 + offset)


def _folded(address: Address) -> int:
    """As `_load_address` loads it: addresses that are taken for each other are let in for nothing,
    no more."""
    return folded(int(address) >> 64, int(address) & 0xFFFF_FFFF_FFFF_FFFF)


def _load_address(program: bpf.Program, family: int, at: int, prefix: int = 0) -> None:
    """The address at this offset, folded; of the network with these first bits, if they are
    given."""
    words = 1 if family == 4 else 4
    size = 32 * words
    network = (1 << size) - (1 << size - (prefix or size))
    for word in range(words):
        if word:
            program.do(bpf.A_TO_X)
        program.do(bpf.LOAD, at + 4 * word)
        mask = network >> size - 32 * (word + 1) & WORD
        if mask != WORD:
            program.do(bpf.AND, mask)
        if word:
            program.do(bpf.XOR_X)


def _search(program: bpf.Program, numbers: Sequence[int], label: str) -> None:
    """Go to `label` if A is one of the sorted numbers."""
    done = program.new_label()
    _halve(program, numbers, label, done)
    program.label(done)


def _halve(program: bpf.Program, numbers: Sequence[int], label: str, done: str) -> None:
    if len(numbers) <= _LEAF:
        program.go_if_among(numbers, label)
        program.go(done)
        return
    middle = len(numbers) // 2
    upper = program.new_label()
    program.go_if(bpf.IF_AT_LEAST, numbers[middle], upper)
    _halve(program, numbers[:middle], label, done)
    program.label(upper)
    _halve(program, numbers[middle:], label, done)
