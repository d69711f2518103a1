"""A program that looks at SYNs to VIPs in the kernel, and its maps: what `shield.py` and
`turnstile.py` have in common.

It is attached by links of the kernel that nothing pins: they end with this process, so nothing of
it can stay behind. That takes Linux 6.6 (tcx).
"""

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack

from featherlb.model import Address, Link, Vip
from featherlb.model.errors import HostError
from featherlb.net.addresses import words_of
from featherlb.system import ebpf, tc

PREFIX_BITS = 128
"""Of an address. 16 more are the port's."""


class VipProgram:
    """The program of this name, loaded; it runs where it is attached. Its map `vips` has a number
    for each VIP."""

    def __init__(self, name: str) -> None:
        """Load it. HostError if this host can't have it."""
        file = ebpf.read_object(name)
        with ExitStack() as on_failure:
            self.maps: dict[str, ebpf.Map] = {}
            try:
                for map_name, shape in file.maps.items():
                    self.maps[map_name] = ebpf.create_map(shape, map_name)
                    on_failure.callback(self.maps[map_name].close)
            except OSError as error:
                raise HostError(f"the kernel refuses eBPF maps ({error.strerror})") from None
            self.program = ebpf.load(file, self.maps)[name]
            on_failure.pop_all()
        self._links: dict[int, tc.Link] = {}
        self._numbers: dict[bytes, int] = {}

    def put(self, vips: Mapping[Vip, int]) -> None:
        """Replace the numbers of VIPs, none of which is a wildcard. HostError if they are too
        many."""
        wanted = {key: number for vip, number in vips.items() for key in keys_of(vip)}
        for key in self._numbers.keys() - wanted.keys():
            self.maps["vips"].delete(key)
        for key, number in wanted.items():
            if self._numbers.get(key) != number:
                try:
                    self.maps["vips"].update(key, struct.pack("=I", number))
                except OSError as error:
                    self._numbers = {}
                    raise HostError(f"the kernel takes no more VIPs ({error.strerror})") from None
        self._numbers = wanted

    def attach(self, links: Collection[Link]) -> None:
        """Run at these links, and at no others. HostError if this kernel has no tcx."""
        tc.attach_at(self.program, links, self._links)

    def close(self) -> None:
        for one in (*self._links.values(), self.program, *self.maps.values()):
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
