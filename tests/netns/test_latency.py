"""Backends that take long to answer: that is measured, and new connections go elsewhere."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import api, run
from tests.netns.conftest import EBPF, Up
from tests.netns.slow import Slow
from tests.netns.traffic import Session, ask, wait_for

DELAY = 0.2
"""Seconds: far more than a busy machine takes for an answer."""
HOSTS = [f"10.0.1.{number}:8080" for number in (2, 3, 4, 5)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=1, backends=4) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield lab


def config(path: Path) -> str:
    """A service that goes by latency, and one that ejects whom it finds slow."""
    text = "services:\n"
    for name, port, options in (
        ("web", 80, "scheduler: least-latency"),
        ("shop", 81, "passive_health: {slower: 3, ejection: 1h}"),
    ):
        text += f"- {{name: {name}, vip: '{VIP}:{port}', {options}, backends: {HOSTS}}}\n"
    path.write_text(text)
    return str(path)


def backends(lab: Lab, service: str) -> list[dict[str, Any]]:
    (found,) = (one for one in api(lab.balancer, "services")["services"] if one["name"] == service)
    listed: list[dict[str, Any]] = found["backends"]
    return listed


def slow_share(lab: Lab, count: int, port: int = 80) -> float:
    """The part of so many new connections that goes to the first backend."""
    answers = Counter(ask(lab.client, port=port).backend for _ in range(count))
    return answers["backend1"] / count


@pytest.mark.parametrize("driver", ["netlink", "offload", *EBPF], indirect=True)
def test_new_connections_avoid_a_slow_backend_until_it_recovers(
    driver: str, lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    with (
        featherlb(lab, "--config", config(tmp_path / "lb.yaml")) as running,
        ExitStack() as sessions,
    ):
        with Slow(lab.backends[0], DELAY):

            def tried() -> bool:
                slow_share(lab, 4)
                flows: int = backends(lab, "web")[0]["flows"]
                return flows > 0

            wait_for(tried, "the slow backend gets a connection")
            assert slow_share(lab, 40) <= 0.05
            slow, *others = backends(lab, "web")
            assert slow["latency"] >= DELAY
            assert all(one["latency"] < DELAY for one in others)
            assert sum(slow["answers"].values()) == slow["flows"]
            assert f" {1000 * slow['latency']:.0f}ms " in run(lab.balancer, "backends").stdout

            def ejected() -> bool:
                slow_share(lab, 8, port=81)
                state: str = backends(lab, "shop")[0]["state"]
                return state == "ejected"

            wait_for(ejected, "the slow backend is ejected")
            assert "ms to answer a SYN, the others take" in running.log
        if driver != "netlink":  # all that follows is the same
            return
        # The more the others have to do, the sooner it is tried again.
        for _ in range(40):
            sessions.enter_context(Session(lab.client))

        before: int = backends(lab, "web")[0]["flows"]

        def recovered() -> bool:
            slow_share(lab, 4)
            flows: int = backends(lab, "web")[0]["flows"]
            return flows > before + 3

        wait_for(recovered, "it gets connections again")
