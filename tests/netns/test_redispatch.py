"""Flows whose backend refuses them, or does not answer: another backend gets them, and clients
notice nothing."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from tests.netns.command import api, flows
from tests.netns.conftest import Up, all_pairs, in_turn
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.traffic import REQUEST_AND_CLOSE, parse, wait_for

COUNT = 300
PARALLEL = 100
ADDRESSES = {4: (VIP, "10.0.1.{}"), 6: (VIP6, "[2001:db8:1::{}]")}
DATAGRAMS = 53


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The first backend serves, the second one refuses, and the third one is powered off."""
    with Lab(clients=1, backends=3) as lab, ExitStack() as servers:
        for address in ("0.0.0.0", "::"):
            servers.enter_context(HttpServer(lab.backends[0], address))
        lab.backends[2].run(["ip", "link", "set", "eth0", "down"])
        yield lab


def config(path: Path, family: int, nat: str, **more: str) -> str:
    """A file with a service of TCP and one of UDP."""
    vip, backend = ADDRESSES[family]
    host = f"[{vip}]" if family == 6 else vip
    text = "services:\n"
    for name, port, to, protocol, hosts in (
        ("web", 80, 8080, "tcp", (2, 3, 4)),
        ("dns", DATAGRAMS, 5353, "udp", (2, 3)),
    ):
        backends = ", ".join(f"'{backend.format(number)}:{to}'" for number in hosts)
        text += f"  - name: {name}\n    vip: '{host}:{port}'\n    protocol: {protocol}\n"
        text += f"    nat: {nat}\n    scheduler: rr\n    backends: [{backends}]\n"
        text += "".join(f"    {key}: {value}\n" for key, value in more.items())
    path.write_text(text)
    return str(path)


async def ask_all(vip: str, count: int) -> list[str]:
    """Who answered each of `count` new connections; any error is raised."""
    turns = asyncio.Semaphore(PARALLEL)

    async def one() -> str:
        async with turns, asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(vip, 80)
            writer.write(REQUEST_AND_CLOSE)
            answer = parse(await reader.read())
            writer.close()
            await writer.wait_closed()
            return answer.backend

    return await asyncio.gather(*(one() for _ in range(count)))


def backends(lab: Lab, service: str) -> list[dict[str, int]]:
    """The counters of each backend."""
    (found,) = (one for one in api(lab.balancer, "services")["services"] if one["name"] == service)
    counted: list[dict[str, int]] = found["backends"]
    return counted


@all_pairs(nat=["dnat", "full"], family=[4, 6])
def test_no_client_notices_backends_that_refuse_or_are_off(
    lab: Lab, featherlb: Up, nat: str, family: int, tmp_path: Path
) -> None:
    vip, _ = ADDRESSES[family]
    with featherlb(lab, "--config", config(tmp_path / "lb.yaml", family, nat)):
        answers = lab.client.call(asyncio.run, ask_all(vip, COUNT))
        assert answers == ["backend1"] * COUNT
        _, refusing, silent = backends(lab, "web")
        assert refusing["moved_refused"] == refusing["refused"] >= COUNT // 3
        # Without an answer to ARP, this host's own ICMP errors may come before the second SYN.
        assert silent["moved_silent"] + silent["moved_refused"] >= COUNT // 3
        # Datagrams go on, too, and each gets there once.
        address = "::" if family == 6 else "0.0.0.0"
        with Receivers(lab.backends[:1], 5353, family_of(vip)) as receivers:
            for number in range(6):
                with open_socket(lab.client, (address, 0), (vip, DATAGRAMS)) as client:
                    receivers.exchange(client, b"query %d" % number)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.fixture
def lossy(lab: Lab) -> Iterator[list[str]]:
    """The third backend is on again, but its answers go to a host that is not there, until the
    command runs that this is."""
    node = lab.backends[2]
    node.run(["ip", "link", "set", "eth0", "up"])
    node.run(["ip", "route", "add", "default", "via", "10.0.1.1"])
    node.run(
        ["ip", "neighbour", "replace", "10.0.1.1", "lladdr", "02:00:00:00:00:99", "dev", "eth0"]
    )
    with HttpServer(node):
        yield ["ip", "neighbour", "delete", "10.0.1.1", "dev", "eth0"]
    node.run(["ip", "link", "set", "eth0", "down"])


@in_turn(nat=["dnat", "full"])
def test_a_late_answer_is_reset(
    lab: Lab, featherlb: Up, nat: str, lossy: list[str], tmp_path: Path
) -> None:
    backend = lab.backends[2]
    with featherlb(lab, "--config", config(tmp_path / "lb.yaml", 4, nat)):
        assert lab.client.call(asyncio.run, ask_all(VIP, 6)) == ["backend1"] * 6
        late = [one for one in flows(lab.balancer) if one["state"] == "replaced"]
        assert {one["backend"] for one in late} == {"10.0.1.4:8080"}
        backend.run(lossy)  # it sends them again

        def are_reset() -> bool:
            half_open = backend.run(["ss", "-Htn", "state", "syn-recv"]).stdout
            return not half_open and api(lab.balancer, "stats")["reasons"]["late-answer"] > 0

        wait_for(are_reset, "late answers")
        assert backends(lab, "web")[2]["syn_timeouts"] == 0
