"""What every instance needs of the kernel. Nothing on the host is changed."""

from collections.abc import Iterable

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
