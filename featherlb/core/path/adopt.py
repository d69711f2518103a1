"""Adopts connections from before a restart by a segment of the backend, if their VIP is certain.

A backend's segment doesn't name the VIP that its client uses. If exactly one VIP's scheduler would
have sent this client to this backend, it must be that one.
"""

from collections.abc import Iterable

from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.flows.tombstones import Tombstones
from featherlb.core.path.claims import Claims
from featherlb.core.path.context import Context
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import Hook, PacketInfo, Protocol
from featherlb.net.addresses import words_of
from featherlb.net.protocols import SYN, TCP

MAX_RANGE = 16
"""Ports of a VIP to try for a reply; VIPs with more are not tried."""

ESTABLISHED = int(State.ESTABLISHED)
INPUT = int(Hook.INPUT)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
TRUNCATED = int(PacketInfo.TRUNCATED)


class Adoption:
    """Adopts connections by their replies, `until` a time on the clock of `handle_packet`."""

    def __init__(
        self,
        flows: FlowTable,
        members: Members,
        tombstones: Tombstones,
        lifecycle: Lifecycle,
        claims: Claims,
        until: float,
    ) -> None:
        self.until = until
        self._flows = flows
        self._members = members
        self._tombstones = tombstones
        self._lifecycle = lifecycle
        self._claims = claims
        self._vips: dict[tuple[int, int, int], list[tuple[Pool, int, int, int]]] = {}

    def index(self, pools: Iterable[Pool]) -> None:
        """Index by backend the VIPs whose connections might be adopted by their replies. Wildcards
        and long port ranges are left out: a reply rarely fits only one of their ports."""
        found: dict[tuple[int, int, int], list[tuple[Pool, int, int, int]]] = {}
        for pool in pools:
            if pool.service.protocol is not Protocol.TCP:
                continue
            for scheduled in pool.members.values():
                member = self._members.by_id[scheduled.index]
                for vip in pool.service.vips:
                    if vip.wildcard or vip.last_port - vip.first_port >= MAX_RANGE:
                        continue
                    high, low = words_of(vip.address)
                    for port in range(vip.first_port, vip.last_port + 1):
                        backend = (member.high, member.low, member.port_for(port))
                        found.setdefault(backend, []).append((pool, high, low, port))
        self._vips = found

    def adopt(self, ctx: Context) -> int:
        """A flow for a backend's segment of a connection that was opened before this process
        started; 0 if its VIP is not certain, or the client has a connection with the backend
        itself; -1 if an engine is to find out whether it has."""
        packet = ctx.packet
        hook = ctx.hook
        if packet.protocol != TCP or packet.flags == SYN or ctx.info & TRUNCATED:
            return 0
        client = packet.number(packet.dst_high, packet.dst_low)
        client_port = packet.ports & 0xFFFF
        found = None
        backend = (packet.src_high, packet.src_low, packet.ports >> 16)
        vips = self._vips.get(backend, ())
        for pool, vip_high, vip_low, vip_port in vips:
            if not pool.adopts or pool.offloaded:
                continue
            if hook != INPUT and pool.raw != (hook == WIRE):
                continue
            vip = packet.number(vip_high, vip_low)
            flow = NewFlow(TCP, packet.version, client, client_port, vip, vip_port)
            chosen = pool.consistent_choice(flow)
            if chosen is None:
                continue
            member = self._members.by_id[chosen.index]
            if (member.high, member.low, member.port_for(vip_port)) == backend:
                if found is not None:
                    return 0
                found = pool, member, vip_high, vip_low, vip_port
        if found is None:
            return 0
        pool, member, vip_high, vip_low, vip_port = found
        ports = client_port << 16 | vip_port
        if self._flows.find(packet.dst_high, packet.dst_low, vip_high, vip_low, ports, TCP):
            return 0
        key = (packet.dst_high, packet.dst_low, vip_high, vip_low, ports)
        if self._tombstones.holds(key, ctx.ticks):
            return 0
        if packet.flags & SYN:
            # The SYN went to the backend directly, as those of this host's health checks do; so
            # will the rest of the connection.
            self._tombstones.remember(key, ctx.ticks)
            return 0
        claims = self._claims
        if claims.active:
            if claims.member is None:
                claims.ask_for(
                    member, packet.ports >> 16, packet.dst_high, packet.dst_low, client_port
                )
                return -1
            if claims.take_answer():
                return 0
        # It can't clash: no flow has its replies, and it needs no SNAT port.
        return self._lifecycle.open(
            pool,
            member,
            packet.dst_high,
            packet.dst_low,
            vip_high,
            vip_low,
            ports,
            OUTPUT if hook == INPUT else hook,
            client_port,
            ESTABLISHED,
            ctx.ticks,
        )
