"""Frames of bridges that pass iptables (br_netfilter), as on every host with Docker."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from tests.netns.command import api, run
from tests.netns.conftest import Up, all_pairs, use_iptables
from tests.netns.traffic import Session, ask, wait_for

SETTINGS = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of each backend, for both families."""
    with Lab(clients=2, backends=2) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
            servers.enter_context(HttpServer(node, "::"))
        yield lab


def call_iptables(node: Node, value: int) -> None:
    for setting in SETTINGS:
        node.sysctl(f"net.bridge.{setting}", value)


def put_behind_a_bridge(node: Node, interface: str) -> None:
    """Make the interface a port of a bridge that has its addresses."""
    name = f"br-{interface}"
    for command in (
        f"ip link add {name} type bridge",
        f"ip address flush dev {interface}",
        f"ip link set {interface} master {name}",
        f"ip link set {name} up",
        *(
            f"ip address add {address}/{24 if ':' not in address else 64} dev {name}"
            + (" nodad" if ":" in address else "")
            for address in node.addresses[interface]
        ),
    ):
        node.run(command.split())


def write(directory: Path, nat: str, *lines: str) -> str:
    path = directory / "lb.yaml"
    path.write_text(
        "\n".join(
            [
                *lines,
                "services:",
                f"- {{vip: '{VIP}:80', nat: {nat}, backends: ['10.0.1.2:8080', '10.0.1.3:8080']}}",
                f"- {{vip: '[{VIP6}]:80', nat: {nat}, backends: ['[2001:db8:1::2]:8080']}}",
            ]
        )
    )
    return str(path)


def resets(node: Node) -> int:
    """How many connections the node's own kernel has refused."""
    table = node.run(["nstat", "--zeros", "--json", "--ignore", "--noupdate", "TcpOutRsts"]).stdout
    return int(table.rpartition(":")[2].strip(" }\n"))


def check(lab: Lab) -> None:
    """New connections and one that stays get through, and none to the balancer's own kernel."""
    for address in (VIP, VIP6):
        assert {ask(lab.client, address).backend for _ in range(4)} <= {"backend1", "backend2"}
        with Session(lab.client, address) as session:
            answers = [session.ask() for _ in range(20)]
            assert len(set(answers)) == 1
    assert resets(lab.balancer) == 0


@all_pairs(
    ("netlink", "raw", "offload"),
    nat=["dnat", "full"],
    bridges=["front", "back", "front back"],
    flavour=["nft", "legacy"],
)
def test_services_work_behind_bridges(
    lab: Lab,
    featherlb: Up,
    nat: str,
    bridges: str,
    flavour: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_iptables(flavour, tmp_path, monkeypatch)
    node = lab.balancer
    for interface in bridges.split():
        put_behind_a_bridge(node, interface)
    call_iptables(node, 1)
    with featherlb(lab, "--config", write(tmp_path, nat)):
        check(lab)


@pytest.mark.parametrize("driver", ["raw"], indirect=True)
@pytest.mark.parametrize("router", [False, True])
def test_a_router_and_a_standby_behind_bridges(
    lab: Lab, featherlb: Up, router: bool, tmp_path: Path
) -> None:
    """`raw` tells replies from those of connections that it doesn't balance; VIPs come and go."""
    node = lab.balancer
    for interface in ("front", "back"):
        put_behind_a_bridge(node, interface)
    call_iptables(node, 1)
    if router:
        node.sysctl("net.ipv4.ip_forward", 1)
        node.sysctl("net.ipv6.conf.all.forwarding", 1)
    with featherlb(lab, "--config", write(tmp_path, "dnat", "assign: false")):
        for address in (f"{VIP}/24", f"{VIP6}/64"):
            node.run(["ip", "address", "add", address, "dev", "br-front", "nodad"])
        wait_for(lambda: ask(lab.client).backend != "", "the VIP")
        check(lab)
        if router:
            assert ask(lab.client, "10.0.1.2", 8080).backend == "backend1"


@pytest.mark.parametrize("driver", ["raw"], indirect=True)
def test_br_netfilter_comes_later(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """Docker switches it on when it starts."""
    node = lab.balancer
    put_behind_a_bridge(node, "front")
    call_iptables(node, 0)
    with featherlb(lab, "--config", write(tmp_path, "dnat")) as running:
        check(lab)
        for value in (1, 0):
            call_iptables(node, value)
            for family in ("", "6"):
                text = f"adapted the rules to net.bridge.bridge-nf-call-ip{family}tables={value}"
                wait_for(lambda text=text: text in running.log, text)  # type: ignore[misc]
            check(lab)
        assert api(node, "status")["host"]["deviations"] == []


@pytest.mark.parametrize("driver", ["raw"], indirect=True)
def test_frames_that_only_cross_a_bridge_pass(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """The bridge of a virtual machine that has the VIP's address in its own network, say."""
    node = lab.balancer
    put_behind_a_bridge(node, "front")
    inner = f"{node.namespace}-guest"
    for command in (
        f"netns add {inner}",
        f"-n {node.namespace} link add port type veth peer name eth0 netns {inner}",
        f"-n {node.namespace} link set port master br-front up",
        f"-n {inner} address add 10.0.0.77/24 dev eth0",
        f"-n {inner} link set eth0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    guest = Node("guest", inner)
    try:
        call_iptables(node, 1)
        wildcard = ["--vip", "0.0.0.0:8080", "--backend", "10.0.1.2:8080"]
        with featherlb(lab, *wildcard), HttpServer(guest):
            assert ask(lab.client, "10.0.0.77", 8080).backend == "guest"
            assert ask(lab.client, "10.0.0.1", 8080).backend == "backend1"
        assert run(node, "down").returncode == 0
    finally:
        subprocess.run(["ip", "netns", "del", inner], check=True)
