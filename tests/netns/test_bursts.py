"""Bursts of packets, and connections whose last packets were lost in one."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featherlb.datapaths.base import queue_length
from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from featherlb.system import kernel_state
from featherlb.system.nfqueue import bound_queues
from tests.netns.command import api, flows, run
from tests.netns.conftest import QUEUED, Up, all_pairs
from tests.netns.datagrams import open_socket
from tests.netns.traffic import pair, reset, standing_still, wait_for

PORT = 9000


@QUEUED
def test_the_queue_holds_a_burst_and_says_what_was_too_much(lab: Lab, featherlb: Up) -> None:
    """As many packets as the host has memory for wait for a worker that has no time."""
    length = queue_length(kernel_state.memory(), 1)
    options = ("--vip", f"{VIP}:80/udp", "--backend", f"{lab.backends[0].address}:{PORT}")
    with (
        featherlb(lab, *options),
        open_socket(lab.client, ("0.0.0.0", 0), (VIP, 80)) as client,
    ):
        with standing_still(lab.balancer):
            for _ in range(length + 50):
                client.send(b"x" * 200)
            (queue,) = lab.balancer.call(bound_queues).values()
        assert (queue.waiting, queue.queue_dropped, queue.socket_dropped) == (length, 50, 0)
        (counted,) = api(lab.balancer, "stats")["queues"]
        assert counted["queue_dropped"] == 50
        assert "because a queue was full" in run(lab.balancer, "doctor").stdout


@contextmanager
def losing(node: Node, *match: str) -> Iterator[None]:
    """What this node sends is lost on its way."""
    rule = ["OUTPUT", "-p", "tcp", *match, "-j", "DROP"]
    node.run(["iptables", "-A", *rule])
    try:
        yield
    finally:
        node.run(["iptables", "-D", *rule])


@all_pairs(("netlink", "raw"), nat=("dnat", "full"), gone=("client", "backend", "both"))
def test_a_connection_whose_end_is_gone_is_found(
    lab: Lab, featherlb: Up, nat: str, gone: str, tmp_path: Path
) -> None:
    """Nobody sends a RST again. The idle connection beside it lives on."""
    path = tmp_path / "lb.yaml"
    path.write_text(
        "timeouts: {established: 40s, closed: 1s}\n"
        f"services: [{{name: web, vip: '{VIP}:80', nat: {nat},"
        f" backends: ['{lab.backends[0].address}:{PORT}']}}]\n"
    )
    with (
        featherlb(lab, "--config", str(path)),
        pair(lab, VIP, PORT) as (client, server),
        pair(lab, VIP, PORT) as others,
    ):
        name = f"{lab.client.address}:{client.getsockname()[1]}"
        ends = {"client": (lab.client, client), "backend": (lab.backends[0], server)}
        for who, (node, end) in ends.items():
            if gone in (who, "both"):
                ports = ("--sport", str(end.getsockname()[1]), "--dport", str(peer(end)))
                with losing(node, *ports):
                    reset(end)
        # Its timeout is 40 s.
        wait_for(lambda: name not in {one["client"] for one in flows(lab.balancer)}, "its end")
        assert api(lab.balancer, "stats")["flows"] == 1
        if gone != "both":
            (survivor,) = (end for who, (_, end) in ends.items() if who != gone)
            with pytest.raises(ConnectionResetError):
                survivor.recv(1)
        for sender, receiver in (others, others[::-1]):
            sender.sendall(b"x")
            assert receiver.recv(1) == b"x"


def peer(end: socket.socket) -> int:
    """The port of the other end."""
    port: int = end.getpeername()[1]
    return port
