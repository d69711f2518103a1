"""What an instance changes on its host, and that any process can revert all of it."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPSet
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import Ether

from featherlb import host
from featherlb.lab import Lab, Node
from featherlb.model.errors import HostError
from featherlb.system import iptables, journal
from tests.netns.conftest import use_iptables
from tests.netns.host_owner import service
from tests.netns.traffic import wait_for

pytestmark = pytest.mark.no_packets("the host before and after, while no worker runs")

SERVICE = ("10.0.0.10:80", "10.0.1.2:8080", "10.0.1.3:8080")
SERVICE6 = ("[2001:db8::10]:80", "[2001:db8:1::2]:8080")
CROWD = tuple(f"10.0.1.{i}:8080" for i in range(2, 7))
"""So many backends that they stand in a set."""
LOCAL = ("10.0.0.11:8000-8010", "127.0.0.1:8080")


@pytest.fixture
def balancer() -> Iterator[Node]:
    with Lab(backends=1) as lab:
        yield lab.balancer


@pytest.fixture(params=["legacy", "nft"])
def flavour(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """iptables of either kind, found by the plain names as update-alternatives arranges it."""
    kind: str = request.param
    use_iptables(kind, tmp_path, monkeypatch)
    return kind


class Owner:
    """A process that owns an instance, see host_owner."""

    def __init__(self, node: Node, *arguments: str) -> None:
        self.process = node.popen(
            [sys.executable, "-m", "tests.netns.host_owner", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        self._expect("applied")

    def update(self, *backends: str) -> None:
        assert self.process.stdin is not None
        print(*backends, file=self.process.stdin, flush=True)
        self._expect("updated")

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._expect("reverted")
        self.end()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.process.wait()

    def _expect(self, answer: str) -> None:
        line = self._stdout.readline()
        if line != f"{answer}\n":
            assert self.process.stderr is not None
            error = self.process.stderr.read()
            self.end()
            raise AssertionError(f"{line!r} instead of {answer!r}: {error}")


def refusal(node: Node, *arguments: str) -> str:
    """The sentence with which an instance refuses to start."""
    with pytest.raises(AssertionError, match="instead of 'applied'") as caught:
        Owner(node, *arguments)
    return str(caught.value)


def set_names() -> list[str]:
    with IPSet() as sets:
        return sorted(reply.get_attr("IPSET_ATTR_SETNAME") for reply in sets.list())


def snapshot(node: Node) -> dict[str, Any]:
    """All that an instance may change."""
    found: dict[str, Any] = {"sets": [name for name in node.call(set_names) if name]}
    for family in ("iptables", "ip6tables"):
        saved = node.run([f"{family}-save"]).stdout
        # A table of the legacy variant shows once it was used, even if it is empty again.
        rules = re.sub(r"(?m)^(#.*|\*.*|COMMIT|:[A-Z]+ ACCEPT .*)\n", "", saved)
        found[family] = re.sub(r"\[\d+:\d+\]", "", rules)
    # What the nf_tables variant made goes again.
    found["nftables"] = node.run(["nft", "--stateless", "list", "ruleset"]).stdout
    addresses = json.loads(node.run(["ip", "-json", "addr"]).stdout)
    found["addresses"] = [
        (link["ifname"], address["local"], address["prefixlen"])
        for link in addresses
        for address in link["addr_info"]
        # The kernel's own come when the link is ready.
        if address["scope"] != "link"
    ]
    settings = node.run(["sysctl", "--all", "--pattern", r"^net\.ipv[46]"]).stdout
    found["settings"] = settings.splitlines()
    return found


@contextmanager
def unchanged(node: Node, *, but: str = "") -> Iterator[None]:
    before = snapshot(node)
    yield
    after = snapshot(node)
    assert {what: now for what, now in after.items() if what != but} == {
        what: then for what, then in before.items() if what != but
    }


@pytest.mark.parametrize("nat", ["dnat", "full"])
@pytest.mark.parametrize("service", [SERVICE, SERVICE6, LOCAL, ("0.0.0.0:80", "10.0.1.2:8080")])
def test_stopping_undoes_everything(
    balancer: Node, flavour: str, nat: str, service: tuple[str, ...]
) -> None:
    with unchanged(balancer):
        owner = Owner(balancer, "0", nat, *service)
        during = snapshot(balancer)
        assert "FEATHERLB-RAW-0" in during["iptables"] + during["ip6tables"]
        owner.stop()


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_a_killed_owner_is_cleaned_up_after(balancer: Node, flavour: str, nat: str) -> None:
    with unchanged(balancer):
        Owner(balancer, "0", nat, *SERVICE).kill()
        removed = balancer.call(host.remove_stale)
        assert any("FEATHERLB-*-0" in line for line in removed)
        assert any("10.0.0.10" in line for line in removed)
        assert any("ip_forward" in line for line in removed)
        assert balancer.call(host.remove_stale) == []


def test_a_setting_that_was_right_before_stays(balancer: Node) -> None:
    balancer.sysctl("net.ipv4.ip_forward", 1)
    balancer.sysctl("net.ipv4.conf.back.forwarding", 0)
    with unchanged(balancer):
        Owner(balancer, "0", "dnat", *SERVICE).stop()


def test_the_forwarding_switch_takes_nothing_else_along(balancer: Node) -> None:
    balancer.sysctl("net.ipv4.conf.back.forwarding", 1)
    balancer.sysctl("net.ipv4.conf.all.accept_redirects", 0)
    with unchanged(balancer):
        owner = Owner(balancer, "0", "dnat", *SERVICE)
        assert balancer.sysctl("net.ipv4.conf.front.forwarding") == "1"
        owner.stop()


def test_a_setting_that_the_operator_changed_since_stays(balancer: Node) -> None:
    owner = Owner(balancer, "0", "full", *SERVICE)
    balancer.sysctl("net.ipv4.conf.all.accept_local", 0)
    balancer.sysctl("net.ipv4.ip_forward", 0)
    balancer.sysctl("net.ipv4.conf.all.accept_redirects", 0)
    owner.stop()
    assert balancer.sysctl("net.ipv4.conf.all.accept_redirects") == "0"


def test_the_operators_address_stays(balancer: Node) -> None:
    balancer.run(["ip", "addr", "add", "10.0.0.10/24", "dev", "front"])
    with unchanged(balancer):
        Owner(balancer, "0", "dnat", *SERVICE).stop()


def test_what_the_operator_removed_already_is_no_failure(balancer: Node, flavour: str) -> None:
    with unchanged(balancer):
        owner = Owner(balancer, "0", "dnat", *SERVICE)
        balancer.run(["ip", "addr", "del", "10.0.0.10/32", "dev", "front"])
        balancer.run([f"iptables-{flavour}", "-t", "raw", "-F"])
        balancer.run([f"iptables-{flavour}", "-t", "mangle", "-D", "INPUT", "1"])
        owner.stop()


@pytest.mark.parametrize("first_to_end", [0, 1])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_two_instances_share(balancer: Node, flavour: str, first_to_end: int, end: str) -> None:
    with unchanged(balancer):
        owners = [
            Owner(balancer, "0", "dnat", "10.0.0.10:80", "10.0.1.2:8080"),
            Owner(balancer, "1", "dnat", "10.0.0.10:81", "10.0.1.2:8080"),
        ]
        getattr(owners.pop(first_to_end), end)()
        balancer.call(host.remove_stale)
        during = snapshot(balancer)
        assert balancer.sysctl("net.ipv4.ip_forward") == "1"
        assert ("front", "10.0.0.10", 32) in during["addresses"]
        assert f"FEATHERLB-RAW-{1 - first_to_end}" in during["iptables"]
        assert f"FEATHERLB-RAW-{first_to_end}" not in during["iptables"]
        getattr(owners.pop(), end)()
        balancer.call(host.remove_stale)


def test_what_others_use_of_nftables_stays(
    balancer: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_iptables("nft", tmp_path, monkeypatch)

    def chains() -> set[str]:
        listed = json.loads(balancer.run(["nft", "--json", "list", "ruleset"]).stdout)["nftables"]
        found = [one["chain"] for one in listed if "chain" in one]
        return {f"{one['family']} {one['table']} {one['name']}" for one in found}

    # A table of the same name whose chains are somebody's; one that is empty, and was before.
    table = "table ip raw { chain mine { accept; }; }; table ip mangle { chain FORWARD { }; }"
    balancer.run(["nft", "-f", "-"], input=table)
    before = chains()
    assert before == {"ip raw mine", "ip mangle FORWARD"}
    owners = [
        Owner(balancer, str(queue), "dnat", f"10.0.0.10:8{queue}", "10.0.1.2:8080")
        for queue in range(2)
    ]
    during = chains()
    assert "ip raw PREROUTING" in during
    owners.pop(0).stop()
    assert {one for one in during if not one.endswith("-0")} == chains()
    # What somebody uses meanwhile, or has a policy for, stays.
    balancer.run(["iptables", "-t", "raw", "-A", "OUTPUT", "-j", "ACCEPT"])
    balancer.run(["iptables", "-P", "FORWARD", "DROP"])
    owners.pop().stop()
    assert chains() == before | {"ip raw OUTPUT", "ip filter FORWARD"}


def test_a_later_instance_sees_replies_first(balancer: Node, flavour: str) -> None:
    rule = ["-t", "mangle", "-A", "POSTROUTING", "-d", "192.0.2.9", "-j", "DROP"]
    balancer.run([f"iptables-{flavour}", *rule])
    owners = [
        Owner(balancer, str(queue), "dnat", f"10.0.0.10:8{queue}", "10.0.1.2:8080")
        for queue in range(3)
    ]
    owners[1].update("10.0.1.2:8080", "10.0.1.3:8080")
    rules = balancer.run([f"iptables-{flavour}", "-t", "mangle", "-S"]).stdout.splitlines()
    assert [rule for rule in rules if rule.startswith("-A POSTROUTING")] == [
        "-A POSTROUTING -d 192.0.2.9/32 -j DROP",
        "-A POSTROUTING -j FEATHERLB-MANGLE-2",
        "-A POSTROUTING -j FEATHERLB-MANGLE-1",
        "-A POSTROUTING -j FEATHERLB-MANGLE-0",
    ]
    # What one instance has passed on is not for itself again, and not for those in front of it.
    assert [rule for rule in rules if "RETURN" in rule] == [
        *(
            f"-A FEATHERLB-MANGLE-1 -m mark --mark {0xFEA70001 + 2 * i:#x} -j RETURN"
            for i in (0, 1)
        ),
        *(
            f"-A FEATHERLB-MANGLE-2 -m mark --mark {0xFEA70001 + 2 * i:#x} -j RETURN"
            for i in (0, 1, 2)
        ),
    ]
    for owner in owners:
        owner.stop()


def test_what_an_instance_puts_back_stays_behind_the_later_ones(
    balancer: Node, flavour: str
) -> None:
    def jumps(table: str, chain: str) -> list[str]:
        rules = balancer.run([f"iptables-{flavour}", "-t", table, "-S", chain]).stdout.splitlines()
        return [rule.split()[-1].removeprefix("FEATHERLB-") for rule in rules[1:]]

    owners = [
        Owner(balancer, str(queue), "dnat", f"10.0.0.10:8{queue}", "10.0.1.2:8080")
        for queue in range(3)
    ]
    # Somebody gets in front of those that have to be first, and takes away one that hasn't.
    balancer.run([f"iptables-{flavour}", "-I", "FORWARD", "-d", "192.0.2.9", "-j", "DROP"])
    gone = ["-t", "mangle", "-D", "POSTROUTING", "-j", "FEATHERLB-MANGLE-1"]
    balancer.run([f"iptables-{flavour}", *gone])
    owners[1].update("10.0.1.2:8080")
    assert jumps("filter", "FORWARD") == [
        *("FILTER-2", "ERROR-2", "FILTER-1", "ERROR-1"),
        "DROP",
        *("FILTER-0", "ERROR-0"),
    ]
    assert jumps("mangle", "POSTROUTING") == ["MANGLE-2", "MANGLE-1", "MANGLE-0"]
    for owner in owners:
        owner.stop()


def test_an_update_goes_over_to_other_backends(balancer: Node, flavour: str) -> None:
    with unchanged(balancer):
        owner = Owner(balancer, "0", "dnat", "10.0.0.10:80")
        assert balancer.sysctl("net.ipv4.ip_forward") == "0"
        owner.update("10.0.1.2:8080", "127.0.0.1:8080")
        assert balancer.sysctl("net.ipv4.ip_forward") == "1"
        rules = snapshot(balancer)["iptables"]
        assert rules.count("-s 10.0.1.2/32") == rules.count("-s 127.0.0.1/32") == 3
        assert "FEATHERLB-GUARD-0" in rules
        # More of them stand in a set, and leave it when they are few again.
        owner.update(*CROWD, "127.0.0.1:8080")
        crowd = {backend.partition(":")[0] for backend in CROWD}
        assert balancer.call(members, "featherlb-0-backends4") == {*crowd, "127.0.0.1"}
        assert "-s 10.0.1.2/32" not in snapshot(balancer)["iptables"]
        owner.update(*CROWD)
        assert balancer.call(members, "featherlb-0-backends4") == crowd
        owner.update("10.0.1.3:8080")
        assert snapshot(balancer)["sets"] == []
        rules = snapshot(balancer)["iptables"]
        assert rules.count("-s 10.0.1.3/32") == 3
        assert rules.count("-j FEATHERLB-RAW-0") == 2
        assert "127.0.0.0/8" not in rules
        assert balancer.sysctl("net.ipv4.conf.all.route_localnet") == "0"
        owner.stop()


def members(name: str) -> set[str]:
    """The addresses in a set."""
    with IPSet() as sets:
        return {
            entry.get_attr("IPSET_ATTR_IP_FROM").get_attr("IPSET_ATTR_IPADDR_IPV4")
            for reply in sets.list(name)
            for entry in reply.get_attr("IPSET_ATTR_ADT").get_attrs("IPSET_ATTR_DATA")
        }


def test_what_no_journal_knows_is_found(balancer: Node, flavour: str) -> None:
    balancer.sysctl("net.ipv4.ip_forward", 1)
    # Which empty chains were there before, only the journal knows.
    with unchanged(balancer, but="nftables"):
        owner = Owner(balancer, "7", "dnat", "10.0.0.1:80", *CROWD)
        shutil.rmtree(balancer.call(journal.Journal).directory)
        owner.kill()
        removed = balancer.call(host.remove_stale)
        assert removed == [
            "iptables chains FEATHERLB-*-7, of an instance without a record",
            "ipsets featherlb-7-*, of an instance without a record",
        ]


def test_what_a_running_instance_has_is_not_stale(balancer: Node) -> None:
    owner = Owner(balancer, "0", "dnat", *SERVICE)
    with unchanged(balancer):
        assert balancer.call(host.remove_stale) == []
    owner.stop()


def test_what_others_change_is_noticed(balancer: Node, flavour: str) -> None:
    """And an update puts it right."""
    balancer.sysctl("net.ipv4.ip_forward", 0)
    services = balancer.call(host.prepare, [service("dnat", SERVICE[0], list(CROWD))])

    def plan() -> host.HostPlan:
        return host.build(services, options, host.survey(services))

    options = host.Options()
    with balancer.call(host.Host) as instance:
        balancer.call(instance.apply, balancer.call(plan))
        try:
            assert balancer.call(instance.deviations) == []
            balancer.sysctl("net.ipv4.ip_forward", 0)
            rule = ["PREROUTING", "-j", "FEATHERLB-RAW-0"]
            balancer.run([f"iptables-{flavour}", "-t", "raw", "-D", *rule])
            added = ["FEATHERLB-FORWARD-0", "-j", "DROP"]
            balancer.run([f"iptables-{flavour}", "-t", "raw", "-I", *added])
            balancer.run(["ipset", "flush", "featherlb-0-backends4"])
            balancer.run(["ip", "addr", "del", "10.0.0.10/32", "dev", "front"])
            found = balancer.call(instance.deviations)
            assert [one.text for one in found] == [
                "the iptables rule `raw: -A PREROUTING -j FEATHERLB-RAW-0` is gone",
                "the iptables rule `raw: -A FEATHERLB-FORWARD-0 -j DROP` is not featherlb's",
                "the ipset featherlb-0-backends4 is gone or has other entries",
                "net.ipv4.ip_forward is 0 and has to be 1",
                "the VIP 10.0.0.10 is no address of this host any more",
            ]
            assert host.repairs(found) == [
                "restored 1 rule of table raw",
                "removed 1 rule of others from table raw",
                "restored ipset featherlb-0-backends4",
                "restored net.ipv4.ip_forward=1",
                "restored VIP 10.0.0.10 on front",
            ]
            balancer.call(instance.update, balancer.call(plan))
            assert balancer.call(instance.deviations) == []
        finally:
            balancer.call(instance.revert)


def test_what_others_change_at_the_same_moment_is_not_taken_for_the_plan(
    balancer: Node, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the moment when the rules are applied and that when they are listed."""
    replace, options = iptables.replace, host.Options()

    def replaced_and_flushed(*arguments: Any) -> None:
        replace(*arguments)
        balancer.run([f"iptables-{flavour}", "-t", "raw", "-F"])

    def plan() -> host.HostPlan:
        services = host.prepare([service("dnat", SERVICE[0], list(SERVICE[1:]))])
        return host.build(services, options, host.survey(services))

    with balancer.call(host.Host) as instance:
        try:
            with monkeypatch.context() as patch, unchanged(balancer):
                patch.setattr(iptables, "replace", replaced_and_flushed)
                with pytest.raises(HostError, match="another program keeps changing the rules"):
                    balancer.call(instance.apply, balancer.call(plan))
            balancer.call(instance.apply, balancer.call(plan))
            with monkeypatch.context() as patch:
                patch.setattr(iptables, "replace", replaced_and_flushed)
                balancer.call(instance.update, balancer.call(plan))
            assert balancer.call(instance.deviations)
            balancer.call(instance.update, balancer.call(plan))
            assert balancer.call(instance.deviations) == []
        finally:
            balancer.call(instance.revert)


def test_rules_that_change_between_reading_and_replacing_are_read_again(
    balancer: Node, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a firewall reloads during a reload of ours."""
    restore, options = iptables._restore, host.Options()
    flushes = itertools.count()

    def plan(*backends: str) -> host.HostPlan:
        services = host.prepare([service("dnat", SERVICE[0], list(backends))])
        return host.build(services, options, host.survey(services))

    def flush_and_restore(limit: int, *arguments: Any) -> None:
        if next(flushes) < limit:
            # The chain as well: iptables-restore could not delete the jumps to it.
            for action in ("-F", "-X"):
                balancer.run([f"iptables-{flavour}", "-t", "raw", action])
        restore(*arguments)

    with balancer.call(host.Host) as instance:
        try:
            balancer.call(instance.apply, balancer.call(plan, SERVICE[1]))
            # Something ahead of the jumps, so that they must be moved.
            balancer.run([f"iptables-{flavour}", "-t", "raw", "-I", "PREROUTING", "-j", "ACCEPT"])
            with monkeypatch.context() as patch:
                patch.setattr(iptables, "_restore", partial(flush_and_restore, 1))
                balancer.call(instance.update, balancer.call(plan, *SERVICE[1:]))
            assert next(flushes) > 1
            assert balancer.call(instance.deviations) == []
        finally:
            balancer.call(instance.revert)


def test_free_queues_skip_running_instances(balancer: Node) -> None:
    owner = Owner(balancer, "0", "dnat", *SERVICE)
    assert balancer.call(host.free_queue, 2) == 1
    owner.stop()
    assert balancer.call(host.free_queue, 2) == 0


def test_a_refused_change_leaves_nothing(balancer: Node, flavour: str) -> None:
    # The rules are in place when the address, the last change, is refused.
    for interface in ("front", "back", "lo"):
        balancer.sysctl(f"net.ipv6.conf.{interface}.disable_ipv6", 1)
    with unchanged(balancer):
        assert "cannot add 2001:db8::10" in refusal(balancer, "0", "dnat", "[2001:db8::10]:80")
        assert balancer.call(host.remove_stale) == []


@pytest.mark.parametrize("vip", ["10.0.0.10", "2001:db8::10"])
def test_the_neighbours_hear_of_an_assigned_vip(vip: str) -> None:
    with Lab(backends=1) as lab:
        stale = f"ip neigh add {vip} lladdr 02:00:00:00:00:01 dev eth0 nud stale"
        lab.client.run(stale.split())
        owner = Owner(lab.balancer, "0", "dnat", f"[{vip}]:80")
        mac = json.loads(lab.balancer.run(["ip", "-json", "link", "show", "front"]).stdout)
        wait_for(
            lambda: mac[0]["address"] in lab.client.run(["ip", "neigh"]).stdout,
            "the client knows who has the VIP",
        )
        owner.stop()


def test_the_hosts_route_from_a_router_advertisement_stays() -> None:
    with Lab(backends=1) as lab:
        for setting in ("accept_ra", "accept_ra_defrtr"):
            lab.balancer.sysctl(f"net.ipv6.conf.front.{setting}", 1)

        def routes() -> str:
            return lab.balancer.run(["ip", "-6", "route", "show", "default"]).stdout

        frame = Ether(dst="33:33:00:00:00:01") / (
            IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
        )
        with lab.client.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("eth0", 0))

            def advertise() -> bool:
                link.send(bytes(frame))
                return "via fe80::1" in routes()

            wait_for(advertise, "the advertisement is believed")
        with unchanged(lab.balancer):
            owner = Owner(lab.balancer, "0", "dnat", *SERVICE6)
            assert lab.balancer.sysctl("net.ipv6.conf.all.forwarding") == "1"
            assert "via fe80::1" in routes()
            owner.update("[2001:db8:1::3]:8080")
            assert lab.balancer.sysctl("net.ipv6.conf.front.accept_ra") == "2"
            owner.stop()
        assert "via fe80::1" in routes()
