"""What a soak does to an instance under load, each with what clients may lose by it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featherlb.api import schema
from featherlb.lab.namespaces import VIP
from featherlb.model import Datapath
from scripts.bench.flood import next_hop, route_back
from scripts.trials.stage import BACKENDS, FIRST_PORT, PROGRAM, Event, Stage, is_alive, wait_for

Excuse = Callable[[Stage, Event], bool]
HOLD = 3.0
"""Seconds for which something stays as it is made."""
ROOT = Path(__file__).parents[2]


def nothing(stage: Stage, event: Event) -> bool:
    """Clients must not notice."""
    return False


def first_backend(stage: Stage, event: Event) -> bool:
    """What was open to the backend ends with it, also before its first answer. The kernel answers
    for `offload`, so its clients get the refusals until the checks have found the backend dead."""
    if event.kind == "broken":
        return event.backend == 0
    accepted = "Connect call failed" not in event.why
    return event.kind == "failed" and (accepted or event.service.startswith(Datapath.OFFLOAD))


def this_host_answers(stage: Stage, event: Event) -> bool:
    """Without rules the VIP is an address of this host like any other, and the kernel resets what
    it doesn't know. `offload` needs the rules for new connections alone."""
    return event.kind == "failed" or not event.service.startswith(Datapath.OFFLOAD)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """`run` returns when everything is as it was. `replaces`: processes of the instance."""

    name: str
    run: Callable[[Stage], None]
    excuse: Excuse = nothing
    replaces: bool = False


def reload(stage: Stage) -> None:
    """A backend leaves, and comes back."""
    for backends in ([0, 1], range(BACKENDS)):
        stage.configure(backends)
        stage.lab.balancer.run([PROGRAM, "reload"])
        time.sleep(HOLD / 2)


def drain(stage: Stage) -> None:
    """An operator takes a backend out of a service of each datapath, and puts it back."""
    first = {one.datapath: one for one in stage.targets if ":" not in one.address}
    for action in ("drain", "enable"):
        for one in first.values():
            backend = f"{stage.lab.backends[1].address}:{one.port}"
            stage.lab.balancer.run([PROGRAM, "backend", action, one.name, backend])
        time.sleep(HOLD / 2)


def kill_server(stage: Stage) -> None:
    """A backend's servers are killed: it refuses."""
    stage.kill_server(0)
    time.sleep(HOLD)
    stage.start_server(0)
    wait_until_healthy(stage)


def stall_server(stage: Stage) -> None:
    """A backend's servers stand still: its kernel still accepts connections."""
    os.kill(stage.servers[1].pid, signal.SIGSTOP)
    time.sleep(HOLD)
    os.kill(stage.servers[1].pid, signal.SIGCONT)
    wait_until_healthy(stage)


def cut_backend(stage: Stage) -> None:
    """A backend is silent: its cable is pulled out."""
    cable = ["ip", "-n", stage.lab.balancer.namespace.removesuffix("lb") + "net", "link", "set"]
    subprocess.run([*cable, "backend3-back", "down"], check=True)
    time.sleep(HOLD)
    subprocess.run([*cable, "backend3-back", "up"], check=True)
    wait_until_healthy(stage)


def wait_until_healthy(stage: Stage) -> None:
    """Until all backends are up again."""

    def healthy() -> bool:
        found = stage.instance.get("/v1/services", schema.Services)
        return all(one.state == "up" for each in found.services for one in each.backends)

    wait_for(healthy, "healthy backends", 60)


def kill_worker(stage: Stage) -> None:
    """kill -9 of a worker, which another replaces."""
    dead, *_ = stage.instance.workers()
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: not is_alive(dead), "the worker is replaced")


def flush_rules(stage: Stage) -> None:
    """A firewall script begins with an empty rule set."""
    for family in ("iptables", "ip6tables"):
        for table in ("raw", "mangle"):
            stage.lab.balancer.run([family, "-t", table, "-F"])
    wait_until_restored(stage)


def remove_vip(stage: Stage) -> None:
    """A network manager removes an address that it doesn't know."""
    shown = stage.lab.balancer.run(["ip", "-o", "address", "show", "to", VIP]).stdout
    found = re.search(r"\d: (\S+) +inet (\S+)", shown)
    assert found
    link, address = found.groups()
    stage.lab.balancer.run(["ip", "address", "delete", address, "dev", link])
    wait_until_restored(stage)


def wait_until_restored(stage: Stage) -> None:
    """Until the host is as the instance needs it."""
    time.sleep(HOLD)
    wait_for(
        lambda: not stage.instance.get("/v1/status", schema.Status).host.deviations,
        "the host is restored",
        90,
    )


def flood(stage: Stage) -> None:
    """SYNs from random addresses: many for what the load leaves of the machine."""
    route_back(stage.lab.balancer, stage.lab.client)
    link, mac = next_hop(stage.lab.client, VIP)
    ports = [FIRST_PORT, len(stage.targets) // 4]
    command = [sys.executable, "-m", "scripts.bench.spoof", link, mac, VIP]
    with stage.lab.client.popen(
        [*command, str(ports[0]), "3000", str(HOLD)], stdout=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        process.wait()


def restart(stage: Stage) -> None:
    """What an update does."""
    stage.instance.stop(signal.SIGUSR2)
    stage.instance.start()


def kill_supervisor(stage: Stage) -> None:
    """kill -9 of the supervisor, and a start."""
    stage.instance.kill()
    stage.instance.start()


ALL: Sequence[Disturbance] = (
    Disturbance("reload", reload),
    Disturbance("worker killed", kill_worker, replaces=True),
    Disturbance("flood of SYNs", flood),
    Disturbance("servers killed", kill_server, first_backend),
    Disturbance("rules flushed", flush_rules, this_host_answers),
    Disturbance("drain and enable", drain),
    Disturbance("restart", restart, replaces=True),
    Disturbance("servers stalled", stall_server),
    Disturbance("VIP removed", remove_vip),
    Disturbance("supervisor killed", kill_supervisor, replaces=True),
    Disturbance("backend cut off", cut_backend),
)
