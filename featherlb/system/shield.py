"""The program that answers SYNs with cookies in the kernel (`bpf/shield.c`), and its maps.

It is attached by links of the kernel that nothing pins: they end with this process, so nothing of
it can stay behind. That takes Linux 6.6 (tcx); elsewhere the workers answer.
"""

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from featherlb.model import Address, Link, Vip
from featherlb.model.errors import HostError
from featherlb.net.addresses import words_of
from featherlb.system import ebpf, tc

PREFIX_BITS = 128
"""Of an address. 16 more are the port's."""


NOT_SCALED = 15


class Offer(NamedTuple):
    """What answers offer: the MSS in bytes, 0 where there are none, and the window scale, -1 for
    none."""

    size: int
    scale: int


class Shield:
    """The program, loaded; it runs where it is attached."""

    def __init__(self, key: bytes) -> None:
        """Load it, with the workers' `cookie_key`. HostError if this host can't have it."""
        file = ebpf.read_object("shield")
        with ExitStack() as on_failure:
            self._maps: dict[str, ebpf.Map] = {}
            try:
                for name, shape in file.maps.items():
                    self._maps[name] = ebpf.create_map(shape, name)
                    on_failure.callback(self._maps[name].close)
            except OSError as error:
                raise HostError(f"the kernel refuses eBPF maps ({error.strerror})") from None
            self.program = ebpf.load(file, self._maps)["shield"]
            on_failure.pop_all()
        self._maps["keys"].update(bytes(4), struct.pack("=QQ", *struct.unpack("<QQ", key)))
        self._links: dict[int, tc.Link] = {}
        self._vips: dict[bytes, Offer] = {}

    @property
    def interfaces(self) -> Collection[int]:
        """Where it is attached."""
        return self._links.keys()

    def serve(self, vips: Mapping[Vip, Offer]) -> None:
        """Answer the SYNs to these VIPs, none of them a wildcard; an MSS of 0 is for a VIP that
        isn't answered, although it lies within another one. HostError if they are too many."""
        wanted = {key: offer for vip, offer in vips.items() for key in keys_of(vip)}
        for key in self._vips.keys() - wanted.keys():
            self._maps["vips"].delete(key)
        for key, offer in wanted.items():
            if self._vips.get(key) != offer:
                scale = NOT_SCALED if offer.scale < 0 else offer.scale
                value = scale << 16 | offer.size if offer.size else 0
                try:
                    self._maps["vips"].update(key, struct.pack("=I", value))
                except OSError as error:
                    self._vips = {}
                    raise HostError(f"the kernel takes no more VIPs ({error.strerror})") from None
        self._vips = wanted

    def attach(self, links: Collection[Link]) -> None:
        """Run at these links, and at no others. HostError if this kernel has no tcx."""
        tc.attach_at(self.program, links, self._links)

    def answered(self) -> int:
        """SYNs since the program was loaded."""
        value = self._maps["answered"].look_up(bytes(4)) or b""
        return sum(count for (count,) in struct.iter_unpack("=Q", value))

    def close(self) -> None:
        for one in (*self._links.values(), self.program, *self._maps.values()):
            one.close()


def keys_of(vip: Vip) -> Iterator[bytes]:
    """The VIP's keys in the map: its ports as few prefixes of their bits."""
    address = address_bytes(vip.address)
    if vip.all_ports:
        yield struct.pack("=I16sH", PREFIX_BITS, address, 0)
        return
    port, after = vip.first_port, vip.last_port + 1
    while port < after:
        # The largest block that begins here and ends within the range.
        size = port & -port or 1 << 16
        while port + size > after:
            size >>= 1
        bits = 16 - (size.bit_length() - 1)
        yield struct.pack("=I16s", PREFIX_BITS + bits, address) + port.to_bytes(2, "big")
        port += size


def address_bytes(address: Address) -> bytes:
    """IPv4 in IPv6's mapped form."""
    return struct.pack(">QQ", *words_of(address))
