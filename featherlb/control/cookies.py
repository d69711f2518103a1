"""SYN cookies: when the kernel answers SYNs, in place of the workers.

A worker that sees a flood answers at once. The supervisor hears of it within a tick, and attaches
the program that makes the same cookies (`system/shield.py`) until the flood is over. Where there
can be no such program, the workers go on alone.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from featherlb.control.events import Events
from featherlb.control.workers import Workers
from featherlb.core.path.cookies import offered_size, threshold
from featherlb.model import EVERYBODY, Address, Protocol, Service, SynCookies, Vip
from featherlb.model.errors import HostError
from featherlb.system import rtnetlink
from featherlb.system.shield import Shield
from featherlb.worker.protocol import Outcomes, SetShield

log = logging.getLogger("featherlb")


@dataclass(frozen=True, slots=True)
class CookieView:
    """How SYNs are answered: `flooded` says whether some worker sees a flood, `shielded` whether
    the kernel answers, which has `answered` so many so far. If it can't, `missing` says why."""

    flooded: bool = False
    shielded: bool = False
    answered: int = 0
    missing: str = ""


class CookieShield:
    """Raises and lowers the shield."""

    def __init__(self, workers: Workers, events: Events) -> None:
        self.key = secrets.token_bytes(16)
        """The workers' `cookie_key`."""
        self.message = SetShield(False)
        """What a new worker has to know."""
        self.view = CookieView()
        self._workers = workers
        self._events = events
        self._shield: Shield | None = None
        self._missing = ""
        self._vips: dict[Vip, int] = {}
        self._limit = 0.0
        self._answered = self._returned = 0
        self._asked = 0.0
        self._flooded = False

    async def open(self, max_flows: int, half_open: float) -> None:
        """Load the program; `half_open` is that timeout in seconds."""
        # As many SYNs a second without their cookies as would keep a worker at cookies.
        self._limit = threshold(max_flows) / 2 / half_open
        try:
            self._shield = await asyncio.to_thread(Shield, self.key)
        except HostError as error:
            self._lacks(error)

    async def observe(self, outcomes: Sequence[Outcomes], services: Sequence[Service]) -> None:
        """Act on what the workers see now."""
        flooded = any(one.flooded for one in outcomes)
        if flooded != self._flooded:
            self._flooded = flooded
            if flooded:
                by = "workers" if self._shield is None else "the kernel"
                text = f"SYN flood: {by} answer{'s' if self._shield else ''} with cookies"
                self._events.emit("syn-flood", text, logging.WARNING)
            else:
                self._events.emit("syn-flood-over", "workers see no SYN flood any more")
        if self._shield is not None:
            continuing = self._is_continuing(sum(one.returned for one in outcomes))
            try:
                await self._adjust(services, flooded or continuing)
            except HostError as error:
                self._vips = {}
                self._lacks(error)
        self.view = CookieView(flooded, bool(self._vips), self._answered, self._missing)

    def close(self) -> None:
        if self._shield is not None:
            self._shield.close()
            self._shield = None

    def _is_continuing(self, returned: int) -> bool:
        """Whether the program has answered many SYNs of late whose cookies did not come back."""
        assert self._shield is not None
        now = time.monotonic()
        answered = self._shield.answered()
        unreturned = answered - self._answered - max(0, returned - self._returned)
        seconds, self._asked = now - self._asked, now
        self._answered, self._returned = answered, returned
        return unreturned > self._limit * seconds

    async def _adjust(self, services: Sequence[Service], flooded: bool) -> None:
        """Answer SYNs to the VIPs of those services that want it now. HostError if the kernel can't
        do that."""
        vips = await asyncio.to_thread(self._find_vips, services, flooded)
        if bool(vips) != bool(self._vips):
            # Workers must know of cookies before there are any, and of the last ones.
            self.message = SetShield(bool(vips))
            with suppress(HostError):  # a successor hears of it when it starts
                await self._workers.apply(self.message)
        await asyncio.to_thread(self._attach, vips)
        self._missing = ""

    def _find_vips(self, services: Sequence[Service], flooded: bool) -> dict[Vip, int]:
        wildcards = any(vip.wildcard for service in services for vip in service.vips)
        own = rtnetlink.addresses() if wildcards else []
        return vips_to_answer(services, flooded, {one.address.ip for one in own})

    def _attach(self, vips: dict[Vip, int]) -> None:
        assert self._shield is not None
        if vips != self._vips:
            self._shield.serve(vips)
        if vips or self._vips:
            links = [one for one in rtnetlink.links().values() if one.carries_frames]
            self._shield.attach(links if vips else ())
        self._vips = vips

    def _lacks(self, error: HostError) -> None:
        missing, _, more = str(error).partition("\n")
        if missing != self._missing:
            log.info("SYN cookies are made by workers, not in the kernel: %s", missing)
            if more:
                log.debug("%s", error)
        self._missing = missing
        self.view = replace(self.view, missing=self._missing)


def vips_to_answer(
    services: Sequence[Service], flooded: bool, addresses: Collection[Address]
) -> dict[Vip, int]:
    """The VIPs whose SYNs are to be answered, each with the MSS to offer; no wildcards, which stand
    for these `addresses` of this host. An MSS of 0 takes a VIP out of another one's ports or
    addresses."""
    found: dict[Vip, int] = {}
    # What names an address comes before what stands for all of them.
    for wildcard in (True, False):
        for service in services:
            if service.protocol is not Protocol.TCP:
                continue
            answered = _is_answered(service, flooded)
            for vip in service.vips:
                if vip.wildcard is not wildcard:
                    continue
                version = vip.address.version
                size = offered_size(service.mss, version) if answered else 0
                for address in addresses if wildcard else (vip.address,):
                    if address.version == version:
                        found[Vip(address, vip.first_port, vip.last_port)] = size
    answered_at = {vip.address for vip, size in found.items() if size}
    return {vip: size for vip, size in found.items() if vip.address in answered_at}


def _is_answered(service: Service, flooded: bool) -> bool:
    """Whether the program answers SYNs to this service."""
    return (
        not service.datapath.kernel_forwards
        and service.admission == EVERYBODY  # it knows no clients
        and service.syn_cookies is not SynCookies.OFF
        and (flooded or service.syn_cookies is SynCookies.ALWAYS)
    )
