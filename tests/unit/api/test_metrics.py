"""The metrics' names in docs/operations.md, in the alerts and in the dashboard are real ones."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client.core import Metric

from featherlb.api.listener import Refusal
from featherlb.api.metrics import Snapshot
from featherlb.config.file import parse
from featherlb.config.resolve import resolve
from featherlb.control.canary import CanaryView
from featherlb.control.cluster import ClusterView, PeerView
from featherlb.control.cookies import CookieView
from featherlb.control.events import Events
from featherlb.control.faults import FaultView
from featherlb.control.health import HealthChecks
from featherlb.control.host_watch import HostView
from featherlb.control.log_level import LogLevel
from featherlb.control.tasks import Tasks, TaskState
from featherlb.control.transition import State
from featherlb.control.view import Reloads, View, WorkerView, view_services
from featherlb.datapaths.base import EngineCounters
from featherlb.model import Datapath, PeerState
from featherlb.model.fault import Fault, FaultKind
from featherlb.model.reason import PASSED, TRANSLATED, Reason
from featherlb.worker.protocol import CodeCounts, WorkerStatistics
from tests.world import CLIENT, ONE, TWO, VIP, World, client, service

CONFIG = f"""
services:
- name: web
  vip: {VIP}
  passive_health: {{}}
  backends: [{{address: '{ONE}', max_connections: 7}}, '{TWO}']
"""
ROOT = Path(__file__).parents[3]


def families(world: World) -> list[Metric]:
    """The metrics of an instance whose worker holds this world's balancer."""
    events = Events()
    tasks = Tasks(events)
    health = HealthChecks(events, tasks)
    config = parse(CONFIG, "f")
    judgement = health.judge(config, resolve(config, lambda name: []))
    health.follow(config, judgement)
    queue = EngineCounters(received=9, queue_dropped=1, socket_dropped=2, waiting=3, unsent=4)
    frames = EngineCounters(received=8, socket_dropped=1, unsent=2, unresolved=3, held=4)
    engines = {Datapath.NFQUEUE: queue, Datapath.RAW: frames}
    worker = WorkerStatistics(
        world.balancer.views.statistics(),
        engines,
        4,
        {},
        {"the key f": CodeCounts(1, 2, True)},
        5,
        replicas={"entered": 3},
    )
    view = View(
        instance=0,
        started=datetime.now(UTC),
        uptime=1.0,
        assign=False,
        overrides=(),
        canaries=CanaryView({}, {"promoted": 2, "aborted": 1}),
        faults=(FaultView(Fault(1, "web", FaultKind.RESET, 0.0), 3, 2),),
        absent=0,
        hash_key="configuration",
        log_level=LogLevel.INFO,
        log_until=None,
        reloads=Reloads(),
        services=view_services(State(config, services=judgement.services), health),
        workers=(WorkerView(0, 1, worker, alive=True),),
        worker_restarts=0,
        refused={("web", Reason.NOT_ALLOWED): 5},
        martians=6,
        tasks=(TaskState("names", 2, True, "OSError", ""),),
        host=HostView(
            deviations=("net.ipv4.ip_forward is 0 and has to be 1",), restored={"rules": 2}
        ),
        cookies=CookieView(True, True, 5),
        obstacles=("it leaves the cluster",),
        cluster=ClusterView(
            "lb1",
            "one",
            True,
            (PeerView("10.9.0.2:7946", "lb2", PeerState.SYNCHRONISED, digest="two", queued=9),),
        ),
        watchdog_fed=False,
    )
    return list(Snapshot(view, {Refusal.TOKEN: 3}).collect())


def samples(world: World) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for family in families(world):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found


@pytest.fixture
def world() -> World:
    world = World(service(ONE, TWO, nat="full"))
    for number in range(5):
        world.connect(client(number))
    world.connect(CLIENT).reply("R")
    return world


def test_the_page_lists_every_metric_with_its_labels(world: World) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(featherlb_\w+)` \| ([\w, ]*?) ?\|", page, re.MULTILINE)
    real = {
        sample.name: ", ".join(sample.labels) for one in families(world) for sample in one.samples
    }
    # Reasons for errors of schedulers have no sample without a user's scheduler.
    assert dict(rows) == real | {"featherlb_scheduler_errors_total": "worker, service"}


@pytest.mark.parametrize("name", ["prometheus/alerts.yaml", "grafana/featherlb.json"])
def test_examples_use_metrics_that_exist(world: World, name: str) -> None:
    text = (ROOT / "contrib" / name).read_text(encoding="utf-8")
    assert yaml.safe_load(text)
    used = set(re.findall(r"featherlb_\w+", text))
    assert used
    assert used <= samples(world).keys() | {"featherlb_scheduler_errors_total"}


def test_the_dashboard_shows_as_dropped_what_is_dropped() -> None:
    dashboard = (ROOT / "contrib" / "grafana" / "featherlb.json").read_text(encoding="utf-8")
    (others,) = re.findall(r'reason!~\\"([a-z|-]+)\\"', dashboard)
    assert set(others.split("|")) == {reason.label for reason in TRANSLATED | PASSED}


def test_the_metrics_of_tasks(world: World) -> None:
    found = samples(world)
    assert found["featherlb_task_restarts_total"] == [2]
    assert found["featherlb_task_failing"] == [1]


def test_invariants(world: World) -> None:
    found = samples(world)
    (received,) = found["featherlb_received_packets_total"]
    assert received == sum(found["featherlb_packets_total"]) == world.received
    assert received == sum(found["featherlb_packet_reasons_total"])
    assert sum(found["featherlb_flows"]) == 6 <= found["featherlb_flow_capacity"][0]
    assert sum(found["featherlb_backend_flows_total"]) == 6
    assert sum(found["featherlb_backend_resets_total"]) == 1
    assert found["featherlb_kernel_dropped_packets_total"] == [1, 2, 4, 1]
