"""Which datapaths a host can run, and which one is picked where it may."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featherlb import host
from featherlb.lab import Lab, Node
from featherlb.model import Datapath, NatMode, Protocol, Service
from featherlb.model.errors import HostError
from featherlb.system import packet_socket
from tests.netns.command import run
from tests.netns.host_owner import service

pytestmark = pytest.mark.no_packets("what a host can run, before a worker starts")

NFQUEUE, RAW, OFFLOAD = Datapath.NFQUEUE, Datapath.RAW, Datapath.OFFLOAD


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as lab:
        yield lab


def prepared(node: Node, nat: str = "dnat", vip: str = "10.0.0.10:80", *backends: str) -> Service:
    wanted = service(nat, vip, list(backends or ["10.0.1.2:8080"]))
    return node.call(host.prepare, [wanted])[0]


def reason(node: Node, wanted: Service) -> str | None:
    """Why the host can't have the service with the datapath raw; the ways to ask agree."""
    answer = node.call(host.usable, [wanted])
    assert list(answer) == [Datapath.OFFLOAD, RAW, NFQUEUE, Datapath.EBPF]
    assert answer[NFQUEUE] is None
    raw = replace(wanted, datapath=RAW)

    def check() -> None:
        host.check([raw], host.Options(), host.survey([raw]))

    fault = None
    try:
        node.call(check)
    except HostError as error:
        fault = str(error)
    why = answer[RAW]
    expected = f"service 'web' cannot use the datapath raw: {why}; set its datapath to nfqueue"
    assert fault == (expected if why else None)
    (picked,) = node.call(host.pick, [wanted], {"web"}, {})
    assert picked.datapath is next(datapath for datapath in answer if answer[datapath] is None)
    return why


@pytest.mark.parametrize("nat", list(NatMode))
@pytest.mark.parametrize(
    ("vip", "backend"),
    [("10.0.0.10:80", "10.0.1.2:80"), ("[2001:db8::10]:80", "[2001:db8:1::2]:80")],
)
def test_a_plain_service_can_have_any(lab: Lab, nat: NatMode, vip: str, backend: str) -> None:
    assert reason(lab.balancer, prepared(lab.balancer, nat, vip, backend)) is None
    assert lab.balancer.call(host.usable)[RAW] is None


def test_what_is_on_this_host(lab: Lab) -> None:
    for backend in ("10.0.1.1:8080", "127.0.0.1:8080"):
        why = reason(lab.balancer, prepared(lab.balancer, "dnat", "10.0.0.10:80", backend))
        assert why == f"backend {backend} is on this host, which frames do not reach"
    loopback = prepared(lab.balancer, "full", "127.0.0.1:80")
    assert "only this host can reach" in (reason(lab.balancer, loopback) or "")


def test_links_without_frames(lab: Lab) -> None:
    for command in (
        "ip tuntap add tun0 mode tun",
        "ip address add 10.9.0.1/24 dev tun0",
        "ip link set tun0 up",
    ):
        lab.balancer.run(command.split())
    plain = prepared(lab.balancer)
    assert reason(lab.balancer, plain) is None
    behind = prepared(lab.balancer, "dnat", "10.0.0.10:80", "10.0.1.2:80", "10.9.0.2:80")
    assert reason(lab.balancer, behind) == (
        "the route to backend 10.9.0.2:80 leads through tun0, which has no Ethernet frames"
    )
    at = prepared(lab.balancer, "dnat", "10.9.0.10:80")
    assert reason(lab.balancer, at) == (
        "VIP 10.9.0.10:80 is in the subnet of tun0, which has no Ethernet frames"
    )
    for name in ("front", "back"):
        lab.balancer.run(["ip", "link", "set", name, "down"])
    # Not by `check`, which has more to say without any link.
    assert lab.balancer.call(host.usable)[RAW] == "no Ethernet interface of this host is up"


def test_ports_of_this_hosts_own_connections(lab: Lab) -> None:
    lab.balancer.sysctl("net.ipv4.ip_local_port_range", "20000 60999")
    assert reason(lab.balancer, prepared(lab.balancer, "dnat")) is None
    why = reason(lab.balancer, prepared(lab.balancer, "full"))
    assert why is not None
    command = why.partition("`sysctl -w ")[2].strip("`").replace('"', "")
    key, _, value = command.partition("=")
    lab.balancer.sysctl(key, value)
    assert reason(lab.balancer, prepared(lab.balancer, "full")) is None


def test_kernels_without_packet_sockets(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for such a kernel: an option that none has."""
    assert lab.balancer.call(packet_socket.supported)
    monkeypatch.setattr(packet_socket, "PACKET_VNET_HDR", 9999)
    assert "PACKET_VNET_HDR" in (lab.balancer.call(host.usable)[RAW] or "")


def test_what_was_picked_stays_while_it_works(lab: Lab) -> None:
    plain = prepared(lab.balancer)
    local = prepared(lab.balancer, "dnat", "10.0.0.10:80", "10.0.1.1:80")
    pick = lab.balancer.call
    assert pick(host.pick, [plain], {"web"}, {"web": NFQUEUE})[0].datapath is NFQUEUE
    assert pick(host.pick, [local], {"web"}, {"web": RAW})[0].datapath is OFFLOAD
    # Who has named one gets it, or is refused.
    raw = replace(local, datapath=RAW)
    assert pick(host.pick, [raw], set(), {}) == [raw]


def test_auto_in_a_configuration(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(
        """
services:
  - {name: far, vip: "10.0.0.10:80", datapath: auto, backends: ["10.0.1.2:80"]}
  - {name: near, vip: "10.0.0.10:81", datapath: auto, backends: ["10.0.1.1:80"]}
  - {name: plain, vip: "10.0.0.10:82", backends: ["10.0.1.2:80"]}
"""
    )
    done = run(lab.balancer, "up", "--dry-run", "--config", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "# service far: datapath raw",
        "# service near: datapath offload",
        "# service plain: datapath nfqueue",
    ]


def test_auto_among_services_that_share_a_backend(lab: Lab) -> None:
    """Connection tracking has all of a backend's replies, or none."""
    free = prepared(lab.balancer)
    bound = replace(free, name="bound", one_packet=True)
    names = {free.name, bound.name}
    for services in ((free, bound), (bound, free)):
        picked = lab.balancer.call(host.pick, services, names, {free.name: OFFLOAD})
        assert [one.name for one in picked] == [one.name for one in services]
        assert [one.datapath for one in picked] == [RAW, RAW]
    apart = replace(bound, protocol=Protocol.UDP)
    picked = lab.balancer.call(host.pick, (free, apart), names, {})
    assert [one.datapath for one in picked] == [OFFLOAD, RAW]
    fixed = replace(free, name="fixed", datapath=NFQUEUE)
    picked = lab.balancer.call(host.pick, (free, fixed), {free.name}, {})
    assert [one.datapath for one in picked] == [RAW, NFQUEUE]
