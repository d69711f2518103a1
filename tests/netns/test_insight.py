"""What featherlb tells of its decisions is what it then does, and telling changes nothing."""

import itertools
import json
import socket
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from featherlb.core.pools.schedulers import names
from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.system.pcap import Captured, Writer
from tests.netns.command import api, reload, run
from tests.netns.conftest import SERVED, Up
from tests.netns.traffic import Session

pytestmark = SERVED

BACKENDS = {f"10.0.1.{number + 1}:8080": f"backend{number}" for number in (1, 2, 3)}
CUSTOM = """\
turns = 0

def pick(flow, backends):
    global turns
    turns += 1
    return backends[turns * turns // 3 % len(backends)]
"""


def explain(lab: Lab, client: str, vip: str) -> dict[str, Any]:
    found: dict[str, Any] = api(
        lab.balancer, f"explain?{urlencode({'client': client, 'vip': vip})}"
    )
    return found


@pytest.mark.parametrize("driver", ["netlink", "raw", "offload"], indirect=True)
def test_a_connection_goes_where_it_was_told_to_go(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """With every scheduler, asked three times before each connection."""
    (tmp_path / "mine.py").write_text(CUSTOM)
    schedulers = [*names(), "./mine.py:pick", "persistent"]
    path = tmp_path / "lb.yaml"
    # Some schedulers take the weight as a limit, which the workers share.
    pool = [f"{{address: '{one}', weight: 8}}" for one in BACKENDS]
    path.write_text(
        "workers: 2\nservices:\n"
        + "".join(
            f"- name: s{number}\n  vip: '{VIP}:{8000 + number}'\n"
            f"  scheduler: {'rr' if name == 'persistent' else name}\n"
            f"{'  persistence: {}' if name == 'persistent' else ''}\n"
            f"  backends: [{', '.join(pool)}]\n"
            for number, name in enumerate(schedulers)
        )
    )
    address = lab.client.address
    with featherlb(lab, "--config", str(path)), ExitStack() as sessions:
        for number, name in enumerate(schedulers):
            vip = f"{VIP}:{8000 + number}"
            ports = range(40000 + 4 * number, 40004 + 4 * number)
            for port in ports:
                client = f"{address}:{port}"
                told = [explain(lab, client, vip) for _ in range(3)]
                assert len({one["backend"] for one in told}) == 1, name
                session = Session(lab.client, VIP, 8000 + number, (address, port))
                sessions.enter_context(session)
                assert session.ask().backend == BACKENDS[told[0]["backend"]], name
                after = explain(lab, client, vip)
                assert after["flow"]["backend"] == told[0]["backend"], name
            everything = explain(lab, address, f"s{number}")
            assert everything["port_assumed"]
            assert {one["client"] for one in everything["flows"]} == {
                f"{address}:{port}" for port in ports
            }
        shown = run(lab.balancer, "explain", f"{address}:40000", f"{VIP}:8000")
        assert shown.returncode == 0, shown.stderr
        lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
        assert lines[0].startswith(f"{address}:40000 -> {VIP}:8000/tcp: service s0, ")
        assert any(line.startswith("flow: established, to 10.0.1.") for line in lines)
        assert sum("<- new flow" in line for line in lines) == 1
        refused = run(lab.balancer, "explain", address, "10.9.9.9:1")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "there is no service or VIP '10.9.9.9:1'" in refused.stderr


@pytest.mark.parametrize("driver", ["netlink"], indirect=True)
def test_a_replay_of_what_a_client_saw_has_the_same_backends(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    path, capture = tmp_path / "lb.yaml", tmp_path / "seen.pcapng"
    path.write_text(
        configuration(("web", 80, f"scheduler: maglev, backends: [{', '.join(BACKENDS)}]"))
    )
    every = 0x0003  # ETH_P_ALL (linux/if_ether.h)
    kind = socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(every)
    used = {}
    with featherlb(lab, "--config", str(path)), lab.client.call(socket.socket, *kind) as link:
        for _ in range(12):
            with Session(lab.client, VIP, 80) as session:
                address, port = session.socket.getsockname()
                used[f"{address}:{port}"] = session.ask().backend
                session.close()
        link.setblocking(False)
        with closing(Writer(capture)) as writer, suppress(BlockingIOError):
            for number in itertools.count():
                data = link.recv(1 << 16)
                if data[0] >> 4 == 4:
                    writer.write(Captured(number / 1000, data, len(data)), "")
    done = run(lab.client, "replay", str(capture), "--config", str(path), "-o", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {one["client"]: BACKENDS[one["backend"]] for one in answer["openings"]} == used
    assert answer["outcomes"].keys() == {"forward", "reply"}


def rules(lab: Lab) -> list[str]:
    """Rules and addresses of the balancer."""
    commands = ["iptables-save", "ip -o address"]
    return [
        line
        for command in commands
        for line in lab.balancer.run(command.split()).stdout.splitlines()
        if not line.startswith((":", "#"))
    ]


def configuration(*services: tuple[str, int, str]) -> str:
    """Services with a name, a port of the VIP, and other keys."""
    return "services:\n" + "".join(
        f"- {{name: {name}, vip: '{VIP}:{port}', {keys}}}\n" for name, port, keys in services
    )


@pytest.mark.parametrize("driver", ["netlink", "offload"], indirect=True)
def test_a_reload_does_what_was_planned_and_planning_does_nothing(
    lab: Lab, featherlb: Up, driver: str, tmp_path: Path
) -> None:
    offloaded = driver == "offload"
    one, two, three = BACKENDS
    path, new = tmp_path / "lb.yaml", tmp_path / "new.yaml"
    path.write_text(
        configuration(
            ("web", 80, f"scheduler: maglev, backends: ['{one}', '{two}', '{three}']"),
            ("cut", 81, f"backends: ['{one}', '{two}']"),
            ("gone", 82, f"backends: ['{one}']"),
            ("moves", 84, f"backends: ['{one}']"),
        )
    )
    new.write_text(
        configuration(
            ("web", 80, f"scheduler: maglev, backends: ['{one}', '{three}']"),
            ("cut", 81, f"on_backend_down: reset, backends: ['{one}']"),
            ("fresh", 83, f"backends: ['{one}']"),
            ("moves", 85, f"backends: ['{one}']"),
        )
    )
    with featherlb(lab, "--config", str(path)) as running, ExitStack() as stack:
        ports = {"web": 80, "cut": 81, "gone": 82, "moves": 84}
        sessions = {
            name: [stack.enter_context(Session(lab.client, VIP, port)) for _ in range(12)]
            for name, port in ports.items()
        }
        places = {
            name: [session.ask().backend for session in ours] for name, ours in sessions.items()
        }
        before = rules(lab)
        told = json.loads(run(lab.balancer, "plan", str(new), "-o", "json").stdout)
        assert rules(lab) == before
        assert reloads(lab) == (0, 0)
        assert (told["refused"], told["sampled"], told["flows"]) == ([], 48, 48)
        web, cut, gone, moves, fresh = told["services"]
        draining = places["web"].count("backend2")
        assert 0 < draining < 12
        assert (web["flows"]["drain"], web["flows"]["stay"]) == (draining, 12 - draining)
        assert web["slots"] == pytest.approx(1 / 3, abs=0.02)
        assert (web["clients"], web["moved"]) == (1, 1)
        assert (cut["flows"]["reset"], cut["flows"]["stay"]) == (6, 6)
        assert gone["flows"]["reset"] == 12
        # The kernel translates what gets to this host, whatever the port.
        assert moves["flows"]["stay" if offloaded else "reset"] == 12
        assert sum(fresh["flows"].values()) == 0
        assert any(line.startswith("+ iptables") and " 83 " in line for line in told["host"])
        assert any(line.startswith("- iptables") and " 82 " in line for line in told["host"])

        path.write_text(new.read_text())
        ended = [f"cut: 6 flows to {two} reset", "gone: 12 flows reset"]
        if not offloaded:
            ended.append("moves: 12 flows to removed VIPs reset")
        assert reload(lab.balancer) == told["differences"] + ended
        for line in ended:
            assert running.log.count(line) == 1
        for name, ours in sessions.items():
            for session, place in zip(ours, places[name], strict=True):
                lost = name == "gone" or (name == "moves" and not offloaded)
                if lost or (name == "cut" and place == "backend2"):
                    with pytest.raises(ConnectionResetError):
                        session.ask()
                else:
                    assert session.ask().backend == place
        again = run(lab.balancer, "plan", str(new))
        assert (again.returncode, again.stderr) == (0, "")
        lines = again.stdout.splitlines()
        assert lines[0] == "no difference"
        assert f"web: open flows: {draining} drain, {12 - draining} stay" in lines
        assert "host" not in lines
        after = rules(lab)

        new.write_text(configuration(("web", 90, f"backends: ['{one}']")))
        with lab.balancer.listen("0.0.0.0", 90):
            refused = run(lab.balancer, "plan", str(new))
        assert (refused.returncode, refused.stderr) == (1, "")
        last = refused.stdout.splitlines()[-1]
        assert last.startswith("refused: ")
        assert "listens on 0.0.0.0:90/tcp" in last
        new.write_text(configuration(("web", 80, "backend: 10.0.1.2:80")))
        faulty = run(lab.balancer, "plan", str(new))
        assert (faulty.returncode, faulty.stdout) == (2, "")
        assert f"{new}:2: " in faulty.stderr
        assert rules(lab) == after
        assert reloads(lab) == (1, 0)
        assert "Traceback" not in running.log


def reloads(lab: Lab) -> tuple[int, int]:
    """How many were done and refused."""
    status = api(lab.balancer, "status")
    return status["reloads"], status["reloads_refused"]
