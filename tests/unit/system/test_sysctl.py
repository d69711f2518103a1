"""Names of kernel settings, and what is read without any privilege."""

from pathlib import Path

from featherlb.system import sysctl


def test_keys_are_written_as_sysctl_reads_them() -> None:
    assert sysctl.dotted("net/ipv4/conf/eth0.5/rp_filter") == "net.ipv4.conf.eth0/5.rp_filter"


def test_a_missing_key_has_no_value() -> None:
    assert sysctl.read("net/ipv4/conf/no-such-interface/forwarding") is None


def test_the_forwarding_switch_sets_every_interface() -> None:
    along = dict(sysctl.changed_along("net/ipv4/ip_forward"))
    interfaces = {path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()} - {"all"}
    assert along.keys() == {"net/ipv4/conf/all/accept_redirects"} | {
        f"net/ipv4/conf/{name}/forwarding" for name in interfaces
    }
    assert sysctl.changed_along("net/ipv4/conf/all/accept_local") == []
