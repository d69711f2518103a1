"""SYN cookies: when the kernel answers SYNs, in place of the workers.

A worker that sees a flood answers at once. The supervisor hears of it within a tick, and attaches
the program that makes the same cookies (`system/shield.py`) until the flood is over. Where there
can be no such program, the workers go on alone.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from featherlb.control.events import Events
from featherlb.control.workers import Workers
from featherlb.core.path.cookies import OFFERED_SCALE, offered_size, threshold
from featherlb.model import EVERYBODY, Address, Protocol, Service, SynCookies, Vip, addressed_vips
from featherlb.model.errors import HostError
from featherlb.system import rtnetlink
from featherlb.system.shield import Offer, Shield
from featherlb.worker.protocol import Outcomes, SetShield

REMEMBERED_SCALES = 3
"""Window scales of a service that workers accept in cookies: the one announced now, and earlier
ones. More often they don't change within the minutes for which a cookie is valid."""

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
        self._vips: dict[Vip, Offer] = {}
        self._scales: dict[str, tuple[int, ...]] = {}
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
        scales = scales_to_offer(outcomes, self._scales)
        if scales != self._scales:
            await self._tell(replace(self.message, scales=scales))
            self._scales = scales
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
            await self._tell(replace(self.message, up=bool(vips)))
        await asyncio.to_thread(self._attach, vips)
        self._missing = ""

    async def _tell(self, message: SetShield) -> None:
        self.message = message
        with suppress(HostError):  # a successor hears of it when it starts
            await self._workers.apply(message)

    def _find_vips(self, services: Sequence[Service], flooded: bool) -> dict[Vip, Offer]:
        wildcards = any(vip.wildcard for service in services for vip in service.vips)
        own = rtnetlink.addresses() if wildcards else []
        addresses = {one.address.ip for one in own}
        return vips_to_answer(services, flooded, addresses, self._scales)

    def _attach(self, vips: dict[Vip, Offer]) -> None:
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


def scales_to_offer(
    outcomes: Sequence[Outcomes], before: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The window scales to announce by the names of services, after those of `before`: the smallest
    of a service's backends, as a sender must not believe a window to be larger than it is. One that
    no worker has seen yet is believed to have the usual one."""
    found = dict(before)
    for name in {name for one in outcomes for name in one.scales}:
        told = [one.scales[name] for one in outcomes if name in one.scales]
        backends = [
            min((scale for scale in scales if scale is not None), default=OFFERED_SCALE)
            for scales in zip(*told, strict=False)  # while a backend joins or leaves
        ]
        scale = min(backends, default=OFFERED_SCALE)
        earlier = before.get(name, (OFFERED_SCALE,))
        if scale != earlier[0]:
            others = tuple(one for one in earlier if one != scale)
            found[name] = (scale, *others)[:REMEMBERED_SCALES]
    return found


def vips_to_answer(
    services: Sequence[Service],
    flooded: bool,
    addresses: Collection[Address],
    scales: Mapping[str, tuple[int, ...]],
) -> dict[Vip, Offer]:
    """The VIPs whose SYNs are to be answered, each with what to offer; no wildcards, which stand
    for these `addresses` of this host. An MSS of 0 takes a VIP out of another one's ports or
    addresses. `scales` are those of `scales_to_offer`."""
    found: dict[Vip, Offer] = {}
    for service, vip in addressed_vips(services, Protocol.TCP, addresses):
        answered = _is_answered(service, flooded)
        size = offered_size(service.mss, vip.address.version) if answered else 0
        found[vip] = Offer(size, scales.get(service.name, (OFFERED_SCALE,))[0])
    answered_at = {vip.address for vip, offer in found.items() if offer.size}
    return {vip: offer for vip, offer in found.items() if vip.address in answered_at}


def _is_answered(service: Service, flooded: bool) -> bool:
    """Whether the program answers SYNs to this service."""
    return (
        service.admission == EVERYBODY  # it knows no clients
        and service.syn_cookies is not SynCookies.OFF
        and (flooded or service.syn_cookies is SynCookies.ALWAYS)
    )
