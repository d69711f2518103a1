"""Rules that put a packet into its worker's queue. With one worker each is a single NFQUEUE. With
several, the client's address and port, or its network, select the worker (HMARK), the same in both
directions, or the port that a worker has given to the flow.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.model import Address, Protocol
from featherlb.system.ruleset import ANY, Action, Content, Enqueue, HashMark, Match, Rule, Side

WORKER_MARKS = 0xFEA60000
"""First packet mark of workers; small marks stay free for the host's own use."""
QUOTED_SOURCE_PORT = {4: "0>>22&0x3C@8>>22&0x3C@8>>16", 6: "88>>16"}
"""By address family, where the match `u32` finds the source port of the packet that an ICMP error
quotes: after two IP headers and 8 bytes. IPv6 extension headers are not skipped."""
PASS_MARKS = 0xFEA70000
"""First packet mark of packets that an instance has accepted unchanged, by its order: two for each
instance, the second one for packets after the routing decision."""


UNTRACKED_MARK = 0xFEA80000
"""Packet mark of SYNs that a worker has translated, and that connection tracking must not see."""


def pass_mark(order: int, late: bool = False) -> int:
    """The mark of packets that the instance with this order has accepted unchanged, `late` for
    those after the routing decision (`model.LATE_HOOKS`)."""
    return PASS_MARKS + 2 * order + late


def returns(facts: Facts, late: bool = False) -> Iterator[Rule]:
    """Rules that skip packets which this instance, or an earlier one, has accepted unchanged: they
    have been here before."""
    for order in (*facts.earlier, facts.order) if facts.earlier else ():
        yield Rule(Match(mark=pass_mark(order, late)), Action.RETURN)


def queue_by_client(
    family: int, client: Side, options: Options, bypass: bool = False
) -> Iterator[Rule]:
    """To the worker that the client selects, the same for both directions."""
    if options.workers > 1:
        yield Rule(ANY, _hash(family, client, options))
    for worker in range(1, options.workers):
        yield Rule(_marked(worker), _queue(worker, options, bypass))
    # Without a condition, so that no packet to a VIP bypasses the workers.
    yield Rule(ANY, _queue(0, options, bypass))


def queue_by_port(
    protocols: Collection[Protocol], options: Options, bypass: bool = False
) -> Iterator[Rule]:
    """To the worker whose SNAT ports include the destination port."""
    for worker in range(1, options.workers):
        for ports in filter(len, options.shard(worker).all_ports):
            for protocol in protocols:
                match = Match(protocol=protocol, destination_ports=ports)
                yield Rule(match, _queue(worker, options, bypass))
    yield Rule(ANY, _queue(0, options, bypass))


def queue_errors(family: int, options: Options, *, given: bool, kept: bool) -> Iterator[Rule]:
    """In raw: to the worker of the flow whose packet an ICMP error quotes. In some flows backends
    see an address and port that were `given`, in some clients have `kept` theirs.

    Most ICMP errors are not ours: they don't wait for a worker that isn't there.
    """
    if options.workers > 1:
        if given:
            # Quotes a packet to a backend, whose source port is an SNAT port of the worker.
            port = QUOTED_SOURCE_PORT[family]
            for worker in range(options.workers):
                for ports in filter(len, options.shard(worker).all_ports):
                    yield Rule(
                        Match(destination_local=True, content=Content(port, ports)),
                        _queue(worker, options, bypass=True),
                    )
        if kept:
            # From this host to a client: quotes a packet of the client.
            own = Match(source_local=True, destination_local=False)
            yield Rule(own, _hash(family, Side.SOURCE, options))
            for worker in range(options.workers):
                marked = replace(own, mark=WORKER_MARKS + worker)
                yield Rule(marked, _queue(worker, options, bypass=True))
    # Everything else that is ours is addressed to a VIP and quotes a packet to a client.
    yield from queue_by_client(family, Side.DESTINATION, options, bypass=True)


def queue_echo_requests(
    family: int, foreign: Sequence[Address], options: Options
) -> Iterator[Rule]:
    """To any worker, if some VIP is not an address of this host, whose kernel then doesn't
    answer."""
    if foreign:
        match = replace(icmp.echo_requests(family), destination_local=False)
        yield Rule(match, _queue(0, options, bypass=True))


def _queue(worker: int, options: Options, bypass: bool) -> Enqueue:
    return Enqueue(options.queue + worker, bypass or options.fail_open)


def _hash(family: int, client: Side, options: Options) -> HashMark:
    """Marks a packet with its worker."""
    prefix = options.prefix4 if family == 4 else options.prefix6
    return HashMark(client, options.hash_seed, options.workers, WORKER_MARKS, prefix)


def _marked(worker: int) -> Match:
    return Match(mark=WORKER_MARKS + worker)
