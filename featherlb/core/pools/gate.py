"""Who may open flows of a service: its lists of networks, and the limits for clients.

Asked once for each new flow, never for a packet of an open one. Clients are told apart by networks
(`prefix` of a limit); an address is a number of 128 bits, IPv4 in its mapped form.
"""

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator

from featherlb.model import (
    EVERYBODY,
    Admission,
    MaxFlows,
    MaxNew,
    NetworkSet,
    Refusal,
    network_text,
)
from featherlb.model.reason import Reason

MAX_CLIENTS = 65536
"""Networks of which a rate limit knows when they opened flows; beyond that, the one that has not
opened any for longest is forgotten."""
MAX_OFFENDERS = 256
INSISTENT = 250
"""Refusals between two questions of the supervisor, half a second, after which the kernel does it:
at this rate a client costs a worker two thousandths of its time."""
PERIOD = 60.0
"""Seconds for which refusals are counted together."""
NOT_ALLOWED = int(Reason.NOT_ALLOWED)
MAX_FLOWS = int(Reason.MAX_FLOWS)
MAX_NEW = int(Reason.MAX_NEW)
REFUSALS = (Reason.NOT_ALLOWED, Reason.MAX_FLOWS, Reason.MAX_NEW)
"""In the order in which the conditions are looked at."""
_MARGIN = 1e-6
"""Seconds by which sums of intervals may be wrong."""


def key_of(network: int) -> bytes:
    """A network as a key of a dict. The hash of a number is the number modulo a prime: whoever has
    many IPv6 addresses could choose some that a dict finds slowly. That of bytes has a secret."""
    return network.to_bytes(16)


class Listed:
    """Whether an address is in a set of networks: a binary search, however many there are."""

    def __init__(self, networks: NetworkSet) -> None:
        ranges = list(networks.ranges())
        self._firsts = [first for first, _ in ranges]
        self._lasts = [last for _, last in ranges]

    def __contains__(self, client: object) -> bool:
        assert isinstance(client, int)
        at = bisect_right(self._firsts, client)
        return at > 0 and client <= self._lasts[at - 1]


class FlowCounts:
    """The numbers of active flows by network."""

    def __init__(self, shift: int) -> None:
        """`shift` is the number of bits that follow the network's in an address."""
        self._shift = shift
        self._counts: dict[bytes, int] = {}

    def of(self, client: int) -> int:
        return self._counts.get(key_of(client >> self._shift), 0)

    def change(self, client: int, by: int) -> None:
        network = key_of(client >> self._shift)
        count = self._counts.get(network, 0) + by
        if count > 0:
            self._counts[network] = count
        else:
            self._counts.pop(network, None)


class Pace:
    """How fast networks open flows: for each, the time at which its burst is there again in full
    (the generic cell rate algorithm, ITU-T I.371 annex A: a token bucket in one number)."""

    def __init__(self, limit: MaxNew, shift: int) -> None:
        self._shift = shift
        self._full: OrderedDict[bytes, float] = OrderedDict()
        self.take_limit(limit)

    def take_limit(self, limit: MaxNew) -> None:
        """Apply another rate or burst."""
        self._interval = 1 / limit.rate
        self._patience = (limit.burst - 1) / limit.rate + _MARGIN

    def wait(self, client: int, now: float) -> float:
        """Seconds until the client may open a flow, 0 or less if it may now."""
        return self._full.get(key_of(client >> self._shift), now) - now - self._patience

    def open(self, client: int, now: float) -> None:
        """Note that the client opens a flow."""
        full, network = self._full, key_of(client >> self._shift)
        full[network] = max(full.get(network, now), now) + self._interval
        full.move_to_end(network)
        # For one entry added, up to two that say nothing any more are removed.
        for _ in range(2):
            if next(iter(full.values())) <= now or len(full) > MAX_CLIENTS:
                full.popitem(last=False)


class Offenders:
    """The clients that are refused most often: a sketch of fixed size.

    One of `MAX_OFFENDERS` counters is anybody's who has more than that part of the refusals; a
    count may be too low by as much (J. Misra, D. Gries: "Finding repeated elements", 1982).
    Refusals are counted for two periods, so that one who has stopped is soon forgotten.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._before: dict[int, int] = {}
        """Of the last period."""
        self._end = 0.0

    def add(self, client: int, now: float) -> None:
        """Count a refusal."""
        if now >= self._end:
            self._turn(now)
        self._counts = _counted(self._counts, client)

    def top(self, count: int, now: float) -> list[tuple[int, int]]:
        """So many clients, at most, with the numbers of their refusals, the greatest first."""
        if now >= self._end:
            self._turn(now)
        sums = Counter(self._counts)
        sums.update(self._before)
        return sums.most_common(count)

    def _turn(self, now: float) -> None:
        self._before = self._counts if now < self._end + PERIOD else {}
        self._counts = {}
        self._end = now + PERIOD


def _counted(counts: dict[int, int], client: int) -> dict[int, int]:
    """These counts of a sketch with another one of this client."""
    if client in counts:
        counts[client] += 1
    elif len(counts) < MAX_OFFENDERS:
        counts[client] = 1
    else:
        return {one: count - 1 for one, count in counts.items() if count > 1}
    return counts


class Gate:
    """The conditions of one service, and the counts that they need.

    `guards` says whether there is any condition, `counts` whether active flows are counted.
    `uncounted`: flows that were open before they were counted are still missing (`count`).
    `refused` counts the packets that it refused, by reason; `offenders` has who sent them of late.
    """

    def __init__(self) -> None:
        self.guards = False
        self.counts = False
        self.uncounted = False
        self.refused = dict.fromkeys(map(int, REFUSALS), 0)
        self.offenders = Offenders()
        self._recent: dict[int, dict[int, int]] = {}
        """By reason, how often clients were refused since `take_insistent`."""
        self._admission = EVERYBODY
        self._bits = 0
        self._allow: Listed | None = None
        self._deny: Listed | None = None
        self._counts: dict[int, FlowCounts] = {}
        """By prefix length."""
        self._paces: dict[int, Pace] = {}

    def update(self, admission: Admission, family: int) -> None:
        """Apply these conditions, for clients of one address family, 4 or 6. What is known of
        clients stays, as far as networks stay the same."""
        bits = 32 if family == 4 else 128
        if (admission, bits) == (self._admission, self._bits):
            return
        before = self._admission
        self._admission = admission
        if admission.allow != before.allow:
            self._allow = None if admission.allow is None else Listed(admission.allow)
        if admission.deny != before.deny:
            self._deny = Listed(admission.deny) if admission.deny else None
        if self._bits != bits:
            self._bits, self._counts, self._paces = bits, {}, {}
        had = self._counts
        self._counts = {
            one.prefix: had.get(one.prefix) or FlowCounts(self._bits - one.prefix)
            for one in admission.max_flows
        }
        self.counts = bool(self._counts)
        if self._counts.keys() - had.keys():
            self.uncounted = True
            self._counts = {prefix: FlowCounts(self._bits - prefix) for prefix in self._counts}
        paces = self._paces
        self._paces = {}
        for one in admission.max_new:
            pace = self._paces[one.prefix] = paces.get(one.prefix) or Pace(
                one, self._bits - one.prefix
            )
            pace.take_limit(one)
        self.guards = admission != EVERYBODY

    def refusal(self, high: int, low: int, now: float, opens: bool = True) -> int:
        """The `Reason` why this client (two words) may not open a flow at this time, negative if it
        is to be told; 0 if it may. Then it has, unless it only asks (`opens`)."""
        client = high << 64 | low
        reason, action = self._judge(client, now)
        if not reason:
            if opens:
                for pace in self._paces.values():
                    pace.open(client, now)
            return 0
        self.refused[reason] += 1
        self.offenders.add(client, now)
        host = client if client >> 32 == 0xFFFF else client >> 64 << 64
        self._recent[reason] = _counted(self._recent.get(reason, {}), host)
        return -reason if action is Refusal.RESET else reason

    def take_insistent(self) -> list[tuple[int, int]]:
        """The clients that were refused `INSISTENT` times or more since the last call, of IPv6 as
        networks of 64 bits, each with the reason."""
        recent, self._recent = self._recent, {}
        return [
            (client, reason)
            for reason, counts in recent.items()
            for client, count in counts.items()
            if count >= INSISTENT
        ]

    def count(self, high: int, low: int, by: int) -> None:
        """Count an active flow of this client (two words), or that one is no longer active (-1)."""
        client = high << 64 | low
        for counts in self._counts.values():
            counts.change(client, by)

    def explain(self, client: int, now: float) -> tuple[Reason | None, list[str]]:
        """What `refusal` would say, and sentences on why. Changes nothing."""
        reason, action = self._judge(client, now)
        if not reason:
            return None, list(self._standing(client))
        told = "dropped" if action is Refusal.DROP else "refused"
        return Reason(reason), [f"{why}: new flows are {told}" for why in self._why(client, now)]

    def _judge(self, client: int, now: float) -> tuple[int, Refusal]:
        admission = self._admission
        if (self._allow is not None and client not in self._allow) or (
            self._deny is not None and client in self._deny
        ):
            return NOT_ALLOWED, admission.deny_action
        for most in admission.max_flows:
            if self._counts[most.prefix].of(client) >= most.limit:
                return MAX_FLOWS, most.action
        for fastest in admission.max_new:
            if self._paces[fastest.prefix].wait(client, now) > 0:
                return MAX_NEW, fastest.action
        return 0, Refusal.DROP

    def _why(self, client: int, now: float) -> Iterator[str]:
        """The first condition that the client does not meet."""
        if self._allow is not None and client not in self._allow:
            yield "allow: the client is not on the list"
            return
        if self._deny is not None and client in self._deny:
            yield "deny: the client is on the list"
            return
        for most in self._admission.max_flows:
            if self._counts[most.prefix].of(client) >= most.limit:
                yield self._standing_of(most, client)
                return
        for fastest in self._admission.max_new:
            if (wait := self._paces[fastest.prefix].wait(client, now)) > 0:
                yield (
                    f"max_new: {self._whose(fastest.prefix, client)} may open the next flow in"
                    f" {max(wait, 0.01):.2f} s"
                )
                return

    def _standing(self, client: int) -> Iterator[str]:
        """How far a client is from its limits."""
        for most in self._admission.max_flows:
            yield self._standing_of(most, client)

    def _standing_of(self, most: MaxFlows, client: int) -> str:
        count = self._counts[most.prefix].of(client)
        whose = self._whose(most.prefix, client)
        return f"max_flows: {whose} has {count} of {most.limit} flows"

    def _whose(self, prefix: int, client: int) -> str:
        return network_text(client, prefix) if prefix else "the service"
