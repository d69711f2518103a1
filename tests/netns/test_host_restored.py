"""Others change what an instance needs on its host, while it runs: it notices, and restores it."""

import json
from pathlib import Path
from typing import Any

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from featherlb.system import netlink, nft_monitor
from tests.netns.command import api, reload
from tests.netns.conftest import SERVED, Up, in_turn, use_iptables
from tests.netns.test_operate_pools import ONE
from tests.netns.traffic import Session, ask, wait_for

pytestmark = [SERVED, pytest.mark.no_packets("what the supervisor restores on the host")]

CROWD = tuple(f"10.0.1.{number}:9" for number in range(20, 25))
"""So many backends that they stand in a set."""


def flush(node: Node, flavour: str) -> None:
    """As a firewall does that starts again with rules of its own."""
    if flavour == "nft":
        node.run(["nft", "flush", "ruleset"])
        return
    for family in ("iptables-legacy", "ip6tables-legacy"):
        for table in ("raw", "mangle", "nat", "filter"):
            for action in ("-F", "-X"):
                node.run([family, "-t", table, action])


def host(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = api(lab.balancer, "status")["host"]
    return found


def rules(node: Node) -> list[str]:
    return sorted(
        line
        for family in ("iptables-save", "ip6tables-save")
        for line in node.run([family]).stdout.splitlines()
        if line.startswith("-")
    )


def served(lab: Lab) -> bool:
    """Whether a new connection gets to the backend."""
    try:
        return ask(lab.client).backend == "backend1"
    except OSError:
        return False


def write(directory: Path, *lines: str, nat: str = "dnat") -> str:
    """A file with these lines and services of both families."""
    path = directory / "lb.yaml"
    vips = {f"{VIP}:80": [ONE], f"{VIP}:81": CROWD, "[2001:db8::10]:80": ["[2001:db8:1::2]:80"]}
    services = [
        {"vip": vip, "nat": nat, "backends": list(backends)} for vip, backends in vips.items()
    ]
    path.write_text("\n".join([*lines, f"services: {json.dumps(services)}"]))
    return str(path)


@in_turn(("netlink", "raw", "offload"), flavour=["nft", "legacy"])
def test_what_others_remove_is_restored(
    lab: Lab, featherlb: Up, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_iptables(flavour, tmp_path, monkeypatch)
    node = lab.balancer
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE) as running:
        before = rules(node)
        with Session(lab.client) as session:
            assert session.ask().backend == "backend1"
            flush(node, flavour)
            wait_for(lambda: rules(node) == before, "the rules")
            assert session.ask().backend == "backend1"
            assert served(lab)
            # What goes before a restoration has ended comes back with it, and isn't reported.
            wait_for(lambda: host(lab)["restored"] == restored(rules=1), "the first report")
            node.run(["ip", "address", "flush", "dev", "front", "to", VIP])
            wait_for(lambda: served(lab), "the VIP")
            assert session.ask().backend == "backend1"
        wait_for(lambda: host(lab)["restored"] == restored(rules=1, addresses=1), "the report")
        assert host(lab)["deviations"] == []
        assert f"restored VIP {VIP} on front" in running.log
        # The nf_tables variant's changes carry their author's name.
        author = " by nft (pid " if flavour == "nft" else ": "
        assert f"this host was changed{author}" in running.log
        assert rules(node) == before
        assert reload(node) == []


def restored(**counts: int) -> dict[str, int]:
    return {"rules": 0, "sets": 0, "settings": 0, "addresses": 0, "programs": 0, **counts}


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_settings_and_sets_are_restored(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    node = lab.balancer
    with featherlb(lab, "--config", write(tmp_path)) as running:

        def counted(**counts: int) -> None:
            wait_for(lambda: host(lab)["restored"] == restored(**counts), f"{counts}")

        for times in (1, 2):
            node.sysctl("net.ipv4.ip_forward", 0)
            counted(settings=times, sets=times - 1)
            assert node.sysctl("net.ipv4.ip_forward") == "1"
            node.run(["ipset", "flush", "featherlb-0-backends4"])
            counted(settings=times, sets=times)
        assert "10.0.1.20" in node.run(["ipset", "list", "featherlb-0-backends4"]).stdout
        assert "restored net.ipv4.ip_forward=1" in running.log
        assert served(lab)


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_changes_are_only_reported(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    node = lab.balancer
    path = write(tmp_path, "restore: false")
    with featherlb(lab, "--config", path) as running:
        before = rules(node)
        node.run(["ip", "address", "flush", "dev", "front", "to", VIP])
        text = f"the VIP {VIP} is no address of this host any more"
        wait_for(lambda: host(lab)["deviations"] == [text], "the report")
        assert f"this host was changed: {text}; `featherlb reload` restores it" in running.log
        flush(node, "nft")
        wait_for(lambda: len(json.dumps(host(lab))) > 1000, "the report of the rules")
        assert rules(node) == []
        assert running.log.count(text) == 1
        assert host(lab)["restored"] == restored()
        differences = reload(node)
        assert f"restored VIP {VIP} on front" in differences
        assert rules(node) == before
        assert served(lab)
        wait_for(lambda: host(lab)["deviations"] == [], "all is right")
        wait_for(lambda: "as it should be again" in running.log, "the report of that")
        # From now on it restores.
        write(tmp_path, "restore: true")
        assert reload(node) == ["restore false -> true"]
        flush(node, "nft")
        wait_for(lambda: rules(node) == before, "the rules")


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_somebody_who_keeps_at_it_is_not_answered_at_once(lab: Lab, featherlb: Up) -> None:
    node = lab.balancer
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE) as running:
        before = rules(node)

        def flush_again() -> None:
            flush(node, "nft")
            wait_for(lambda: rules(node) == before, "the rules")

        for _ in range(3):
            flush_again()
        assert "something keeps changing it, so it is restored in" in running.log
        wait_for(lambda: host(lab)["restored"] == restored(rules=3), "the count")


@pytest.mark.parametrize("driver", ["netlink", "raw"], indirect=True)
def test_an_address_of_somebody_else_is_not_taken(lab: Lab, featherlb: Up) -> None:
    """With VRRP another host has it then."""
    node = lab.balancer
    node.run(["ip", "address", "add", f"{VIP}/32", "dev", "front"])
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE) as running:
        assert served(lab)
        node.run(["ip", "address", "del", f"{VIP}/32", "dev", "front"])
        text = f"the VIP {VIP}, which featherlb did not assign, is no address of this host any more"
        wait_for(lambda: host(lab)["deviations"] == [text], "the report")
        assert text in running.log
        assert VIP not in node.run(["ip", "address"]).stdout
        assert reload(node) == [f"assigned VIP {VIP}"]
        assert served(lab)


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_a_vip_follows_its_subnet(lab: Lab, featherlb: Up) -> None:
    """A link that goes down loses its IPv6 addresses, and the host its subnet."""
    node = lab.balancer
    backend = "[2001:db8:1::2]:8080"
    with featherlb(lab, "--vip", f"[{VIP6}]:80", "--backend", backend) as running:

        def interface() -> str:
            links = json.loads(node.run(["ip", "-6", "-json", "address"]).stdout)
            own = {one["local"]: link["ifname"] for link in links for one in link["addr_info"]}
            return str(own.get(VIP6))

        assert interface() == "front"
        node.run(["ip", "link", "set", "front", "down"])
        wait_for(lambda: interface() == "lo", "the VIP on this host")
        node.run(["ip", "link", "set", "front", "up"])
        node.run(["ip", "address", "add", "2001:db8::1/64", "dev", "front", "nodad"])
        wait_for(lambda: interface() == "front", "the VIP in its subnet")
        wait_for(lambda: f"moved VIP {VIP6} to front" in running.log, "the report")
        with HttpServer(lab.backends[0], "::"):
            assert ask(lab.client, VIP6).backend == "backend1"


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_a_reverse_path_filter_is_reported(lab: Lab, featherlb: Up) -> None:
    """As `sysctl --system` sets it, which some packages run when they are installed."""
    node = lab.balancer
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE, "--nat", "full") as running:
        for name in ("all", "front", "back"):
            node.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
        text = "rp_filter would drop packets in the NAT mode full; run `sysctl -w "
        wait_for(lambda: any(text in one for one in host(lab)["deviations"]), "the report")
        (line,) = (one for one in running.log.splitlines() if text in one)
        assert line.endswith("`")
        fix = line.partition("`")[2].rstrip("`")
        node.run(fix.split())
        wait_for(lambda: host(lab)["deviations"] == [], "the report of that")
        assert served(lab)


@in_turn(("netlink", "raw", "offload"), nat=["dnat", "full"])
def test_a_standby_serves_as_soon_as_it_has_the_vip(
    lab: Lab, featherlb: Up, nat: str, tmp_path: Path
) -> None:
    node = lab.balancer
    path = write(tmp_path, "assign: false", nat=nat)

    def give(action: str) -> None:
        for address in (f"{VIP}/24", "2001:db8::10/64"):
            node.run(["ip", "address", action, address, "dev", "front", "nodad"])

    with featherlb(lab, "--config", path) as running:
        assert f"VIP {VIP} is not an address of this host, and featherlb doesn't" in running.log

        def said(text: str, times: int) -> None:
            """For each family."""
            wait_for(lambda: running.log.count(text) == 2 * times, text)

        for times in (1, 2):
            give("add")
            wait_for(lambda: served(lab), "traffic")
            said("is an address of this host", times)
            assert reload(node) == []
            give("del")
            said("no longer an address", times)
            assert reload(node) == []
        assert host(lab)["deviations"] == []


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_a_vip_that_moves_is_no_reason_to_restore(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    node = lab.balancer
    path = write(tmp_path, "assign: false", "restore: false")

    def give(action: str) -> None:
        node.run(["ip", "address", action, f"{VIP}/24", "dev", "front"])

    with featherlb(lab, "--config", path) as running:
        away = rules(node)
        give("add")
        wait_for(lambda: f"VIP {VIP} is an address of this host" in running.log, "the report")
        wait_for(lambda: served(lab), "traffic")
        assert rules(node) != away
        flush(node, "nft")
        wait_for(lambda: len(json.dumps(host(lab))) > 1000, "the report of the rules")
        give("del")
        wait_for(lambda: "`restore` is false" in running.log, "the report")
        give("add")
        give("del")
        assert rules(node) == []
        reload(node)
        assert rules(node) == away
        assert running.log.count("`restore` is false") == 1
        give("add")
        wait_for(lambda: served(lab), "traffic")


def test_more_changes_of_rules_than_a_socket_holds(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "MONITOR_BUFFER", 4096)
    monitor = lab.balancer.call(nft_monitor.Monitor)
    for _ in range(20):
        lab.balancer.run(["iptables-nft", "-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT"])
    with pytest.raises(OverflowError):
        monitor.read()
    # What is left in the buffer, and what happens from now on, can be read.
    monitor.read()
    lab.balancer.run(["iptables-nft", "-t", "raw", "-F"])
    author = monitor.read()
    assert author is not None
    assert author.startswith("iptables-nft (pid ")
    monitor.close()


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_two_instances_restore_theirs(lab: Lab, featherlb: Up) -> None:
    node = lab.balancer

    def listed() -> list[str]:
        """In order: the later instance comes first."""
        lines = node.run(["iptables-save"]).stdout.splitlines()
        return [line for line in lines if line.startswith(("*", "-"))]

    with (
        featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE),
        featherlb(lab, "--vip", f"{VIP}:81", "--backend", ONE),
    ):
        before = listed()
        assert sum("-j FEATHERLB-MANGLE-" in line for line in before) == 4
        flush(node, "nft")
        wait_for(lambda: sorted(listed()) == sorted(before), "the rules of both")
        assert [one for one in listed() if "-j FEATHERLB" in one] == [
            one for one in before if "-j FEATHERLB" in one
        ]
        assert ask(lab.client).backend == ask(lab.client, port=81).backend == "backend1"
