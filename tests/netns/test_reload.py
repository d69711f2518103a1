"""Changes of a running instance: SIGHUP reloads the configuration, a worker dies."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import Featherlb, worker_pids
from tests.netns.conftest import ONE_DRIVER, SERVED, Up
from tests.netns.traffic import Answer, Session, ask, wait_for

pytestmark = [ONE_DRIVER, SERVED]


class Configuration:
    """A configuration file with one service on VIP:80, and the instance that runs on it."""

    def __init__(self, path: Path, nat: str = "dnat") -> None:
        self.path = path
        self.nat = nat
        self.running: Featherlb | None = None

    def write(self, backends: Sequence[str], scheduler: str = "lc", vip: str = VIP) -> None:
        """`backends` are those of the lab by name, with @WEIGHT if not 1."""
        lines = [
            "services:",
            "  - name: web",
            f"    vip: {vip}:80",
            f"    scheduler: {scheduler}",
            f"    nat: {self.nat}",
            "    backends:",
        ]
        for backend in backends:
            name, _, weight = backend.partition("@")
            address = f"10.0.1.{int(name[-1]) + 1}:8080"
            lines.append(f"      - {{address: '{address}', weight: {weight or 1}}}")
        self.path.write_text("\n".join(lines) + "\n")

    def reload(self) -> str:
        """SIGHUP; the log from there until it says what came of it."""
        assert self.running is not None
        start = len(self.running.log)
        self.running.process.send_signal(signal.SIGHUP)

        def news() -> str:
            assert self.running is not None
            return self.running.log[start:]

        wait_for(lambda: "reload" in news(), "the end of the reload in the log")
        return news()


@pytest.fixture(params=["dnat", "full"])
def configuration(
    lab: Lab, featherlb: Up, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Configuration]:
    """Running, with backend1 and backend2."""
    configuration = Configuration(tmp_path / "lb.yaml", request.param)
    configuration.write(["backend1", "backend2"])
    with featherlb(lab, "--config", str(configuration.path)) as configuration.running:
        yield configuration


def test_long_connections_stay_over_changes_of_the_pool(
    lab: Lab, configuration: Configuration
) -> None:
    with ExitStack() as stack:

        def hold(count: int) -> list[tuple[Session, Answer]]:
            sessions = [stack.enter_context(Session(lab.client)) for _ in range(count)]
            return [(session, session.ask()) for session in sessions]

        def names(held: list[tuple[Session, Answer]]) -> Counter[str]:
            return Counter(answer.backend for _, answer in held)

        held = hold(50)
        assert names(held) == {"backend1": 25, "backend2": 25}
        for backends, scheduler in (
            (["backend1", "backend2", "backend3"], "lc"),
            (["backend1@5", "backend2@1", "backend3@2"], "wrr"),
            (["backend3", "backend2", "backend1"], "maglev"),
            (["backend1", "backend2@0", "backend3"], "lc"),
        ):
            configuration.write(backends, scheduler)
            assert "reloaded" in configuration.reload()
            assert [session.ask() for session, _ in held] == [answer for _, answer in held]
        # The counts of open flows are right after all that: the new backend is the emptiest.
        assert names(hold(25)) == {"backend3": 25}
        assert "backend2" not in names(hold(10))


def test_a_removed_backend_gets_no_new_connection(lab: Lab, configuration: Configuration) -> None:
    with Session(lab.client) as one, Session(lab.client) as other:
        before = {session: session.ask() for session in (one, other)}
        (stays,) = (session for session in before if before[session].backend == "backend2")
        configuration.write(["backend2", "backend3"], "rr")
        assert "reloaded" in configuration.reload()
        turns = Counter(ask(lab.client).backend for _ in range(8))
        assert turns == {"backend2": 4, "backend3": 4}
        assert stays.ask() == before[stays]


def test_a_vip_is_added_and_another_removed(lab: Lab, configuration: Configuration) -> None:
    configuration.write(["backend1"], vip="10.0.0.11")
    assert "reloaded" in configuration.reload()
    assert ask(lab.client, "10.0.0.11").backend == "backend1"
    addresses = lab.balancer.run(["ip", "-brief", "address"]).stdout
    assert " 10.0.0.11/" in addresses
    assert f" {VIP}/" not in addresses


def test_an_earlier_instance_takes_no_replies_from_a_later_one(
    lab: Lab, featherlb: Up, configuration: Configuration
) -> None:
    """Of a backend that both have, replies don't tell whose they are. The earlier instance takes up
    to see the clients' addresses when the later one is there already, or sees them all along."""
    other = ("--vip", "10.0.0.11:80", "--backend", "10.0.1.2:8080", "--backend", "10.0.1.3:8080")
    with featherlb(lab, *other), Session(lab.client, "10.0.0.11") as session:
        before = session.ask()
        configuration.nat = "dnat"
        configuration.write(["backend1", "backend2"])
        assert "reloaded" in configuration.reload()
        assert session.ask() == before
        for vip in (VIP, "10.0.0.11"):
            assert ask(lab.client, vip).peer == lab.client.address


def test_a_wrong_file_changes_nothing(lab: Lab, configuration: Configuration) -> None:
    with Session(lab.client) as held:
        before = held.ask()
        rules = lab.balancer.run(["iptables-save"]).stdout.splitlines()
        configuration.path.write_text("services:\n  - name: web\n    vip: nowhere\n    nat: no\n")
        news = configuration.reload()
        assert "refused" in news
        for fault in ("refused, .*lb.yaml:3: ", ".*lb.yaml:4: "):
            assert re.search(rf"^\d{{4}}-\S+ \S+ ERROR .*{fault}", news, re.MULTILINE), news
        assert held.ask() == before
        after = lab.balancer.run(["iptables-save"]).stdout.splitlines()
        assert [line for line in after if line[0] == "-"] == [
            line for line in rules if line[0] == "-"
        ]
    assert sorted(ask(lab.client).backend for _ in range(2)) == ["backend1", "backend2"]


def test_a_worker_that_dies_is_replaced(lab: Lab, configuration: Configuration) -> None:
    assert configuration.running is not None
    (worker,) = worker_pids(lab.balancer)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: worker not in worker_pids(lab.balancer), "another worker")
    assert ask(lab.client).backend in ("backend1", "backend2")
