"""Injected faults, on the real kernel: clients meet them, and nobody else does."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import Featherlb, api, run
from tests.netns.conftest import ONE_DRIVER, SEEING, SERVED, Up, in_turn
from tests.netns.traffic import Session, ask, pair, wait_for

pytestmark = SERVED
ONE, TWO = "10.0.1.2:8080", "10.0.1.3:8080"
PORT = 81
DELAY = 0.2


def config(path: Path, nat: str) -> str:
    """A service with two backends, and one with a single backend that the test itself is."""
    services = (("web", 80, f"'{ONE}', '{TWO}'"), ("bulk", PORT, "'10.0.1.2:9090'"))
    path.write_text(
        "services:\n"
        + "".join(
            f"  - {{name: {name}, vip: '{VIP}:{port}', nat: {nat}, scheduler: rr,"
            f" backends: [{pool}]}}\n"
            for name, port, pool in services
        )
    )
    return str(path)


@contextmanager
def fault(lab: Lab, service: str, kind: str, **more: object) -> Iterator[dict[str, Any]]:
    """A fault that is in force during the block; what has become of it is there afterwards."""
    found: dict[str, Any] = api(lab.balancer, "faults", {"service": service, "kind": kind, **more})
    try:
        yield found
    finally:
        found |= api(lab.balancer, f"faults/{found['number']}", method="DELETE")


def faults(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api(lab.balancer, "faults")["faults"]
    return found


@in_turn(SEEING, nat=["dnat", "full"])
def test_clients_meet_faults(lab: Lab, featherlb: Up, nat: str, tmp_path: Path) -> None:
    with featherlb(lab, "--config", config(tmp_path / "lb.yaml", nat)) as running:
        open_before = Session(lab.client)
        delayed(lab)
        lost(lab)
        open_before.ask()
        open_before.close()
        reset(lab)
        out_of_order(lab)
        ending_by_itself(lab, running)


def delayed(lab: Lab) -> None:
    """Each answer of one backend takes longer, and everybody who looks is told."""
    with fault(lab, "web", "delay", backend=ONE, delay=DELAY, **{"for": "5m"}) as one:
        took = {"backend1": 0.0, "backend2": 0.0}
        for _ in range(4):
            before = time.monotonic()
            name = ask(lab.client).backend
            took[name] = time.monotonic() - before
        assert took["backend1"] >= 2 * DELAY  # the handshake, and the response
        assert [each["number"] for each in faults(lab)] == [one["number"]]
    assert one["flows"] == 2
    assert one["packets"] >= 2 * 3
    assert faults(lab) == []


def lost(lab: Lab) -> None:
    """A client's second SYN goes to another backend."""
    with fault(lab, "web", "drop", backend=TWO) as one:
        assert {ask(lab.client).backend for _ in range(2)} == {"backend1"}
    assert api(lab.balancer, "stats")["reasons"]["injected-fault"] == one["packets"] > 0


def reset(lab: Lab) -> None:
    with (
        fault(lab, "web", "reset"),
        Session(lab.client) as session,
        pytest.raises(ConnectionResetError),
    ):
        session.ask()
    ask(lab.client)


def out_of_order(lab: Lab) -> None:
    """What arrives is whole."""
    data = bytes(range(256)) * 256
    with (
        fault(lab, "bulk", "reorder", seed=1) as one,
        pair(lab, VIP, 9090, PORT) as (client, server),
    ):
        for _ in range(4):
            server.sendall(data)
            received = b""
            while len(received) < len(data):
                received += client.recv(1 << 16)
            assert received == data
    assert one["packets"] > 0


def ending_by_itself(lab: Lab, running: Featherlb) -> None:
    command = ("web", "--drop", "--share", "0.5%", "--for", "500ms")
    added = run(lab.balancer, "chaos", "add", *command, "-o", "json")
    number = json.loads(added.stdout)["number"]
    wait_for(lambda: f"fault {number} has ended" in running.log, "the end of the fault")
    assert faults(lab) == []


@ONE_DRIVER
@pytest.mark.no_packets
def test_everybody_who_looks_is_told(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    said = "delay of 80 ms for 10 % of the new flows of web"
    with featherlb(lab, "--config", config(tmp_path / "lb.yaml", "dnat")):
        added = run(lab.balancer, "chaos", "add", "web", "--share", "10%", "--delay", "80ms")
        assert f"fault 1: {said}" in added.stdout
        for command in ("status", "backends", "top --count 1"):
            shown = " ".join(run(lab.balancer, *command.split()).stdout.split())
            assert said in shown, command
        ended = run(lab.balancer, "chaos", "remove", "1")
        assert ended.stdout == f"ended: {said} (0 flows, 0 packets)\n"
