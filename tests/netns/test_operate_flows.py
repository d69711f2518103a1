"""Flows as operators see them, and end them; a user's own scheduler; the API's ways in."""

import json
import os
import socket
import stat
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from featherlb.api.server import socket_path
from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import Featherlb, api, run
from tests.netns.conftest import ONE_DRIVER, SERVED, Up
from tests.netns.test_operate_pools import ONE, TWO, configuration, operate
from tests.netns.traffic import Session, ask, receive_all, wait_for

pytestmark = [ONE_DRIVER, SERVED]

LISTEN, TOKEN = "127.0.0.1:9180", "open-sesame-open-sesame"


def flows(lab: Lab, *arguments: str) -> list[dict[str, str]]:
    done = run(lab.balancer, "flows", *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def kill(lab: Lab, client: socket.socket, server: socket.socket, *which: str) -> None:
    """Kill the only one of these flows; both ends of its connection get a RST."""
    assert operate(lab, "flows", "--kill", *which) == {"count": 1}
    for end in (client, server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_killed_flows_are_reset_at_both_ends(lab: Lab, featherlb: Up, nat: str) -> None:
    backend = lab.backends[0]
    with (
        backend.listen("0.0.0.0", 9000) as listener,
        featherlb(lab, "--vip", f"{VIP}:80", "--backend", "10.0.1.2:9000", "--nat", nat),
        lab.client.connect(VIP, 80) as client,
    ):
        server, _ = listener.accept()
        with server:
            server.settimeout(30)
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            (flow,) = flows(lab, "--state", "established")
            assert flow["client"].startswith("10.0.0.101:")
            assert flow["backend"] == "10.0.1.2:9000"
            kill(lab, client, server, "--client", "10.0.0.101")
            assert flows(lab, "--state", "established") == []


@pytest.mark.parametrize("scheduler", ["rr", "maglev"])
def test_busy_flows_are_reset_too(lab: Lab, featherlb: Up, scheduler: str) -> None:
    """Data is under way, so the sequence numbers that the balancer knows are old ones; behind a
    consistent scheduler it could open the flow again."""
    options = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:9000", "--scheduler", scheduler)
    with (
        lab.backends[0].listen("0.0.0.0", 9000) as listener,
        featherlb(lab, *options),
        lab.client.connect(VIP, 80) as client,
    ):
        server, _ = listener.accept()
        with server:
            sender = threading.Thread(target=send_until_reset, args=[server])
            sender.start()
            client.settimeout(30)
            client.recv(1 << 16)
            assert operate(lab, "flows", "--kill", "--all") == {"count": 1}
            with pytest.raises(ConnectionResetError):
                receive_all(client)
            sender.join(10)
            assert not sender.is_alive()
            assert flows(lab, "--state", "established") == []


def send_until_reset(connection: socket.socket) -> None:
    with suppress(ConnectionError):
        while True:
            connection.sendall(bytes(1 << 16))


def test_filters(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(ONE, TWO))
    first, second = lab.clients
    with featherlb(lab, "--config", str(path)), ExitStack() as stack:
        sessions = [stack.enter_context(Session(node)) for node in (first, first, second)]
        backends = [session.ask().backend for session in sessions]
        assert len(flows(lab)) == 3
        assert len(flows(lab, "--client", first.address)) == 2
        assert len(flows(lab, "--client", "10.0.0.0/24", "--service", "web")) == 3
        assert len(flows(lab, "--backend", ONE)) == backends.count("backend1")
        assert flows(lab, "--older", "1h") == []
        assert flows(lab, "--state", "closing") == []
        assert operate(lab, "flows", "--kill", "--client", second.address) == {"count": 1}
        assert len(flows(lab)) == 2
        assert [session.ask().backend for session in sessions[:2]] == backends[:2]


def test_a_removed_backend_takes_its_flows_along_where_that_is_wanted(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(ONE, TWO, extra="    on_backend_down: reset\n"))
    with featherlb(lab, "--config", str(path)), ExitStack() as stack:
        sessions = [stack.enter_context(Session(lab.client)) for _ in range(4)]
        held = {session: session.ask().backend for session in sessions}
        operate(lab, "backend", "remove", "web", TWO)
        for session, backend in held.items():
            if backend == "backend2":
                with pytest.raises(ConnectionResetError):
                    session.socket.recv(1)
            else:
                assert session.ask().backend == "backend1"


def test_a_users_scheduler_of_three_lines(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    code = tmp_path / "my.py"
    code.write_text("def pick(flow, backends):\n    return backends[flow.client & 1]\n")
    arguments = ["--vip", f"{VIP}:80", "--backend", ONE, "--backend", TWO]
    with featherlb(lab, *arguments, "--scheduler", f"{code}:pick") as running:
        for node in lab.clients:
            expected = f"backend{(int(ip_address(node.address)) & 1) + 1}"
            assert {ask(node).backend for _ in range(3)} == {expected}
        # A reload loads edited code; failing code is logged once and worked around.
        code.write_text("def pick(flow, backends):\n    return 1 / 0\n")
        operate(lab, "reload")
        backends = Counter(ask(lab.client).backend for _ in range(40))
        assert backends.keys() == {"backend1", "backend2"}
        wait_for(lambda: "the scheduler fails" in running.log, "the error in the log")
        assert running.log.count("ZeroDivisionError") == 1
        assert f"pick() raised ZeroDivisionError('division by zero') ({code}:2)" in running.log
        (errors,) = api(lab.balancer, "stats")["scheduler_errors"].values()
        assert errors == 40
        # Code that can't be loaded changes nothing.
        code.write_text("\n\ndef pick(")
        refused = run(lab.balancer, "reload")
        assert refused.returncode == 2
        assert f"{code}:3: the scheduler does not load: SyntaxError" in refused.stderr
        assert ask(lab.client).backend in backends


def test_a_scheduler_of_an_installed_package(
    lab: Lab, featherlb: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "geo.py").write_text("def last(flow, backends):\n    return backends[-1]\n")
    info = tmp_path / "geo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: geo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[featherlb.schedulers]\ngeo = geo:last\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    arguments = ["--vip", f"{VIP}:80", "--backend", ONE, "--backend", TWO]
    with featherlb(lab, *arguments, "--scheduler", "geo"):
        assert {ask(lab.client).backend for _ in range(4)} == {"backend2"}


def test_the_socket_is_for_root_alone(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE):
        path = lab.balancer.call(socket_path, api(lab.balancer, "status")["instance"])
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as idle:
            # A client that says nothing, and one that goes away, hold up nobody.
            idle.connect(str(path))
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(path))
                rude.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert ask(lab.client).backend == "backend1"
            assert api(lab.balancer, "status")["services"] == 1
    assert not path.exists()


def get(lab: Lab, path: str, token: str | None = None) -> tuple[int, str]:
    """GET over the API's TCP listener."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{LISTEN}{path}", headers=headers)

    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return lab.balancer.call(fetch)


def metrics(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def served(lab: Lab, featherlb: Up, tmp_path: Path) -> Iterator[Featherlb]:
    """An instance with the API on TCP."""
    path = tmp_path / "lb.yaml"
    api = f"api: {{listen: '{LISTEN}', token: {TOKEN}}}\n"
    path.write_text(api + configuration(ONE, TWO, "10.0.1.4:1"))
    with featherlb(lab, "--config", str(path)) as running:
        yield running


def test_tcp_asks_for_the_token(lab: Lab, served: Featherlb) -> None:
    assert get(lab, "/v1/status")[0] == 401
    assert get(lab, "/v1/status", "open-sesame-open-sesam")[0] == 401
    code, text = get(lab, "/v1/status", TOKEN)
    assert code == 200
    assert json.loads(text)["backends"] == 3
    assert get(lab, "/metrics")[0] == 200


def test_metrics_add_up(lab: Lab, served: Featherlb) -> None:
    for _ in range(5):
        ask_or_refused(lab)
    found = metrics(get(lab, "/metrics")[1])

    def total(prefix: str) -> float:
        return sum(value for name, value in found.items() if name.startswith(prefix))

    received = total("featherlb_received_packets_total")
    assert received > 20
    assert received == total("featherlb_packets_total") == total("featherlb_packet_reasons_total")
    translated = found['featherlb_packets_total{result="translated",worker="0"}']
    assert translated == total("featherlb_backend_packets_total")
    assert total("featherlb_backend_flows_total") == 7
    refused = 'featherlb_backend_refused_total{backend="10.0.1.4:1",service="web",worker="0"}'
    assert found[refused] == 2
    assert found['featherlb_reloads_total{result="done"}'] == 0
    operate(lab, "reload")
    found = metrics(get(lab, "/metrics")[1])
    assert found['featherlb_reloads_total{result="done"}'] == 1


def ask_or_refused(lab: Lab) -> None:
    """Ask, again where the backend that refuses had its turn."""
    try:
        ask(lab.client)
    except ConnectionRefusedError:
        ask(lab.client)
