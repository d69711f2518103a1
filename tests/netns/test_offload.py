"""The offload datapath: the kernel forwards flows, whatever happens to featherlb."""

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as SEGMENT

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer, Nginx
from tests.netns.command import Featherlb, api, change, flows, kill, reload, run, worker_pids
from tests.netns.conftest import Up
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.send_buffers import small_send_buffers
from tests.netns.test_udp import SO_NO_CHECK, UDP_SEGMENT
from tests.netns.traffic import (
    REQUEST,
    Answer,
    Session,
    ask,
    ask_over,
    pair,
    parse,
    reset,
    standing_still,
    wait_for,
)

pytestmark = pytest.mark.parametrize("driver", ["offload"], indirect=True)

NAT_MODES = pytest.mark.parametrize("nat", ["dnat", "full"])
BACKENDS = tuple(
    option
    for address in ("10.0.1.2", "10.0.1.3", "10.0.1.4")
    for option in ("--backend", f"{address}:8080")
)
TCP = ("--vip", f"{VIP}:80")
OWN = ("--datapath", "offload", *TCP, *BACKENDS)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With HTTP servers on port 8080 of three backends."""
    with Lab(clients=2, backends=3) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield lab


def queued(lab: Lab) -> int:
    """Packets that have reached featherlb's queue: the id of the last one."""
    lines = lab.balancer.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()
    return sum(int(line.split()[7]) for line in lines)


def waiting(lab: Lab) -> int:
    """Packets in featherlb's queue, without a verdict."""
    lines = lab.balancer.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.splitlines()
    return sum(int(line.split()[2]) for line in lines)


def entries(lab: Lab, *options: str) -> list[str]:
    """Conntrack's entries on the balancer."""
    return lab.balancer.run(["conntrack", "-L", *options]).stdout.splitlines()


def kill_only(
    lab: Lab,
    client: socket.socket,
    server: socket.socket,
    service: str,
    instance: int | None = None,
) -> None:
    """Kill the only flow of a service; both ends of its connection get a RST."""
    assert kill(lab.balancer, instance, service=service, client=lab.client.address) == 1
    for end in (client, server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


class Shared:
    """One instance for the tests that leave it as it is, and can tell their own flows from those of
    others: each has a service, in both NAT modes where the mode matters."""

    def __init__(self, lab: Lab, running: Featherlb) -> None:
        self.lab = lab
        self.running = running

    def flows(self, service: str) -> list[dict[str, Any]]:
        return flows(self.lab.balancer, service=service)


PORTS = {
    (name, nat): 1000 + number
    for number, (name, nat) in enumerate(
        product(("files", "one-way", "pool", "super", "kill-rr", "kill-maglev"), ("dnat", "full"))
    )
}
"""Of the VIP, for the services of Shared."""


@pytest.fixture(scope="module")
def shared(featherlb: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    lines = []
    for (name, nat), port in PORTS.items():
        hosts = (2, 3, 4) if name in ("pool", "super") else (2,)
        backends = ", ".join(f"'10.0.1.{host}:{port}'" for host in hosts)
        protocol = "udp" if name in ("one-way", "pool", "super") else "tcp"
        scheduler = name.removeprefix("kill-") if name.startswith("kill") else "rr"
        lines.append(
            f"  - {{name: {name}-{nat}, vip: '{VIP}:{port}', protocol: {protocol}, nat: {nat},"
            f" scheduler: {scheduler}, backends: [{backends}]}}\n"
        )
    lines.append(f"  - {{name: nobody, vip: '{VIP}:53', protocol: udp, backends: []}}\n")
    path = tmp_path_factory.mktemp("offload") / "lb.yaml"
    path.write_text("services:\n" + "".join(lines))
    with Lab(backends=3) as lab, featherlb(lab, "--config", str(path)) as running:
        yield Shared(lab, running)


@NAT_MODES
def test_only_the_first_packet_of_a_connection_is_queued(shared: Shared, nat: str) -> None:
    lab, port = shared.lab, PORTS["files", nat]
    with Nginx(lab.backends[0], port=port) as server:
        (server.files / "big").write_bytes(bytes(20 << 20))
        before = queued(lab)
        lab.client.run(["curl", "--silent", "--fail", f"http://{VIP}:{port}/files/big"])
        assert queued(lab) == before + 1


@NAT_MODES
def test_only_the_first_of_datagrams_without_answer_is_queued(shared: Shared, nat: str) -> None:
    lab, port = shared.lab, PORTS["one-way", nat]
    before = queued(lab)
    with (
        Receivers(lab.backends[:1], port) as receivers,
        open_socket(lab.client, (lab.client.address, 0), (VIP, port)) as client,
    ):
        for number in range(10):
            client.send(bytes([number]))
            assert receivers.receive().data == bytes([number])
        assert queued(lab) == before + 1
        (flow,) = shared.flows(f"one-way-{nat}")
        assert flow["state"] == "udp-one-way"
        assert flow["bytes_forward"] == 10 * 29


@NAT_MODES
def test_a_burst_of_datagrams_arrives_whole(shared: Shared, nat: str) -> None:
    lab, port = shared.lab, PORTS["pool", nat]
    before = queued(lab)
    with (
        Receivers(lab.backends, port) as receivers,
        open_socket(lab.client, (lab.client.address, 0), (VIP, port)) as client,
    ):
        # While featherlb stands still, all of them are new to the kernel.
        with standing_still(lab.balancer):
            for number in range(20):
                client.send(bytes([number]))
            wait_for(lambda: queued(lab) == before + 20, "all datagrams wait")
        arrivals = [receivers.receive() for _ in range(20)]
        assert sorted(one.data[0] for one in arrivals) == list(range(20))
        assert len({(one.backend, one.peer) for one in arrivals}) == 1


@NAT_MODES
def test_flows_that_the_kernel_refuses_together_are_inserted_one_by_one(
    shared: Shared, nat: str
) -> None:
    """A worker that did not expect it would die of the first batch."""
    lab, port = shared.lab, PORTS["pool", nat]
    before = queued(lab)
    (worker,) = api(lab.balancer, "status")["workers"]
    with Receivers(lab.backends, port) as receivers, ExitStack() as stack:
        clients = [
            stack.enter_context(open_socket(lab.client, (lab.client.address, 0), (VIP, port)))
            for _ in range(30)
        ]
        with small_send_buffers(lab.balancer):
            with standing_still(lab.balancer):
                for number, client in enumerate(clients):
                    client.send(bytes([number]))
                wait_for(lambda: queued(lab) == before + 30, "all datagrams wait")
            arrivals = [receivers.receive() for _ in range(30)]
        assert sorted(one.data[0] for one in arrivals) == list(range(30))
        for arrival in arrivals:
            receivers.answer(arrival, arrival.data)
            assert clients[arrival.data[0]].recv(100) == arrival.data
    (after,) = api(lab.balancer, "status")["workers"]
    assert after["pid"] == worker["pid"]


def test_what_does_not_fit_into_the_queue_is_never_delivered_in_part(
    lab: Lab, featherlb: Up
) -> None:
    """The longest datagram comes to the queue of a flow that is known: without a checksum, its
    receiver would take whatever stood in the place of its last bytes."""
    options = ("--vip", f"{VIP}:53/udp", *BACKENDS)
    with (
        Receivers(lab.backends, 8080) as receivers,
        featherlb(lab, *options),
        open_socket(lab.client, (lab.client.address, 0), (VIP, 53)) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        with standing_still(lab.balancer):
            client.send(b"opens the flow")
            client.send(os.urandom(65_507))
            wait_for(lambda: waiting(lab) == 2, "both datagrams wait")
        assert receivers.receive().data == b"opens the flow"
        client.send(b"behind it")
        assert receivers.receive().data == b"behind it"
        assert api(lab.balancer, "stats")["reasons"]["truncated"] == 1


def stop(running: Featherlb) -> None:
    assert running.stop() == 0


def crash(running: Featherlb) -> None:
    running.kill()


@NAT_MODES
@pytest.mark.parametrize("how", [stop, crash])
def test_connections_survive_featherlb_and_the_next_one_restores_them(
    lab: Lab, featherlb: Up, nat: str, how: object
) -> None:
    options = (*TCP, *BACKENDS, "--nat", nat)
    assert callable(how)
    with ExitStack() as stack:
        with featherlb(lab, *options) as running:
            sessions = [stack.enter_context(Session(lab.client)) for _ in range(6)]
            first = [session.ask() for session in sessions]
            assert Counter(answer.backend for answer in first).total() == 6
            how(running)
            assert [session.ask() for session in sessions] == first
            if how is stop:
                with pytest.raises(ConnectionRefusedError):
                    lab.client.connect(VIP, 80)
        assert [session.ask() for session in sessions] == first
        before = len(entries(lab, "--status", "ASSURED"))
        with featherlb(lab, *options):
            assert [session.ask() for session in sessions] == first
            assert len(flows(lab.balancer, state="established")) == 6
            assert len(entries(lab, "--status", "ASSURED")) == before
            # Its source ports are taken: none is given twice.
            for _ in range(20):
                ask(lab.client)
            assert kill(lab.balancer, state="established") == 6
            for session in sessions:
                with pytest.raises(ConnectionResetError):
                    session.socket.recv(1)
    assert run(lab.balancer, "down").returncode == 0
    assert "FEATHERLB" not in lab.balancer.run(["iptables-save"]).stdout


def test_down_removes_what_stayed_for_open_connections(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *TCP, *BACKENDS) as running, Session(lab.client) as session:
        session.ask()
        assert running.stop() == 0
        assert "FEATHERLB" in lab.balancer.run(["iptables-save"]).stdout
        assert "the kernel keeps forwarding" in running.log
    assert VIP in lab.balancer.run(["ip", "address"]).stdout
    assert run(lab.balancer, "down").returncode == 0
    assert "FEATHERLB" not in lab.balancer.run(["iptables-save"]).stdout
    assert VIP not in lab.balancer.run(["ip", "address"]).stdout
    assert entries(lab, "--orig-dst", VIP) == []
    assert lab.balancer.sysctl("net.netfilter.nf_conntrack_acct") == "0"


@pytest.mark.parametrize("vip", [VIP, "[2001:db8::10]"])
def test_down_has_conntrack_forget_the_flows_that_it_gives_up(
    lab: Lab, featherlb: Up, vip: str
) -> None:
    address, backend = vip.strip("[]"), "10.0.1.2:9000"
    family = "ipv6" if ":" in address else "ipv4"
    if family == "ipv6":
        backend = "[2001:db8:1::2]:9000"
    options = ("--vip", f"{vip}:80", "--vip", f"{vip}:80/udp", "--backend", backend)
    with featherlb(lab, *options) as running, pair(lab, address, 9000) as (client, server):
        client.sendall(b"request")
        assert server.recv(100) == b"request"
        with open_socket(lab.client, ("::" if family == "ipv6" else "0.0.0.0", 0)) as datagrams:
            datagrams.sendto(b"datagram", (address, 80))
            # Somebody else's, to the same address.
            datagrams.sendto(b"datagram", (address, 81))
            wait_for(lambda: len(flows(lab.balancer)) == 2, "both flows")
        running.kill()
        wait_for(lambda: not lab.balancer.pids(), "no process of the killed run is left")
        assert len(entries(lab, "-f", family, "--orig-dst", address)) == 3
        ended = run(lab.balancer, "down")
        assert ended.returncode == 0, ended.stderr
        assert f"removed 2 connection tracking entries of flows, left by pid {running.pid}" in (
            ended.stdout
        )
        (left,) = entries(lab, "-f", family, "--orig-dst", address)
        assert "dport=81" in left


def test_stopping_leaves_no_entries_of_closed_connections(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *TCP, *BACKENDS):
        for _ in range(6):
            ask(lab.client)
        assert entries(lab, "--orig-dst", VIP) != []
        wait_for(lambda: flows(lab.balancer, state="established") == [], "all are closed")
    assert entries(lab, "--orig-dst", VIP) == []
    assert "FEATHERLB" not in lab.balancer.run(["iptables-save"]).stdout


def test_flows_that_one_instance_releases_may_be_another_ones(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    """The next one has another queue, and is an instance of its own."""
    with featherlb(lab, *TCP, *BACKENDS) as running, Session(lab.client) as session:
        first = session.ask()
        running.kill()
        path = tmp_path / "lb.yaml"
        path.write_text("queue: 7\nservices: []\n")
        with featherlb(lab, "--config", str(path), *TCP, *BACKENDS):
            assert session.ask() == first
            assert run(lab.balancer, "down").returncode == 0
            assert session.ask() == first
            assert len(flows(lab.balancer, instance=7, state="established")) == 1
    assert run(lab.balancer, "down").returncode == 0


def test_of_several_workers_each_flow_has_one_whatever_changes(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *TCP, *BACKENDS, "--workers", "2"), ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(Session(lab.client)).ask()
        assert len(flows(lab.balancer)) == 12
        change(lab.balancer, "drain", f"{VIP}:80/tcp", "10.0.1.2:8080")
        assert len(flows(lab.balancer)) == 12
        (service,) = api(lab.balancer, "services")["services"]
        assert sum(one["active"] for one in service["backends"]) == 12


def test_of_several_workers_a_new_one_takes_over_what_was_its_predecessors(
    lab: Lab, featherlb: Up
) -> None:
    with featherlb(lab, *TCP, *BACKENDS, "--workers", "2") as running, ExitStack() as stack:
        sessions = [stack.enter_context(Session(lab.client)) for _ in range(12)]
        first = [session.ask() for session in sessions]
        had = [worker["flows"] for worker in api(lab.balancer, "status")["workers"]]
        worker, _ = worker_pids(lab.balancer)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: "is balancing again" in running.log, "another worker")
        assert [worker["flows"] for worker in api(lab.balancer, "status")["workers"]] == had
        assert [session.ask() for session in sessions] == first
        assert len(flows(lab.balancer)) == 12


def test_a_worker_that_dies_loses_no_connection(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *TCP, *BACKENDS) as running, Session(lab.client) as session:
        first = session.ask()
        (worker,) = worker_pids(lab.balancer)
        os.kill(worker, signal.SIGKILL)
        assert session.ask() == first
        wait_for(lambda: "is balancing again" in running.log, "another worker")
        assert session.ask() == first
        assert len(flows(lab.balancer, state="established")) == 1
        ask(lab.client)


@NAT_MODES
def test_while_featherlb_is_away_fail_open_lets_the_kernel_choose(
    lab: Lab, featherlb: Up, nat: str
) -> None:
    path = Path("/tmp") / f"featherlb-{lab.run_id}.yaml"
    backends = ", ".join(f"10.0.1.{host}:8080" for host in (2, 3, 4))
    path.write_text(
        "fail_open: true\n"
        f"services: [{{name: web, vip: {VIP}:80, nat: {nat}, backends: [{backends}]}}]\n"
    )
    try:
        with featherlb(lab, "--config", str(path)) as running:
            ask(lab.client)
            running.kill()
            answers = [ask(lab.client) for _ in range(20)]
            assert len({answer.backend for answer in answers}) > 1
            expected = lab.balancer.addresses["back"][0] if nat == "full" else lab.client.address
            assert {answer.peer for answer in answers} == {expected}
    finally:
        path.unlink()
        run(lab.balancer, "down")


@NAT_MODES
@pytest.mark.parametrize("scheduler", ["rr", "maglev"])
def test_a_killed_connection_is_reset_at_both_ends(
    shared: Shared, nat: str, scheduler: str
) -> None:
    port = PORTS[f"kill-{scheduler}", nat]
    with pair(shared.lab, VIP, port, port) as (client, server):
        client.sendall(b"request")
        assert server.recv(100) == b"request"
        kill_only(shared.lab, client, server, f"kill-{scheduler}-{nat}")


@pytest.mark.parametrize(
    ("vip", "options"),
    [(VIP, ()), (VIP, ("--fail-open",)), ("192.0.2.1", ("--no-assign",))],
    ids=["assigned", "fail-open", "foreign"],
)
def test_a_firewall_does_not_keep_out_of_state_packets_away(
    lab: Lab, featherlb: Up, vip: str, options: tuple[str, ...]
) -> None:
    for hook in ("INPUT", "FORWARD"):
        for rule in ("-m conntrack --ctstate INVALID", "-p tcp ! --syn -m conntrack --ctstate NEW"):
            lab.balancer.run(["iptables", "-A", hook, *rule.split(), "-j", "DROP"])
    service = ("--vip", f"{vip}:80", "--backend", "10.0.1.2:9000")
    with featherlb(lab, *service, *options), pair(lab, vip, 9000) as (client, server):
        client.sendall(b"request")
        assert server.recv(100) == b"request"
        kill_only(lab, client, server, f"{vip}:80")


def test_the_rule_that_accepts_established_connections_comes_first(lab: Lab, featherlb: Up) -> None:
    def jumps() -> list[str]:
        rules = lab.balancer.run(["iptables", "-S", "FORWARD"]).stdout.splitlines()
        return [rule.split()[-1] for rule in rules if rule.startswith("-A")]

    expected = ["FEATHERLB-CTFILTER-0", "FEATHERLB-CTUNKNOWN-0"]
    with featherlb(lab, *TCP, *BACKENDS) as running, Session(lab.client) as session:
        assert session.ask().backend
        assert jumps() == expected
        running.stop()
        assert jumps() == expected[:1]
        with featherlb(lab, *TCP, *BACKENDS):
            assert jumps() == expected
            assert session.ask().backend


def test_open_connections_are_counted_until_they_close(lab: Lab, featherlb: Up) -> None:
    def opened() -> int:
        (service,) = api(lab.balancer, "services")["services"]
        return sum(one["active"] for one in service["backends"])

    with featherlb(lab, *TCP, *BACKENDS, "--scheduler", "lc") as running:
        with ExitStack() as stack:
            sessions = [stack.enter_context(Session(lab.client)) for _ in range(9)]
            answers = Counter(session.ask().backend for session in sessions)
            assert answers == {"backend1": 3, "backend2": 3, "backend3": 3}
            assert opened() == 9
            for session in sessions:
                session.close()
        wait_for(lambda: opened() == 0, "all connections are closed")
        assert "Traceback" not in running.log


def reusing(lab: Lab, kind: int, local: tuple[str, int], remote: tuple[str, int]) -> socket.socket:
    """A socket of the client's whose port others may have as well, connected."""
    new = lab.client.new_socket(socket.AF_INET, kind)
    new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    new.bind(local)
    new.connect(remote)
    return new


def test_a_client_whose_port_is_taken_towards_the_backend_has_another_there(
    lab: Lab, featherlb: Up
) -> None:
    """By a connection of its own to the backend, through the balancer as its router."""
    local = lab.client.address, 5000
    with (
        featherlb(lab, *TCP, "--backend", "10.0.1.2:8080"),
        reusing(lab, socket.SOCK_STREAM, local, ("10.0.1.2", 8080)) as direct,
    ):
        for _ in range(3):
            direct.sendall(REQUEST)
            assert parse(direct.recv(4096)).backend == "backend1"
            with reusing(lab, socket.SOCK_STREAM, local, (VIP, 80)) as client:
                client.sendall(REQUEST)
                assert parse(client.recv(4096)) == Answer("backend1", lab.client.address)
                reset(client)
            wait_for(lambda: flows(lab.balancer, state="established") == [], "its end")


def test_many_ports_that_are_used_again_at_once_belong_to_new_connections(
    lab: Lab, featherlb: Up
) -> None:
    """SYNs of a batch are asked about in one go; some of them had connections that still live."""
    ports = range(5000, 5040)
    raw = lab.client.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with raw, featherlb(lab, *TCP, *BACKENDS) as running, ExitStack() as open_ones:
        for port in ports:
            old = reusing(lab, socket.SOCK_STREAM, (lab.client.address, port), (VIP, 80))
            old.sendall(REQUEST)
            assert parse(old.recv(4096)).backend
            if port % 2:
                open_ones.enter_context(old)
            else:
                reset(old)
        clients = []
        with standing_still(lab.balancer):
            for port in ports:
                if port % 2 == 0:
                    client = open_ones.enter_context(lab.client.new_socket())
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    client.bind((lab.client.address, port))
                    client.setblocking(False)
                    client.connect_ex((VIP, 80))
                    clients.append(client)
            for port in ports[1::2]:
                forged = IP(src=lab.client.address, dst=VIP) / SEGMENT(
                    sport=port, dport=80, flags="S"
                )
                raw.sendto(bytes(forged), (VIP, 0))
            wait_for(lambda: waiting(lab) == len(ports), "all SYNs wait in the queue")
        answers: Counter[str] = Counter()
        for client in clients:
            client.settimeout(30)
            client.sendall(REQUEST)
            answers[parse(client.recv(4096)).backend] += 1
        assert sorted(answers.values()) == [6, 7, 7]
        assert len(flows(lab.balancer, state="established")) == len(ports)
        assert "Traceback" not in running.log


def taking(ports: range) -> str:
    """For `conntrack -R`: somebody else's connections from these ports of the balancer's address
    to a backend."""
    return "".join(
        f"-I -p tcp -s 10.0.1.1 -d 10.0.1.2 --sport {port} --dport 8080"
        " --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 600\n"
        for port in ports
    )


@pytest.mark.parametrize("queue_driver", ["netlink", "netfilterqueue"])
def test_what_conntrack_has_no_room_for_is_dropped_until_it_has(
    lab: Lab, featherlb: Up, queue_driver: str, tmp_path: Path
) -> None:
    """Somebody else has all the ports that could be given to flows towards a backend."""

    def refused() -> int:
        reasons: dict[str, int] = api(lab.balancer, "stats")["reasons"]
        return reasons["no-entry"]

    taken = tmp_path / "entries"
    taken.write_text(taking(range(1024, 32768)))
    options = ("--nat", "full", *TCP, "--backend", "10.0.1.2:8080", "--driver", queue_driver)
    with featherlb(lab, *options), ThreadPoolExecutor() as threads:
        lab.balancer.run(["conntrack", "-R", str(taken)])
        waiting = threads.submit(lab.client.connect, VIP, 80, 60)
        wait_for(lambda: refused() > 0, "no room")
        assert not waiting.done()
        assert flows(lab.balancer) == []
        change(lab.balancer, "add", VIP + ":80/tcp", "10.0.1.3:8080")
        change(lab.balancer, "drain", VIP + ":80/tcp", "10.0.1.2:8080")
        assert {ask(lab.client).backend for _ in range(3)} == {"backend2"}
        change(lab.balancer, "enable", VIP + ":80/tcp", "10.0.1.2:8080")
        change(lab.balancer, "drain", VIP + ":80/tcp", "10.0.1.3:8080")
        lab.balancer.run(["conntrack", "-D", "-p", "tcp", "--orig-dst", "10.0.1.2"])
        # The client's next attempt is let in.
        with waiting.result(timeout=60) as connection:
            assert ask_over(connection).backend in ("backend1", "backend2")
        assert ask(lab.client).backend == "backend1"
        stats = api(lab.balancer, "stats")
        assert stats["received"] == stats["translated"] + stats["passed"] + stats["dropped"]


@pytest.mark.parametrize("queue_driver", ["netlink", "netfilterqueue"])
def test_a_flow_gets_another_port_if_its_own_is_in_use(
    lab: Lab, featherlb: Up, queue_driver: str, tmp_path: Path
) -> None:
    """Every eighth one: of so many flows one has it, and none has it eight times."""
    taken = tmp_path / "entries"
    taken.write_text(taking(range(1024, 32768, 8)))
    options = ("--nat", "full", *TCP, "--backend", "10.0.1.2:8080", "--driver", queue_driver)
    with featherlb(lab, *options):
        lab.balancer.run(["conntrack", "-R", str(taken)])
        for _ in range(150):
            assert ask(lab.client).backend == "backend1"
        reasons = api(lab.balancer, "stats")["reasons"]
        assert (reasons["forward"], reasons["no-entry"]) == (150, 0)
        # A flow that is shown has the port that its backend sees.
        with Session(lab.client) as session:
            session.ask()
            (flow,) = flows(lab.balancer, state="established")
            (entry,) = entries(lab, "-p", "tcp", "--orig-dst", VIP, "--state", "ESTABLISHED")
            assert f"dport={flow['source'].rpartition(':')[2]} " in entry
        lab.balancer.run(["conntrack", "-D", "-p", "tcp", "--orig-dst", "10.0.1.2"])


@NAT_MODES
def test_a_super_packet_that_opens_a_flow_arrives_as_its_datagrams(
    shared: Shared, nat: str
) -> None:
    """The sender leaves it to the kernel to cut its buffer, and the lab's links leave it whole."""
    lab, port = shared.lab, PORTS["super", nat]
    with Receivers(lab.backends, port) as receivers:
        for size in (1, 512, 1472):
            data = bytes(n % 251 for n in range(9 * size + (size + 1) // 2))
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            with open_socket(lab.client, (lab.client.address, 0), (VIP, port)) as client:
                client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
                client.send(data)
                arrivals = [receivers.receive() for _ in parts]
                assert [one.data for one in arrivals] == parts
                assert len({(one.backend, one.peer) for one in arrivals}) == 1
                # And no more of them.
                client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
                client.send(b"last")
                assert receivers.receive().data == b"last"


BESIDE = "10.0.0.11"


@pytest.mark.parametrize(
    ("nat", "beside"),
    [
        ("dnat", ("offload", "dnat")),
        ("dnat", ("nfqueue", "full")),
        ("full", ("offload", "full")),  # both from the same address of this host
    ],
)
def test_another_instance_may_have_the_same_backends(
    lab: Lab, driver: str, nat: str, beside: tuple[str, str], tmp_path: Path
) -> None:
    own = (*OWN, "--nat", nat)
    other = ("--vip", f"{BESIDE}:80", *BACKENDS, "--datapath", beside[0], "--nat", beside[1])
    for first, second, vip in ((own, other, VIP), (other, own, BESIDE)):
        with (
            Featherlb(lab.balancer, ("up", *first), tmp_path),
            Session(lab.client, vip) as session,
        ):
            before = session.ask()
            with Featherlb(lab.balancer, ("up", *second), tmp_path) as last:
                for node, address in product((lab.client, lab.balancer), (VIP, BESIDE)):
                    assert ask(node, address).backend.startswith("backend")
                assert session.ask() == before
                # What belongs to neither instance any more is refused by its previous owner.
                with Session(lab.client) as one, Session(lab.client, BESIDE) as two:
                    one.ask(), two.ask()
                    lab.balancer.run(["conntrack", "-D", "--dst", VIP])
                    one.socket.sendall(b"GET")
                    with pytest.raises(ConnectionResetError):
                        one.socket.recv(1)
                    two.ask()
                assert "Traceback" not in last.log
        assert run(lab.balancer, "down").returncode == 0


def test_an_instance_that_keeps_replies_from_connection_tracking_is_refused(
    lab: Lab, driver: str, tmp_path: Path
) -> None:
    def refused(options: tuple[str, ...], running: Featherlb) -> None:
        ended = run(lab.balancer, "up", *options)
        assert ended.returncode == 1
        assert ended.stderr == (
            f"featherlb: the featherlb with pid {running.pid} also has backend 10.0.1.2,tcp:8080,"
            " and only one of the two instances uses the datapath offload for it; the other exempts"
            " the backend's replies from connection tracking; use the same datapath in both, or"
            " nfqueue with the NAT mode full or ebpf with the NAT mode full in the other\n"
        )

    vip = ("--vip", f"{BESIDE}:80", *BACKENDS)
    others = [
        (*vip, "--datapath", datapath, "--nat", nat)
        for datapath, nat in (("nfqueue", "dnat"), ("raw", "dnat"), ("raw", "full"))
    ]
    with Featherlb(lab.balancer, ("up", *OWN), tmp_path) as running:
        for other in others:
            refused(other, running)
    for other in others:
        with Featherlb(lab.balancer, ("up", *other), tmp_path) as running:
            refused(OWN, running)


def test_out_of_state_packets_stay_with_the_later_instance_when_an_earlier_one_moves_its_rules(
    lab: Lab, featherlb: Up
) -> None:
    """The client's firewall accepts only replies: what the backend still sends on a killed
    connection must get no further than the instance that killed it."""
    own, other = (("--vip", f"{vip}:80", "--backend", "10.0.1.2:9000") for vip in (VIP, BESIDE))
    unasked = "-p tcp ! --syn -m conntrack --ctstate NEW,INVALID -j DROP"
    lab.client.run(["iptables", "-A", "INPUT", *unasked.split()])
    with featherlb(lab, *own), featherlb(lab, *other):
        lab.balancer.run(["iptables", "-I", "FORWARD", "-d", "192.0.2.9", "-j", "DROP"])
        assert run(lab.balancer, "reload", "--instance", "0").returncode == 0
        with pair(lab, BESIDE, 9000) as (client, server):
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            kill_only(lab, client, server, f"{BESIDE}:80/tcp", instance=1)


def test_an_instance_that_takes_replies_by_their_ports_is_refused(
    lab: Lab, driver: str, tmp_path: Path
) -> None:
    """Both send to the backends from the same address, and one of them has its replies queued."""
    own = (*OWN, "--nat", "full")
    other = ("--vip", f"{BESIDE}:80", *BACKENDS, "--datapath", "nfqueue", "--nat", "full")
    for first, second in ((own, other), (other, own)):
        with Featherlb(lab.balancer, ("up", *first), tmp_path) as running:
            ended = run(lab.balancer, "up", *second)
            assert ended.returncode == 1
            assert ended.stderr == (
                f"featherlb: the featherlb with pid {running.pid} sends to the same backend from"
                " the same source address (10.0.1.2,tcp:8080,10.0.1.1), so their ports would"
                " collide; give the service another source address, or both the datapath offload\n"
            )


def test_what_conntrack_forgets_is_no_flow_any_more(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *TCP, *BACKENDS), Session(lab.client) as session:
        session.ask()
        assert len(flows(lab.balancer)) == 1
        lab.balancer.run(["conntrack", "-D", "--dst", VIP])
        wait_for(lambda: flows(lab.balancer) == [], "no flow")
        # The client continues on it and gets a RST.
        session.socket.sendall(b"GET")
        with pytest.raises(ConnectionResetError):
            session.socket.recv(1)


def test_others_connections_and_their_entries_are_left_alone(lab: Lab, featherlb: Up) -> None:
    """Docker's way: a port of the host is sent on to a container."""
    lab.balancer.sysctl("net.ipv4.ip_forward", 1)
    for table, target in (
        ("nat", ["DNAT", "--to-destination", "10.0.1.4:8080"]),
        ("mangle", ["CONNMARK", "--set-mark", "42"]),
    ):
        rule = ["-d", "10.0.0.1", "-p", "tcp", "--dport", "8000", "-j", *target]
        lab.balancer.run(["iptables", "-t", table, "-A", "PREROUTING", *rule])
    with (
        Session(lab.client, "10.0.0.1", 8000) as session,
        Session(lab.clients[1], "10.0.1.3", 8080) as direct,
    ):
        first = session.ask(), direct.ask()
        with featherlb(lab, *TCP, *BACKENDS):
            assert (session.ask(), direct.ask()) == first
            assert ask(lab.client).backend
            assert ask(lab.client, "10.0.0.1", 8000).backend == "backend3"
            assert len([line for line in entries(lab) if "mark=42" in line]) == 2
        assert (session.ask(), direct.ask()) == first


def test_a_firewall_that_forwards_nothing_lets_flows_pass(lab: Lab, featherlb: Up) -> None:
    lab.balancer.run(["iptables", "-P", "FORWARD", "DROP"])
    with featherlb(lab, *TCP, *BACKENDS):
        assert Counter(ask(lab.client).backend for _ in range(6)) == {
            "backend1": 2,
            "backend2": 2,
            "backend3": 2,
        }


def test_datagrams_of_before_are_balanced_once_featherlb_is_there(lab: Lab, featherlb: Up) -> None:
    lab.balancer.run(["ip", "address", "add", f"{VIP}/32", "dev", "lo"])
    options = ("--vip", f"{VIP}:53/udp", "--backend", "10.0.1.2:9000")
    with (
        Receivers(lab.backends[:1], 9000) as receivers,
        open_socket(lab.balancer, (VIP, 53)) as mute,
        open_socket(lab.client, (lab.client.address, 0), (VIP, 53)) as client,
    ):
        # The kernel remembers that the client's are for the host itself.
        lab.balancer.run(["iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"])
        client.send(b"before")
        assert mute.recv(10) == b"before"
        mute.close()
        with featherlb(lab, *options):
            client.send(b"after")
            assert receivers.receive().data == b"after"


def test_a_sender_to_an_empty_pool_gets_an_icmp_error(shared: Shared) -> None:
    client = shared.lab.client
    with open_socket(client, (client.address, 0), (VIP, 53)) as sender:
        sender.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sender.recv(1)


@pytest.mark.parametrize("option", ["one_packet: true", "responses: 1"])
def test_what_would_need_every_datagram_is_refused(
    lab: Lab, driver: str, option: str, tmp_path: Path
) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        f"services: [{{name: dns, vip: {VIP}:53, protocol: udp, datapath: offload, {option},"
        " backends: [10.0.1.2:53]}]\n"
    )
    ended = run(lab.balancer, "up", "--config", str(path))
    assert ended.returncode == 1
    assert f"not enough for `{option.split(':')[0]}`" in ended.stderr


def test_the_port_that_a_client_has_towards_the_backend_is_shown_and_its_connection_ends_there(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    """The connection migrates to nfqueue and back."""
    local = lab.client.address, 5000
    path = tmp_path / "lb.yaml"

    def write(datapath: str) -> None:
        path.write_text(
            f"services: [{{name: web, vip: {VIP}:80, datapath: {datapath},"
            " backends: [10.0.1.2:9000]}]\n"
        )

    def open_flow() -> tuple[str, str]:
        (flow,) = flows(lab.balancer, state="established")
        return flow["client"], flow["source"]

    write("offload")
    with (
        lab.backends[0].listen("0.0.0.0", 9000) as listener,
        featherlb(lab, "--config", str(path)),
        reusing(lab, socket.SOCK_STREAM, local, ("10.0.1.2", 9000)),
    ):
        direct, _ = listener.accept()
        with direct, reusing(lab, socket.SOCK_STREAM, local, (VIP, 80)) as client:
            server, peer = listener.accept()
            with server:
                server.settimeout(30)
                assert peer[1] != 5000
                expected = tuple(f"{address}:{port}" for address, port in (local, peer))
                for datapath in ("offload", "nfqueue", "raw", "offload"):
                    write(datapath)
                    reload(lab.balancer)
                    client.sendall(b"request")
                    assert server.recv(100) == b"request"
                    server.sendall(b"answer")
                    assert client.recv(100) == b"answer"
                    assert open_flow() == expected
                kill_only(lab, client, server, "web")
