"""Rules of iptables as values: matches, targets, chains, jumps and tables.

Code that builds, filters or compares rules asks their fields. `str` of a value is its text in the
syntax of iptables-restore(8), in one order: interface, protocol, source, destination, then the
match extensions, the cheap ones first. The syntax is known here and nowhere else.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from featherlb.model import Address, Endpoint, Network, Protocol


class Icmp(StrEnum):
    """ICMP, as iptables and ip6tables name it."""

    V4 = "icmp"
    V6 = "ipv6-icmp"


class Side(StrEnum):
    """An end of a packet."""

    SOURCE = "src"
    DESTINATION = "dst"

    @property
    def other(self) -> "Side":
        return Side.SOURCE if self is Side.DESTINATION else Side.DESTINATION


class ReversePath(StrEnum):
    """Where the route to a packet's source leads (iptables-extensions(8), `rpfilter`)."""

    NOWHERE = "--loose"
    """There is none, or the source is an address of this host or a broadcast address."""
    ELSEWHERE = "--validmark"
    """As above, or it leads through another interface, as the kernel sees it with `rp_filter` 1."""


class State(StrEnum):
    """A state of conntrack, or a virtual one (iptables-extensions(8), `conntrack`), in the order in
    which iptables-save prints them."""

    INVALID = "INVALID"
    NEW = "NEW"
    RELATED = "RELATED"
    ESTABLISHED = "ESTABLISHED"
    UNTRACKED = "UNTRACKED"
    DNAT = "DNAT"
    """The destination is translated."""


def _listed(states: Collection[State]) -> str:
    return ",".join(state for state in State if state in states)


@dataclass(frozen=True, slots=True)
class Membership:
    """An address and port (and address) of a packet, or an address alone, are in an ipset; with
    `negated`, they are not."""

    name: str
    sides: tuple[Side, ...]
    """Where each part of an entry is in the packet."""
    negated: bool = False

    def __str__(self) -> str:
        words = f"--match-set {self.name} {','.join(self.sides)}"
        return f"-m set {'! ' if self.negated else ''}{words}"


@dataclass(frozen=True, slots=True)
class HashLimit:
    """The network of the source address sends more than `rate` matching packets a second, after a
    `burst`: iptables-extensions(8), `hashlimit`.

    A network is forgotten after a second without a packet. The kernel drops packets of networks for
    which there is no place, so there is one for a million.
    """

    name: str
    """The kernel keeps one table for each name, with the limit that it had first."""
    rate: float
    burst: int
    prefix: int

    def __str__(self) -> str:
        words = [f"-m hashlimit --hashlimit-above {_rate(self.rate)}"]
        words.append(f"--hashlimit-burst {min(self.burst, _MOST)}")
        words.append(f"--hashlimit-mode srcip --hashlimit-srcmask {self.prefix}")
        words.append(f"--hashlimit-name {self.name} --hashlimit-htable-size 16384")
        words.append("--hashlimit-htable-max 1048576 --hashlimit-htable-expire 1000")
        return " ".join(words)


_MOST = 1_000_000
"""The highest rate and burst that `hashlimit` takes (xt_hashlimit.h, XT_HASHLIMIT_SCALE_v2)."""


def _rate(per_second: float) -> str:
    """A rate as `hashlimit` takes it: whole numbers, here rounded up."""
    for unit, seconds in (("sec", 1), ("min", 60), ("hour", 3600)):
        if per_second * seconds >= 1 or unit == "hour":
            return f"{min(ceil(per_second * seconds), _MOST)}/{unit}"
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Content:
    """A number in the packet is in a range (iptables-extensions(8), `u32`)."""

    location: str
    values: range

    def __str__(self) -> str:
        return f'-m u32 --u32 "{self.location}={_range(self.values)}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Conditions on a packet, all of which must hold; without any, every packet matches."""

    in_interface: str = ""
    not_in_interface: str = ""
    out_interface: str = ""
    protocol: Protocol | Icmp | None = None
    syn: bool | None = None
    """With TCP: whether it opens a connection (SYN, but no ACK, RST or FIN)."""
    acknowledges: bool = False
    """With TCP: it has ACK, and neither SYN nor RST."""
    refuses: bool = False
    """With TCP: it has RST and ACK, as the answer to a SYN that is refused."""
    icmp_type: int | None = None
    """With ICMP."""
    source: Address | Network | None = None
    source_ports: range | None = None
    """With TCP and UDP."""
    destination: Address | Network | None = None
    destination_ports: range | None = None
    socket: bool = False
    """A socket of this host will receive it."""
    member: Membership | None = None
    source_local: bool | None = None
    """Whether the source is an address of this host."""
    destination_local: bool | None = None
    reverse_path: ReversePath | None = None
    """In PREROUTING: the route to the source leads there."""
    beyond: HashLimit | None = None
    content: Content | None = None
    mark: int | None = None
    bridge_port: bool | None = None
    """Whether it arrived through a port of a bridge whose frames pass iptables (br_netfilter)."""
    bridged: bool | None = None
    """Whether it leaves through another port of that bridge, unrouted."""
    states: tuple[State, ...] = ()
    """Its conntrack state is one of these."""
    not_states: tuple[State, ...] = ()
    """Its conntrack state is none of these."""
    unassured: bool = False
    """Conntrack has not seen its connection established by both ends."""
    probability: float | None = None
    """At random, 0 to 1."""

    def __str__(self) -> str:
        return " ".join(self._words("--syn"))

    @property
    def saved(self) -> str:
        """The text as iptables-save prints it, for TCP, ICMP and states; ports and addresses are
        printed differently."""
        return " ".join(self._words("-m tcp --tcp-flags FIN,SYN,RST,ACK SYN"))

    def _words(self, syn: str) -> Iterator[str]:
        if self.in_interface:
            yield f"-i {self.in_interface}"
        if self.not_in_interface:
            yield f"! -i {self.not_in_interface}"
        if self.out_interface:
            yield f"-o {self.out_interface}"
        if self.protocol is not None:
            yield f"-p {self.protocol}"
        if self.syn is not None:
            yield syn if self.syn else f"! {syn}"
        if self.acknowledges:
            yield "--tcp-flags SYN,RST,ACK ACK"
        if self.refuses:
            yield "--tcp-flags SYN,RST,ACK RST,ACK"
        if self.icmp_type is not None:
            yield f"--{'icmpv6' if self.protocol is Icmp.V6 else 'icmp'}-type {self.icmp_type}"
        if self.source is not None:
            yield f"-s {self.source}"
        if self.source_ports is not None:
            yield f"--sport {_range(self.source_ports)}"
        if self.destination is not None:
            yield f"-d {self.destination}"
        if self.destination_ports is not None:
            yield f"--dport {_range(self.destination_ports)}"
        if self.socket:
            yield "-m socket"
        if self.member is not None:
            yield str(self.member)
        if self.beyond is not None:
            yield str(self.beyond)
        if self.source_local is not None or self.destination_local is not None:
            yield "-m addrtype"
            for side, local in (("src", self.source_local), ("dst", self.destination_local)):
                if local is not None:
                    yield f"{'' if local else '! '}--{side}-type LOCAL"
        if self.reverse_path is not None:
            yield f"-m rpfilter {self.reverse_path} --invert"
        if self.content is not None:
            yield str(self.content)
        if self.mark is not None:
            yield f"-m mark --mark {self.mark:#x}"
        if self.bridge_port is not None or self.bridged is not None:
            yield "-m physdev"
            for name, wanted in (("in", self.bridge_port), ("bridged", self.bridged)):
                if wanted is not None:
                    yield f"{'' if wanted else '! '}--physdev-is-{name}"
        if self.states:
            yield f"-m conntrack --ctstate {_listed(self.states)}"
        if self.not_states:
            yield f"-m conntrack ! --ctstate {_listed(self.not_states)}"
        if self.unassured:
            yield "-m conntrack ! --ctstatus ASSURED"
        if self.probability is not None:
            yield f"-m statistic --mode random --probability {self.probability:.8f}"


ANY = Match()
"""Every packet."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The name of a featherlb chain: its role and its instance."""

    role: str
    """Capital letters."""
    instance: int

    def __str__(self) -> str:
        return f"FEATHERLB-{self.role}-{self.instance}"


class Action(StrEnum):
    """A target without options, or with fixed ones."""

    ACCEPT = "-j ACCEPT"
    DROP = "-j DROP"
    RETURN = "-j RETURN"
    UNTRACK = "-j CT --notrack"
    """Keep the packet out of connection tracking. The next rule follows."""
    MASQUERADE = "-j MASQUERADE"


@dataclass(frozen=True, slots=True)
class Goto:
    """Continue in another chain, without returning to this one."""

    chain: Chain

    def __str__(self) -> str:
        return f"-g {self.chain}"


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Queue the packet to an NFQUEUE; with `bypass`, accept it if no worker is bound to it."""

    number: int
    bypass: bool = False

    def __str__(self) -> str:
        return f"-j NFQUEUE --queue-num {self.number}{' --queue-bypass' if self.bypass else ''}"


@dataclass(frozen=True, slots=True)
class HashMark:
    """Mark the packet with `offset` plus the hash of the address and port of one side, or of the
    first `prefix` bits of the address, modulo `modulus`; of an ICMP error, that side of the quoted
    packet. The next rule follows."""

    side: Side
    seed: int
    modulus: int
    offset: int = 0
    prefix: int = 0

    def __str__(self) -> str:
        if self.prefix:
            hashed = f"--hmark-{self.side}-prefix {self.prefix}"
        else:
            hashed = f"--hmark-tuple {self.side},{self.side[0]}port"
        text = f"-j HMARK {hashed} --hmark-rnd {self.seed:#010x} --hmark-mod {self.modulus}"
        return f"{text} --hmark-offset {self.offset:#x}" if self.offset else text


@dataclass(frozen=True, slots=True)
class TranslateTo:
    """Translate the destination of the connection. For an endpoint of several ports, the port is at
    the same distance from the first one as it was from `first_port`, or stays as it is."""

    endpoint: Endpoint
    first_port: int = 0

    def __str__(self) -> str:
        endpoint = self.endpoint
        target = str(endpoint.address) if endpoint.keeps_port else str(endpoint)
        if endpoint.last_port and endpoint.port:
            target += f"/{self.first_port}"
        return f"-j DNAT --to-destination {target}"


Target = Action | Goto | Enqueue | HashMark | TranslateTo


@dataclass(frozen=True, slots=True)
class Rule:
    """A match and the target of matching packets; without a target, they are only counted."""

    match: Match
    target: Target | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.match), str(self.target or ""))))


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule in a built-in chain that jumps to a featherlb chain.

    It comes `first` of all, or after the host's own rules. Among jumps of several instances to
    chains of the same role, the latest instance's comes first.
    """

    hook: str
    """The built-in chain: PREROUTING, INPUT, FORWARD, OUTPUT or POSTROUTING."""
    chain: Chain
    match: Match = ANY
    first: bool = False

    def __str__(self) -> str:
        """As iptables-save prints it, for comparison with its output."""
        return f"{self.match.saved} -j {self.chain}".lstrip()


@dataclass(frozen=True, slots=True)
class Table:
    """One instance's part of a table: its chains with their rules, and the jumps to them."""

    chains: Mapping[Chain, tuple[Rule, ...]] = field(default_factory=dict)
    jumps: tuple[Jump, ...] = ()

    @property
    def size(self) -> int:
        """The number of rules, jumps included."""
        return sum(map(len, self.chains.values())) + len(self.jumps)


Ruleset = Mapping[str, Table]
"""Tables by name, in the order of their commit."""


def hooked(chain: Chain, hook: str, rules: Iterable[Rule], *, first: bool = True) -> Table:
    """A chain of these rules and the jump to it; nothing if there are no rules."""
    if found := tuple(rules):
        return Table({chain: found}, (Jump(hook, chain, first=first),))
    return Table()


def join(*parts: Table) -> Table:
    """The chains and jumps of all parts of a table, in their order."""
    return Table(
        {chain: rules for part in parts for chain, rules in part.chains.items()},
        tuple(jump for part in parts for jump in part.jumps),
    )


def _range(values: range) -> str:
    """The range as iptables takes it, inclusive."""
    first, last = values[0], values[-1]
    return f"{first}" if first == last else f"{first}:{last}"
