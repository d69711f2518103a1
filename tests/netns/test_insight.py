"""What featherlb tells of its decisions is what it then does, and telling changes nothing."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from featherlb.core.pools.schedulers import names
from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import api, run
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
    path.write_text(
        "workers: 2\nservices:\n"
        + "".join(
            f"- name: s{number}\n  vip: '{VIP}:{8000 + number}'\n"
            f"  scheduler: {'rr' if name == 'persistent' else name}\n"
            f"{'  persistence: {}' if name == 'persistent' else ''}\n"
            f"  backends: [{', '.join(BACKENDS)}]\n"
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
