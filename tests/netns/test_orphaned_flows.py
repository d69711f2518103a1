"""Offloaded connections of a dead instance, while other instances start and stop."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import Featherlb, api, flows, run
from tests.netns.conftest import SERVED, Up
from tests.netns.test_offload import BACKENDS, BESIDE, TCP, crash, entries, stop
from tests.netns.traffic import Session, ask

pytestmark = [pytest.mark.parametrize("driver", ["offload"], indirect=True), SERVED]

ENDINGS = pytest.mark.parametrize("end", [stop, crash])
OTHER = ("--vip", f"{BESIDE}:80", *BACKENDS)
End = Callable[[Featherlb], None]


@pytest.mark.parametrize(("end", "nat"), [(stop, "dnat"), (crash, "full")])
def test_an_instance_that_starts_leaves_anothers_connections_alone(
    lab: Lab, featherlb: Up, nat: str, end: End
) -> None:
    """Neither instance has said which queue it wants, and both send to the backends from the same
    address where they don't show the client."""
    own, other = (*TCP, *BACKENDS, "--nat", nat), (*OTHER, "--nat", nat)
    with ExitStack() as stack:
        with featherlb(lab, *own) as running:
            sessions = [stack.enter_context(Session(lab.client)) for _ in range(6)]
            first = [session.ask() for session in sessions]
            end(running)
        with featherlb(lab, *other):
            assert [session.ask() for session in sessions] == first
            assert ask(lab.client, BESIDE).backend
        assert [session.ask() for session in sessions] == first
        with featherlb(lab, *other):
            with featherlb(lab, *own):
                assert [session.ask() for session in sessions] == first
                adopted = flows(lab.balancer, instance=0, state="established")
                assert [flow["vip"] for flow in adopted] == [f"{VIP}:80"] * 6
                assert ask(lab.client).backend
            assert [session.ask() for session in sessions] == first
    assert run(lab.balancer, "down").returncode == 0
    assert "FEATHERLB" not in lab.balancer.run(["iptables-save"]).stdout


@ENDINGS
def test_an_instance_takes_the_place_of_a_gone_one_with_a_vip_of_its(
    lab: Lab, featherlb: Up, end: End
) -> None:
    """Its connections to the shared VIP continue, the others are deleted."""
    with ExitStack() as stack:
        with featherlb(lab, *TCP, *OTHER, "--workers", "2") as running:
            kept, lost = (stack.enter_context(Session(lab.client, vip)) for vip in (VIP, BESIDE))
            first = kept.ask()
            lost.ask()
            end(running)
        # Others have nothing to do with it, and don't get its queues.
        with featherlb(lab, "--vip", f"{VIP}:81", *BACKENDS):
            assert (kept.ask(), lost.ask().peer) == (first, first.peer)
            with featherlb(lab, *TCP, *BACKENDS):
                assert kept.ask() == first
                assert len(flows(lab.balancer, instance=0, state="established")) == 1
                assert entries(lab, "--orig-dst", BESIDE) == []
                assert BESIDE not in lab.balancer.run(["ip", "address"]).stdout
                assert ask(lab.client).backend
                assert ask(lab.client, VIP, 81).backend
                assert api(lab.balancer, "status", instance=2)["instance"] == 2


@ENDINGS
@pytest.mark.parametrize(
    ("datapath", "nat"), [("nfqueue", "dnat"), ("raw", "full"), ("nfqueue", "full")]
)
def test_replies_to_connections_of_a_gone_instance_are_not_taken_from_them(
    lab: Lab, featherlb: Up, end: End, datapath: str, nat: str
) -> None:
    """Each sends to the backends from the same address where both don't show the client."""
    other = (*OTHER, "--datapath", datapath, "--nat", nat)
    own = (*TCP, *BACKENDS, "--nat", nat)
    with featherlb(lab, *own) as running, Session(lab.client) as session:
        first = session.ask()
        end(running)
        refused = run(lab.balancer, "up", *other)
        assert refused.returncode == 1
        assert f"the featherlb with pid {running.pid}" in refused.stderr
        assert "; it is gone, but the kernel forwards its connections, which" in refused.stderr
        assert session.ask() == first
        # `auto` picks datapaths that are compatible.
        if nat == "dnat":
            with featherlb(lab, *other, "--datapath", "auto"):
                assert (session.ask(), ask(lab.client, BESIDE).peer) == (first, first.peer)
        # In its own place everything is allowed, as it is once the connections have been ended.
        assert run(lab.balancer, "up", "--dry-run", *own, "--datapath", datapath).returncode == 0
        assert run(lab.balancer, "down").returncode == 0
        with featherlb(lab, *other):
            assert ask(lab.client, BESIDE).backend


@ENDINGS
def test_what_a_gone_instance_has_left_goes_when_no_connection_needs_it(
    lab: Lab, featherlb: Up, end: End
) -> None:
    other = (*OTHER, "--datapath", "nfqueue")
    with featherlb(lab, *TCP, *BACKENDS) as running:
        with Session(lab.client) as session:
            session.ask()
            end(running)
            assert run(lab.balancer, "up", "--dry-run", *other).returncode == 1
        lab.balancer.run(["conntrack", "-D", "--orig-dst", VIP])
    with featherlb(lab, *other):
        assert ask(lab.client, BESIDE).backend
        assert VIP not in lab.balancer.run(["ip", "address"]).stdout
        assert f"-d {VIP}/32" not in lab.balancer.run(["iptables-save"]).stdout
