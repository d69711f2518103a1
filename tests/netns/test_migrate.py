"""A reload moves a service to another datapath, with its flows."""

import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import api
from tests.netns.conftest import ONE_DRIVER, SERVED, Up
from tests.netns.load import Load
from tests.netns.test_operate_flows import flows
from tests.netns.test_operate_pools import operate
from tests.netns.traffic import Session, wait_for

pytestmark = ONE_DRIVER


class Changing:
    """The configuration of one service on VIP:80, whose datapath changes."""

    def __init__(self, path: Path, datapath: str, backends: str, nat: str = "dnat") -> None:
        self.path = path
        self._rest = f"nat: {nat}, backends: [{backends}]"
        self.write(datapath)

    def write(self, datapath: str) -> None:
        self.path.write_text(
            f"services: [{{name: web, vip: {VIP}:80, datapath: {datapath}, {self._rest}}}]\n"
        )

    def reload(self, lab: Lab, datapath: str) -> None:
        self.write(datapath)
        operate(lab, "reload")


@SERVED
@pytest.mark.parametrize("datapath", ["nfqueue", "raw"])
def test_what_has_opened_just_before_the_datapath_changes_is_open_afterwards(
    lab: Lab, featherlb: Up, tmp_path: Path, datapath: str
) -> None:
    """Not half-open, as the last look at conntrack said: it would be given up, and its backend
    would be blamed."""
    changing = Changing(tmp_path / "lb.yaml", "offload", "10.0.1.2:8080")
    with featherlb(lab, "--config", str(changing.path)), ExitStack() as stack:
        # So many that it takes conntrack's driver a second to look at each.
        sessions = [stack.enter_context(Session(lab.client)) for _ in range(200)]
        changing.reload(lab, datapath)
        assert Counter(flow["state"] for flow in flows(lab)) == {"established": len(sessions)}
        for session in sessions[::50]:
            assert session.ask().backend == "backend1"


@SERVED
@pytest.mark.parametrize("datapath", ["nfqueue", "raw"])
def test_a_flow_from_before_the_datapath_changed_is_counted(
    lab: Lab, featherlb: Up, tmp_path: Path, datapath: str
) -> None:
    def received() -> int:
        (service,) = api(lab.balancer, "services")["services"]
        (backend,) = service["backends"]
        bytes_in: int = backend["bytes_forward"]
        return bytes_in

    assert lab.balancer.sysctl("net.netfilter.nf_conntrack_acct") == "0"
    changing = Changing(tmp_path / "lb.yaml", datapath, "10.0.1.2:8080")
    with featherlb(lab, "--config", str(changing.path)), Session(lab.client) as session:
        session.ask()
        changing.reload(lab, "offload")
        before = received()
        session.ask()
        wait_for(lambda: received() > before, "the bytes of another request")


@pytest.mark.parametrize("first", ["nfqueue", "raw"])
def test_a_half_closed_connection_stays(
    lab: Lab, featherlb: Up, tmp_path: Path, first: str
) -> None:
    changing = Changing(tmp_path / "lb.yaml", first, "10.0.1.2:9000")
    with (
        lab.backends[0].listen("0.0.0.0", 9000) as listener,
        featherlb(lab, "--config", str(changing.path)),
        lab.client.connect(VIP, 80) as client,
    ):
        server, _ = listener.accept()
        with server:
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            for datapath in ("offload", "nfqueue", "offload"):
                changing.reload(lab, datapath)
                server.sendall(b"answer")
                assert client.recv(100) == b"answer"


@SERVED
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_under_load_nothing_is_cut_or_refused(
    lab: Lab, featherlb: Up, tmp_path: Path, nat: str
) -> None:
    changing = Changing(tmp_path / "lb.yaml", "offload", "10.0.1.2:8080, 10.0.1.3:8080", nat)
    with (
        featherlb(lab, "--config", str(changing.path), "--workers", "2"),
        Load(lab, kept=8, short=8) as load,
    ):
        for datapath in ("nfqueue", "offload", "raw", "nfqueue", "raw", "offload", "nfqueue"):
            load.wait_for_more()
            changing.reload(lab, datapath)
        report = load.stop()
        assert report["errors"] == 0, report
