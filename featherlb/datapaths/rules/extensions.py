"""What every instance needs of the kernel: the tables and extensions of iptables that its rules
use. Nothing on the host is changed."""

from collections.abc import Iterable, Iterator, Sequence

from featherlb.model import NatMode, Service
from featherlb.model.errors import HostError
from featherlb.system import iptables
from featherlb.system.ruleset import ANY, Action, Content, Enqueue, HashMark, Match, Rule, Side


def check_kernel(families: Iterable[int], workers: int, full: bool) -> None:
    """HostError if this kernel lacks an iptables table or extension for services of these address
    families, `full` if one of them is in that NAT mode."""
    for family in sorted(families):
        iptables.require_tables(family, ("raw", "mangle", "filter"))
        rules = [
            Rule(ANY, Enqueue(0)),
            Rule(ANY, Action.UNTRACK),
            Rule(Match(destination_local=True)),
        ]
        if workers > 1:
            rules.append(Rule(ANY, HashMark(Side.SOURCE, seed=1, modulus=2)))
            if full:
                rules.append(Rule(Match(content=Content("0", range(1)))))
        if missing := iptables.missing(family, rules):
            raise HostError(
                f"this kernel has no iptables extension {', '.join(missing)}; load its module,"
                f" for example with `modprobe xt_{missing[0]}`, or use a kernel that has it"
            )


def queue_obstacles(services: Sequence[Service]) -> Iterator[str]:
    """Why this host cannot put packets of the services, or any, into a queue. Each datapath does
    that, at least for clients on this host or for packets that open a flow."""
    families = {vip.address.version for service in services for vip in service.vips}
    full = any(service.nat is NatMode.FULL for service in services)
    try:
        check_kernel(families or (4,), 1, full)
    except HostError as error:
        yield str(error)
