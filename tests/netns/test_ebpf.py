"""The datapath ebpf: a program in the kernel carries what a worker has opened, whoever runs, and
nothing of it is left when nobody wants it any more."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.host import remove_saved_flows
from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from featherlb.system import programs
from tests.netns.command import Featherlb, api, flows, kill, reload, run, worker_pids
from tests.netns.conftest import EBPF, Up
from tests.netns.traffic import Session, ask, pair, receive_all, wait_for

pytestmark = [
    pytest.mark.parametrize("driver", list(EBPF), indirect=True),
    pytest.mark.usefixtures("shared_bpffs"),
]

WEB = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080", "--backend", "10.0.1.3:8080")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=1, backends=2) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield lab


def pins(lab: Lab, instance: int = 0) -> list[str]:
    """The names of what an instance has pinned."""
    place: Path = lab.balancer.call(programs.directory, instance)
    return sorted(path.name for path in place.glob("*"))


def handled(lab: Lab) -> int:
    """The packets that the workers have had."""
    return int(sum(worker["received"] for worker in api(lab.balancer, "status")["workers"]))


def end_all(lab: Lab, running: Featherlb) -> None:
    """kill -9 of the instance, workers included, and nothing of it was saved."""
    workers = worker_pids(lab.balancer)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    running.kill()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not lab.balancer.pids(), "the end of the workers")
    lab.balancer.call(remove_saved_flows)


@pytest.mark.parametrize(("vip", "nat"), [(VIP, "dnat"), (VIP6, "full")])
def test_workers_see_the_packet_that_opens_a_flow_and_no_other(
    lab: Lab, featherlb: Up, vip: str, nat: str
) -> None:
    backend = f"[{lab.backends[0].address6}]:8081" if vip == VIP6 else "10.0.1.2:8081"
    endpoint = f"[{vip}]:80" if vip == VIP6 else f"{vip}:80"
    options = ("--vip", endpoint, "--backend", backend, "--nat", nat)
    with featherlb(lab, *options), pair(lab, vip, 8081) as (client, server):
        for sender, receiver in ((client, server), (server, client)) * 2:
            sender.sendall(b"?" * 3000)
            assert len(receiver.recv(3000, 0x100)) == 3000  # MSG_WAITALL
        wait_for(lambda: flows(lab.balancer)[0]["state"] == "established", "the state")
        (flow,) = flows(lab.balancer)
        assert min(flow["bytes_forward"], flow["bytes_reply"]) > 6000
        client.close()
        assert receive_all(server) == b""
        server.close()
        wait_for(lambda: flows(lab.balancer)[0]["state"] == "closing", "the state after the end")
        (one,) = api(lab.balancer, "services")["services"]
        (member,) = one["backends"]
        assert member["active"] == 0
        assert member["packets_forward"] > 5
        assert member["bytes_reply"] > 6000
        # In `dnat` mode the program opens it, too.
        assert handled(lab) == (1 if nat == "full" else 0)


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_connections_outlive_their_instance(lab: Lab, featherlb: Up, nat: str) -> None:
    options = (*WEB, "--nat", nat, "--workers", "2")
    with ExitStack() as stack:
        with featherlb(lab, *options) as running:
            held = [stack.enter_context(Session(lab.client)) for _ in range(6)]
            first = [session.ask() for session in held]
            end_all(lab, running)
        # Nobody runs.
        assert [session.ask() for session in held] == first
        with featherlb(lab, *options) as running:
            running.forgets = False
            assert [session.ask() for session in held] == first
            found = flows(lab.balancer)
            assert [flow["state"] for flow in found].count("established") == len(held)
            services = api(lab.balancer, "services")["services"]
            assert sum(one["active"] for one in services[0]["backends"]) == len(held)
            held.pop().close()
            wait_for(lambda: len(established(lab)) == len(held), "the end of a connection")
        # It was stopped, and has left what they need. Other numbers of workers have other maps, and
        # in `full` mode other source ports.
        assert [session.ask() for session in held] == first[:-1]
        with featherlb(lab, *options[:-1], "3" if nat == "dnat" else "2"):
            assert len(established(lab)) == len(held)
            assert [session.ask() for session in held] == first[:-1]
            assert kill(lab.balancer, all="true") >= len(held)
            assert not flows(lab.balancer)
    assert not pins(lab)


def test_the_program_opens_flows_while_nobody_runs(lab: Lab, featherlb: Up) -> None:
    """Their SYNs pass no worker, and the next instance has them."""
    with ExitStack() as stack:
        with featherlb(lab, *WEB) as running:
            held = [stack.enter_context(Session(lab.client)) for _ in range(3)]
            wait_for(lambda: len(established(lab)) == 3, "the flows")
            shown = run(lab.balancer, "explain", lab.client.address, f"{VIP}:80").stdout
            assert "the program in the kernel opens the flow" in shown
            held.append(stack.enter_context(Session(lab.client)))
            first = [session.ask().backend for session in held]
            assert sorted(first) == sorted(["backend1", "backend2"] * 2)
            following = {"backend1": "10.0.1.2", "backend2": "10.0.1.3"}[first[-1]]
            assert f"round-robin picks {following}:8080, as its slot is the next in turn" in shown
            assert "flows are opened by the program" in run(lab.balancer, "backends").stdout
            assert handled(lab) == 0
            wait_for(lambda: len(established(lab)) == 4, "the flows")
            end_all(lab, running)
        held += [stack.enter_context(Session(lab.client)) for _ in range(4)]
        first += [session.ask().backend for session in held[4:]]
        assert sorted(first) == sorted(["backend1", "backend2"] * 4)
        with featherlb(lab, *WEB) as running:
            running.forgets = False
            assert len(established(lab)) == 8
            assert [session.ask().backend for session in held] == first
            held.append(stack.enter_context(Session(lab.client)))
            held[-1].ask()
        # It was stopped: open connections go on, and there are no new ones.
        assert [session.ask().backend for session in held[:8]] == first
        with pytest.raises(TimeoutError):
            lab.client.connect(VIP, 80, timeout=2)
        with featherlb(lab, *WEB):
            assert len(established(lab)) == 9
            kill(lab.balancer, all="true")


def test_the_program_opens_flows_where_the_workers_would(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    """A client's flows are those of one worker, and a scheduler that hashes places them as it says;
    a service that needs a worker for its flows has it."""
    path = tmp_path / "lb.yaml"

    def write(more: str) -> None:
        path.write_text(
            f"services: [{{name: web, vip: {VIP}:80, {more},"
            " backends: [10.0.1.2:8080, 10.0.1.3:8080]}]\n"
        )

    def opened_by() -> str:
        (service,) = api(lab.balancer, "services")["services"]
        return str(service["opened_by"])

    write("scheduler: maglev")
    with featherlb(lab, "--config", str(path), "--workers", "3"), ExitStack() as stack:
        for port in range(41000, 41008):
            client = f"{lab.client.address}:{port}"
            said = json.loads(run(lab.balancer, "explain", client, "web", "-o", "json").stdout)
            session = stack.enter_context(Session(lab.client, source=("", port)))
            backend = {"backend1": "10.0.1.2:8080", "backend2": "10.0.1.3:8080"}[
                session.ask().backend
            ]
            assert (said["backend"], port) == (backend, port)
        wait_for(lambda: len(established(lab)) == 8, "the flows")
        assert opened_by() == "program"
        assert handled(lab) == 0
        write("scheduler: maglev, max_new: 1000/s")
        reload(lab.balancer)
        assert opened_by() == "worker (a worker decides who may open flows)"
        ask(lab.client)
        assert handled(lab) > 0


def established(lab: Lab) -> list[object]:
    return [flow for flow in flows(lab.balancer) if flow["state"] == "established"]


def test_down_removes_what_a_killed_instance_left(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *WEB) as running, Session(lab.client) as session:
        session.ask()
        end_all(lab, running)
        assert pins(lab)
        assert "eBPF programs of instance 0" in run(lab.balancer, "down").stdout
    assert not pins(lab)
    shown = lab.balancer.run(["bpftool", "net", "show"], check=False).stdout
    assert "ingress" not in shown
    with featherlb(lab, *WEB):
        assert ask(lab.client).backend in ("backend1", "backend2")


@pytest.mark.usefixtures("driver")
def test_a_service_changes_its_datapath_and_back(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"

    def write(datapath: str) -> None:
        path.write_text(
            f"services: [{{name: web, vip: {VIP}:80, datapath: {datapath},"
            " backends: [10.0.1.2:8080]}]\n"
        )

    write("nfqueue")
    up = Featherlb(lab.balancer, ("up", "--config", str(path)), tmp_path)
    with up, Session(lab.client) as session:
        session.ask()
        for datapath in ("ebpf", "nfqueue", "ebpf", "offload", "ebpf"):
            write(datapath)
            reload(lab.balancer)
            assert session.ask().backend == "backend1"
            attached = any(name.startswith("link-") for name in pins(lab))
            assert attached is (datapath == "ebpf")
            before = handled(lab)
            session.ask()
            session.ask()
            seen = handled(lab) - before
            if datapath == "nfqueue":
                assert seen >= 4


def test_links_that_come_get_the_program(lab: Lab, featherlb: Up) -> None:
    def add(name: str) -> None:
        lab.balancer.run(["ip", "link", "add", name, "type", "veth"])
        lab.balancer.run(["ip", "link", "set", name, "up"])

    with featherlb(lab, *WEB):
        before = len(pins(lab))
        try:
            add("new0")
            wait_for(lambda: len(pins(lab)) == before + 1, "the program at the new link")
        finally:
            subprocess.run(lab.balancer.command(["ip", "link", "del", "new0"]), check=False)
        wait_for(lambda: len(pins(lab)) == before, "the end of its pin")


def test_what_is_left_of_a_network_namespace_that_is_gone_is_removed(featherlb: Up) -> None:
    with Lab(clients=1, backends=1) as other:
        with featherlb(other, *WEB) as running:
            place: Path = other.balancer.call(programs.directory, 0)
            end_all(other, running)
        programs.sweep()
        assert place.exists()

    def swept() -> bool:
        programs.sweep()
        return not place.exists()

    # The kernel removes the links a moment later.
    wait_for(swept, "the end of the pins")
