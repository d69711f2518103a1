"""Clients that services keep refusing: when the kernel drops most of their SYNs.

Workers tell which clients they have refused time and again since they were last asked, twice a
second. The program (`system/turnstile.py`) drops the SYNs of those for as long as they come, except
for as many as the worker may have to let in. Where there can be no such program, workers refuse
all.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featherlb.datapaths.rules.gate import SLACK
from featherlb.model import Address, Protocol, Service, Vip, addressed_vips
from featherlb.model.errors import HostError
from featherlb.model.reason import Reason
from featherlb.system import rtnetlink
from featherlb.system.turnstile import Turnstile
from featherlb.worker.protocol import Outcomes

log = logging.getLogger("featherlb")

LEAST = 100.0
"""SYNs a second that get to the worker of any client."""
STAY = 10.0
"""Seconds without a dropped SYN after which a client is forgotten."""

_Client = tuple[str, Address]
"""A client of a service."""


@dataclass(slots=True)
class _Turn:
    """A client whose SYNs are dropped: the number of the service there, why it is refused, how many
    have been dropped, and when that was noticed last."""

    number: int
    reason: Reason
    dropped: int
    busy: float


class RefusedClients:
    """Has the kernel drop the SYNs of clients, and counts them."""

    def __init__(self) -> None:
        self.dropped: Counter[tuple[str, Reason]] = Counter()
        """By service and reason."""
        self._program: Turnstile | None = None
        self._services: Sequence[Service] = ()
        self._turns: dict[_Client, _Turn] = {}
        self._missing = False

    async def observe(self, outcomes: Sequence[Outcomes], services: Sequence[Service]) -> None:
        """Act on what the workers have refused since the last call."""
        found = {
            (one.service, one.client): one.reason for each in outcomes for one in each.insistent
        }
        if self._missing or not (found or self._turns):
            return
        try:
            await asyncio.to_thread(self._adjust, found, services)
        except HostError as error:
            log.info("SYNs of refused clients get to the workers: %s", str(error).split("\n")[0])
            log.debug("%s", error)
            self._missing = True
            self.close()

    def close(self) -> None:
        if self._program is not None:
            self._program.close()
            self._program = None
        self._turns = {}

    # Blocking

    def _adjust(self, found: Mapping[_Client, Reason], services: Sequence[Service]) -> None:
        if self._program is None:
            self._program = Turnstile()
        now = time.monotonic()
        self._count(now)
        # Others may be refused by other services.
        changed = services != self._services
        for client, turn in list(self._turns.items()):
            if changed or now - turn.busy > STAY:
                self._program.remove(turn.number, client[1])
                del self._turns[client]
        if changed:
            own = {one.address.ip for one in rtnetlink.addresses()}
            self._program.serve(numbered(services, own))
            self._services = services
        for number, service in enumerate(services, 1):
            for client in [
                one for one in found.keys() - self._turns.keys() if one[0] == service.name
            ]:
                if service.protocol is Protocol.TCP and self._program.add(
                    number, client[1], passing(service)
                ):
                    self._turns[client] = _Turn(number, found[client], 0, now)
        links = [one for one in rtnetlink.links().values() if one.carries_frames]
        self._program.attach(links if self._turns else ())

    def _count(self, now: float) -> None:
        """Add up what has been dropped since the last time."""
        assert self._program is not None
        for (service, client), turn in self._turns.items():
            more = self._program.dropped(turn.number, client) - turn.dropped
            if more:
                turn.dropped += more
                turn.busy = now
                self.dropped[service, turn.reason] += more


def passing(service: Service) -> float:
    """How many SYNs a second of a refused client get to the worker: more than it may open."""
    return max([LEAST, *(SLACK * one.rate for one in service.admission.max_new)])


def numbered(services: Sequence[Service], addresses: set[Address]) -> dict[Vip, int]:
    """The VIPs of the services, which have the numbers from 1; no wildcards, which stand for these
    `addresses` of this host. Those of UDP are none's."""
    numbers = {service.name: number for number, service in enumerate(services, 1)}
    return {
        vip: numbers[service.name]
        for service, vip in addressed_vips(services, Protocol.TCP, addresses)
    }
