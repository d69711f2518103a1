"""Users' code, on the real kernel: the same key in datagrams leads to the same backend, and hooks
are told."""

import asyncio
from pathlib import Path

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.builders import dns_query
from tests.netns import quic
from tests.netns.command import change, reload
from tests.netns.conftest import ONE_DRIVER, SEEING, WATCHED_OR_ASKED, Up, in_turn
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.traffic import Session, wait_for

PORT = 4433
CONNECTIONS = 4
KEYS = """
def last_byte(flow, payload):
    return payload[-1:]


def broken(flow, payload):
    return flow.no_such_thing
"""


def config(path: Path, nat: str, port: int, key: str, more: str = "") -> str:
    pool = ", ".join(f"'10.0.1.{number}:{port}'" for number in (2, 3, 4))
    path.write_text(
        f"workers: 2\nservices:\n  - {{name: it, vip: '{VIP}:{port}', protocol: udp, nat: {nat},"
        f" scheduler: maglev, hash_on: {key}, backends: [{pool}]{more}}}\n"
    )
    return str(path)


@in_turn(SEEING, nat=["dnat", "full"])
def test_a_quic_client_that_changes_its_port_keeps_its_backend(
    lab: Lab, featherlb: Up, nat: str, tmp_path: Path
) -> None:
    async def talk() -> set[str]:
        seen = set()
        for _ in range(CONNECTIONS):
            async with quic.client(VIP, PORT) as client:
                name = await client.ask()
                for _ in range(2):
                    await client.change_port()
                    assert await client.ask() == name
            seen.add(name)
        return seen

    path = config(tmp_path / "lb.yaml", nat, PORT, "quic-connection-id")
    with (
        quic.servers(lab.backends, PORT, tmp_path),
        featherlb(lab, "--config", path),
    ):
        assert lab.client.call(asyncio.run, talk()) <= {node.name for node in lab.backends}


@ONE_DRIVER
def test_each_query_goes_to_its_names_backend(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = config(tmp_path / "lb.yaml", "dnat", 5353, "dns-name", ", one_packet: true")
    with featherlb(lab, "--config", path), Receivers(lab.backends, 5353) as receivers:
        found: dict[str, set[str]] = {}
        with open_socket(lab.client, ("0.0.0.0", 0), (VIP, 5353)) as client:
            for number in range(8):
                name = f"{number}.example"
                for kind in ("A", "AAAA"):
                    client.send(dns_query(name, kind))
                    found.setdefault(name, set()).add(receivers.receive().backend)
        assert {len(each) for each in found.values()} == {1}
        assert len(set.union(*found.values())) > 1


@ONE_DRIVER
def test_a_users_key_and_one_that_fails(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    (tmp_path / "keys.py").write_text(KEYS)
    path = tmp_path / "lb.yaml"
    with (
        featherlb(lab, "--config", config(path, "dnat", 5353, "./keys.py:last_byte")) as running,
        Receivers(lab.backends, 5353) as receivers,
    ):
        found: dict[bytes, set[str]] = {}
        for number in range(12):
            with open_socket(lab.client, ("0.0.0.0", 0), (VIP, 5353)) as client:
                payload = b"%d %d" % (number, number % 3)
                client.send(payload)
                found.setdefault(payload[-1:], set()).add(receivers.receive().backend)
        assert {len(each) for each in found.values()} == {1}
        config(path, "dnat", 5353, "./keys.py:broken")
        reload(lab.balancer)
        for _ in range(8):
            with open_socket(lab.client, ("0.0.0.0", 0), (VIP, 5353)) as client:
                client.send(b"x")
                receivers.receive()
        said = "keys.py:broken is switched off for 60 s: it raised AttributeError"
        wait_for(lambda: said in running.log and f"{tmp_path}/keys.py:7" in running.log, "the log")


HOOKS = """
import sys


def opened(flow):
    print("opened", flow.client.address, flow.backend, file=sys.stderr)


def closed(flow):
    print("closed", flow.bytes_reply > 0, file=sys.stderr)


def changed(change):
    print("changed", change.backend, change.what, file=sys.stderr)
"""


@WATCHED_OR_ASKED
def test_hooks_are_told(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    lab.balancer.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", 1)
    path = tmp_path / "lb.yaml"
    path.write_text(
        f"timeouts: {{closed: 1s}}\nservices:\n  - {{name: web, vip: '{VIP}:80', on_open:"
        " ./hooks.py:opened, on_close: ./hooks.py:closed, on_backend_change: ./hooks.py:changed,"
        " backends: ['10.0.1.2:8080']}\n"
    )
    with (
        HttpServer(lab.backends[0]),
        featherlb(lab, "--config", str(path)) as running,
    ):
        session = Session(lab.client)
        session.ask()
        session.reset()
        change(lab.balancer, "drain", "web", "10.0.1.2:8080")
        said = (
            f"opened {lab.client.address} 10.0.1.2:8080",
            "closed True",
            "changed 10.0.1.2:8080 weight",
        )
        wait_for(lambda: all(line in running.log for line in said), "what the hooks print")
