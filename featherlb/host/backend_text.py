"""Backends as text, as the journal has them: an address, a protocol and a port or several, and for
some a source address. An instance compares its own with those of others.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from featherlb.model import Backend, Service
from featherlb.system import ipset


def texts_of(service: Service, backend: Backend) -> Iterator[str]:
    """A backend of this service: one text for each port or range of ports."""
    for endpoint in service.endpoints_of(backend):
        yield str(ipset.Entry(endpoint, service.protocol))


class Backends:
    """Backends as text, to be asked for what they have in common with others."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)
        self._ranges: dict[object, list[range]] = defaultdict(list)
        for text in self._texts:
            key, ports = _parts(text)
            if len(ports) > 1:
                self._ranges[key].append(ports)
        self._singles: dict[object, list[range]] | None = None

    def __contains__(self, text: str) -> bool:
        """Whether one of them has the port of that text, or one of its ports."""
        if text in self._texts:
            return True
        key, ports = _parts(text)
        if any(_overlap(ports, other) for other in self._ranges.get(key, ())):
            return True
        return len(ports) > 1 and any(_overlap(ports, one) for one in self._ports_of(key))

    def _ports_of(self, key: object) -> list[range]:
        if self._singles is None:
            self._singles = defaultdict(list)
            for text in self._texts:
                other, ports = _parts(text)
                self._singles[other].append(ports)
        return self._singles.get(key, [])


def common(ours: Iterable[str], theirs: Iterable[str]) -> frozenset[str]:
    """Those of ours that have a port in common with one of theirs."""
    others = Backends(theirs)
    return frozenset(text for text in ours if text in others)


def _parts(text: str) -> tuple[object, range]:
    """What identifies a host and protocol, and the ports (`ipset.Entry`)."""
    address, port, *peer = text.split(",")
    protocol, _, ports = port.partition(":")
    first, _, last = ports.partition("-")
    return (address, protocol, *peer), range(int(first), int(last or first) + 1)


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
