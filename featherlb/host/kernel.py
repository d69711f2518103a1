"""What every instance needs of the kernel. Nothing on the host is changed."""

from collections.abc import Iterable

from featherlb.model.errors import HostError
from featherlb.system import iptables


def check_kernel(families: Iterable[int], workers: int, full: bool) -> None:
    """HostError if this kernel lacks an iptables table or extension for services of these address
    families, `full` if one of them is in that NAT mode."""
    for family in sorted(families):
        iptables.require_tables(family, ("raw", "mangle", "filter"))
        rules = ["-j NFQUEUE --queue-num 0", "-j CT --notrack", "-m addrtype --dst-type LOCAL"]
        if workers > 1:
            rules.append("-j HMARK --hmark-tuple src,sport --hmark-mod 2 --hmark-rnd 1")
            if full:
                rules.append('-m u32 --u32 "0=0"')
        if missing := iptables.missing(family, rules):
            raise HostError(
                f"this kernel has no iptables extension {', '.join(missing)}; load its module,"
                f" for example with `modprobe xt_{missing[0]}`, or use a kernel that has it"
            )
