"""The program that drops most SYNs of refused clients in the kernel (`bpf/turnstile.c`), and its
maps. It is attached as `shield.py` attaches its own, and ends with this process."""

import struct
from collections.abc import Collection, Mapping
from contextlib import ExitStack

from featherlb.model import Address, Link, Vip
from featherlb.model.errors import HostError
from featherlb.system import ebpf, tc
from featherlb.system.shield import address_bytes, keys_of

_TURN = struct.Struct("=QQQ")
"""struct turn."""
NANOSECONDS = 1_000_000_000


class Turnstile:
    """The program, loaded; it runs where it is attached. Clients are addresses, of IPv6 the first
    one of a network of 64 bits; services have numbers from 1."""

    def __init__(self) -> None:
        """Load it. HostError if this host can't have it."""
        file = ebpf.read_object("turnstile")
        with ExitStack() as on_failure:
            self._maps: dict[str, ebpf.Map] = {}
            try:
                for name, shape in file.maps.items():
                    self._maps[name] = ebpf.create_map(shape, name)
                    on_failure.callback(self._maps[name].close)
            except OSError as error:
                raise HostError(f"the kernel refuses eBPF maps ({error.strerror})") from None
            self.program = ebpf.load(file, self._maps)["turnstile"]
            on_failure.pop_all()
        self._links: dict[int, tc.Link] = {}
        self._vips: dict[bytes, int] = {}

    def serve(self, vips: Mapping[Vip, int]) -> None:
        """These VIPs, none of them a wildcard, are of the services with these numbers; 0 is for one
        that refuses nobody here, although it lies within another one. HostError if they are too
        many."""
        wanted = {key: number for vip, number in vips.items() for key in keys_of(vip)}
        for key in self._vips.keys() - wanted.keys():
            self._maps["vips"].delete(key)
        try:
            for key, number in wanted.items():
                self._maps["vips"].update(key, struct.pack("=I", number))
        except OSError as error:
            raise HostError(f"the kernel takes no more VIPs ({error.strerror})") from None
        self._vips = wanted

    def add(self, service: int, client: Address, rate: float) -> bool:
        """Let so many SYNs a second of this client pass, and no more; False if there is no room."""
        turn = _TURN.pack(int(NANOSECONDS / rate), 0, 0)
        try:
            self._maps["turns"].update(_key(service, client), turn)
        except OSError:
            return False
        return True

    def remove(self, service: int, client: Address) -> None:
        self._maps["turns"].delete(_key(service, client))

    def dropped(self, service: int, client: Address) -> int:
        """SYNs of this client since it was added."""
        turn = self._maps["turns"].look_up(_key(service, client))
        return 0 if turn is None else int(_TURN.unpack(turn)[2])

    def attach(self, links: Collection[Link]) -> None:
        """Run at these links, and at no others. HostError if this kernel has no tcx."""
        tc.attach_at(self.program, links, self._links)

    def close(self) -> None:
        for one in (*self._links.values(), self.program, *self._maps.values()):
            one.close()


def _key(service: int, client: Address) -> bytes:
    return address_bytes(client) + struct.pack("=I", service)
