"""control/cluster.py: whether a node may get traffic, by what the synchroniser reports."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from featherlb.config.types import ClusterConfig
from featherlb.control.cluster import Cluster, check_keys
from featherlb.control.events import Events
from featherlb.control.serving import Serving
from featherlb.control.tasks import Tasks
from featherlb.model import Endpoint
from featherlb.model.errors import HostError

PEER = "10.9.0.2:7946"


def make() -> Cluster:
    events = Events()
    config = ClusterConfig(
        "a", Endpoint(ip_address("10.9.0.1"), 7946), (Endpoint(ip_address("10.9.0.2"), 7946),)
    )
    return Cluster(config, Serving(events, Tasks(events)), events)


def report(cluster: Cluster, **peer: Any) -> None:
    """What the synchroniser says of the peer."""
    cluster.take({"peers": [{"address": PEER, **peer}], "refused": {}})


def test_a_node_is_ready_once_it_has_the_flows_of_all_peers_that_are_there() -> None:
    cluster = make()
    assert list(cluster.obstacles()) == [f"peer {PEER} was not asked yet"]
    report(cluster, node="b", state="synchronised")
    assert list(cluster.obstacles()) == ["peer b has not sent its flows yet"]
    report(cluster, node="b", state="synchronised", copied=True)
    assert list(cluster.obstacles()) == []
    # A peer that comes back is no reason to leave.
    report(cluster, node="b", state="unreachable", trouble="it does not answer")
    report(cluster, node="b", state="synchronised")
    assert list(cluster.obstacles()) == []
    cluster.leave(True)
    assert list(cluster.obstacles()) == ["it leaves the cluster"]
    cluster.leave(False)
    assert list(cluster.obstacles()) == []


def test_a_node_does_not_start_without_its_keys(tmp_path: Path) -> None:
    config = ClusterConfig("a", Endpoint(ip_address("10.9.0.1"), 7946), keys=str(tmp_path))
    with pytest.raises(HostError, match="is missing: `featherlb cluster keys` makes them"):
        check_keys(config)


def test_a_node_without_peers_serves_alone() -> None:
    cluster = make()
    report(cluster, state="unreachable", trouble="connection refused")
    assert list(cluster.obstacles()) == []


def test_a_peer_that_serves_something_else_is_told_of() -> None:
    cluster = make()
    report(cluster, node="b", state="synchronised", digest=cluster.digest)
    (peer,) = cluster.view().peers
    assert peer.digest == cluster.view().digest
    report(cluster, node="b", state="synchronised", digest="another")
    assert cluster.view().peers[0].digest == "another"
