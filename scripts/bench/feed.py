"""`python -m scripts.bench.feed FLOWS SECONDS`: the packet processor alone, in one process.

Prints one line of JSON for `scripts.bench.core`, which runs it. Packets are handed over in batches
through an iterator that runs in C, so what is measured is the processor and one Python call a
packet; the cost of that call is measured by itself. Time is this thread's CPU time, so that others
on the machine cost nothing but cache.
"""

import json
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address
from itertools import repeat
from pathlib import Path
from statistics import median

import featherlb
from featherlb.core.flows.flight_recorder import FlightRecorder, bytes_for
from featherlb.core.flows.memory import anonymous
from featherlb.core.path.balancer import Balancer
from featherlb.core.pools.schedulers import names
from featherlb.model import (
    Backend,
    Endpoint,
    Hook,
    Protocol,
    Service,
    SynCookies,
    Timeouts,
    Vip,
)

BATCH = 1024
SPACING = 64
"""Bytes from one packet in the buffer to the next."""
HEADERS = struct.Struct("!BBHHHBBHIIHHIIBBHHH")
"""IPv4 and TCP without options (RFC 791 section 3.1, RFC 9293 section 3.1), in one go."""
SYN, ACK = 0x02, 0x10
VIP, VIP_PORT = 0xC0000201, 80
BACKENDS = 16
FIRST_BACKEND, BACKEND_PORT = 0x0AFF0000, 8080
PORTS_PER_CLIENT = 60_000
STRIDE = 611_953
"""A prime: steps of this length visit all flows in an order that no cache foresees."""
RECORDS = 65_536
"""Of the flight recorder, as by default."""
OPENED = 4
"""Batches of new flows for each scheduler."""

AT_ONCE = 32
"""Packets that the driver receives per system call."""
PLACES = range(0, BATCH * SPACING, SPACING)
OFFSETS = [
    memoryview(array("q", range(first * SPACING, (first + AT_ONCE) * SPACING, SPACING)))
    for first in range(0, BATCH, AT_ONCE)
]


@dataclass
class Timing:
    """Nanoseconds a packet (median of batches) by operation; `memory` is the growth in bytes
    of the process's resident set by its flows, `resident` all of it."""

    compiled: bool
    flows: int
    memory: int = 0
    resident: int = 0
    nanoseconds: dict[str, float] = field(default_factory=dict)


class Bench:
    """A balancer with flows, and a buffer from which it is fed."""

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray(BATCH * SPACING)
        self.balancer = Balancer(
            memory=anonymous(capacity),
            secret=bytes(range(32)),
            hash_key=b"",
            cookie_key=bytes(16),
            timeouts=Timeouts(),
            recorder=FlightRecorder(memoryview(bytearray(bytes_for(RECORDS)))),
        )
        self.balancer.attach(self.buffer)
        self.members = bytearray(capacity)
        """The backend of each flow."""
        self._lead = 0.0

    @property
    def now(self) -> float:
        return time.monotonic() + self._lead

    def apply(self, scheduler: str) -> None:
        backends = tuple(
            Backend(Endpoint(IPv4Address(FIRST_BACKEND + i), BACKEND_PORT)) for i in range(BACKENDS)
        )
        vip = Vip(IPv4Address(VIP), VIP_PORT, VIP_PORT)
        service = Service(
            "bench", Protocol.TCP, (vip,), backends, scheduler, syn_cookies=SynCookies.OFF
        )
        self.balancer.apply([service])

    def forward(self, flows: Iterable[int], flags: int) -> None:
        """Put a packet from the client of each flow into the buffer."""
        for offset, flow in zip(PLACES, flows, strict=True):
            self._write(offset, *client(flow), VIP, VIP_PORT, flags)

    def reply(self, flows: Iterable[int], flags: int) -> None:
        """Put a packet from the backend of each flow into the buffer."""
        for offset, flow in zip(PLACES, flows, strict=True):
            backend = FIRST_BACKEND + self.members[flow]
            self._write(offset, backend, BACKEND_PORT, *client(flow), flags)

    def _write(
        self, offset: int, source: int, source_port: int, target: int, port: int, flags: int
    ) -> None:
        # The core updates checksums incrementally, so they need not be valid.
        ip = (0x45, 0, HEADERS.size, 0, 0x4000, 64, Protocol.TCP, 0, source, target)
        tcp = (source_port, port, 1000, 2000, 0x50, flags, 65535, 0, 0)
        HEADERS.pack_into(self.buffer, offset, *ip, *tcp)

    def feed(self, hook: Hook, length: int = HEADERS.size) -> float:
        """Handle the buffer's packets; returns nanoseconds per packet."""
        lengths = memoryview(array("q", [length] * AT_ONCE))
        rest = (repeat(length), repeat(int(hook)), repeat(0), repeat(self.now))
        begin = time.thread_time_ns()
        for offsets in OFFSETS:
            self.balancer.expect_packets(offsets, lengths, AT_ONCE)
            deque(map(self.balancer.handle_packet, offsets, *rest), maxlen=0)
        return (time.thread_time_ns() - begin) / BATCH

    def remember(self, flows: Iterable[int]) -> None:
        """Note the backends of flows whose first packets have just been translated."""
        for offset, flow in zip(PLACES, flows, strict=True):
            self.members[flow] = self.buffer[offset + 19]

    def fill(self, flows: int) -> None:
        """Establish flows 0, 1, ..."""
        self.apply("round-robin")
        for first in range(0, flows, BATCH):
            batch = range(first, first + BATCH)
            self.forward(batch, SYN)
            self.feed(Hook.PREROUTING)
            self.remember(batch)
            self.reply(batch, SYN | ACK)
            self.feed(Hook.POSTROUTING)
            self.forward(batch, ACK)
            self.feed(Hook.PREROUTING)

    def pass_time(self, seconds: float) -> float:
        """Let time pass and flows expire; nanoseconds a flow."""
        self._lead += seconds
        before = self.balancer.flows.count
        begin = time.thread_time_ns()
        while self.balancer.handle_timer(self.now):
            pass
        return (time.thread_time_ns() - begin) / (before - self.balancer.flows.count)

    def check(self, packets: int) -> None:
        """RuntimeError unless all packets so far, except empty ones, were translated."""
        counted = self.balancer.views.statistics().translated
        if counted != packets:
            raise RuntimeError(f"{counted} of {packets} packets were translated")


def client(flow: int) -> tuple[int, int]:
    """The client's address and port of a flow."""
    return 0x0A000001 + flow // PORTS_PER_CLIENT, 1024 + flow % PORTS_PER_CLIENT


def resident() -> int:
    """The resident set of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def repeat_for(seconds: float, once: Callable[[], float]) -> list[float]:
    """Results of `once` (nanoseconds a packet) until its packets took so long; twice at least."""
    results: list[float] = []
    while len(results) < 2 or sum(results) * BATCH < seconds * 1e9:
        results.append(once())
    return results


def measure(flows: int, seconds: float) -> Timing:
    """Measure with (about) so many established flows; each operation for some seconds."""
    flows = -(-flows // BATCH) * BATCH
    timing = Timing(featherlb.COMPILED, flows)
    before = resident()
    bench = Bench(flows + OPENED * BATCH)
    bench.fill(flows)
    timing.resident = resident()
    timing.memory = timing.resident - before
    packets = 3 * flows
    position = 0

    def some() -> list[int]:
        nonlocal position
        position += BATCH
        return [i * STRIDE % flows for i in range(position, position + BATCH)]

    def forward() -> float:
        bench.forward(some(), ACK)
        return bench.feed(Hook.PREROUTING)

    def reply() -> float:
        bench.reply(some(), ACK)
        return bench.feed(Hook.POSTROUTING)

    timing.nanoseconds["the call alone"] = median(
        repeat_for(seconds / 10, lambda: bench.feed(Hook.PREROUTING, length=0))
    )
    for name, once in (("forward", forward), ("reply", reply)):
        results = repeat_for(seconds, once)
        packets += len(results) * BATCH
        timing.nanoseconds[f"established, {name}"] = median(results)

    expiry = []
    for scheduler in names():
        bench.apply(scheduler)
        results = []
        for first in range(flows, flows + OPENED * BATCH, BATCH):
            bench.forward(range(first, first + BATCH), SYN)
            results.append(bench.feed(Hook.PREROUTING))
        packets += OPENED * BATCH
        timing.nanoseconds[f"new flow, {scheduler}"] = median(results)
        expiry.append(bench.pass_time(Timeouts().half_open + 1))
    timing.nanoseconds["expiry of a flow"] = median(expiry)
    bench.check(packets)
    return timing


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1]), float(sys.argv[2])))))
