"""What an instance needs of the host, as a value: rules, sets, addresses, settings. No I/O.

Imports `model` and the value types of the drivers. `build` turns services into a `HostPlan`; all
that it has to know about the host comes in as `Facts`. docs/packet-path.md walks through the
hooks; in short:

- raw PREROUTING and OUTPUT take packets to a VIP and, in `full` mode, the replies to the
  addresses that were given to them, out of connection tracking and into the queue.
- Replies in `dnat` mode keep their source until the routing decision is made (a packet from
  outside that carries an address of this host would be dropped there as a martian). They are
  taken out of connection tracking in raw, and queued in mangle POSTROUTING and INPUT.
- ICMP errors are queued at each of these hooks, whomever they are for: only the quoted packet tells
  whether they are about a flow. Those of other connections go on as they came, so they stay in
  connection tracking.
- filter lets pass what featherlb itself took out of connection tracking, and ICMP errors about
  connections that the kernel doesn't track.
- Of services of the datapath raw, workers have packets from the network before they get to a hook:
  what gets there is a copy, and is dropped. Clients on this host are served as with nfqueue, but
  keep their address in both modes, and get their replies in mangle INPUT.

The verdict on a queued packet ends its way through that table, so featherlb's rules stand last
in raw and mangle, behind the host's own. The guards stand first.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network

from featherlb.drivers import ipset, iptables, sysctl
from featherlb.drivers.network import LOOPBACK, HostAddress
from featherlb.model import (
    SOURCE_PORTS,
    Address,
    Datapath,
    Endpoint,
    NatMode,
    Protocol,
    Service,
    Vip,
    source_ports,
)

LOOPBACK_NETWORK = IPv4Network("127.0.0.0/8")
WORKER_MARKS = 0xFEA60000
"""Packet marks from here on name the worker; small ones stay free for the host's own use."""
PASS_MARKS = 0xFEA70000
"""Packet marks from here on name the instance that has just passed a packet on, by its order: two
for each, the second one of them for mangle."""
ICMP_ERRORS = {4: ("icmp --icmp-type", (3, 11, 12)), 6: ("ipv6-icmp --icmpv6-type", (1, 2, 3, 4))}
"""By address family, the types that quote a packet: destination unreachable, (packet too big,) time
exceeded, parameter problem."""
ECHO_REQUESTS = {4: "icmp --icmp-type 8", 6: "ipv6-icmp --icmpv6-type 128"}
REDIRECTS = {4: "icmp --icmp-type 5", 6: "ipv6-icmp --icmpv6-type 137"}
QUOTED_SOURCE_PORT = {4: "0>>22&0x3C@8>>22&0x3C@8>>16", 6: "88>>16"}
"""By address family, where `-m u32` finds the source port of the packet that an ICMP error quotes:
behind two IP headers and 8 bytes. IPv6 extension headers are not looked behind."""
OPENING = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
"""`--syn`, as iptables-save writes it."""
FEW = 4
"""So many endpoints have a rule each, which asks for address and port: no slower than to look into
a set for a packet that is for none of them, several times as fast for one that is for the first.
"""
NO_SOURCE = {4: "255.255.255.255", 6: "ff02::1"}
"""By address family, an address that no packet comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an instance runs. Its first queue number is also its identity on this host."""

    queue: int = 0
    workers: int = 1
    fail_open: bool = False
    """Let packets pass, unbalanced, while no worker is bound to its queue."""
    assign: bool = True
    """Give the host the VIPs that it doesn't have."""
    hash_seed: int = field(default_factory=lambda: secrets.randbits(32))
    """Seed of the hash that spreads flows over several workers. Nobody outside knows it, or he
    could send all his flows to one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan depends on and only the host can tell (see `survey`)."""

    addresses: tuple[HostAddress, ...] = ()
    """Without those that featherlb instances have assigned."""
    local_vips: frozenset[Address] = frozenset()
    """VIPs that belong to this host without featherlb, by an address or by a route."""
    backend_interfaces: tuple[str, ...] = ()
    """Interfaces through which backends of other hosts are reached."""
    advertised: tuple[str, ...] = ()
    """Interfaces that take their IPv6 routes from router advertisements."""
    routers: frozenset[int] = frozenset()
    """The address families, 4 or 6, in which this host forwards packets already."""
    sets: bool = True
    """Whether rules can ask for membership in an ipset."""
    conntrack: bool = True
    """Whether rules can ask for the connection tracking state."""
    socket: bool = True
    """Whether rules can ask for the socket that a packet is for."""
    order: int = 0
    """Greater than that of each instance that ran when this one started."""
    earlier: tuple[int, ...] = ()
    """The orders of those instances."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Everything that `Host.apply` changes; equal plans change the same."""

    options: Options
    vips: tuple[tuple[Protocol, Vip], ...]
    settings: tuple[sysctl.Setting, ...]
    sets: tuple[ipset.Set, ...]
    rules: Mapping[int, iptables.Ruleset]
    """By address family, 4 or 6."""
    addresses: tuple[tuple[Address, str], ...]
    """VIPs to assign, each with the interface that gets it."""
    sources: frozenset[str]
    """See `source_entries`."""
    raw: frozenset[str]
    queued: frozenset[str]
    """See `kept_entries`."""
    carried: frozenset[str]
    """See `carried_entries`."""
    untracked: frozenset[str]
    """See `untracked_entries`."""
    order: int
    earlier: tuple[int, ...]
    """See `Facts`."""
    carries: bool
    """The kernel carries flows of some service (datapath offload)."""

    @property
    def pass_mark(self) -> int | None:
        """The mark with which workers repeat (NF_REPEAT) packets that they don't know, if others
        run on this host.

        A backend's reply in `dnat` mode doesn't tell the VIP, and an ICMP error doesn't tell the
        flow. Instances see each other's, the latest instance first: it passes on what isn't in
        its flow table. Accepting instead would end the way through the table, before the
        others' rules.
        """
        return PASS_MARKS + 2 * self.order if self.earlier else None

    @property
    def instance(self) -> int:
        return self.options.queue

    def describe(self) -> list[str]:
        """The exact changes as shell commands that would have the same effect."""
        return [
            *(f"sysctl -w {sysctl.dotted(key)}={value}" for key, value in self.settings),
            *(line for wanted in self.sets for line in wanted.commands()),
            *(
                line
                for family, rules in self.rules.items()
                for line in iptables.commands(family, rules)
            ),
            *(
                f"ip address add {address}/{address.max_prefixlen} dev {interface}"
                for address, interface in self.addresses
            ),
        ]


def build(
    services: Sequence[Service], options: Options, facts: Facts, *, resting: bool = False
) -> HostPlan:
    """The plan for `services`, whose backends have `local` and `sources` filled in.

    A `resting` one is for the time when no process is there: flows that the kernel carries go on,
    new ones are refused, or with `fail_open` go to the backends by lot.
    """
    vips = tuple(
        sorted(
            {(service.protocol, vip) for service in services for vip in service.vips},
            key=lambda entry: (entry[1].address.version, *entry),
        )
    )
    families = sorted({vip.address.version for _, vip in vips})
    prefix = f"featherlb-{options.queue}-"
    raw = on_datapath(services, Datapath.RAW)
    carried = on_datapath(services, Datapath.OFFLOAD)
    rest = on_datapath(services, Datapath.NFQUEUE)
    queued = [_Parts.of(rest, family, prefix) for family in families]
    wired = [_Parts.of(raw, family, f"{prefix}raw-") for family in families]
    loads = [_Load.of(carried, family, f"{prefix}ct-") for family in families]
    sets = [wanted for part in (*queued, *wired) for wanted in part.sets()]
    sets += [wanted for load in loads for wanted in load.sets()]
    return HostPlan(
        options=options,
        vips=vips,
        settings=tuple(dict.fromkeys((*_settings(queued, facts), *_load_settings(loads, facts)))),
        sets=tuple(sets) if facts.sets else (),
        rules={
            queue.family: _merge(
                _rules(queue, wire, options, facts) if rest or raw else {},
                _load_rules(load, carried, options, facts, resting) if carried else {},
            )
            for queue, wire, load in zip(queued, wired, loads, strict=True)
        },
        addresses=tuple(_assignments(vips, facts)) if options.assign else (),
        sources=source_entries(services),
        raw=kept_entries(raw),
        queued=kept_entries(rest),
        carried=carried_entries(services),
        untracked=untracked_entries(services),
        order=facts.order,
        earlier=facts.earlier,
        carries=bool(carried),
    )


def source_entries(services: Iterable[Service]) -> frozenset[str]:
    """Each backend with a source address that `full` mode gives to packets towards it, as text.

    Only one instance of a host may use such a pair: two would give out the same ports.
    """
    return frozenset(
        str(ipset.Entry(backend.endpoint, service.protocol, source))
        for service in services
        if service.nat is NatMode.FULL
        for backend in service.backends
        for source in backend.sources
    )


def on_datapath(services: Iterable[Service], datapath: Datapath) -> list[Service]:
    """Those whose packets go this way."""
    return [service for service in services if service.datapath is datapath]


def kept_entries(services: Iterable[Service]) -> frozenset[str]:
    """Each backend that sees the client's address (`dnat`), as text.

    Instances may share it, but one can't drop its replies as copies that another has to get.
    """
    return _backend_entries(service for service in services if service.nat is NatMode.DNAT)


def carried_entries(services: Iterable[Service]) -> frozenset[str]:
    """Each backend whose replies the kernel has to track (datapath offload), as text."""
    return _backend_entries(on_datapath(services, Datapath.OFFLOAD))


def untracked_entries(services: Sequence[Service]) -> frozenset[str]:
    """Each backend whose replies rules take out of connection tracking, whomever they are for, as
    text. Those of the datapath nfqueue in `full` mode are known by the port that was given to them,
    so only they are taken; with the datapath raw, all to this host's own addresses are, in
    either mode."""
    queued = kept_entries(on_datapath(services, Datapath.NFQUEUE))
    return queued | _backend_entries(on_datapath(services, Datapath.RAW))


def _backend_entries(services: Iterable[Service]) -> frozenset[str]:
    return frozenset(
        str(ipset.Entry(backend.endpoint, service.protocol))
        for service in services
        for backend in service.backends
    )


def subnet_interface(address: Address, addresses: Iterable[HostAddress]) -> str | None:
    """The interface whose subnet has the address: the longest prefix wins."""
    candidates = [
        own
        for own in addresses
        if own.address.version == address.version and address in own.address.network
    ]
    if not candidates:
        return None
    return max(candidates, key=lambda own: own.address.network.prefixlen).interface


@dataclass(frozen=True, slots=True)
class _Group:
    """Endpoints that rules treat alike, and the name of their set."""

    set_name: str
    family: int
    entries: tuple[ipset.Entry, ...]

    @property
    def protocols(self) -> list[Protocol]:
        return sorted({entry.protocol for entry in self.entries})

    def sets(self) -> Iterator[ipset.Set]:
        """Their set, if they are so many that rules look into one."""
        if len(self.entries) > FEW:
            yield ipset.Set(self.set_name, self.family, self.entries)

    def _ports(self, protocol: Protocol, side: str) -> str:
        """A match for all ports from the lowest to the highest of the set. Looking into a set costs
        several times as much, and the other direction's packets have a client's port there."""
        ports = [entry.endpoint.port for entry in self.entries if entry.protocol is protocol]
        low, high = min(ports), max(ports)
        return f" --{side[0]}port {low}" + (f":{high}" if high != low else "")

    def matches(self, side: str, use_set: bool, *, ports: str = "", tcp: str = "") -> list[str]:
        """Rule matches for packets whose `side`, `dst` or `src`, is one of the endpoints.

        `ports` is a further match for each protocol, `tcp` one for TCP alone.
        """
        other = "src" if side == "dst" else "dst"
        extra = {Protocol.TCP: tcp + ports, Protocol.UDP: ports}
        if use_set and len(self.entries) > FEW:
            sides = f"{side},{side}"
            if self.entries[0].peer is not None:
                sides += f",{other}"
            return [
                f"-p {protocol}{extra[protocol]}{self._ports(protocol, side)}"
                f" -m set --match-set {self.set_name} {sides}"
                for protocol in self.protocols
            ]
        return [
            f"-p {entry.protocol}{extra[entry.protocol]}"
            f" -{side[0]} {entry.endpoint.address} --{side[0]}port {entry.endpoint.port}"
            + (f" -{other[0]} {entry.peer}" if entry.peer is not None else "")
            for entry in self.entries
        ]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What services of one address family and one kind of datapath are made of."""

    family: int
    vips: _Group
    """VIPs of one port. Others can't be in a set (wildcards) or would fill it (ranges)."""
    other_vips: tuple[tuple[Protocol, Vip], ...]
    kept: _Group
    """Backends that see the client's address (`dnat`)."""
    replaced: _Group
    """Backends that see one of this host's addresses, their entry's peer (`full`)."""
    full_backends: _Group
    """The same of the datapath raw, whichever address they see."""
    forwards: bool
    """Some backend is on another host."""
    full: bool
    """Some service is in `full` mode."""
    loopback: bool
    """Some packets between other hosts and this one carry a 127.0.0.0/8 address inside."""

    @classmethod
    def of(cls, services: Sequence[Service], family: int, prefix: str) -> "_Parts":
        vips = {
            (service.protocol, vip)
            for service in services
            for vip in service.vips
            if vip.address.version == family
        }
        backends = {
            (service.protocol, service.nat, backend)
            for service in services
            for backend in service.backends
            if backend.endpoint.address.version == family
        }
        full = any(
            service.nat is NatMode.FULL and vip.address.version == family
            for service in services
            for vip in service.vips
        )

        raw = any(service.datapath is Datapath.RAW for service in services)

        def group(role: str, entries: Iterable[ipset.Entry]) -> _Group:
            unique = sorted(set(entries), key=str)
            return _Group(f"{prefix}{role}{family}", family, tuple(unique))

        return cls(
            family=family,
            vips=group(
                "vips",
                (
                    ipset.Entry(Endpoint(vip.address, vip.first_port), protocol)
                    for protocol, vip in vips
                    if _single(vip)
                ),
            ),
            other_vips=tuple(sorted(entry for entry in vips if not _single(entry[1]))),
            kept=group(
                "backends",
                (
                    ipset.Entry(backend.endpoint, protocol)
                    for protocol, nat, backend in backends
                    if nat is NatMode.DNAT
                ),
            ),
            replaced=group(
                "sources",
                (
                    ipset.Entry(backend.endpoint, protocol, source)
                    for protocol, nat, backend in backends
                    if nat is NatMode.FULL
                    for source in backend.sources
                ),
            ),
            full_backends=group(
                "full",
                (
                    ipset.Entry(backend.endpoint, protocol)
                    for protocol, nat, backend in backends
                    if raw and nat is NatMode.FULL
                ),
            ),
            forwards=any(not backend.local for _, _, backend in backends),
            full=full,
            loopback=any(backend.endpoint.address.is_loopback for _, _, backend in backends)
            or (full and any(vip.address.is_loopback for _, vip in vips)),
        )

    def sets(self) -> Iterator[ipset.Set]:
        for group in (self.vips, self.kept, self.replaced, self.full_backends):
            yield from group.sets()

    def addresses(self) -> set[Address]:
        """The VIPs that are addresses, wildcards left out."""
        return {
            *(entry.endpoint.address for entry in self.vips.entries),
            *(vip.address for _, vip in self.other_vips if not vip.wildcard),
        }

    def vip_matches(self, side: str, use_set: bool, *, tcp: str = "") -> list[str]:
        """Rule matches for packets whose `side` is a VIP; `tcp` is a further match for TCP."""
        matches = self.vips.matches(side, use_set, tcp=tcp)
        for protocol, vip in self.other_vips:
            where = (
                f"-m addrtype --{side}-type LOCAL" if vip.wildcard else f"-{side[0]} {vip.address}"
            )
            ports = f"{vip.first_port}"
            if vip.first_port != vip.last_port:
                ports += f":{vip.last_port}"
            extra = tcp if protocol is Protocol.TCP else ""
            matches.append(f"-p {protocol}{extra} {where} --{side[0]}port {ports}")
        return matches


def _single(vip: Vip) -> bool:
    return not vip.wildcard and vip.first_port == vip.last_port


def _rules(queued: _Parts, wire: _Parts, options: Options, facts: Facts) -> iptables.Ruleset:
    sets = facts.sets
    given = f"{SOURCE_PORTS.start}:{SOURCE_PORTS.stop - 1}"
    # A backend's own connection from its service port starts with a SYN: that is no reply, and
    # without this exception it would pass the filter as one.
    kept_replies = queued.kept.matches("src", sets, tcp=" ! --syn")
    replaced_replies = queued.replaced.matches("src", sets, ports=f" --dport {given}")
    # Clients on this host keep their address with the datapath raw.
    wired = (wire.kept, wire.full_backends)
    wire_replies = [match for one in wired for match in one.matches("src", sets, tcp=" ! --syn")]
    accepted = [
        *queued.kept.matches("dst", sets),
        *kept_replies,
        *queued.replaced.matches("dst", sets, ports=f" --sport {given}"),
        *queued.vip_matches("src", sets),
        *(match for one in wired for match in one.matches("dst", sets)),
        *wire_replies,
        *wire.vip_matches("src", sets),
    ]

    def chain(role: str) -> str:
        return f"FEATHERLB-{role}-{options.queue}"

    seen_by = (*facts.earlier, facts.order) if facts.earlier else ()
    passed_on = {
        table: [f"-m mark --mark {mark + 2 * order:#x} -j RETURN" for order in seen_by]
        for table, mark in (("raw", PASS_MARKS), ("mangle", PASS_MARKS + 1))
    }
    protocol, types = ICMP_ERRORS[queued.family]
    errors = [f"-p {protocol} {kind}" for kind in types]
    redirects = _redirects(queued, facts)
    queued_errors = errors if queued.vips.entries or queued.other_vips else []
    foreign = _foreign_vips((queued, wire), options, facts)

    # Out of connection tracking before the queue: the verdict ends the way through the table.
    untrack = "-j CT --notrack"
    # The narrowest match first: a port given in `full` mode can equal a wildcard VIP's.
    raw = {
        chain("RAW"): (
            *passed_on["raw"],
            *(f"{match} -g {chain('REPLY')}" for match in replaced_replies),
            *(f"{match} -g {chain('FORWARD')}" for match in queued.vip_matches("dst", sets)),
            *(f"{match} -g {chain('FORWARD')}" for match in wire.vip_matches("dst", sets)),
            *(f"{match} {untrack}" for match in kept_replies),
            *(f"{match} -m addrtype --dst-type LOCAL {untrack}" for match in wire_replies),
            *(f"{match} -g {chain('ERROR')}" for match in queued_errors),
            *_echo_requests(queued.family, foreign, options),
            # No socket of this host's is to get them, so it would forward them.
            *(
                f"{match} -d {address} -j DROP"
                for address in foreign
                if address in wire.addresses()
                for match in errors
            ),
        ),
        chain("FORWARD"): (untrack, *_queue_by_client("src,sport", options)),
    }
    raw_jumps = [iptables.Jump(hook, f"-j {chain('RAW')}") for hook in ("PREROUTING", "OUTPUT")]
    if queued_errors:
        raw[chain("ERROR")] = tuple(_queue_errors(queued, options))
    if replaced_replies:
        raw[chain("REPLY")] = (untrack, *_queue_by_port(queued.replaced.protocols, options))
    mangle = {}
    mangle_jumps = []
    if kept_replies or wire_replies:
        mangle = {
            chain("MANGLE"): (
                *passed_on["mangle"],
                *(f"{match} -g {chain('REPLY')}" for match in (*kept_replies, *wire_replies)),
                *(f"{match} -g {chain('ERROR')}" for match in errors),
            ),
            chain("REPLY"): tuple(_queue_by_client("dst,dport", options)),
            # Here they quote what a client sent, as its backend has got it.
            chain("ERROR"): tuple(_queue_by_client("src,sport", options, bypass=True)),
        }
        hooks = ("POSTROUTING", "INPUT") if kept_replies else ("INPUT",)
        mangle_jumps = [iptables.Jump(hook, f"-j {chain('MANGLE')}") for hook in hooks]
    copies = _copies(queued, wire, facts)
    for table, chains, jumps in (("raw", raw, raw_jumps), ("mangle", mangle, mangle_jumps)):
        if copies[table]:
            chains[chain("COPY")] = tuple(copies[table])
            jumps.append(iptables.Jump("PREROUTING", f"-j {chain('COPY')}", first=True))
    if guards := (*_guards(queued, queued.full), *_reassembly(queued, facts)):
        raw[chain("GUARD")] = guards
        raw_jumps.append(iptables.Jump("PREROUTING", f"-j {chain('GUARD')}", first=True))
    if redirects:
        raw[chain("REDIRECT")] = redirects
        raw_jumps.append(iptables.Jump("OUTPUT", f"-j {chain('REDIRECT')}", first=True))
    filters = {
        chain("ERROR"): (
            f"-p {protocol.split()[0]} ",
            "INVALID,UNTRACKED",
            tuple(f"{match} -j ACCEPT" for match in errors),
        ),
        # The last one is put in front: every packet of a flow meets it, and need not go on.
        chain("FILTER"): ("", "UNTRACKED", tuple(f"{match} -j ACCEPT" for match in accepted)),
    }
    # Of the datapath raw, only what clients on this host send and get meets the filter.
    filter_hooks = ("INPUT", "FORWARD", "OUTPUT") if queued_errors else ("INPUT", "OUTPUT")
    # Packets are steered last, when everything else stands.
    return {
        "filter": iptables.Table(
            chains={name: rules for name, (_, _, rules) in filters.items()},
            jumps=tuple(
                iptables.Jump(
                    hook,
                    which
                    + (f"-m conntrack --ctstate {states} " if facts.conntrack else "")
                    + f"-j {name}",
                    first=True,
                )
                for name, (which, states, _) in filters.items()
                for hook in filter_hooks
            ),
        ),
        "mangle": iptables.Table(chains=mangle, jumps=tuple(mangle_jumps)),
        "raw": iptables.Table(chains=raw, jumps=tuple(raw_jumps)),
    }


def _copies(queued: _Parts, wire: _Parts, facts: Facts) -> dict[str, list[str]]:
    """By table, the rules that drop the kernel's copies of packets that workers have taken.

    A reply in `dnat` mode looks like one to a client that talks to the backend itself, through this
    host as its router. Where this host is a router, connection tracking tells them apart: of
    balanced connections it has seen nothing. Elsewhere it needn't be asked, which is faster.
    """
    sets = facts.sets
    given = f" --dport {SOURCE_PORTS.start}:{SOURCE_PORTS.stop - 1}"
    raw = [f"{match} -j DROP" for match in wire.replaced.matches("src", sets, ports=given)]
    if any(vip.wildcard for _, vip in wire.other_vips):
        # A port given in `full` mode can equal a wildcard VIP's.
        others = queued.replaced.matches("src", sets, ports=given)
        raw += [f"{match} -j RETURN" for match in others]
    raw += [f"{match} -j DROP" for match in wire.vip_matches("dst", sets)]
    state = ""
    table = "raw"
    if facts.conntrack and (wire.family in facts.routers or queued.forwards):
        state = " -m conntrack ! --ctstate ESTABLISHED,RELATED"
        table = "mangle"
    replies = []
    if {*wire.kept.entries} & {*queued.kept.entries}:
        # Only the worker can tell whose they are. It drops what it has had as a frame.
        others = queued.kept.matches("src", sets, tcp=" ! --syn")
        replies += [f"{match} -j RETURN" for match in others]
    replies += [
        f"{match} -m addrtype ! --dst-type LOCAL{state} -j DROP"
        for match in wire.kept.matches("src", sets, tcp=" ! --syn")
    ]
    copies: dict[str, list[str]] = {"raw": raw, "mangle": []}
    copies[table] += replies
    return copies


@dataclass(frozen=True, slots=True)
class _Load:
    """What the kernel's connection tracking carries of one address family (datapath offload)."""

    parts: _Parts
    backends: _Group
    """All of them, whichever address they see."""

    @classmethod
    def of(cls, services: Sequence[Service], family: int, prefix: str) -> "_Load":
        backends = {
            ipset.Entry(backend.endpoint, service.protocol)
            for service in services
            for backend in service.backends
            if backend.endpoint.address.version == family
        }
        return cls(
            _Parts.of(services, family, prefix),
            _Group(f"{prefix}ends{family}", family, tuple(sorted(backends, key=str))),
        )

    def sets(self) -> Iterator[ipset.Set]:
        for group in (self.parts.vips, self.parts.replaced, self.backends):
            yield from group.sets()


def _load_rules(
    load: _Load, services: Sequence[Service], options: Options, facts: Facts, resting: bool
) -> iptables.Ruleset:
    """Rules for services whose connections the kernel carries.

    - raw takes SYNs to a VIP to the queue, before connection tracking has met them. When the
      verdict comes, it knows the connection and translates the SYN as its first packet.
    - mangle PREROUTING and OUTPUT take what connection tracking doesn't know and nobody translates:
      datagrams to a VIP that it takes for new ones, and of connections that it has forgotten, or
      that were taken away from it, whatever comes to a VIP or from a backend.
    - filter lets pass what connection tracking translates to and from the backends.
    - nat has a chain, for without one the kernel translates nothing. With `fail_open`, it sends to
      a backend what got past the queue.
    """
    parts, sets = load.parts, facts.sets
    given = f"{SOURCE_PORTS.start}:{SOURCE_PORTS.stop - 1}"
    protocol, types = ICMP_ERRORS[parts.family]

    def chain(role: str) -> str:
        return f"FEATHERLB-CT{role}-{options.queue}"

    opened = [
        match for match in parts.vip_matches("dst", sets, tcp=" --syn") if "-p tcp --syn" in match
    ]
    stray = parts.vip_matches("dst", sets, tcp=" ! --syn")
    full_replies = parts.replaced.matches("src", sets, ports=f" --dport {given}", tcp=" ! --syn")
    replies = load.backends.matches("src", sets, tcp=" ! --syn")
    seen_by = (*facts.earlier, facts.order) if facts.earlier else ()
    passed_on = [f"-m mark --mark {PASS_MARKS + 2 * order:#x} -j RETURN" for order in seen_by]
    raw = {}
    raw_jumps = []
    if opened and not resting:
        raw[chain("RAW")] = (*passed_on, *(f"{match} -g {chain('OPEN')}" for match in opened))
        raw[chain("OPEN")] = tuple(_queue_by_client("src,sport", options))
        raw_jumps = [
            iptables.Jump(hook, f"{OPENING} -j {chain('RAW')}") for hook in ("PREROUTING", "OUTPUT")
        ]
    if redirects := _redirects(parts, facts):
        raw[chain("REDIRECT")] = redirects
        raw_jumps.append(iptables.Jump("OUTPUT", f"-j {chain('REDIRECT')}", first=True))
    echoes = _echo_requests(parts.family, _foreign_vips([parts], options, facts), options)
    if (answered := tuple(echoes)) and not resting:
        raw[chain("ECHO")] = answered
        raw_jumps.append(iptables.Jump("PREROUTING", f"-j {chain('ECHO')}"))
    if guards := tuple(_guards(parts, full=False)):
        raw[chain("GUARD")] = guards
        raw_jumps.append(iptables.Jump("PREROUTING", f"-j {chain('GUARD')}", first=True))
    mangle = {
        chain("STRAY"): (
            *passed_on,
            *(f"{match} -g {chain('FORWARD')}" for match in stray),
            *(f"{match} -g {chain('FULL')}" for match in full_replies),
            *(f"{match} -g {chain('REPLY')}" for match in replies if match.startswith("-p tcp")),
            # One that was queued in raw is known by now, or has to be sent again.
            *(f"{match} -j DROP" for match in opened if not options.fail_open),
        ),
        chain("FORWARD"): tuple(_queue_by_client("src,sport", options)),
        chain("FULL"): tuple(_queue_by_port(parts.replaced.protocols, options, bypass=True)),
        chain("REPLY"): tuple(_queue_by_client("dst,dport", options, bypass=True)),
    }
    both = [
        *load.backends.matches("dst", sets),
        *load.backends.matches("src", sets),
        *(f"-p {protocol} {kind} -m conntrack --ctstate RELATED" for kind in types),
    ]
    unknown = "-m conntrack --ctstate INVALID,NEW -m conntrack ! --ctstate DNAT"
    fallback = tuple(_fallback(services, parts.family)) if options.fail_open else ()
    full = [
        f"{match} -m conntrack --ctstate DNAT -j MASQUERADE"
        for match in _full_backends(services, parts.family)
        if options.fail_open
    ]
    return {
        "filter": iptables.Table(
            chains={chain("FILTER"): tuple(f"{match} -j ACCEPT" for match in both)},
            jumps=tuple(
                iptables.Jump(hook, f"-m conntrack --ctstate DNAT -j {chain('FILTER')}", first=True)
                for hook in ("INPUT", "FORWARD", "OUTPUT")
            ),
        ),
        "nat": iptables.Table(
            chains={chain("NAT"): fallback, chain("SOURCE"): tuple(full)},
            jumps=(
                *(iptables.Jump(hook, f"-j {chain('NAT')}") for hook in ("PREROUTING", "OUTPUT")),
                iptables.Jump("POSTROUTING", f"-j {chain('SOURCE')}"),
            ),
        ),
        "mangle": iptables.Table(
            chains={} if resting else mangle,
            jumps=tuple(
                iptables.Jump(hook, f"{unknown} -j {chain('STRAY')}")
                for hook in ("PREROUTING", "OUTPUT")
                if not resting
            ),
        ),
        "raw": iptables.Table(chains=raw, jumps=tuple(raw_jumps)),
    }


def _fallback(services: Sequence[Service], family: int) -> Iterator[str]:
    """In nat: a connection of each service to one of its backends, by lot."""
    for service in services:
        backends = [
            backend.endpoint
            for backend in service.backends
            if backend.endpoint.address.version == family
        ]
        for match in _Parts.of([service], family, "").vip_matches("dst", use_set=False):
            for left, endpoint in zip(range(len(backends), 0, -1), backends, strict=True):
                lot = f" -m statistic --mode random --probability {1 / left:.8f}"
                yield f"{match}{lot if left > 1 else ''} -j DNAT --to-destination {endpoint}"


def _full_backends(services: Sequence[Service], family: int) -> list[str]:
    """Matches for packets to the backends that don't see their clients."""
    return sorted(
        {
            f"-p {service.protocol} -d {backend.endpoint.address} --dport {backend.endpoint.port}"
            for service in services
            for backend in service.backends
            if service.nat is NatMode.FULL and backend.endpoint.address.version == family
        }
    )


def _load_settings(loads: Iterable[_Load], facts: Facts) -> Iterator[sysctl.Setting]:
    for load in loads:
        if load.parts.vips.entries or load.parts.other_vips:
            yield from _settings([replace(load.parts, full=False)], facts)
            # So that connection tracking counts packets and bytes.
            yield "net/netfilter/nf_conntrack_acct", "1"


def _merge(one: iptables.Ruleset, other: iptables.Ruleset) -> iptables.Ruleset:
    """Both rulesets as one, in the order of their tables: steering comes last."""
    nothing = iptables.Table({}, ())
    return {
        name: iptables.Table(
            {**one.get(name, nothing).chains, **other.get(name, nothing).chains},
            (*one.get(name, nothing).jumps, *other.get(name, nothing).jumps),
        )
        for name in ("filter", "nat", "mangle", "raw")
        if name in one or name in other
    }


def _queue_by_client(client: str, options: Options, bypass: bool = False) -> Iterator[str]:
    """To the worker that the client's address and port select, the same for both directions."""
    if options.workers > 1:
        yield _hash(client, options)
    for worker in range(1, options.workers):
        yield f"-m mark --mark {WORKER_MARKS + worker:#x} {_queue(worker, options, bypass)}"
    # Without a condition: no packet of a VIP gets past the workers.
    yield _queue(0, options, bypass)


def _hash(client: str, options: Options) -> str:
    """Mark a packet with its worker. Of an ICMP error, HMARK takes the quoted packet."""
    return (
        f"-j HMARK --hmark-tuple {client} --hmark-rnd {options.hash_seed:#010x}"
        f" --hmark-mod {options.workers} --hmark-offset {WORKER_MARKS:#x}"
    )


def _queue_errors(parts: _Parts, options: Options) -> Iterator[str]:
    """In raw: to the worker of the flow whose packet an ICMP error quotes.

    Most ICMP errors are not ours: they don't wait for a worker that isn't there.
    """
    if options.workers > 1:
        if parts.replaced.entries:
            # Quotes a packet to a backend. Its source port was given by the worker.
            port = QUOTED_SOURCE_PORT[parts.family]
            for worker in range(options.workers):
                ports = source_ports(worker, options.workers)
                yield (
                    f'-m addrtype --dst-type LOCAL -m u32 --u32 "{port}='
                    f'{ports.start}:{ports.stop - 1}" {_queue(worker, options, bypass=True)}'
                )
        if parts.kept.entries:
            # This host's own, to a client: quotes a packet of the client's.
            own = "-m addrtype --src-type LOCAL ! --dst-type LOCAL"
            yield f"{own} {_hash('src,sport', options)}"
            for worker in range(options.workers):
                mark = f"-m mark --mark {WORKER_MARKS + worker:#x}"
                yield f"{own} {mark} {_queue(worker, options, bypass=True)}"
    # Everything else that is ours is addressed to a VIP and quotes a packet to a client.
    yield from _queue_by_client("dst,dport", options, bypass=True)


def _foreign_vips(parts: Iterable[_Parts], options: Options, facts: Facts) -> list[Address]:
    """VIPs that are no address of this host, in order."""
    if options.assign:
        return []
    addresses = {address for part in parts for address in part.addresses()}
    return sorted(addresses - facts.local_vips, key=int)


def _echo_requests(family: int, foreign: Sequence[Address], options: Options) -> Iterator[str]:
    """To any worker, where some VIP is no address of this host, so that its kernel won't answer."""
    if foreign:
        yield (
            f"-p {ECHO_REQUESTS[family]} -m addrtype ! --dst-type LOCAL"
            f" {_queue(0, options, bypass=True)}"
        )


def _queue_by_port(
    protocols: Iterable[Protocol], options: Options, bypass: bool = False
) -> Iterator[str]:
    """To the worker that has given the destination port to a flow."""
    for worker in range(1, options.workers):
        ports = source_ports(worker, options.workers)
        for protocol in protocols:
            match = f"-p {protocol} --dport {ports.start}:{ports.stop - 1}"
            yield f"{match} {_queue(worker, options, bypass)}"
    yield _queue(0, options, bypass)


def _queue(worker: int, options: Options, bypass: bool = False) -> str:
    suffix = " --queue-bypass" if bypass or options.fail_open else ""
    return f"-j NFQUEUE --queue-num {options.queue + worker}{suffix}"


def _redirects(parts: _Parts, facts: Facts) -> tuple[str, ...]:
    """Drops what one-armed would tell a backend the way around the balancer."""
    return tuple(
        f"-o {interface} -p {REDIRECTS[parts.family]} -j DROP"
        for interface in facts.backend_interfaces
        if parts.forwards
    )


def _guards(parts: _Parts, full: bool) -> Iterator[str]:
    """Drops what the kernel dropped before `_settings` made it accept featherlb's packets."""
    if parts.family != 4:
        return
    if full:
        yield "! -i lo -m addrtype --src-type LOCAL -j DROP"
    if parts.loopback:
        yield f"! -i lo -s {LOOPBACK_NETWORK} -j DROP"
        yield f"! -i lo -d {LOOPBACK_NETWORK} -j DROP"


def _reassembly(parts: _Parts, facts: Facts) -> Iterator[str]:
    """Makes the kernel reassemble fragments before they are queued.

    A rule that asks for the connection tracking state does so by its presence. Where the kernel has
    none, one that asks for the socket does, though no packet ever meets it
    (net/netfilter/xt_socket.c: socket_mt_enable_defrag).
    """
    if not facts.conntrack and facts.socket:
        yield f"-s {NO_SOURCE[parts.family]} -m socket -j RETURN"


def _settings(parts: Iterable[_Parts], facts: Facts) -> Iterator[sysctl.Setting]:
    for part in parts:
        if part.forwards and part.family == 6:
            # A router ignores advertisements, and forgets the routes it has from them, unless
            # told otherwise before (net/ipv6/route.c: rt6_purge_dflt_routers).
            for interface in facts.advertised:
                yield f"net/ipv6/conf/{interface}/accept_ra", "2"
            yield "net/ipv6/conf/all/forwarding", "1"
        elif part.forwards:
            yield "net/ipv4/ip_forward", "1"
        if part.family != 4:
            continue
        if part.full:
            # The source is one of this host's addresses before the routing decision.
            yield "net/ipv4/conf/all/accept_local", "1"
        if part.loopback:
            yield "net/ipv4/conf/all/route_localnet", "1"


def _assignments(
    vips: Iterable[tuple[Protocol, Vip]], facts: Facts
) -> Iterator[tuple[Address, str]]:
    for address in sorted({vip.address for _, vip in vips}, key=str):
        if address.is_unspecified or address.is_loopback or address in facts.local_vips:
            continue
        yield address, subnet_interface(address, facts.addresses) or LOOPBACK
