"""Kernel settings under /proc/sys/net. Keys are paths below /proc/sys with slashes
(`net/ipv4/conf/eth0.5/forwarding`), because an interface's name may contain a dot. Values are text
without the final newline. The files belong to the network namespace of the calling process.
"""

from pathlib import Path

from featherlb.model.errors import HostError

ROOT = Path("/proc/sys")

BRIDGE_FILTERS = {
    4: "net/bridge/bridge-nf-call-iptables",
    6: "net/bridge/bridge-nf-call-ip6tables",
}
"""By address family, whether frames on bridges pass iptables; without br_netfilter they don't
exist."""

Setting = tuple[str, str]
"""A key and a value."""


def read(key: str) -> str | None:
    """The value; None if the key doesn't exist (any more)."""
    try:
        return (ROOT / key).read_text().strip()
    except OSError:
        return None


def write(key: str, value: str) -> None:
    """Set the value; HostError if the kernel or a read-only /proc/sys refuses."""
    try:
        (ROOT / key).write_text(value + "\n")
    except OSError as error:
        setting = f"{dotted(key)}={value}"
        raise HostError(
            f"cannot set {setting}: {(error.strerror or str(error)).lower()}; start the"
            f" container with `--sysctl {setting}` or, on the host's own network, set it there with"
            f" `sysctl -w {setting}`"
        ) from None


def changed_along(key: str) -> list[Setting]:
    """The current values of the settings that change implicitly when `key` is written.

    The two forwarding switches set the switch of every interface, and IPv4's also
    `accept_redirects` (net/ipv4/devinet.c: inet_forward_change; net/ipv6/addrconf.c:
    addrconf_fixup_forwarding).
    """
    if key == "net/ipv4/ip_forward":
        family, extra = "ipv4", ["net/ipv4/conf/all/accept_redirects"]
    elif key == "net/ipv6/conf/all/forwarding":
        family, extra = "ipv6", []
    else:
        return []
    interfaces = sorted(path.name for path in (ROOT / f"net/{family}/conf").iterdir())
    keys = [f"net/{family}/conf/{name}/forwarding" for name in interfaces if name != "all"]
    return [(key, value) for key in extra + keys if (value := read(key)) is not None]


def rp_filter(interface: str) -> int:
    """How the kernel filters by the reverse path at an interface: 0 not at all, 1 strictly, 2
    loosely."""
    keys = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", interface)]
    return max(int(read(key) or 0) for key in keys)


def rp_filters() -> list[Setting]:
    """The reverse-path filters of all interfaces, and the general ones."""
    try:
        names = sorted(path.name for path in (ROOT / "net/ipv4/conf").iterdir())
    except OSError:
        return []
    keys = [f"net/ipv4/conf/{name}/rp_filter" for name in names]
    return [(key, value) for key in keys if (value := read(key)) is not None]


def dotted(key: str) -> str:
    """The key as sysctl(8) spells it: dots for slashes, and a slash for an interface's dot."""
    return key.translate(str.maketrans("/.", "./"))
