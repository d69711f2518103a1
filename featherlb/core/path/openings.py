"""The tables by which a program in the kernel opens flows by itself (featherlb/bpf/flows.c).

They lie in memory that the program shares: for each service how it chooses, a wheel of members in
two halves, of which one is in force, and the members' addresses and loads. Only the VIPs are keys
of a hash table, which the engine writes (`vips`). With several workers, every flow is opened by the
worker whose shard has the client.
"""

import struct
from dataclasses import dataclass

from featherlb.core.flows.carried import Carried
from featherlb.core.path.services import Services
from featherlb.core.pools.schedulers import Member
from featherlb.core.pools.wheel import MAX_SLOTS, How, Wheel, wheel_of
from featherlb.net.addresses import words_of

SERVICES = 256
"""Numbers of services, of which 0 is unused."""
MEMBERS = 4096
"""Numbers of members."""

_SERVICE = struct.Struct("=IIII")
"""`struct service`: how, the half in force << 16 | its size, the cursor, unused."""
_MEMBER = struct.Struct("!QQH")
"""The beginning of `struct member`: address and port. What follows is in the machine's order."""
_STATE = struct.Struct("=HIII")
"""The rest: usable, active, weight, unused."""
_MEMBER_SIZE = 32
_KEY = struct.Struct("!QQHBx")
"""`struct vip`: address, port, protocol."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The program's tables as memory."""

    services: memoryview
    wheels: memoryview
    members: memoryview
    control: memoryview
    spare: memoryview


class Openings:
    """`vips` are the keys of the VIPs whose flows the program may open, with the numbers of their
    services, and those of the backends, with 0. `reasons` say why a service's flows are opened by a
    worker, by name; `suspended` why all are for the moment."""

    def __init__(self, services: Services, carried: Carried) -> None:
        self.vips: dict[bytes, int] = {}
        self.reasons: dict[str, str] = {}
        self.suspended = ""
        self._services = services
        self._carried = carried
        self._tables: Tables | None = None
        self._numbers: dict[str, int] = {}
        self._wheels: dict[str, Wheel] = {}
        self._ramping = False

    def attach(self, tables: Tables) -> None:
        """Write these tables from now on. The program opens nothing until `update`."""
        self._tables = tables
        for number in range(SERVICES):
            _SERVICE.pack_into(tables.services, number * _SERVICE.size, 0, 0, 0, 0)
        self._carried.attach_spare(tables.control, tables.spare)

    def suspend(self, reason: str) -> None:
        """Have a worker open all flows, for this reason; if it is empty, no longer."""
        if reason != self.suspended:
            self.suspended = reason
            self.update()

    def update(self) -> None:
        """Write the tables for the services as they are now."""
        if self._tables is None:
            return
        pools = {name: pool for name, pool in self._services.pools.items() if pool.carries}
        for name in self._numbers.keys() - pools.keys():
            self._write(self._numbers.pop(name), Wheel(How.BY_WORKER))
            self._wheels.pop(name, None)
        self.vips, self.reasons = {}, {}
        for name, pool in pools.items():
            wheel = wheel_of(pool)
            number = self._number(name)
            if self.suspended:
                wheel = Wheel(How.BY_WORKER, reason=self.suspended)
            elif self._carried.workers > 1:
                wheel = Wheel(How.BY_WORKER, reason="there are several workers")
            elif not number or any(one.index >= MEMBERS for one in wheel.slots):
                wheel = Wheel(How.BY_WORKER, reason="there are too many services or backends")
            if wheel.reason:
                self.reasons[name] = wheel.reason
            if number and wheel != self._wheels.get(name):
                self._wheels[name] = wheel
                self._write(number, wheel)
            if wheel.how is not How.BY_WORKER:
                for vip in pool.service.vips:
                    key = _KEY.pack(
                        *words_of(vip.address), vip.first_port, int(pool.service.protocol)
                    )
                    self.vips[key] = number
                # What clients send to these themselves, the program must know.
                for member in pool.members.values():
                    key = _KEY.pack(
                        *words_of(member.endpoint.address),
                        member.endpoint.port,
                        int(pool.service.protocol),
                    )
                    self.vips.setdefault(key, 0)
        self._ramping = self._ramps()
        self.refresh()

    def refresh(self) -> None:
        """Write the members' loads, and give the program entries for flows to open. Call it every
        0.1 s."""
        if self._tables is None:
            return
        if self._ramping and not self._ramps():
            self.update()
            return
        for wheel in self._wheels.values():
            for member in set(wheel.slots):
                self._write_state(member)
        if self.vips:
            self._carried.spare()

    def explain(self) -> dict[str, str]:
        """Why a worker opens the flows of each service of this datapath; empty if the program
        does."""
        return {name: self.reasons.get(name, "") for name in self._numbers}

    def _ramps(self) -> bool:
        """Whether a backend starts slowly; its end makes the program open flows."""
        return any(
            one.ramp is not None
            for pool in self._services.pools.values()
            if pool.carries
            for one in pool.members.values()
        )

    def _number(self, name: str) -> int:
        """The number of a service, 0 if none is free."""
        if name not in self._numbers:
            taken = set(self._numbers.values())
            number = next((one for one in range(1, SERVICES) if one not in taken), 0)
            if not number:
                return 0
            self._numbers[name] = number
        return self._numbers[name]

    def _write(self, number: int, wheel: Wheel) -> None:
        """Put a wheel in force: its slots go into the other half first."""
        assert self._tables is not None
        services, at = self._tables.services, number * _SERVICE.size
        words = services[at : at + _SERVICE.size].cast("I")
        half = (words[1] >> 16) ^ 1
        slots = self._tables.wheels.cast("Q")
        first = (number * 2 + half) * MAX_SLOTS
        for position, member in enumerate(wheel.slots):
            slots[first + position] = member.index
            place = member.index * _MEMBER_SIZE
            endpoint = member.endpoint
            _MEMBER.pack_into(
                self._tables.members, place, *words_of(endpoint.address), endpoint.port
            )
            self._write_state(member)
        words[1] = half << 16 | len(wheel.slots)
        words[0] = wheel.how

    def _write_state(self, member: Member) -> None:
        assert self._tables is not None
        place = member.index * _MEMBER_SIZE + _MEMBER.size
        usable = member.weight > 0
        _STATE.pack_into(self._tables.members, place, usable, member.active, member.weight, 0)
